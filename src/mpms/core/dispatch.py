"""Who gets what: deals ready tasks out to workers, and takes back what waits behind slow ones."""

from __future__ import annotations

from math import inf
from operator import add

from ..ids import Seq, TaskId, WorkerId
from ..record import Record
from ..typed import TypeAlias, cast
from . import policy
from .fleet import Fleet, Serving, Worker
from .limits import Limits
from .messages import Dispatch, Effect, ReadFreeMemory, Recall
from .tasks import Ledger

__all__ = ["Dispatcher"]


# What is known of the machine's free memory


class Unknown(Record):
    """Or too long ago."""


class Asked(Record):
    """The answer comes."""


class Enough(Record):
    """Believed until then."""

    until: float


class Short(Record):
    """Asked again then, if tasks wait."""

    until: float


FreeMemory: TypeAlias = Unknown | Asked | Enough | Short


class Dispatcher:
    """A task for every idle thread first, then some in advance; suspects one at a time, to the ward."""

    def __init__(self, limits: Limits, ledger: Ledger, fleet: Fleet) -> None:
        self._limits = limits
        self._budget, self._running_limit = limits.budget, limits.running_limit
        self._ledger = ledger
        self._fleet = fleet
        self._last_seq = 0
        self._is_limited = limits.max_rate is not None or limits.watch_free_memory
        self._tokens = 0.0  # starts that a limited rate allows, as of the time below
        self._tokens_at: float | None = None
        self._memory: FreeMemory = Unknown()
        self._stall_at = inf  # when a worker has had no result for too long to keep what waits in it
        self._timed = False

    def deal(self, now: float, effects: list[Effect]) -> bool:
        """Add what to send to whom, and what to ask back. Whether a worker has got a deadline since the last time."""
        ledger = self._ledger
        ready = ledger.ready
        if (ready or ledger.suspects) and not self._memory_is_short(now, effects):
            self._refill(now)
            if ledger.suspects:
                self._try_a_suspect(now, effects)
            if ready:
                ready -= self._share_out(ready, now, effects)
        self._stall_at = inf
        if not ready:
            self._recall(now, effects)
        timed, self._timed = self._timed, False
        return timed

    def offer(self) -> tuple[WorkerId, Seq] | None:
        """See ``PoolMachine.offer``."""
        if not self._is_limited:
            for worker in self._fleet.workers.values():
                if not worker.sent and self._takes(worker) and self._room(worker) > 0:
                    return worker.id, Seq(self._last_seq + 1)
        return None

    def taken(self, id: WorkerId, seq: Seq, task: TaskId, now: float) -> None:
        """The task was sent to the worker as it was offered."""
        assert seq == self._last_seq + 1, "it was not sent as it was offered"
        self._give(self._fleet.workers[id], [task], now)

    def rest(self) -> None:
        """For as long as :meth:`deal` isn't called, nothing is due."""
        self._stall_at = inf

    def deadline(self) -> float:
        """When to deal again though nothing happened; ``inf``: never."""
        due = self._stall_at
        if self._is_limited and self._has_work():
            match self._memory:
                case Short(until):
                    due = min(due, until)
                case Asked():
                    pass
                case _:
                    due = min(due, self._next_token())
        return due

    def heard_of_memory(self, enough: bool, now: float) -> None:
        until = now + policy.MEMORY_SECONDS
        self._memory = Enough(until) if enough else Short(until)

    def limit_of(self, task: TaskId) -> float | None:
        """How long the task may run."""
        if not self._ledger.options:
            return self._running_limit
        return policy.running_limit(self._limits, self._ledger.of(task))

    def _takers(self) -> list[Worker]:
        return [worker for worker in self._fleet.workers.values() if self._takes(worker)]

    def _takes(self, worker: Worker) -> bool:
        return isinstance(worker.phase, Serving) and not worker.recalling and not worker.ward

    def _has_work(self) -> bool:
        return bool(self._ledger.ready or self._ledger.suspects)

    def _room(self, worker: Worker, ahead: int = 0) -> int:
        """How many more tasks the worker may hold."""
        room = worker.threads - len(worker.sent) + ahead
        return room if self._budget is None else min(room, self._budget - worker.dispatched)

    def _share_out(self, ready: int, now: float, effects: list[Effect]) -> int:
        """First a task for every idle thread, then some in advance. How many of those that are ready."""
        takers = self._takers()
        # With a limited rate nothing is sent in advance, so that being sent is as good as being started.
        may_wait = self._limits.max_rate is None
        allowed = self._allowed(ready)
        shares = [self._room(worker, worker.ahead if may_wait else 0) for worker in takers]
        # In a busy pool there is enough for each to get all that it may hold; else idle threads come first.
        if sum([share for share in shares if share > 0]) > allowed:
            idle = [self._room(worker) for worker in takers]
            shares = first = policy.spread(allowed, idle)
            left = allowed - sum(first)
            if left:
                rooms = [self._room(w, w.ahead) - share for w, share in zip(takers, first, strict=True)]
                shares = list(map(add, first, policy.spread(left, rooms)))
        given = 0
        for worker, share in zip(takers, shares, strict=True):
            if share > 0:
                given += share
                effects.append(Dispatch(worker.id, self._give(worker, self._ledger.take(share), now)))
        return given

    def _try_a_suspect(self, now: float, effects: list[Effect]) -> None:
        """One at a time, in a worker that runs nothing else: whoever ends that one is found out."""
        ward = self._free_ward()
        if ward is not None and self._allowed(1):
            effects.append(Dispatch(ward.id, self._give(ward, [self._ledger.suspects.popleft()], now)))

    def _free_ward(self) -> Worker | None:
        """The ward, when a suspect waits and could go to it."""
        ward = self._fleet.ward
        if ward is None or not isinstance(ward.phase, Serving) or ward.sent or not self._ledger.suspects:
            return None
        return ward if self._room(ward) > 0 and not ward.recalling else None

    def _give(self, worker: Worker, tasks: list[TaskId], now: float) -> list[tuple[Seq, TaskId]]:
        self._tokens -= len(tasks)
        if self._running_limit is not None or self._ledger.options:
            self._watch_time(worker, tasks, now)
        if self._limits.watch_memory and worker.memory_at is None:
            worker.memory_at = now + policy.MEMORY_SECONDS
            self._timed = True
        if not worker.sent:
            worker.busy_again(now)
        if not worker.dispatched:
            self._age(worker, now)
        worker.dispatched += len(tasks)
        if worker.dispatched >= worker.due_at and isinstance(worker.phase, Serving):
            worker.due_at = inf  # it is, from now on
            worker.phase = worker.phase.replace(due=now)
            self._timed = True
        # Measured: a third of the time that a comprehension takes.
        batch = cast("list[tuple[Seq, TaskId]]", list(enumerate(tasks, self._last_seq + 1)))
        self._last_seq += len(tasks)
        worker.sent.update(batch)
        return batch

    def _watch_time(self, worker: Worker, tasks: list[TaskId], now: float) -> None:
        if not self._ledger.options:
            limit = self._running_limit
        else:
            limit = min((x for task in tasks if (x := self.limit_of(task)) is not None), default=None)
        if limit is not None and (worker.check_at is None or now + limit < worker.check_at):
            worker.check_at = now + limit
            self._timed = True

    def _age(self, worker: Worker, now: float) -> None:
        """Its life begins: who did nothing isn't worn, however long it waited."""
        self._timed = True
        worker.due_at = policy.due_at_count(self._limits, worker.id)
        due, hard = policy.due_after(self._limits, worker.id), self._limits.lifecycle_duration_hard
        worker.phase = Serving(None if due is None else now + due, None if hard is None else now + hard)

    # Tasks behind slow ones

    def _recall(self, now: float, effects: list[Effect]) -> None:
        """While a thread is idle and no task waits: those that wait behind others that run for long."""
        if not [worker for worker in self._fleet.workers.values() if len(worker.sent) > worker.threads]:
            return  # nearly always, and for a task that comes alone it would be much of the work
        serving = self._fleet.in_phase(Serving)
        crowded = [worker for worker in serving if len(worker.sent) > worker.threads and not worker.recalling]
        if not any(self._room(worker) > 0 for worker in serving):
            return
        for worker in crowded:
            stalled_at = worker.last_result + policy.STALL_SECONDS
            if now >= stalled_at:
                worker.recalling = True
                worker.ahead = 0
                effects.append(Recall(worker.id, next(reversed(worker.sent))))
            else:
                self._stall_at = min(self._stall_at, stalled_at)

    # Limits of the whole pool

    def _allowed(self, count: int) -> int:
        """How many of ``count`` starts a limited rate allows now."""
        return count if self._limits.max_rate is None else int(min(count, self._tokens))

    def _refill(self, now: float) -> None:
        """Tokens fill a bucket at the rate, and each start takes one."""
        rate = self._limits.max_rate
        if rate is None:
            return
        most = max(1.0, rate * policy.BURST_SECONDS)
        passed = most if self._tokens_at is None else (now - self._tokens_at) * rate
        self._tokens = min(most, self._tokens + passed)
        self._tokens_at = now

    def _next_token(self) -> float:
        rate = self._limits.max_rate
        if rate is None or self._tokens_at is None:
            return inf
        if self._free_ward() is None and not (self._ledger.ready and any(self._room(w) > 0 for w in self._takers())):
            return inf
        # A hair later, so that rounding doesn't wake for a token that isn't quite there.
        return self._tokens_at + max(0.0, 1.0 - self._tokens) / rate + 1e-6

    def _memory_is_short(self, now: float, effects: list[Effect]) -> bool:
        if not self._limits.watch_free_memory:
            return False
        match self._memory:
            case Enough(until) if now < until:
                return False
            case Short(until) if now < until:
                return True
            case Asked():
                return True
            case _:
                self._memory = Asked()
                effects.append(ReadFreeMemory())
                return True
