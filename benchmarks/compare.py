"""``python -m benchmarks.compare BASE``: two revisions of mpms side by side. Normally by ``make bench-self BASE=REV``.

Both are measured by these benchmarks, one right after the other in every round, first the one and then the other. A
scenario is slower when the median of the rounds' ratios, less its noise, is beyond the threshold; then, and when a
scenario fails that did not, the exit status is 1.
"""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import io
import json
import math
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .figures import Figure, median, shown
from .options import names_of
from .runner import ROOT, Bench, Measurement, Status, calibrate, measure
from .scenarios import SCENARIOS
from .systems import SYSTEMS

__all__ = ["Comparison", "main"]

# Those that take a second or two each; the others by --scenarios.
DEFAULT = ("stream", "futures", "bulk", "latency", "bytes-64k", "arrays-16m", "first", "strength", "join", "cpu")


@dataclass(frozen=True)
class Comparison:
    """One contender in one scenario, base and head, round by round."""

    figure: Figure
    base: Sequence[Measurement]
    head: Sequence[Measurement]

    def slowdowns(self) -> list[float]:
        """How many times worse head is than base, in each round that has both; below 1: better."""
        found = []
        for base, head in zip(self.base, self.head, strict=True):
            one, other = base.figures.get(self.figure.key), head.figures.get(self.figure.key)
            if one and other:
                found.append(one / other if self.figure.better == "more" else other / one)
        return found

    def noise(self) -> float:
        """By which factor the median may be off: two standard errors of the median, on the scale of logarithms.

        From the median distance to the median, which one wild round in three does not move. 1.4826 makes a standard
        deviation of it, 1.2533 is what the median's error is to the mean's; both for the normal distribution.
        """
        logs = [math.log(slowdown) for slowdown in self.slowdowns()]
        if len(logs) < 3:
            return math.inf
        middle = median(logs)
        deviation = 1.4826 * median(abs(value - middle) for value in logs)
        return math.exp(2 * 1.2533 * deviation / math.sqrt(len(logs)))

    def verdict(self, threshold: float) -> str:
        """``threshold`` is a share: 0.1 for ten percent."""
        failed = [m.status for m in self.head if m.status.failed]
        if failed and not any(m.status.failed for m in self.base):
            return f"FAILS: {failed[0].value}"
        if failed:
            return f"fails in both: {failed[0].value}"
        slowdowns = self.slowdowns()
        if not slowdowns:
            there = [any(m.figures for m in measurements) for measurements in (self.base, self.head)]
            return "not in base" if there[1] else "NOT IN HEAD" if there[0] else "in neither"
        middle, noise = median(slowdowns), self.noise()
        if middle / noise > 1 + threshold:
            return "SLOWER"
        if middle * noise < 1 / (1 + threshold):
            return "faster"
        return "same" if noise <= 1 + threshold else "same, as far as the noise lets see"

    def line(self, threshold: float) -> list[str]:
        slowdowns = self.slowdowns()
        values = [_median(self.base, self.figure.key), _median(self.head, self.figure.key)]
        # As a ratio of head to base, whichever direction is the better one.
        ratios = sorted(1 / s if self.figure.better == "more" else s for s in slowdowns)
        spread = f"{ratios[0]:.2f} – {ratios[-1]:.2f}" if ratios else "–"
        return [*values, f"{median(ratios):.3f}" if ratios else "–", spread, self.verdict(threshold)]


def _median(measurements: Sequence[Measurement], key: str) -> str:
    values = [m.figures[key] for m in measurements if key in m.figures]
    return shown(median(values)) if values else measurements[0].status.value


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with ExitStack() as stack:
        base = stack.enter_context(tempfile.TemporaryDirectory(prefix="mpms-bench-base-"))
        _check_out(options.base, Path(base))
        bench = Bench(seconds=options.seconds, loops=calibrate(), deadline=options.deadline)
        both = (dataclasses.replace(bench, source=Path(base) / "src"), bench)
        pairs = [
            (scenario, contender)
            for scenario in options.scenarios or DEFAULT
            for contender in SCENARIOS[scenario].contenders
            if SYSTEMS[contender].kind == "ours"
        ]
        found: dict[tuple[str, str], tuple[list[Measurement], list[Measurement]]] = {pair: ([], []) for pair in pairs}
        for number in range(options.rounds):
            for pair in pairs:
                _measure_pair(both, *pair, found[pair], swapped=number % 2 == 1)
            print(f"round {number + 1} of {options.rounds} is done", file=sys.stderr, flush=True)
    return _report(options.base, found, options.threshold / 100, options.json)


def _measure_pair(
    both: tuple[Bench, Bench],
    scenario: str,
    contender: str,
    found: tuple[list[Measurement], list[Measurement]],
    *,
    swapped: bool,
) -> None:
    for which in (1, 0) if swapped else (0, 1):
        done = found[which]
        if done and done[0].status in (Status.UNAVAILABLE, Status.NOT_INSTALLED):
            done.append(done[0])
            continue
        measurement = measure(both[which], scenario, contender, deadline=SCENARIOS[scenario].deadline)
        done.append(measurement)
        if measurement.status.failed:
            print(
                f"{scenario}, {contender}, {'base' if which == 0 else 'head'}: {measurement.status.value} "
                f"{measurement.detail}\n{measurement.log}",
                file=sys.stderr,
                flush=True,
            )


def _report(
    base: str,
    found: dict[tuple[str, str], tuple[list[Measurement], list[Measurement]]],
    threshold: float,
    output: Path | None,
) -> int:
    rows = [["scenario", "system", "unit", f"base: {base}", "head", "head ÷ base", "lowest – highest", "verdict"]]
    for (scenario, contender), (before, after) in found.items():
        figure = SCENARIOS[scenario].figures[0]
        comparison = Comparison(figure, before, after)
        arrow = "↑" if figure.better == "more" else "↓"
        rows.append([scenario, contender, f"{figure.unit} {arrow}", *comparison.line(threshold)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if output:
        output.write_text(json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]], indent=1), "utf-8")
    worse = [row for row in rows[1:] if row[-1].startswith(("SLOWER", "FAILS", "NOT IN HEAD"))]
    if worse:
        print(f"\nworse than {base}: {', '.join(f'{row[0]} ({row[1]})' for row in worse)}")
    return 1 if worse else 0


def _check_out(revision: str, directory: Path) -> None:
    """The sources of that revision, compiled as ours are: the first start isn't to compile them."""
    done = subprocess.run(["git", "archive", revision, "src"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"no such revision: {revision}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(directory)
    for source in (directory / "src", ROOT / "src"):
        compileall.compile_dir(source, quiet=2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="this checkout beside a revision")
    parser.add_argument("base", metavar="BASE", help="a revision of git")
    parser.add_argument("--scenarios", type=names_of(SCENARIOS), metavar="A,B", help=f"by default {','.join(DEFAULT)}")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="7; three at the least")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="how long to measure each time: 0.5")
    parser.add_argument(
        "--deadline", type=float, metavar="S", help="for each measurement; by default its scenario's own"
    )
    parser.add_argument("--threshold", type=float, default=10, metavar="PERCENT", help="what is too much: 10")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
