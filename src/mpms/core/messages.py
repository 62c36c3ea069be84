"""Events (what happened) go into the machine, effects (what to do) come out. All frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..ids import Seq, TaskId, TaskOptions, WorkerId
from ..record import Record
from ..typed import Literal, TypeAlias

__all__ = [
    "AbandonedTask",
    "BoardSeen",
    "Broke",
    "CancelRequested",
    "Closed",
    "Crash",
    "Dispatch",
    "DumpStacks",
    "Effect",
    "Event",
    "Fail",
    "FreeMemorySeen",
    "Interrupt",
    "Keep",
    "Kill",
    "KillReason",
    "LinkLost",
    "LostCause",
    "MemorySeen",
    "OfferTaken",
    "ReadBoard",
    "ReadFreeMemory",
    "ReadMemory",
    "Recall",
    "Resized",
    "ResultsArrived",
    "Retire",
    "Retried",
    "Settle",
    "StartWorker",
    "StopRequested",
    "Stopped",
    "TasksReturned",
    "TasksSubmitted",
    "Timeout",
    "Verdict",
    "Withdrawn",
    "WorkerDue",
    "WorkerDying",
    "WorkerExited",
    "WorkerReady",
    "WorkerUnborn",
]


_NONE: Mapping[TaskId, TaskOptions] = {}

# Events


class TasksSubmitted(Record):
    """Tasks were accepted, in this order. ``options`` are those of the tasks that have some of their own."""

    tasks: Sequence[TaskId]
    options: Mapping[TaskId, TaskOptions] = _NONE


class OfferTaken(Record):
    """A task was accepted, and who submitted it has sent it as a dispatch that was offered: see ``PoolMachine.offer``.
    Told before all that its worker has said since."""

    worker: WorkerId
    seq: Seq
    task: TaskId


class CancelRequested(Record):
    """These tasks are not wanted any more, if they have not started. ``None``: all of them."""

    tasks: Sequence[TaskId] | None


class WorkerReady(Record):
    """The initializers have run; the worker takes tasks."""

    worker: WorkerId


class ResultsArrived(Record):
    """A worker finished these dispatches. ``failed`` of them raised, ``retry`` are those that are to be tried again.
    ``weight`` is that of a task which was sent to it last: bytes of what is copied to it, 0 of a small one."""

    worker: WorkerId
    seqs: Sequence[Seq]
    failed: int = 0
    retry: frozenset[Seq] = frozenset()
    weight: int = 0


class TasksReturned(Record):
    """A worker gave back every task from ``floor`` on: it has not started them, and never will."""

    worker: WorkerId
    floor: Seq


class WorkerDue(Record):
    """A thread of the worker has run its share of tasks; ``threads`` still take some."""

    worker: WorkerId
    threads: int


class WorkerDying(Record):
    """A task asked for the end of its process: it takes no more, and finishes what runs."""

    worker: WorkerId


class WorkerExited(Record):
    """The process has ended and its socket was read to the end.

    ``watermark`` is the highest dispatch that it had started (0: none), ``blamed`` the one that is known to have
    ended it. ``orphaned``: it ended with its fork server, which nobody in it need have ended.
    """

    worker: WorkerId
    watermark: Seq
    blamed: Seq | None = None
    orphaned: bool = False


class WorkerUnborn(Record):
    """There was no descriptor, memory or process left to start it: that may be over soon."""

    worker: WorkerId


class BoardSeen(Record):
    """What a worker's threads run now, and since when: the answer to :class:`ReadBoard`."""

    worker: WorkerId
    running: Sequence[tuple[Seq, float]]


class MemorySeen(Record):
    """How a worker's memory compares to the limits: the answer to :class:`ReadMemory`."""

    worker: WorkerId
    over: bool
    over_hard: bool = False


class FreeMemorySeen(Record):
    """Whether the machine has enough free memory for more tasks: the answer to :class:`ReadFreeMemory`."""

    enough: bool


