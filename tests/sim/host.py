"""Who the loop works for, and an account of what it was told: is it true, and is it told once?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mpms.core.messages import (
    AbandonedTask,
    CancelRequested,
    Closed,
    Crash,
    Event,
    LostCause,
    StopRequested,
    TasksSubmitted,
    Timeout,
    Verdict,
    Withdrawn,
)
from mpms.errors import PoolBroken, TaskTimeout, WorkerCrashed
from mpms.ids import Seq, TaskId
from mpms.local.evidence import Who
from mpms.local.functions import Shipped
from mpms.local.link import Offer, Parcel
from mpms.local.verdicts import Breakage, Maker
from mpms.outcome import Crashed, Outcome, TimedOut
from mpms.wire.messages import RAISED, RETURNED

if TYPE_CHECKING:
    from .world import World

__all__ = ["Host"]


class Host:
    def __init__(self, world: World) -> None:
        self.world = world
        self.submitted = 0
        self.closed = False
        self.stop_at: float | None = None
        self.broken: PoolBroken | None = None
        self.results: dict[TaskId, int] = {}  # RETURNED or RAISED
        self.verdicts: dict[TaskId, Verdict] = {}
        self.errors: dict[TaskId, Outcome] = {}
        self.timed_out: set[Seq] = set()
        self.functions: dict[TaskId, Shipped | None] = {}
        self.asked: set[TaskId] = set()  # to be cancelled, and without an answer
        self._sent: set[TaskId] = set()
        self._given_up: set[Seq] = set()  # attempts that are followed by another one
        self._orders: list[Event] = []
        self._offers: list[Offer] = []
        self._sizes: dict[TaskId, int] = {}
        self._made: list[tuple[TaskId, Maker]] = []

    @property
    def outstanding(self) -> int:
        return self.submitted - len(self.results) - len(self.verdicts)

    # The callers' threads

    def submit(self, count: int, size: int = 0, function: Callable[[], Shipped | None] = lambda: None) -> None:
        if self.closed or self.broken:
            return  # refused
        tasks = [TaskId(n) for n in range(self.submitted + 1, self.submitted + count + 1)]
        self.submitted += count
        self._sizes.update(dict.fromkeys(tasks, size))
        self.functions.update((task, function()) for task in tasks)
        if not any(isinstance(order, TasksSubmitted) for order in self._orders):
            while tasks and self._send(tasks[0]):
                del tasks[0]
        if tasks:
            self._order(TasksSubmitted(tasks), rings=self.world.wakeup.for_tasks)

    def _send(self, task: TaskId) -> bool:
        """Whether somebody who is idle was sent it, from here."""
        payload, function = self._parcel(task)
        if not self._offers or len(payload) > self.world.habits.small:
            return False
        offer = self._offers.pop()
        if offer.function is not function or not offer.take(task, payload):
            return False
        self._sent.add(task)
        self.world.tell("sent", task, offer.worker)
        self.world.reach("an offer was taken")
        self.world.changes += 1
        self.world.wakeup.ring()
        return True

    def cancel(self, tasks: Sequence[TaskId] | None) -> None:
        """``None``: all."""
        if self.world.loop.stopped:
            return  # nobody would answer
        for task in range(1, self.submitted + 1) if tasks is None else tasks:
            if tasks is not None or not self._is_over(TaskId(task)):
                self.asked.add(TaskId(task))
        self._order(CancelRequested(tasks))

    def close(self) -> None:
        self.closed = True
        self._order(Closed())

    def stop(self, timeout: float) -> None:
        self.closed = True
        self.stop_at = min(self.world.now + timeout, self.stop_at or 1e300)
        self._order(StopRequested(self.world.now + timeout))

    def _order(self, event: Event, *, rings: bool = True) -> None:
        self.world.tell("order", event)
        self.world.changes += 1
        self._orders.append(event)
        if rings:
            self.world.wakeup.ring()

    # The supervisor's thread

    def has_orders(self, *, tasks: bool = True) -> bool:
        answer = any(tasks or not isinstance(order, TasksSubmitted) for order in self._orders)
        self.world.blink()  # somebody orders something right after it was asked: that rings
        return answer

    def take_orders(self) -> list[Event]:
        self.world.blink()
        orders, self._orders = self._orders, []
        return orders

    def offer(self, offer: Offer) -> None:
        self._offers = [offer]

    def withdraw(self) -> None:
        self._offers = []

    def parcels(self, dispatches: Sequence[tuple[Seq, TaskId]]) -> list[tuple[int, Parcel]]:
        self._sent.update(task for _, task in dispatches)
        return [(seq, self._parcel(task)) for seq, task in dispatches]

    def _parcel(self, task: TaskId) -> Parcel:
        return task.to_bytes(8, "big") + bytes(self._sizes[task]), self.functions[task]

    def settled(self, results: list[tuple[TaskId, tuple[int, bytes]]], raised: int) -> None:
        assert raised == sum(kind == RAISED for _, (kind, _) in results)
        for task, (kind, payload) in results:
            assert int.from_bytes(payload[:8], "big") == task, "the result of another task"
            self._has_no_outcome(task)
            self.results[task] = RAISED if kind == RAISED else RETURNED
            self.asked.discard(task)
            self.world.tell("result", task)

    def failed(self, task: TaskId, verdict: Verdict, outcome: Maker) -> None:
        self._has_no_outcome(task)
        self.verdicts[task] = verdict
        if not isinstance(verdict, Withdrawn):
            self.asked.discard(task)
        self.world.tell("failed", task, verdict)
        self._made.append((task, outcome))
        attempts = self.world.attempts[task]
        match verdict:
            case Crash(worker, blamed):
                self.world.reach("crash blamed" if blamed else "crash")
                process = self.world.processes[worker]
                seq = attempts[-1]
                assert seq in process.begun, f"task {task} had not started in {worker}"
                assert process.gone or (process.stuck and process.killed), f"{worker} lives"
                assert seq not in process.said, f"the result of {task} was there"
                # Who was alone in it when nobody knows why it ended is blamed, too.
                alone = process.culprit is None and not process.orphaned
                assert not blamed or process.culprit == seq or alone, f"{task} did not end {worker}"
            case Timeout(worker, limit):
                self.world.reach("timeout")
                seq = attempts[-1]
                self.timed_out.add(seq)
                assert self.world.now >= self.world.begun_at[seq] + limit, f"task {task} had time left"
            case AbandonedTask(started):
                if started:
                    self.world.reach("stopped with running tasks")
                assert self.stop_at is not None
                assert self.world.now >= self.stop_at
                # The other way round may be wrong: of a worker that isn't seen to end nobody knows what had started.
                assert started or not attempts or self.world.limits.retries, f"task {task} had started"
            case LostCause():
                self.world.reach("broken with outstanding tasks")
                assert self.broken is not None
            case Withdrawn():
                self.asked.remove(task)
                self.world.reach("cancelled after it was sent" if task in self._sent else "cancelled while it waited")
                if attempts:
                    self.world.reach("cancelled after an attempt")
                assert self.world.limits.retries or not attempts, f"task {task} had started"
                wanted = set(attempts) - self._given_up  # a worker that hangs is killed for it, which takes a moment
                runs = [p.id for p in self.world.alive() for seq in p.running if seq in wanted]
                assert not runs, f"task {task} is cancelled, and runs in {runs}"

    def kept(self, tasks: Sequence[TaskId]) -> None:
        for task in tasks:
            self.world.tell("kept", task)
            if self._is_over(task):
                self.world.reach("kept: it was over")
            else:
                assert self.world.attempts[task], f"task {task} is kept, and has never started"
                self.world.reach("kept: it had started")
            self.asked.discard(task)

    def _is_over(self, task: TaskId) -> bool:
        return task in self.results or task in self.verdicts

    def _has_no_outcome(self, task: TaskId) -> None:
        assert task not in self.results, f"task {task} has a result already"
        assert task not in self.verdicts, f"task {task} has failed already: {self.verdicts.get(task)}"

    def retried(self, task: TaskId, make: Maker) -> None:
        self._has_no_outcome(task)
        self._given_up.update(self.world.attempts[task])
        self.world.tell("retried", task)

    def retried_after(self, task: TaskId, kind: int, payload: bytes) -> None:
        self._has_no_outcome(task)
        self.world.tell("retried after", task)

    def logged(self, worker: str, task: TaskId | None, payload: bytes) -> None:
        pass

    def say(self, level: int, message: str, *args: object) -> None:
        self.world.tell("said", message % args)

    def note_broken(self, breakage: Breakage) -> None:
        self.broken = self.broken or breakage.error

    def decided(self) -> None:
        pass

    def passed(self) -> None:
        self.world.check()

    # The delivery thread

    def deliver(self) -> None:
        """Outcomes are made later, when the worker that they tell of may be forgotten."""
        for task, make in self._made:
            self.errors[task] = outcome = make(Who(task, "(number)"))
            match self.verdicts[task], outcome:
                case Crash(), Crashed(error):
                    assert isinstance(error, WorkerCrashed)
                case Timeout(), TimedOut(error):
                    assert isinstance(error, TaskTimeout)
                case _:
                    pass
        self._made.clear()
