"""What became of a measurement is known, whatever the system does; and nothing of it is left."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from benchmarks.__main__ import main
from benchmarks.runner import Bench, Measurement, Status, measure, rounds


def measured(fake: str, deadline: float = 20.0) -> Measurement:
    bench = Bench(seconds=0.01, patience=0.1, deadline=deadline, module="tests.benchmarks.fakes")
    return measure(bench, "stream", fake)


def test_a_system_that_works_has_a_figure() -> None:
    found = measured("Honest")
    assert found.status is Status.OK, found.log
    assert found.figures["rate"] > 0


@pytest.mark.parametrize(
    ("fake", "status", "detail"),
    [
        ("Lossy", Status.LOSES, "156 of 256"),
        ("Breaking", Status.BROKEN, "BrokenPipeError"),
        ("Telling", Status.BROKEN, "BrokenPipeError"),
        ("Crashing", Status.CRASHED, "exit code 3"),
    ],
)
def test_a_failure_is_a_result(fake: str, status: Status, detail: str) -> None:
    found = measured(fake)
    assert (found.status, found.detail) == (status, detail), found.log
    assert not found.figures


def test_what_hangs_is_killed_with_all_that_it_has_started() -> None:
    found = measured("Hanging", deadline=1.0)
    assert (found.status, found.detail) == (Status.HANGS, "killed after 1 s")
    daemon = int(found.log.split("daemon ")[1].split()[0])
    if sys.platform.startswith("linux"):
        assert not psutil.pid_exists(daemon)


def test_what_hangs_at_the_end_keeps_its_figure() -> None:
    found = measured("HangingAtTheEnd", deadline=1.0)
    assert found.status is Status.HANGS
    assert found.figures["rate"] > 0


def test_what_is_not_installed_is_said_to_be_that() -> None:
    assert measured("Missing").status is Status.NOT_INSTALLED
    bench = Bench(pythons={"2.6": Path("/no/such/python")})
    assert measure(bench, "stream", "mpms-2.6", environment="2.6").status is Status.NOT_INSTALLED


def test_contenders_take_turns() -> None:
    plan = {"stream": ["a", "b"], "join": ["a", "c"]}
    assert list(rounds(plan, 2)) == [
        (0, "stream", "a"),
        (0, "stream", "b"),
        (0, "join", "a"),
        (0, "join", "c"),
        (1, "stream", "b"),
        (1, "stream", "a"),
        (1, "join", "c"),
        (1, "join", "a"),
    ]


def test_what_the_rounds_leave_open_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = Counter[tuple[str, str]]()
    figures = {
        "mpms": {"rate": 1000.0, "full": 10.0, "told": 1.0},
        "loky": {"rate": 200.0},
        "messages": {"rate": 1100.0},
        "pickle": {"rate": 1.0},
    }

    def measure(_bench: Bench, scenario: str, contender: str, **_: object) -> Measurement:
        measured[scenario, contender] += 1
        times = 4 if contender == "loky" and measured[scenario, contender] == 2 else 1  # it was near us in one round
        found = figures.get(contender, {})
        return Measurement(Status.OK, {key: value / 2 * times for key, value in found.items()})

    monkeypatch.setattr("benchmarks.__main__.measure", measure)
    main(
        ["--scenarios", "stream,strength", "--systems", "mpms,loky", "--seconds", "0.01", "--output", f"{tmp_path}/out"]
    )
    assert measured == {
        ("stream", "mpms"): 9,
        ("stream", "loky"): 9,
        ("stream", "messages"): 3,
        ("stream", "pickle"): 3,
        ("strength", "mpms"): 3,
        ("strength", "loky"): 3,
    }
    assert "≥ 4 × the best peer: 5.00 ✓ (9 rounds)" in (tmp_path / "out.md").read_text("utf-8")
