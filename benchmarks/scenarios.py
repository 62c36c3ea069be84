"""What is measured, with whom, beside which floors, and what we want to reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import measures
from .figures import Figure, Goal
from .measuring import Run
from .systems import SYSTEMS

__all__ = ["SCENARIOS", "Scenario"]


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    measure: Callable[[Run], None]
    figures: tuple[Figure, ...]
    """The first one is the one that is compared."""
    contenders: tuple[str, ...]
    floors: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    deadline: float = 60.0


_ALL = tuple(name for name in SYSTEMS if not name.endswith("-fork"))
_STREAMS = tuple(name for name in _ALL if name != "mpms-executor")
_FUTURES = tuple(name for name in _ALL if SYSTEMS[name].has_futures)

_RATE = Figure("rate", "tasks/s", "more")
_ITEMS = Figure("rate", "items/s", "more")

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "stream",
            "Stream: tasks that do nothing, one put each, results through a callback",
            measures.stream,
            (_RATE,),
            _STREAMS,
            ("messages", "pickle"),
            (Goal("rate", at_least=4, versus="peers"), Goal("rate", at_least=0.35, versus="floor")),
        ),
        Scenario(
            "futures",
            "Futures: the same through submit and done-callbacks",
            measures.stream,
            (_RATE,),
            _FUTURES,
            ("messages",),
            (Goal("rate", at_least=10, versus="concurrent.futures"),),
        ),
        Scenario(
            "bulk",
            "Bulk: map over 200,000 items",
            measures.bulk,
            (_ITEMS, Figure("pairs", "items/s, of a list of pairs", "more")),
            _ALL,
            ("map",),
            (Goal("rate", at_least=1, versus="peers"),),
            deadline=120,
        ),
        Scenario(
            "io",
            "Waiting: 5-ms sleeps on 2 × 50 threads, or 100 processes",
            measures.io,
            (Figure("share", "% of the ideal", "more"), Figure("pss", "MiB in all", "less")),
            _ALL,
            ("sleep",),
            (Goal("share", at_least=98), Goal("pss", at_most=45)),
            deadline=90,
        ),
        Scenario(
            "latency",
            "Latency: one task at a time on an idle pool",
            measures.latency,
            (Figure("p50", "µs, median", "less"), Figure("p99", "µs, 99th percentile", "less")),
            _ALL,
            ("ping-pong",),
            (Goal("p50", at_most=1.6, versus="floor"), Goal("p99", at_most=2.5, versus="floor")),
        ),
        Scenario(
            "bytes-64k",
            "64 KiB in, 64 KiB out",
            measures.bytes_64k,
            (_RATE,),
            _ALL,
            ("echo-64k", "memcpy-64k"),
            (Goal("rate", at_least=0.7, versus="floor"),),
        ),
        Scenario(
            "arrays-16m",
            "numpy arrays of 16 MiB in and out",
            measures.arrays_16m,
            (_RATE,),
            _ALL,
            ("echo-16m", "memcpy-16m"),
            (Goal("rate", at_least=0.5, versus="floor"), Goal("rate", at_least=2, versus="peers")),
        ),
        Scenario(
            "first",
            "First result of a new interpreter",
            measures.first,
            (Figure("first", "ms", "less"),),
            tuple(SYSTEMS),  # with our fork variants, of which the start is the difference
            ("interpreter",),
            (
                Goal("first", at_most=2, versus="concurrent.futures"),
                Goal("first", at_most=1.1, versus="concurrent.futures", ours="mpms-fork"),
            ),
        ),
        Scenario(
            "import",
            "Import",
            measures.importing,
            (Figure("bare", "ms, the module", "less"), Figure("names", "ms, with the pool's name", "less")),
            _ALL,
            goals=(Goal("bare", at_most=10),),
        ),
        Scenario(
            "strength",
            "Full strength after SIGKILL of a worker",
            measures.strength,
            (Figure("full", "ms", "less"), Figure("told", "tasks told as crashed", "less")),
            tuple(name for name in _ALL if name != "threads"),
            goals=(Goal("full", at_most=20),),
        ),
        Scenario(
            "rotation",
            "Rotation every 100 tasks, of 1 ms",
            measures.rotation,
            (Figure("share", "% of the rate without", "more"), _RATE),
            tuple(name for name in _ALL if SYSTEMS[name].can_rotate),
            goals=(Goal("share", at_least=98),),
            deadline=90,
        ),
        Scenario(
            "join",
            "All done until join returns",
            measures.join,
            (Figure("join", "ms", "less"),),
            _ALL,
            goals=(Goal("join", at_most=5),),
        ),
        Scenario(
            "idle",
            "Idle: 2 × 50 threads, or 100 processes",
            measures.idle,
            (Figure("cpu", "ms of CPU in 3 s", "less"),),
            _ALL,
            goals=(Goal("cpu", at_most=0.1),),
            deadline=90,
        ),
        Scenario(
            "million",
            "A million queued tasks",
            measures.million,
            (
                Figure("share", "% of the put rate at 1,000", "more"),
                Figure("rate", "puts/s", "more"),
                Figure("weight", "bytes a task besides its payload", "less"),
            ),
            ("mpms", "mpms-executor", "concurrent.futures", "multiprocessing.Pool", "threads"),
            goals=(Goal("share", at_least=90), Goal("weight", at_most=400)),
            deadline=180,
        ),
        Scenario(
            "cpu",
            "Computing: 2-ms tasks",
            measures.cpu,
            (_RATE,),
            _ALL,
            ("cpu",),
            (Goal("rate", at_least=0.99, versus="floor"),),
        ),
        Scenario(
            "mixed",
            "Mixed: 1 % of the tasks take 1 s, the rest 1 ms",
            measures.mixed,
            (Figure("share", "% of the best schedule", "more"), Figure("makespan", "s", "less")),
            _ALL,
            goals=(Goal("share", at_least=95),),
        ),
    )
}
