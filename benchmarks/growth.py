"""How mpms grows: with its processes, its threads, the tasks that wait and what is sent. ``make bench-growth``.

Each point is a process of its own, as all measurements; ``docs/performance.md`` has the picture and what it means.
Where there is an interpreter without a GIL, processes and threads are measured with that one, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import tasks
from .figures import Figure, median, shown
from .floors import echo
from .lines import Panel, svg
from .measuring import Run, Tally
from .options import names_of
from .processes import pss, rss, tree
from .runner import ROOT, Bench, calibrate, measure
from .system import QUEUE, Shape

__all__ = ["SERIES", "Series", "main", "measure_of"]

_NAP = 0.005


@dataclass(frozen=True)
class Series:
    """``measure(run, x)`` records the ``figures`` at one of the ``points``."""

    title: str
    x: str
    points: Sequence[int]
    figures: Sequence[Figure]
    measure: Callable[[Run, int], None]
    free_threaded: bool = False
    """Whether it is measured without a GIL, too."""

    def columns(self, points: Mapping[int, Mapping[str, float]]) -> list[list[Figure]]:
        """Each figure, with what was measured of it without a GIL."""
        there = {key for values in points.values() for key in values}
        return [[f for f in (figure, _without_gil(figure)) if f is figure or f.key in there] for figure in self.figures]


def _without_gil(figure: Figure) -> Figure:
    return dataclasses.replace(figure, key=f"{figure.key}, no GIL", unit="the same without a GIL")


# What is measured at a point


def _rate(run: Run, function: Callable[[Any], Any], argument: Any, shape: Shape, *, least: int, window: int) -> float:
    """Tasks per second, of so many that they take about the time that a measurement is to take."""
    tally = Tally(run.patience, window)
    system = run.open(function, tally.done, shape)
    count, elapsed = least, 0.0
    tally.batch(system, itertools.repeat(argument, count), count)  # all workers are up
    while elapsed < run.seconds / 4:
        count *= 4
        elapsed = tally.batch(system, itertools.repeat(argument, count), count)
    count = max(least, int(count / elapsed * run.seconds))
    rate = count / tally.batch(system, itertools.repeat(argument, count), count)
    if function is tasks.nap:
        memory = pss(tree(os.getpid()))
        if memory is not None:
            run.record(pss=memory / 2**20)
    system.join()
    return rate


def _of_shape(run: Run, shape: Shape) -> None:
    slots = shape.processes * shape.threads
    run.record(rate=_rate(run, tasks.same, 0, shape, least=1000, window=QUEUE))
    naps = _rate(run, tasks.nap, _NAP, shape, least=4 * slots, window=8 * slots + 64)
    run.record(share=100 * naps * _NAP / slots)


def _processes(run: Run, count: int) -> None:
    _of_shape(run, Shape(processes=count, threads=4))
    _burns(run, Shape(processes=count, threads=1))


def _threads(run: Run, count: int) -> None:
    _of_shape(run, Shape(processes=2, threads=count))
    _burns(run, Shape(processes=1, threads=count))


def _burns(run: Run, shape: Shape) -> None:
    least = 8 * shape.processes * shape.threads
    run.record(cpu=_rate(run, tasks.burn, run.loops, shape, least=least, window=max(256, least)))


def _waiting(run: Run, count: int) -> None:
    """``put`` while so many wait, and what each of these weighs."""
    tally = Tally(run.patience)
    system = run.open(tasks.nap, tally.done, Shape(queue=4_000_000))
    put, argument = system.put, 3600.0  # nobody gets through with it
    for _ in range(1000):
        put(argument)
    time.sleep(0.5)  # the workers have taken what they take
    before = rss()
    for _ in range(count):
        put(argument)
    after = rss()
    start = time.perf_counter()
    for _ in range(20_000):
        put(argument)
    run.record(put=20_000 / (time.perf_counter() - start))
    if before is not None and after is not None and count >= 10_000:  # less is lost among pages
        payload = sys.getsizeof(pickle.dumps(((argument,), {}), 5))
        run.record(weight=(after - before) / count - payload)


def _sizes(run: Run, size: int) -> None:
    """Bytes, and arrays of as many, to a worker and back; beside it two processes that only send and receive."""
    window = max(2, min(256, (1 << 28) // size))
    least = max(4, min(256, (1 << 26) // size))
    shape = Shape()
    run.record(bytes=2 * size * _rate(run, tasks.same, bytes(size), shape, least=least, window=window) / 1e6)
    if size >= 1000:
        import numpy

        array: Any = numpy.zeros(size, dtype=numpy.uint8)
        array[:] = 1  # its pages are its own
        run.record(arrays=2 * size * _rate(run, tasks.same, array, shape, least=least, window=window) / 1e6)
    floor: dict[str, float] = {}
    echo(Run(run.system, run.seconds, run.loops, floor.update), size)
    run.record(floor=2 * size * floor["rate"] / 1e6)


_RATE = Figure("rate", "no-op tasks per second", "more")
_SHARE = Figure("share", "5-ms sleeps: percent of the ideal", "more")
_PSS = Figure("pss", "memory of all processes, MiB", "less")

SERIES: dict[str, Series] = {
    "processes": Series(
        "Processes, with four threads each",
        "processes",
        (1, 2, 3, 4, 6, 8, 12, 16),
        (_RATE, _SHARE, Figure("cpu", "2-ms tasks that compute, per second, one thread each", "more"), _PSS),
        _processes,
        free_threaded=True,
    ),
    "threads": Series(
        "Threads in each of two processes",
        "threads per process",
        (1, 2, 4, 8, 16, 32, 64, 100, 200),
        (_RATE, _SHARE, Figure("cpu", "2-ms tasks that compute, per second, one process", "more"), _PSS),
        _threads,
        free_threaded=True,
    ),
    "waiting": Series(
        "Tasks that wait",
        "waiting tasks",
        (1_000, 10_000, 100_000, 1_000_000),
        (
            Figure("put", "put, per second", "more"),
            Figure("weight", "bytes per waiting task, besides its pickled arguments", "less"),
        ),
        _waiting,
    ),
    "sizes": Series(
        "Size of the argument, which is also the result",
        "bytes",
        (10, 100, 1_000, 10_000, 1 << 16, 1 << 20, 1 << 24, 1 << 26, 1 << 28),
        (
            Figure("bytes", "bytes, MB/s there and back", "more"),
            Figure("arrays", "numpy arrays, MB/s there and back", "more"),
            Figure("floor", "two bare processes that echo, MB/s", "more"),
        ),
        _sizes,
    ),
}


def measure_of(scenario: str) -> Callable[[Run], None] | None:
    """Of a point, named as ``threads=8``."""
    name, _, x = scenario.partition("=")
    return (lambda run: SERIES[name].measure(run, int(x))) if x and name in SERIES else None


# The run


def main(arguments: Sequence[str] | None = None) -> int:
    from .__main__ import about

    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="how mpms grows")
    parser.add_argument("--series", type=names_of(SERIES), default=tuple(SERIES), metavar="A,B", help="only these")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="3")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="how long to measure each time: 0.5")
    parser.add_argument("--free-threaded", type=Path, metavar="PATH", help="a Python without a GIL, measured beside")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/growth", metavar="PATH")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw OUTPUT.json anew")
    options = parser.parse_args(arguments)
    path: Path = options.output
    if options.redraw:
        found = json.loads(path.with_suffix(".json").read_text("utf-8"))
        _write(
            found["about"],
            {name: {int(x): f for x, f in points.items()} for name, points in found["series"].items()},
            path,
        )
        return 0
    bench = Bench(seconds=options.seconds, loops=calibrate())
    described = about(options.rounds, bench.seconds)
    other: Bench | None = None
    if options.free_threaded:
        described["free_threaded"], other = _free_threaded(bench, options.free_threaded)
    seen = _measure_all(bench, other, options.series, options.rounds)
    series = {name: {x: _medians(seen[name, x]) for x in SERIES[name].points} for name in options.series}
    _write(described, series, path)
    return 0


def _measure_all(
    bench: Bench, free_threaded: Bench | None, series: Sequence[str], rounds: int
) -> dict[tuple[str, int], list[Mapping[str, float]]]:
    from .__main__ import say

    seen: dict[tuple[str, int], list[Mapping[str, float]]] = {}
    points = [(name, x) for name in series for x in SERIES[name].points]
    start = time.monotonic()

    def figures(bench: Bench, name: str, x: int, remark: str) -> Mapping[str, float]:
        measurement = measure(bench, f"{name}={x}", "mpms", deadline=90.0)
        say(f"{time.monotonic() - start:5.0f} s  {name}={x:<12,} {remark:<6}", measurement)
        return measurement.figures

    for number in range(rounds):
        for name, x in points if number % 2 == 0 else reversed(points):
            found = seen.setdefault((name, x), [])
            found.append(figures(bench, name, x, ""))
            if free_threaded and SERIES[name].free_threaded:
                there = figures(free_threaded, name, x, "no GIL")
                found.append({_without_gil(f).key: there[f.key] for f in SERIES[name].figures if f.key in there})
    return seen


def _free_threaded(bench: Bench, python: Path) -> tuple[str, Bench]:
    """Which Python it is, and how it is measured: what computes for 2 ms takes other loops there."""
    code = (
        "import platform, sys; from benchmarks.runner import calibrate; "
        "print(platform.python_version(), getattr(sys, '_is_gil_enabled', lambda: True)(), calibrate())"
    )
    python = python.absolute()  # measurements have a directory of their own
    done = subprocess.run([python, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    version, gil, loops = done.stdout.split()
    if gil != "False":
        raise SystemExit(f"--free-threaded: {python} has a GIL")
    return f"CPython {version}", dataclasses.replace(bench, loops=int(loops), pythons={"bench": python})


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = {key: None for figures in rounds for key in figures}
    return {key: median([figures[key] for figures in rounds if key in figures]) for key in keys}


Found = Mapping[str, Mapping[int, Mapping[str, float]]]


def _write(described: Mapping[str, Any], found: Found, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"about": described, "series": found}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    path.with_suffix(".md").write_text("\n".join(_table(described, found)) + "\n", "utf-8")
    path.with_suffix(".svg").write_text(svg(list(_panels(found))), "utf-8")
    print(f"written: {path}.md, .json and .svg", file=sys.stderr)


def _panels(found: Found) -> Iterator[Panel]:
    for name, points in found.items():
        series = SERIES[name]
        together = name == "sizes"  # three curves that are to be compared
        groups = [series.figures] if together else series.columns(points)
        for figures in groups:
            curves = {
                figure.unit: {x: values[figure.key] for x, values in points.items() if figure.key in values}
                for figure in figures
            }
            yield Panel(
                series.title, series.x, {unit: curve for unit, curve in curves.items() if curve}, log_y=together
            )


def _table(described: Mapping[str, Any], found: Found) -> Iterator[str]:
    without_gil = f" and {described['free_threaded']} without a GIL" if "free_threaded" in described else ""
    yield (
        f"{described['date']}, revision {described['revision']}, {described['python']}{without_gil}, "
        f"{described['system']}, {described['processors']} processors; medians of {described['rounds']} rounds."
    )
    for name, points in found.items():
        series = SERIES[name]
        figures = [figure for column in series.columns(points) for figure in column]
        yield from (
            "",
            f"## {series.title}",
            "",
            f"| {series.x} | " + " | ".join(f.unit for f in figures) + " |",
        )
        yield "| ---: |" + " ---: |" * len(figures)
        for x, values in points.items():
            cells = [shown(values[figure.key]) if figure.key in values else "" for figure in figures]
            yield f"| {x:,} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