class Resized(Record):
    """The pool is to have this many workers."""

    processes: int


class LinkLost(Record):
    """The worker's socket was closed, though the process may live: nothing can be heard from it any more."""

    worker: WorkerId


class Closed(Record):
    """No more tasks come: end when all are settled."""


class StopRequested(Record):
    """No more tasks come, and what is not settled at ``deadline`` is killed and cancelled."""

    deadline: float


class Broke(Record):
    """No worker can ever be started (the function can't be loaded): give up now."""


Event: TypeAlias = (
    TasksSubmitted
    | OfferTaken
    | CancelRequested
    | WorkerReady
    | ResultsArrived
    | TasksReturned
    | WorkerDue
    | WorkerDying
    | WorkerExited
    | WorkerUnborn
    | BoardSeen
    | MemorySeen
    | FreeMemorySeen
    | Resized
    | LinkLost
    | Closed
    | StopRequested
    | Broke
)


# Effects

KillReason: TypeAlias = Literal[
    "timeout", "start timeout", "grace over", "unresponsive", "link lost", "memory", "stopped"
]


class Crash(Record):
    """The task had started in ``worker``, which has ended."""

    worker: WorkerId
    blamed: bool | None
    attempts: int


class Timeout(Record):
    """The task ran in ``worker`` for longer than ``limit`` seconds."""

    worker: WorkerId
    limit: float
    attempts: int


class AbandonedTask(Record):
    """The pool was stopped first."""

    started: bool


class LostCause(Record):
    """The pool broke first."""


class Withdrawn(Record):
    """It was cancelled, and had not started."""


Verdict: TypeAlias = Crash | Timeout | AbandonedTask | LostCause | Withdrawn


class StartWorker(Record):
    worker: WorkerId


class Dispatch(Record):
    """Send these tasks to the worker, in this order. The numbers grow."""

    worker: WorkerId
    tasks: Sequence[tuple[Seq, TaskId]]


class Recall(Record):
    """Ask the worker to give back what it has not started, of all up to ``upto``: its last dispatch so far."""

    worker: WorkerId
    upto: Seq


class Retire(Record):
    """Ask the worker to take no more, give back what it has not started, finish, run finalizers, and exit."""

    worker: WorkerId


class ReadBoard(Record):
    worker: WorkerId


class ReadMemory(Record):
    worker: WorkerId


class ReadFreeMemory(Record):
    pass


class Interrupt(Record):
    """Raise ``TaskTimeout`` in the thread that runs this dispatch, for longer than ``limit`` seconds."""

    worker: WorkerId
    seq: Seq
    limit: float


class DumpStacks(Record):
    """Have the worker write where its threads are: a task in it has run too long."""

    worker: WorkerId


class Kill(Record):
    worker: WorkerId
    why: KillReason


class Settle(Record):
    """The results of these dispatches are the outcomes of these tasks."""

    tasks: Sequence[tuple[TaskId, Seq]]


class Retried(Record):
    """The task will be run again. ``verdict`` says how this attempt ended; ``None``: as the result of ``seq`` says."""

    task: TaskId
    seq: Seq
    verdict: Verdict | None


class Fail(Record):
    """The task is over without a result of its own; ``seq`` is its last dispatch, if it had any."""

    task: TaskId
    seq: Seq | None
    verdict: Verdict


class Keep(Record):
    """These tasks were to be cancelled, and are not: they had started, or are over."""

    tasks: Sequence[TaskId]


class Stopped(Record):
    """Every task is settled and every worker has ended: the last effect."""

    broken: bool


Effect: TypeAlias = (
    StartWorker
    | Dispatch
    | Recall
    | Retire
    | ReadBoard
    | ReadMemory
    | ReadFreeMemory
    | Interrupt
    | DumpStacks
    | Kill
    | Settle
    | Retried
    | Fail
    | Keep
    | Stopped
)
