"""``python -m benchmarks``: mpms beside other pools. Normally by ``make bench``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .figures import shown
from .options import names_of
from .picture import svg
from .report import Results, as_json, from_json, markdown
from .runner import ROOT, Bench, Measurement, Status, calibrate, measure, rounds
from .scenarios import SCENARIOS
from .systems import SYSTEMS

__all__ = ["about", "main", "say"]

# The most telling ones, in two minutes: about a second and a half for each measurement.
QUICK_SCENARIOS = ("stream", "futures", "bulk", "latency", "bytes-64k", "first", "strength", "join")
QUICK_SYSTEMS = ("mpms", "mpms-fork", "mpms-executor", "mpms-2.6", "concurrent.futures", "multiprocessing.Pool")


MORE_ROUNDS = 2
"""So many times the rounds again, where a goal was reached in one of them and missed in another: on a machine that is
not quite one's own, the median of three says little about what is near its goal. A number that is given beforehand,
and not until it is reached."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    output = options.output or ROOT / "benchmarks/results" / ("quick" if options.quick else "latest")
    if options.list:
        _list()
        return 0
    if options.redraw:
        _write(from_json(json.loads(output.with_suffix(".json").read_text("utf-8"))), output)
        return 0
    systems = options.systems or (QUICK_SYSTEMS if options.quick else tuple(SYSTEMS))
    scenarios = options.scenarios or (QUICK_SCENARIOS if options.quick else tuple(SCENARIOS))
    plan = {
        name: [c for c in SCENARIOS[name].contenders if c in systems] + list(SCENARIOS[name].floors)
        for name in scenarios
    }
    bench = Bench(
        seconds=options.seconds or (0.5 if options.quick else 1.0),
        loops=calibrate(),
        deadline=options.deadline or (20.0 if options.quick else None),
        pythons={"bench": Path(sys.executable), "2.6": options.old_python},
    )
    count = options.rounds or (1 if options.quick else 3)
    results = Results(about(count, bench.seconds))
    try:
        _measure_all(bench, plan, count, results)
        unsettled = {scenario.name: results.unsettled(scenario) for scenario in results.scenarios()}
        _measure_all(bench, unsettled, count * MORE_ROUNDS, results)
    except KeyboardInterrupt:
        print("interrupted: what there is so far is reported", file=sys.stderr)
    results.about["load_after"] = _load()
    _write(results, output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="mpms beside other pools")
    parser.add_argument("--list", action="store_true", help="show scenarios and systems")
    parser.add_argument("--quick", action="store_true", help="the most telling scenarios and systems, in two minutes")
    parser.add_argument("--scenarios", type=names_of(SCENARIOS), metavar="A,B", help="only these")
    parser.add_argument(
        "--systems", type=names_of(SYSTEMS), metavar="A,B", help="only these; floors are always measured"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="3, quick: 1")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long to measure each time: 1, quick: 0.5")
    parser.add_argument(
        "--deadline", type=float, metavar="S", help="for each measurement; by default its scenario's own"
    )
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="without ending; benchmarks/results/latest or quick"
    )
    parser.add_argument(
        "--old-python",
        type=Path,
        default=ROOT / ".venv-bench-2.6/bin/python",
        metavar="PATH",
        help="the interpreter that has mpms 2.6",
    )
    parser.add_argument(
        "--redraw", action="store_true", help="measure nothing: write the table and the picture of OUTPUT.json anew"
    )
    return parser


def _measure_all(bench: Bench, plan: dict[str, list[str]], count: int, results: Results) -> None:
    total, start = count * sum(map(len, plan.values())), time.monotonic()
    for done, (_, scenario, contender) in enumerate(rounds(plan, count), 1):
        system = SYSTEMS.get(contender)
        measurement = measure(
            bench,
            scenario,
            contender,
            environment=system.environment if system else "bench",
            deadline=SCENARIOS[scenario].deadline,
        )
        results.add(scenario, contender, measurement)
        if measurement.version:
            results.about["versions"][contender] = measurement.version
        say(f"{time.monotonic() - start:5.0f} s  {done}/{total}  {scenario:<10}  {contender:<20}", measurement)


def say(what: str, measurement: Measurement) -> None:
    figures = "  ".join(f"{key} {shown(value)}" for key, value in measurement.figures.items())
    state = "" if measurement.status is Status.OK else f"{measurement.status.value} {measurement.detail}"
    print(f"{what}  {figures}  {state}".rstrip(), file=sys.stderr, flush=True)
    if measurement.status.failed:
        # Its last words; the results don't have them.
        print(*(f"    | {line}" for line in measurement.log.splitlines()[-5:]), sep="\n", file=sys.stderr, flush=True)


def _write(results: Results, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(markdown(results), "utf-8")
    output.with_suffix(".json").write_text(json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n", "utf-8")
    output.with_suffix(".svg").write_text(svg(results), "utf-8")
    print(f"written: {output}.md, .json and .svg", file=sys.stderr)


def about(count: int, seconds: float) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "revision": _revision(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "rounds": count,
        "seconds": seconds,
        "load_before": _load(),
        "versions": {},
    }


def _revision() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # not a checkout
    return done.stdout.strip()


def _load() -> str:
    """How many processes wanted a processor in the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def _list() -> None:
    for scenario in SCENARIOS.values():
        print(f"{scenario.name:<20} {scenario.title}")
    print()
    for system in SYSTEMS.values():
        print(f"{system.name:<20} {system.title}")


if __name__ == "__main__":
    sys.exit(main())
