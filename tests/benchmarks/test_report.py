"""The table, the JSON and the picture show what came out, failures as such."""

from __future__ import annotations

import itertools
import json
from xml.etree import ElementTree

import pytest

from benchmarks.picture import svg
from benchmarks.report import Results, as_json, from_json, markdown
from benchmarks.runner import Measurement, Status
from benchmarks.scenarios import SCENARIOS
from benchmarks.systems import SYSTEMS

ABOUT = {
    "date": "2025-01-01",
    "revision": "abc",
    "python": "CPython 3.11",
    "system": "Linux",
    "processors": 2,
    "rounds": 3,
    "load_before": "0.1",
    "load_after": "2.0",
    "versions": {"loky": "3.4"},
}


def ok(rate: float) -> Measurement:
    return Measurement(Status.OK, {"rate": rate}, log="/a/path/of/the/machine")


@pytest.fixture
def results() -> Results:
    results = Results(dict(ABOUT))
    hangs, loses = Measurement(Status.HANGS, detail="killed after 60 s"), Measurement(Status.LOSES, detail="3 of 9")
    for contender, measurements in {
        "mpms": [ok(400), ok(200), ok(420)],  # the machine was busy in the second round
        "multiprocessing.Pool": [ok(100), ok(50), ok(100)],
        "billiard": [ok(500), Measurement(Status.LOSES, {"rate": 500.0}, "3 of 9"), ok(500)],
        "threads": [ok(900)] * 3,
        "pebble": [hangs] * 3,
        "loky": [loses, loses, ok(10)],
        "joblib": [Measurement(Status.UNAVAILABLE, detail="it has no put")] * 3,
        "ray": [Measurement(Status.NOT_INSTALLED, detail="No module named 'ray'")] * 3,
        "messages": [ok(800), ok(400), ok(800)],
    }.items():
        for measurement in measurements:
            results.add("stream", contender, measurement)
    return results


def row(text: str, system: str) -> str:
    section = text.partition("## Stream")[2]
    return next(line for line in section.splitlines() if line.startswith(f"| {system} "))


def test_ratios_are_those_of_the_rounds(results: Results) -> None:
    assert results.value("stream", "mpms", "rate") == 400
    assert results.ratio("stream", "mpms", "messages", "rate") == 0.5  # a drift that hits both is none


def test_the_best_peer_is_one_of_processes_that_did_not_fail(results: Results) -> None:
    assert results.best_peer(SCENARIOS["stream"]) == "multiprocessing.Pool"
    assert "| 100 (multiprocessing.Pool) | 4.00 × | 0.50 × |" in markdown(results)


def test_goals_are_judged(results: Results) -> None:
    text = markdown(results)
    assert "≥ 4 × the best peer: 4.00 ✓" in text
    assert "≥ 0.35 × the floor: 0.50 ✓" in text


def test_a_goal_is_not_reached_by_who_fails(results: Results) -> None:
    results.add("stream", "mpms", Measurement(Status.LOSES, detail="1 of 2"))
    assert "≥ 4 × the best peer: 4.00 ✗" in markdown(results)


def test_who_reaches_a_goal_in_one_round_and_misses_it_in_another_is_unsettled(results: Results) -> None:
    stream = SCENARIOS["stream"]
    assert results.unsettled(stream) == []  # the best peer is beaten by 4.0, 4.0 and 4.2, the floor reached by a half
    results.add("stream", "multiprocessing.Pool", ok(100))
    results.add("stream", "mpms", ok(399))
    results.add("stream", "pebble", ok(1))
    assert results.unsettled(stream) == ["mpms", "multiprocessing.Pool"]
    text = markdown(results)
    assert "≥ 4 × the best peer: 4.00 ✓ (4 rounds)" in text
    assert "≥ 0.35 × the floor: 0.50 ✓ |" in text


def test_a_goal_without_a_peer_may_be_unsettled_too() -> None:
    results = Results(dict(ABOUT))
    for share in (97.0, 99.0):
        results.add("rotation", "mpms", Measurement(Status.OK, {"share": share, "rate": 7000.0}))
        results.add("rotation", "loky", Measurement(Status.OK, {"share": share, "rate": 7000.0}))
    assert results.unsettled(SCENARIOS["rotation"]) == ["mpms"]


def test_failures_are_shown_as_such(results: Results) -> None:
    text = markdown(results)
    assert "**hangs**: killed after 60 s" in row(text, "pebble")
    assert "**loses tasks**: 3 of 9 (2 of 3 rounds)" in row(text, "loky")
    assert "not available: it has no put" in row(text, "joblib")
    assert "not installed" in row(text, "Ray")
    assert "400" in row(text, "**mpms**")


def test_the_rows_of_a_table_have_the_columns_of_its_head(results: Results) -> None:
    results.add("rotation", "mpms", Measurement(Status.OK, {"share": 99.0, "rate": 7000.0}))  # it has no floor
    lines = markdown(results).splitlines()
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert above.count("|") == line.count("|")


def test_json_comes_back_and_has_no_logs(results: Results) -> None:
    text = json.dumps(as_json(results))
    assert "/a/path" not in text
    assert markdown(from_json(json.loads(text))) == markdown(results)


def test_the_picture_has_bars_and_failures(results: Results) -> None:
    root = ElementTree.fromstring(svg(results))
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"hangs", "10.0 loses tasks", "400", "mpms"} <= set(texts)
    assert "Ray" not in texts  # not installed: nothing to draw
    widths = [float(element.attrib["width"]) for element in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert max(widths) > 0
    assert max(widths) <= float(root.attrib["width"])


def test_every_scenario_is_of_systems_and_figures_that_exist() -> None:
    for scenario in SCENARIOS.values():
        assert set(scenario.contenders) <= set(SYSTEMS)
        assert {goal.key for goal in scenario.goals} <= {figure.key for figure in scenario.figures}
        assert {goal.ours for goal in scenario.goals} - {None} <= set(scenario.contenders)
