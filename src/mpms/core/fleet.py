"""Workers by id and phase.

Starting ──ready──▶ Serving ──due, dying, timeout, close──▶ Retiring ──▶ exited
    │                  │                                       │
    └──────────────────┴────────────── Killed ◀────────────────┘
"""

from __future__ import annotations

from math import inf

from ..ids import Seq, TaskId, WorkerId
from ..record import Record
from ..typed import TypeAlias
from . import policy
from .messages import KillReason

__all__ = ["Fleet", "Killed", "Phase", "Retiring", "Serving", "Starting", "Worker"]


class Starting(Record):
    """Its initializers run, until ``deadline`` at the latest."""

    deadline: float


class Serving(Record):
    """It takes tasks. ``due`` is when it is to be rotated in its turn, ``hard`` when without waiting for a turn.

    Both are unknown until it has something to do.
    """

    due: float | None
    hard: float | None


class Retiring(Record):
    """It takes no more tasks. Killed at ``deadline``; ``rotation`` when a replacement was brought first."""

    deadline: float | None
    rotation: bool = False


class Killed(Record):
    """Its end is certain. At ``deadline`` the pool ends without waiting for it any longer."""

    deadline: float | None
    why: KillReason


Phase: TypeAlias = Starting | Serving | Retiring | Killed


class Worker:
    __slots__ = (
        "ahead",
        "born",
        "check_at",
        "dispatched",
        "done",
        "due_at",
        "hung",
        "id",
        "interrupted",
        "last_result",
        "memory_at",
        "overdue",
        "phase",
        "recalling",
        "sent",
        "threads",
        "waiting_since",
        "ward",
        "window_done",
        "window_start",
    )

    def __init__(self, id: WorkerId, now: float, phase: Phase, threads: int, *, ward: bool) -> None:
        self.id = id
        self.born = now
        self.phase = phase
        self.threads = threads  # that take tasks
        self.ward = ward  # it runs suspects, one at a time, and nothing else
        self.sent: dict[Seq, TaskId] = {}  # in the order of dispatch; without a result so far
        self.hung: dict[Seq, float] = {}  # over time, since when; settled with its stack
        self.interrupted: dict[Seq, float] = {}  # told to end by `TaskTimeout`, and since when
        self.overdue = False  # a task in it has run too long: that is why it ends
        self.dispatched = 0  # and not returned
        self.due_at = inf  # the number of those at which it is to be rotated
        self.done = 0
        self.last_result = now  # or when it was given something to do after it had nothing
        self.ahead = 0  # tasks that it holds in advance, for as fast as it is
        self.window_start = now
        self.window_done = 0
        self.check_at: float | None = None  # when the board is to be read next: a running time may be over
        # The first unstarted dispatch when nothing ran, and since when.
        self.waiting_since: tuple[Seq, float] | None = None
        self.memory_at: float | None = None
        self.recalling = False

    @property
    def is_suspicious(self) -> bool:
        """Killed for what some task in it has done, and nobody knows which: it had grown too large."""
        return isinstance(self.phase, Killed) and self.phase.why == "memory"

    def busy_again(self, now: float) -> None:
        """It is given something after it had nothing: the time between doesn't count."""
        self.window_start += now - self.last_result
        self.last_result = now

    def finished(self, count: int, weight: int, now: float) -> None:
        """``count`` results arrived; the tasks that it was sent last weigh so many bytes each."""
        self.done += count
        self.last_result = now
        self.window_done += count
        span = now - self.window_start
        if span >= policy.RATE_SECONDS:
            self.ahead = policy.prefetch(self.window_done / span, weight)
            self.window_start = now
            self.window_done = 0


class Fleet:
    """All workers that have not ended, oldest first. ``size`` is how many there should be, besides the ward."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.workers: dict[WorkerId, Worker] = {}
        self.last_id = 0

    @property
    def starts(self) -> int:
        return self.last_id

    def new(self, now: float, deadline: float, threads: int, *, ward: bool = False) -> Worker:
        self.last_id += 1
        id = WorkerId(self.last_id)
        worker = Worker(id, now, Starting(deadline), threads, ward=ward)
        self.workers[id] = worker
        return worker

    def in_phase(self, *phases: type[Phase]) -> list[Worker]:
        """Those of the staff, that is without the ward."""
        return [w for w in self.workers.values() if isinstance(w.phase, phases) and not w.ward]

    def count(self, *phases: type[Phase]) -> int:
        return len(self.in_phase(*phases))

    @property
    def ward(self) -> Worker | None:
        """The worker for suspects, when there is one that takes them or will."""
        for worker in self.workers.values():
            if worker.ward and isinstance(worker.phase, Starting | Serving):
                return worker
        return None
