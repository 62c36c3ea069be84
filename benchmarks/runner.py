"""Runs measurements, each in a fresh process with a deadline, and knows what became of each.

    round 1, scenario A: mpms, peer, peer, floor; scenario B: mpms, …; round 2: …

Whoever drifts, drifts for all: a scenario's contenders come one right after the other, in every round.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from . import tasks
from .measuring import STALL
from .processes import adoption, kill_all, tree

__all__ = ["ROOT", "Bench", "Job", "Measurement", "Status", "calibrate", "measure", "rounds"]

ROOT = Path(__file__).resolve().parents[1]


class Status(str, Enum):
    OK = "ok"
    HANGS = "hangs"
    """It was killed at its deadline."""
    LOSES = "loses tasks"
    """No outcome came any more, though not all had come."""
    BROKEN = "breaks"
    """It raised."""
    CRASHED = "crashes"
    """The process ended without a word."""
    UNAVAILABLE = "not available"
    """The system has not got what the scenario is about."""
    NOT_INSTALLED = "not installed"

    @property
    def failed(self) -> bool:
        return self in (Status.HANGS, Status.LOSES, Status.BROKEN, Status.CRASHED)


@dataclass(frozen=True)
class Job:
    """What the process of a measurement is told. ``output`` is the file in which it answers."""

    scenario: str
    contender: str
    output: str
    seconds: float
    loops: int
    patience: float = STALL


@dataclass(frozen=True)
class Measurement:
    status: Status
    figures: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    version: str = ""
    log: str = ""
    """What it printed; for the one who runs the benchmarks, not for the results."""


@dataclass(frozen=True)
class Bench:
    """How all measurements of a run are made."""

    seconds: float = 1.0
    loops: int = 1
    deadline: float | None = None
    """Seconds for each, in place of the scenarios' own."""
    patience: float = STALL
    source: Path = ROOT / "src"
    """Where mpms is imported from."""
    module: str = "benchmarks.child"
    pythons: Mapping[str, Path] = field(default_factory=lambda: {"bench": Path(sys.executable)})
    """The interpreter of each environment."""


def calibrate() -> int:
    """Rounds of :func:`.tasks.burn` that take 2 ms here and now, when nothing disturbs: the best of several."""
    loops, best = 20_000, float("inf")
    for _ in range(20):
        start = time.perf_counter()
        tasks.burn(loops)
        best = min(best, time.perf_counter() - start)
    return max(1, round(loops * 0.002 / best))


def measure(
    bench: Bench, scenario: str, contender: str, *, environment: str = "bench", deadline: float = 60.0
) -> Measurement:
    """One measurement in a process of its own, after which nothing of it is left."""
    python = bench.pythons.get(environment)
    if python is None or not python.exists():
        return Measurement(Status.NOT_INSTALLED, detail=f"no environment {environment}")
    deadline = bench.deadline or deadline
    with tempfile.TemporaryDirectory(prefix="mpms-bench-") as directory, adoption():
        output, log = Path(directory, "result.json"), Path(directory, "log")
        job = Job(scenario, contender, str(output), bench.seconds, bench.loops, bench.patience)
        path = [str(ROOT)] if environment == "2.6" else [str(bench.source), str(ROOT)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "RAY_USAGE_STATS_ENABLED": "0"}
        spared = tree(os.getpid())
        with log.open("wb") as sink:
            child = subprocess.Popen(
                [str(python), "-m", bench.module, json.dumps(dataclasses.asdict(job))],
                cwd=directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
            hangs = False
            try:
                child.wait(deadline)
            except subprocess.TimeoutExpired:
                hangs = True
            finally:  # after an interrupt of the keyboard, too
                kill_all(child, spared)
        return _judge(output, log.read_text(errors="replace"), hangs, deadline, child.returncode)


def _judge(output: Path, log: str, hangs: bool, deadline: float, exitcode: int) -> Measurement:
    try:
        found = json.loads(output.read_text())
    except FileNotFoundError:
        found = {"status": None, "figures": {}, "detail": "", "version": ""}
    if found["status"] is not None:
        status, detail = Status(found["status"]), found["detail"]
    elif hangs:
        status, detail = Status.HANGS, f"killed after {deadline:g} s"
    else:
        status, detail = Status.CRASHED, f"exit code {exitcode}"
    return Measurement(status, found["figures"], detail, found["version"], log)


def rounds(contenders: Mapping[str, Sequence[str]], count: int) -> Iterator[tuple[int, str, str]]:
    """Round, scenario and contender, in the order in which they are to be measured.

    Every other round is in the opposite order: who comes after a heavy one is not always the same.
    """
    for number in range(count):
        for scenario, names in contenders.items():
            ordered: Iterable[str] = names if number % 2 == 0 else reversed(names)
            for name in ordered:
                yield number, scenario, name
