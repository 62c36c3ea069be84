"""How mpms grows is measured point by point, and drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.growth import SERIES, main, measure_of
from benchmarks.lines import Panel, svg
from benchmarks.runner import Bench, Status, measure
from tests.local.helpers import with_gil


@pytest.mark.parametrize(
    ("point", "figures"), [("threads=3", {"rate", "share", "cpu"}), ("sizes=100", {"bytes", "floor"})]
)
def test_a_point_has_its_figures(point: str, figures: set[str]) -> None:
    found = measure(Bench(seconds=0.01, deadline=60.0), point, "mpms")
    assert found.status is Status.OK, found.log
    assert figures <= set(found.figures)
    assert all(value > 0 for value in found.figures.values())


@pytest.mark.parametrize("name", ["stream", "threads", "nothing=3"])
def test_what_is_no_point_is_none(name: str) -> None:
    assert measure_of(name) is None


def test_it_is_drawn_anew_from_its_figures(tmp_path: Path) -> None:
    points = {name: {str(x): {f.key: 2.0 * x for f in s.figures} for x in s.points} for name, s in SERIES.items()}
    about = {"date": "today", "revision": "r", "python": "p", "system": "s", "processors": 2, "rounds": 1}
    path = tmp_path / "growth"
    path.with_suffix(".json").write_text(json.dumps({"about": about, "series": points}))
    assert main(["--redraw", "--output", str(path)]) == 0
    table, drawing = path.with_suffix(".md").read_text(), path.with_suffix(".svg").read_text()
    ElementTree.fromstring(drawing)
    for series in SERIES.values():
        assert f"## {series.title}" in table
        for figure in series.figures:
            assert figure.unit in table
            assert figure.unit in drawing
    assert "| 268,435,456 | 537,000,000 |" in table


def test_what_was_measured_without_a_gil_stands_beside_the_rest(tmp_path: Path) -> None:
    points = {str(x): {"rate": 1000.0 * x, "rate, no GIL": 2000.0 * x} for x in SERIES["threads"].points}
    about = {"date": "today", "revision": "r", "python": "p", "system": "s", "processors": 2, "rounds": 1}
    path = tmp_path / "growth"
    path.with_suffix(".json").write_text(
        json.dumps({"about": {**about, "free_threaded": "CPython 3.99"}, "series": {"threads": points}})
    )
    assert main(["--redraw", "--output", str(path)]) == 0
    table, drawing = path.with_suffix(".md").read_text(), path.with_suffix(".svg").read_text()
    assert "p and CPython 3.99 without a GIL" in table
    assert "| no-op tasks per second | the same without a GIL | 5-ms sleeps" in table
    assert "| 200 | 200,000 | 400,000 |" in table
    assert drawing.count("the same without a GIL") == 1


@with_gil
def test_a_python_with_a_gil_is_no_free_threaded_one(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--free-threaded: .* has a GIL"):
        main(["--free-threaded", sys.executable, "--output", str(tmp_path / "growth")])


def test_curves_stay_within_their_panel() -> None:
    drawing = svg([Panel("A", "x", {"one": {1: 5.0, 1000: 0.0}, "two": {10: 7.0}}), Panel("B", "x", {"none": {}})])
    root = ElementTree.fromstring(drawing)
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    assert len(circles) == 3
    assert all(0 <= float(c.attrib["cx"]) <= 332 and 40 <= float(c.attrib["cy"]) <= 240 for c in circles)
