"""How mpms grows: with its processes, its threads, the tasks that wait and what is sent. ``make bench-growth``.

Each point is a process of its own, as all measurements; ``docs/performance.md`` has the picture and what it means.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
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
    burns = _rate(run, tasks.burn, run.loops, Shape(processes=count, threads=1), least=8 * count, window=256)
    run.record(cpu=burns)


def _threads(run: Run, count: int) -> None:
    _of_shape(run, Shape(processes=2, threads=count))


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
    ),
    "threads": Series(
        "Threads in each of two processes",
        "threads per process",
        (1, 2, 4, 8, 16, 32, 64, 100, 200),
        (_RATE, _SHARE, _PSS),
        _threads,
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
    from .__main__ import about, say
    from .runner import ROOT, Bench, calibrate, measure

    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="how mpms grows")
    parser.add_argument("--series", type=names_of(SERIES), default=tuple(SERIES), metavar="A,B", help="only these")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="3")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="how long to measure each time: 0.5")
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
    seen: dict[tuple[str, int], list[Mapping[str, float]]] = {}
    points = [(name, x) for name in options.series for x in SERIES[name].points]
    start = time.monotonic()
    for number in range(options.rounds):
        for name, x in points if number % 2 == 0 else reversed(points):
            measurement = measure(bench, f"{name}={x}", "mpms", deadline=90.0)
            seen.setdefault((name, x), []).append(measurement.figures)
            say(f"{time.monotonic() - start:5.0f} s  {name}={x:<12,}", measurement)
    series = {name: {x: _medians(seen[name, x]) for x in SERIES[name].points} for name in options.series}
    _write(described, series, path)
    return 0


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
        groups = [series.figures] if together else [[figure] for figure in series.figures]
        for figures in groups:
            curves = {
                figure.unit: {x: values[figure.key] for x, values in points.items() if figure.key in values}
                for figure in figures
            }
            yield Panel(
                series.title, series.x, {unit: curve for unit, curve in curves.items() if curve}, log_y=together
            )


def _table(described: Mapping[str, Any], found: Found) -> Iterator[str]:
    yield (
        f"{described['date']}, revision {described['revision']}, {described['python']}, {described['system']}, "
        f"{described['processors']} processors; medians of {described['rounds']} rounds."
    )
    for name, points in found.items():
        series = SERIES[name]
        yield from (
            "",
            f"## {series.title}",
            "",
            f"| {series.x} | " + " | ".join(f.unit for f in series.figures) + " |",
        )
        yield "| ---: |" + " ---: |" * len(series.figures)
        for x, values in points.items():
            cells = [shown(values[figure.key]) if figure.key in values else "" for figure in series.figures]
            yield f"| {x:,} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
