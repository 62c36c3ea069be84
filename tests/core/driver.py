"""A pool without processes: a test says what happens, and looks at what is to be done."""

from __future__ import annotations

from typing import TypeVar

from mpms.core.fleet import Phase, Serving, Starting, Worker
from mpms.core.limits import Limits
from mpms.core.machine import PoolMachine
from mpms.core.messages import (
    BoardSeen,
    Dispatch,
    Effect,
    Event,
    Fail,
    Kill,
    ResultsArrived,
    Retried,
    Settle,
    StartWorker,
    TasksReturned,
    TasksSubmitted,
    Verdict,
    WorkerExited,
    WorkerReady,
)
from mpms.ids import Seq, TaskId, TaskOptions, WorkerId

__all__ = ["Pool", "board", "exited", "only", "pool_at_work", "returned"]

E = TypeVar("E", bound=Effect)


def only(kind: type[E], effects: list[Effect]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def exited(worker: int, watermark: int = 0, blamed: int | None = None) -> WorkerExited:
    return WorkerExited(WorkerId(worker), Seq(watermark), None if blamed is None else Seq(blamed))


def returned(worker: int, floor: int) -> TasksReturned:
    return TasksReturned(WorkerId(worker), Seq(floor))


def board(worker: int, **since: float) -> BoardSeen:
    """``board(1, s3=7.0)``: worker 1 runs dispatch 3 since 7.0."""
    return BoardSeen(WorkerId(worker), [(Seq(int(name[1:])), start) for name, start in since.items()])


class Pool:
    """Two workers with two threads each, if nothing else is asked for. Workers and tasks are plain numbers, from 1."""

    def __init__(self, now: float = 1000.0, **limits: object) -> None:
        self.machine = PoolMachine(Limits(**{"processes": 2, "threads": 2, **limits}))  # type: ignore[arg-type]
        self.now = now
        self.effects: list[Effect] = []  # all so far
        self.happens()

    def happens(self, *events: Event, after: float = 0.0) -> list[Effect]:
        """What is to be done when ``events`` happened, ``after`` seconds."""
        self.now += after
        effects = self.machine.handle(events, self.now)
        self.effects += effects
        return effects

    def wakes(self) -> list[Effect]:
        """Time passes, and nothing happens, until the pool asked to be called."""
        deadline = self.machine.next_deadline()
        assert deadline is not None, "the pool waits for nothing"
        return self.happens(after=deadline - self.now)

    def rests(self) -> bool:
        return self.machine.next_deadline() is None

    def up(self) -> Pool:
        """Every worker that was started is ready."""
        starting = [w.id for w in self._workers() if isinstance(w.phase, Starting)]
        self.happens(*(WorkerReady(id) for id in starting))
        return self

    def submits(self, count: int, **options: object) -> list[Effect]:
        """Tasks, each with these options of its own."""
        first = self.machine.ledger.submitted + 1
        tasks = [TaskId(n) for n in range(first, first + count)]
        own = {task: TaskOptions(**options) for task in tasks} if options else {}  # type: ignore[arg-type]
        return self.happens(TasksSubmitted(tasks, own))

    def finishes(self, worker: int, *seqs: int, after: float = 0.0, weight: int = 0) -> list[Effect]:
        return self.happens(ResultsArrived(WorkerId(worker), [Seq(n) for n in seqs], weight=weight), after=after)

    def raises(self, worker: int, *seqs: int, retry: bool = False) -> list[Effect]:
        """The tasks raise, and ``retry`` says that their errors ask for another attempt."""
        numbers = [Seq(n) for n in seqs]
        again = frozenset(numbers if retry else [])
        return self.happens(ResultsArrived(WorkerId(worker), numbers, failed=len(numbers), retry=again))

    def dies(self, worker: int, *, blamed: int | None = None) -> list[Effect]:
        """It had started all that it holds."""
        return self.happens(exited(worker, watermark=max(self.held(worker), default=0), blamed=blamed))

    def works_fast(self, worker: int, tasks: int = 20, *, weight: int = 0) -> None:
        """So that it is given tasks in advance: ``tasks`` are submitted, it takes 1 ms for each."""
        self.submits(tasks)
        while self.held(worker):
            self.finishes(worker, self.held(worker)[0], after=0.001, weight=weight)

    def of(self, *phases: type[Phase]) -> list[WorkerId]:
        """The staff in these phases."""
        return [worker.id for worker in self.machine.fleet.in_phase(*phases)]

    def serving(self) -> list[WorkerId]:
        return self.of(Serving)

    def ward(self) -> int:
        """The worker for suspects, 0 when there is none."""
        ward = self.machine.fleet.ward
        return ward.id if ward else 0

    def held(self, worker: int) -> list[Seq]:
        """The dispatches that the worker holds."""
        found = self.machine.fleet.workers.get(WorkerId(worker))
        return list(found.sent) if found else []

    def started(self) -> int:
        """How many workers were started so far."""
        return len(only(StartWorker, self.effects))

    def sent(self) -> list[tuple[WorkerId, TaskId]]:
        """Who was given which task, in this order."""
        return [(d.worker, task) for d in only(Dispatch, self.effects) for _, task in d.tasks]

    def verdicts(self) -> dict[TaskId, Verdict]:
        return {fail.task: fail.verdict for fail in only(Fail, self.effects)}

    def settled(self) -> list[TaskId]:
        """Tasks whose own result is their outcome."""
        return [task for settle in only(Settle, self.effects) for task, _ in settle.tasks]

    def retried(self) -> list[tuple[TaskId, Verdict | None]]:
        return [(retried.task, retried.verdict) for retried in only(Retried, self.effects)]

    def given(self) -> list[TaskId]:
        """The tasks in the order in which they were sent."""
        return [task for _, task in self.sent()]

    def kills(self) -> list[tuple[WorkerId, str]]:
        return [(kill.worker, kill.why) for kill in only(Kill, self.effects)]

    def _workers(self) -> list[Worker]:
        return list(self.machine.fleet.workers.values())


def pool_at_work(tasks: int = 4, **limits: object) -> Pool:
    """One worker with four threads, at work; another comes up when it has died."""
    pool = Pool(**{"processes": 1, "threads": 4, **limits}).up()  # type: ignore[arg-type]
    pool.submits(tasks)
    return pool
