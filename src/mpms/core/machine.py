"""All decisions of a pool: which worker gets how many tasks, what an exit means, when to rotate and to give up.

After every step:

 - a task that was submitted is waiting, sent to exactly one worker, or settled; it is settled once;
 - a task that had started is not sent again, unless ``retries`` allow it;
 - as many workers are starting or serving as there should be, or a start is due at a known time.

A single thread owns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ..ids import Seq, TaskId, WorkerId
from ..record import Record
from ..typed import TypeAlias
from . import policy
from .dispatch import Dispatcher
from .fates import Fates
from .fleet import Fleet, Killed, Retiring, Serving, Starting, Worker
from .limits import Limits
from .messages import (
    AbandonedTask,
    BoardSeen,
    Broke,
    CancelRequested,
    Closed,
    DumpStacks,
    Effect,
    Event,
    FreeMemorySeen,
    Interrupt,
    Keep,
    Kill,
    KillReason,
    LinkLost,
    LostCause,
    MemorySeen,
    OfferTaken,
    ReadBoard,
    ReadMemory,
    Recall,
    Resized,
    ResultsArrived,
    Retire,
    Stopped,
    StopRequested,
    TasksReturned,
    TasksSubmitted,
    Withdrawn,
    WorkerDue,
    WorkerDying,
    WorkerExited,
    WorkerReady,
    WorkerUnborn,
)
from .staffing import Staffing
from .story import Story
from .tasks import Ledger

__all__ = ["PoolMachine"]


# What the pool is about, as a whole


class Open(Record):
    """Tasks come."""


class Closing(Record):
    """No more tasks come; those that are here get their outcomes, and then it ends."""


class Stopping(Record):
    """As closing, until ``deadline``; what has no outcome then is cancelled."""

    deadline: float


class Abandoning(Record):
    """The time of stopping is over: what has no outcome is cancelled, and the workers are killed."""


class Breaking(Record):
    """No worker can be started: everything is over but the ends of the workers."""


class Ended(Record):
    """Every task is settled, and no worker lives."""

    broken: bool


Mode: TypeAlias = Open | Closing | Stopping | Abandoning | Breaking | Ended


class PoolMachine:
    """``handle(events, now)`` returns what to do; ``next_deadline()`` says when to call it though nothing happened."""

    def __init__(self, limits: Limits, *, story: Story | None = None) -> None:
        self.limits = limits
        self.ledger = Ledger()
        self.fleet = Fleet(limits.processes)
        self.story = story or Story()
        self.mode: Mode = Open()
        self._dispatcher = Dispatcher(limits, self.ledger, self.fleet)
        self._fates = Fates(limits, self.ledger, self._dispatcher.limit_of)
        self._staffing = Staffing(limits, self.ledger, self.fleet)
        self._restless = True  # something has happened that is more than tasks that come and go
        self._quiet_until = 0.0  # and if not, nothing is due before this
        self._out: list[Effect] = []

    # Events in, effects out

    def handle(self, events: Sequence[Event], now: float) -> list[Effect]:
        """Take what happened since the last call and return what to do, in this order."""
        out: list[Effect] = []
        self._out = self._fates.out = out
        for event in events:
            self._take(event, now)
        if self._fates.are_enough:
            self._stop(now)
        if self._restless or now >= self._quiet_until or not (isinstance(self.mode, Open) or self.ledger.waiting):
            quiet = False
        else:
            quiet = not self._dispatcher.deal(now, out)
        if not quiet:
            self._advance(now)
            self._rest()
        if events or out:
            self.story.add(now, events, out)
        return out

    def next_deadline(self) -> float | None:
        """When :meth:`handle` is to be called at the latest, or ``None``."""
        if isinstance(self.mode, Ended):
            return None
        if self._restless:
            self._quiet_until = self._next_of_all()
        due = min(self._quiet_until, self._dispatcher.deadline())
        return None if due == inf else due

    @property
    def is_hungry(self) -> bool:
        """Whether a new task makes a difference: while others wait, what happens or is due will see to all of them."""
        return not self.ledger.ready

    def offer(self) -> tuple[WorkerId, Seq] | None:
        """An idle worker, and the dispatch as which it may be sent the next task that is submitted, by who submits it.
        That holds until the next call of :meth:`handle`, which is to come soon when it was taken, and whose events
        begin with that."""
        return self._dispatcher.offer()

    @property
    def slack(self) -> int:
        """How many tasks may well wait here because the workers are that quick: as many as they hold in advance."""
        return sum([worker.ahead for worker in self.fleet.workers.values()])

    def _rest(self) -> None:
        """What tasks that come and go don't change, until something else happens, or is due."""
        self._quiet_until = self._next_of_all()
        # Then what is left to do is to deal tasks out, which takes a third of the time.
        self._restless = not (
            isinstance(self.mode, Open | Closing) and not self.ledger.suspects and not self.ledger.isolated
        )

    def _next_of_all(self) -> float:
        return min((t for t in self._deadlines() if t is not None), default=inf)

    def _deadlines(self) -> list[float | None]:
        times: list[float | None] = [self.ledger.delayed[0][0] if self.ledger.delayed else None]
        if isinstance(self.mode, Stopping):
            times.append(self.mode.deadline)
        times += self._staffing.deadlines(needed=self._needs_workers())
        for worker in self.fleet.workers.values():
            times.append(worker.check_at)
            times.append(worker.memory_at)
            for since in worker.hung.values():
                times.append(since + policy.DUMP_SECONDS)
            match worker.phase:
                case Serving(_, hard):
                    times.append(hard)
                case Starting(deadline) | Retiring(deadline) | Killed(deadline):
                    times.append(deadline)
        return times

    def _take(self, event: Event, now: float) -> None:
        self._restless = self._restless or not isinstance(event, (ResultsArrived, TasksSubmitted, OfferTaken))
        match event:
            case ResultsArrived():
                self._results(event, now)
            case TasksSubmitted(tasks, options):
                self.ledger.submit(tasks, options)
            case OfferTaken(worker, seq, task):
                self.ledger.submit_taken(task)
                self._dispatcher.taken(worker, seq, task, now)
            case CancelRequested(tasks):
                self._cancel(tasks, now)
            case WorkerReady(worker):
                self._ready(worker)
            case TasksReturned(worker, floor):
                self._returned(worker, floor, now)
            case WorkerDue(worker, threads):
                self._due(worker, threads, now)
            case WorkerDying(worker):
                self._retire(self.fleet.workers.get(worker), now + self.limits.grace)
            case WorkerExited():
                self._exited(event, now)
            case WorkerUnborn(worker):
                self._unborn(worker, now)
            case BoardSeen():
                self._board(event, now)
            case MemorySeen():
                self._memory(event, now)
            case FreeMemorySeen(enough):
                self._dispatcher.heard_of_memory(enough, now)
            case Resized(processes):
                self.fleet.size = processes
            case LinkLost(worker):
                self._link_lost(worker, now)
            case Closed():
                if isinstance(self.mode, Open):
                    self.mode = Closing()
            case StopRequested(deadline):
                self._stop(deadline)
            case Broke():
                self._break()

    # What each event means

    def _results(self, event: ResultsArrived, now: float) -> None:
        worker = self.fleet.workers.get(event.worker)
        if worker is None:
            return
        if self._fates.finish(worker, event, now) or not isinstance(worker.phase, Serving):
            self._restless = True  # who leaves may have been waited for
        worker.finished(len(event.seqs), event.weight, now)
        self._staffing.did_something()

    def _ready(self, id: WorkerId) -> None:
        worker = self.fleet.workers.get(id)
        if worker is None or not isinstance(worker.phase, Starting):
            return
        self._staffing.came_up()
        # Until it is known how fast it is. With none in advance each of its threads would wait for every next task:
        # that took 1 to 2 % of the rate of a pool that rotates every 100 tasks of 1 ms.
        worker.ahead = max([other.ahead for other in self.fleet.in_phase(Serving)], default=0)
        worker.phase = Serving(None, None)  # its age counts from its first task

    def _returned(self, id: WorkerId, floor: Seq, now: float) -> None:
        worker = self.fleet.workers.get(id)
        if worker is None:
            return
        worker.recalling = False
        back = [seq for seq in worker.sent if seq >= floor]
        worker.dispatched -= len(back)
        self._fates.put_back([worker.sent.pop(seq) for seq in back])
        self._fates.keep(worker.sent.values())

    def _cancel(self, tasks: Sequence[TaskId] | None, now: float) -> None:
        sent = {task: worker for worker in self.fleet.workers.values() for task in worker.sent.values()}
        if tasks is None:
            for task in self.ledger.drop_all():
                self._fates.fail(task, None, Withdrawn())
            tasks = list(sent)
        kept = []
        for task in tasks:
            if task in sent:
                self.ledger.unwanted.add(task)
                self._recall(sent[task])
            elif self.ledger.withdraw(task):
                self._fates.fail(task, None, Withdrawn())
            else:
                kept.append(task)
        if kept:
            self._out.append(Keep(kept))

    def _recall(self, worker: Worker) -> None:
        # Nothing is sent while a recall is under way: its answer is about all that there is.
        if not worker.recalling:
            worker.recalling = True
            self._out.append(Recall(worker.id, next(reversed(worker.sent))))

    def _due(self, id: WorkerId, threads: int, now: float) -> None:
        worker = self.fleet.workers.get(id)
        if worker is None:
            return
        worker.threads = threads
        if not threads:
            # Nobody in it takes tasks: it can't wait for its turn. Whatever it was sent, only its finalizers run.
            self._retire(worker, now + self.limits.start_timeout)
        elif isinstance(worker.phase, Serving):
            worker.phase = worker.phase.replace(due=now)

    def _memory(self, event: MemorySeen, now: float) -> None:
        worker = self.fleet.workers.get(event.worker)
        if worker is None:
            return
        if event.over_hard:
            self._kill(worker, "memory")
        elif event.over and isinstance(worker.phase, Serving):
            worker.phase = worker.phase.replace(due=now)

    def _board(self, event: BoardSeen, now: float) -> None:
        worker = self.fleet.workers.get(event.worker)
        if worker is None:
            return
        limit_of = self._dispatcher.limit_of
        running = {seq: start for seq, start in event.running if seq in worker.sent}
        checks = [now + limit for seq, task in worker.sent.items() if seq not in running and (limit := limit_of(task))]
        over = []
        for seq, start in running.items():
            limit = limit_of(worker.sent[seq])
            if limit is None or seq in worker.hung:
                continue
            deadline = self._interrupt(worker, seq, limit, now) if now >= start + limit else start + limit
            if now >= deadline:
                over.append(seq)
            else:
                checks.append(deadline)
        if over:
            worker.hung.update((seq, now) for seq in over)
            worker.overdue = True
            self._out.append(DumpStacks(worker.id))
            self._retire(worker, now + max(self.limits.grace, policy.DUMP_SECONDS))
        waiting = next((seq for seq in worker.sent if seq not in running), None)
        if not worker.sent and worker.recalling and self.limits.running_limit is not None:
            # It has nothing, and gets nothing until it answers.
            waiting = Seq(0)
            checks.append(now + self.limits.running_limit)
        worker.check_at = min(checks, default=None)
        # Tasks, and nothing runs, at two looks in a row: a process that was stopped before it had read them.
        if waiting is None or running:
            worker.waiting_since = None
        elif worker.waiting_since is None or worker.waiting_since[0] != waiting:
            worker.waiting_since = waiting, now
        elif now >= worker.waiting_since[1] + policy.MUTE_SECONDS:
            self._kill(worker, "unresponsive")

    def _interrupt(self, worker: Worker, seq: Seq, limit: float, now: float) -> float:
        """The task is over its limit. Until when it has to end by itself."""
        if not self.limits.timeout_raises:
            return now
        since = worker.interrupted.get(seq)
        if since is None:
            worker.interrupted[seq] = since = now
            self._out.append(Interrupt(worker.id, seq, limit))
        return since + policy.SOFT_SECONDS

    def _exited(self, event: WorkerExited, now: float) -> None:
        worker = self.fleet.workers.pop(event.worker, None)
        if worker is None:
            return
        if isinstance(self.mode, Abandoning | Breaking):
            for seq, task in worker.sent.items():
                started = seq <= event.watermark
                self._fates.fail(task, seq, LostCause() if isinstance(self.mode, Breaking) else AbandonedTask(started))
            return
        self._fates.bury(worker, event, now)
        match worker.phase:
            case Starting():
                self._start_failed(worker, now)
            case Serving() if not worker.done and not event.watermark:
                self._staffing.ended_barren(now)
            case _:
                pass

    def _unborn(self, id: WorkerId, now: float) -> None:
        worker = self.fleet.workers.pop(id, None)
        if worker is not None:
            # While another one serves, the pool can wait for as long as it takes.
            self._start_failed(worker, now, counts=not self.fleet.count(Serving))

    def _link_lost(self, id: WorkerId, now: float) -> None:
        worker = self.fleet.workers.get(id)
        if worker is None:
            return
        if isinstance(worker.phase, Starting):
            self._start_failed(worker, now)
        self._kill(worker, "link lost")

    def _start_failed(self, worker: Worker, now: float, *, counts: bool = True) -> None:
        self._staffing.start_failed(worker, now, counts=counts)
        if counts and self._staffing.is_hopeless:
            self._break()

    # Ends

    def _retire(self, worker: Worker | None, deadline: float | None, *, rotation: bool = False) -> None:
        if worker is None:
            return
        match worker.phase:
            case Starting() | Serving():
                worker.phase = Retiring(deadline, rotation)
                self._out.append(Retire(worker.id))
            case Retiring(before, was_rotation):
                bounds = [d for d in (before, deadline) if d is not None]
                worker.phase = Retiring(min(bounds, default=None), was_rotation)
            case Killed():
                pass

    def _kill(self, worker: Worker, why: KillReason) -> None:
        if not isinstance(worker.phase, Killed):
            worker.phase = Killed(None, why)
            self._out.append(Kill(worker.id, why))

    def _await_end(self, worker: Worker, deadline: float) -> None:
        """If it was killed, don't wait for its end for longer than until ``deadline``."""
        match worker.phase:
            case Killed(before):
                worker.phase = worker.phase.replace(deadline=deadline if before is None else min(before, deadline))
            case _:
                pass

    def _stop(self, deadline: float) -> None:
        self._restless = True
        match self.mode:
            case Open() | Closing():
                self.mode = Stopping(deadline)
            case Stopping(before):
                self.mode = Stopping(min(before, deadline))
            case Abandoning() | Breaking() | Ended():
                pass

    def _break(self) -> None:
        if not isinstance(self.mode, Abandoning | Ended):
            self.mode = Breaking()

    # What time and circumstances ask for

    def _advance(self, now: float) -> None:
        if isinstance(self.mode, Ended):
            verdict = LostCause() if self.mode.broken else AbandonedTask(started=False)
            for task in self.ledger.drop_all():  # accepted just before the news got about
                self._fates.fail(task, None, verdict)
            return
        self.ledger.wake(now)
        for worker in list(self.fleet.workers.values()):
            self._watch(worker, now)
        if self._fates.are_enough:
            self._stop(now)
        if isinstance(self.mode, Stopping) and now >= self.mode.deadline:
            self.mode = Abandoning()
        self._dispatcher.rest()
        match self.mode:
            case Breaking():
                self._abandon(LostCause(), now)
            case Abandoning():
                self._abandon(AbandonedTask(started=False), now)
            case _ if self._draining():
                for worker in self.fleet.workers.values():
                    self._retire(worker, now + self.limits.start_timeout)
                    self._await_end(worker, now + self.limits.start_timeout)
            case _:
                self._staff(now)
        if not isinstance(self.mode, Open) and not self.fleet.workers and not self.ledger.outstanding:
            self.mode = Ended(broken=isinstance(self.mode, Breaking))
            self._out.append(Stopped(self.mode.broken))

    def _staff(self, now: float) -> None:
        needed = self._needs_workers()
        rotated = self._staffing.end_turn()
        if rotated is not None:
            hard = rotated.phase.hard if isinstance(rotated.phase, Serving) else None
            self._retire(rotated, None if hard is None else hard + self.limits.grace, rotation=True)
            self._watch(rotated, now)  # it may have nothing to do but its finalizers
        for worker in self._staffing.surplus(now, needed=needed):
            self._retire(worker, None)
            self._watch(worker, now)
        self._dispatcher.deal(now, self._out)
        self._staffing.begin_turn(now)
        self._out += self._staffing.starts(now, needed=self._needs_workers())

    def _needs_workers(self) -> bool:
        """Whether a new worker would have something to do, now or later."""
        match self.mode:
            case Open():
                return True
            case Closing() | Stopping():
                return self.ledger.waiting > 0
            case _:
                return False

    def _abandon(self, verdict: AbandonedTask | LostCause, now: float) -> None:
        for task in self.ledger.drop_all():
            self._fates.fail(task, None, verdict)
        for worker in self.fleet.workers.values():
            self._kill(worker, "stopped")
            self._await_end(worker, now + policy.KILL_SECONDS)

    def _watch(self, worker: Worker, now: float) -> None:
        """The deadlines of one worker."""
        for seq, since in list(worker.hung.items()):
            if now >= since + policy.DUMP_SECONDS and seq in worker.sent:
                # Out of `sent`: a result that comes later is late.
                del worker.hung[seq]
                self._fates.time_out(worker, seq, worker.sent.pop(seq), now)
        if worker.check_at is not None and now >= worker.check_at:
            worker.check_at = None
            self._out.append(ReadBoard(worker.id))
        if worker.memory_at is not None and now >= worker.memory_at:
            worker.memory_at = now + policy.MEMORY_SECONDS if worker.sent else None
            self._out.append(ReadMemory(worker.id))
        match worker.phase:
            case Starting(deadline) if now >= deadline:
                self._start_failed(worker, now)
                self._kill(worker, "start timeout")
            case Serving(_, hard) if hard is not None and now >= hard:
                self._retire(worker, now + self.limits.grace)
            case Retiring() if worker.overdue and not worker.sent:
                self._kill(worker, "timeout")  # but for who hangs nobody is in it, and a retry isn't to run beside him
            case Retiring(deadline) if deadline is not None and now >= deadline:
                self._kill(worker, "timeout" if worker.overdue else "grace over")
            case Retiring(None, rotation) if not worker.sent:
                # It has only its finalizers to run: they get as long as the initializers.
                worker.phase = Retiring(now + self.limits.start_timeout, rotation)
            case Killed(deadline) if deadline is not None and now >= deadline:
                # It isn't seen to end, in a system call that can't be interrupted: its tasks don't wait for that.
                del self.fleet.workers[worker.id]
                verdict = LostCause() if isinstance(self.mode, Breaking) else AbandonedTask(started=True)
                for seq, task in worker.sent.items():
                    self._fates.fail(task, seq, verdict)
            case _:
                pass

    def _draining(self) -> bool:
        return isinstance(self.mode, Closing | Stopping) and not self.ledger.outstanding
