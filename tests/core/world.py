"""A model of the world outside of the core: workers that behave as real ones do, and an account of what is true.

A worker starts tasks first in, first out; what it says stays in its socket until that is read; what it is told by the
control channel it hears when it comes to it; it ends at any instant, and what was not read by then is read first.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

from hypothesis import event

from mpms.core import policy
from mpms.core.fleet import Retiring, Serving, Starting, Worker
from mpms.core.limits import Limits
from mpms.core.machine import Abandoning, Breaking, Closing, Ended, Open, PoolMachine
from mpms.core.messages import (
    AbandonedTask,
    BoardSeen,
    Broke,
    CancelRequested,
    Closed,
    Crash,
    Dispatch,
    DumpStacks,
    Effect,
    Event,
    Fail,
    FreeMemorySeen,
    Interrupt,
    Keep,
    Kill,
    LinkLost,
    LostCause,
    MemorySeen,
    OfferTaken,
    ReadBoard,
    ReadFreeMemory,
    ReadMemory,
    Recall,
    Resized,
    ResultsArrived,
    Retire,
    Retried,
    Settle,
    StartWorker,
    Stopped,
    StopRequested,
    TasksReturned,
    TasksSubmitted,
    Timeout,
    Verdict,
    Withdrawn,
    WorkerDue,
    WorkerDying,
    WorkerExited,
    WorkerReady,
)
from mpms.ids import Seq, TaskId, TaskOptions, WorkerId

__all__ = ["Process", "World", "reached"]

_NONE = Seq(0)
_PLAIN = TaskOptions()

reached: Counter[str] = Counter()
"""How often the interesting things happened, since somebody cleared it."""


def reach(label: str) -> None:
    reached[label] += 1
    event(label)


@dataclass
class Process:
    """A worker. Faults are set from outside: ``frozen`` (SIGSTOP), ``stuck`` (a finalizer that never returns)."""

    id: WorkerId
    counts: list[int | None]  # tasks that each thread has run; None: it has ended
    ward: bool = False
    up: bool = False
    gone: bool = False
    killed: bool = False
    why: str = ""  # it was killed
    frozen: bool = False
    stuck: bool = False
    hopeless: bool = False  # its initializer never returns
    mute: bool = False  # its socket is closed
    greedy: bool = False  # with memory
    bloated: bool = False  # with memory, beyond all measure
    closing: bool = False
    no_more: bool = False  # the core has said that it gets no more tasks
    dumped: bool = False
    inbox: deque[tuple[Seq, TaskId]] = field(default_factory=deque)
    control: deque[Recall | Retire] = field(default_factory=deque)
    outbox: list[Event] = field(default_factory=list)
    obituary: list[Event] = field(default_factory=list)  # it is dead, and the pool will be told this
    running: dict[int, tuple[Seq, float]] = field(default_factory=dict)  # by thread
    hung: set[Seq] = field(default_factory=set)
    taken: Seq = _NONE
    last_given: Seq = _NONE
    blamed: Seq | None = None
    given: int = 0  # tasks that it was sent and did not give back

    @property
    def acts(self) -> bool:
        return self.up and not self.gone and not self.frozen

    @property
    def idle(self) -> list[int]:
        return [n for n, count in enumerate(self.counts) if count is not None and n not in self.running]

    @property
    def finished(self) -> bool:
        """Nothing is left to do but finalizers and the end."""
        over = self.closing or all(count is None for count in self.counts)
        return self.acts and over and not self.running and not self.stuck

    @property
    def owes_an_answer(self) -> bool:
        """About what it has not started: it was asked, or has answered already, or its end will tell."""
        answered = any(isinstance(one, TasksReturned) for one in self.outbox)
        return bool(self.control) or answered or self.gone or self.killed

    @property
    def is_explained(self) -> bool:
        """Which task ended it is known."""
        return self.blamed is not None or self.dumped

    def give_back(self, upto: Seq | None) -> int:
        count = len(self.inbox)
        while self.inbox and (upto is None or self.inbox[-1][0] <= upto):
            self.inbox.pop()
        self.given -= count - len(self.inbox)
        self.outbox.append(TasksReturned(self.id, Seq(self.taken + 1)))
        return count - len(self.inbox)

    def obey(self) -> None:
        while self.control:
            match self.control.popleft():
                case Recall(_, upto):
                    if self.give_back(upto):
                        reach("recall answered with tasks")
                case Retire():
                    self.closing = True
                    self.give_back(None)


class World:
    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.machine = PoolMachine(limits)
        self.now = now
        self.processes: dict[WorkerId, Process] = {}  # that live
        self.dead: dict[WorkerId, Process] = {}
        self.submitted = 0
        self.dispatched = 0
        self.place: dict[Seq, tuple[TaskId, Process]] = {}  # every dispatch
        self.starts: dict[Seq, float] = {}
        self.attempts: dict[TaskId, list[Seq]] = defaultdict(list)  # dispatches that started
        self.innocent: Counter[TaskId] = Counter()  # attempts that another task ended
        self.again: Counter[TaskId] = Counter()  # attempts that were followed by another one for another reason
        self.asked: dict[TaskId, int] = {}  # to be cancelled, and unanswered; and how many attempts were over then
        self.options: dict[TaskId, TaskOptions] = {}
        self.raised: dict[Seq, bool] = {}  # dispatches that ended by an error, and whether it asks for another attempt
        self.suspects: set[TaskId] = set()  # of some crash, and without an outcome
        self.interrupted: dict[Seq, float] = {}
        self.failures = 0
        self.too_many_failures = False
        self.told_to_end = False
        self.just_sent: list[TaskId] = []  # in this step, to others than the ward
        self.sent_before: set[TaskId] = set()
        self.size = self.largest = limits.processes
        self.plenty = True  # of the machine's free memory
        self.heard: tuple[bool, float] | None = None  # what the pool was told about it, and when
        self.asked_memory: float | None = None
        self.tokens = self.full_bucket
        self.tokens_at = now
        self.results: set[Seq] = set()  # a worker has it, or the pool
        self.outcomes: dict[TaskId, str] = {}
        self.answers: list[Event] = []  # of the shell, to be told next
        self.taken: list[Event] = []  # the offer, to be told before all else
        self.coming: Sequence[Event] = ()  # what is to be told right after that
        self.stopped: Stopped | None = None
        self.cursed = False  # no worker comes up any more
        self.happens()

    # What happens

    def happens(self, *events: Event) -> None:
        taken, self.taken = self.taken, []
        told, self.answers = [*taken, *self.answers], []
        if told and any(isinstance(one, WorkerExited) for one in events):
            # Apart, since what an end means depends on what the board said before: see `_foresee_end`.
            self.coming = events
            self._step(told)
            self.coming, told = (), []
        self._step([*told, *events])

    def _step(self, told: Sequence[Event]) -> None:
        for one in told:
            self._foresee(one)
        if self.limits.max_rate is not None:
            self.tokens = min(self.full_bucket, self.tokens + (self.now - self.tokens_at) * self.limits.max_rate)
            self.tokens_at = self.now
        for effect in self.machine.handle(told, self.now):
            self._perform(effect)
        self.check()

    def submit(self, count: int, own: Sequence[TaskOptions] = ()) -> None:
        """Tasks, with options of their own in a circle."""
        first = self.submitted + 1
        self.submitted += count
        tasks = [TaskId(n) for n in range(first, first + count)]
        options = dict(zip(tasks, cycle(own), strict=False))
        self.options.update(options)
        due, sent = self.machine.next_deadline(), self.dispatched
        nothing_else = not self.answers and (due is None or self.now < due)
        needed = self.machine.is_hungry
        self.happens(TasksSubmitted(tasks, options))
        if nothing_else and not needed:
            assert self.dispatched == sent, "it was to be told of these tasks, and said that it needn't"

    def submit_to_the_idle(self) -> Process | None:
        """A task, if there is an offer: that worker has it before the pool hears of it. Who took it."""
        offered = None if self.taken else self.machine.offer()
        if offered is None:
            return None
        worker, seq = offered
        self.submitted += 1
        task = TaskId(self.submitted)
        process = self._process(worker)
        assert not process.running
        assert not process.inbox
        assert not self.machine.ledger.ready, "others wait"
        self._given(process, [(seq, task)])
        self.just_sent.remove(task)  # but before all that are sent in this step
        self.sent_before.add(task)
        self.taken.append(OfferTaken(worker, seq, task))
        reach("an offer was taken")
        return process

    def deliver(self, process: Process, count: int | None = None) -> list[Event]:
        """Take up to ``count`` messages out of its socket."""
        events, process.outbox = process.outbox[:count], process.outbox[len(process.outbox[:count]) :]
        if process.mute:
            self._lose(events)
            return []
        return events

    def _lose(self, said: Sequence[Event]) -> None:
        """The pool will never hear it."""
        for one in said:
            if isinstance(one, ResultsArrived):
                self.results.difference_update(one.seqs)

    def cancel(self, tasks: Sequence[TaskId] | None) -> None:
        self.happens(CancelRequested(tasks))

    def resize(self, processes: int) -> None:
        self.happens(Resized(processes))

    def start(self, process: Process, most: int) -> None:
        for thread in process.idle[:most]:
            if process.closing or not process.inbox:
                return
            process.taken, task = process.inbox.popleft()
            process.running[thread] = (process.taken, self.now)
            self.starts[process.taken] = self.now
            self._started(process.taken, task)

    def finish(
        self, process: Process, thread: int, *, dying: bool = False, raises: bool = False, asks: bool = False
    ) -> None:
        """The task returns, or raises an error, which may ask for another attempt."""
        seq, _ = process.running.pop(thread)
        process.hung.discard(seq)
        self.results.add(seq)
        if raises:
            self.raised[seq] = asks
        again = frozenset([seq] if raises and asks else [])
        process.outbox.append(ResultsArrived(process.id, [seq], failed=int(raises), retry=again))
        if dying:
            process.closing = True
            process.give_back(None)
            process.outbox.append(WorkerDying(process.id))
            reach("graceful die")
            return
        count = process.counts[thread] = (process.counts[thread] or 0) + 1
        if count == self.limits.lifecycle:
            process.counts[thread] = None
            left = sum(c is not None for c in process.counts)
            process.outbox.append(WorkerDue(process.id, left))
            if not left:
                process.closing = True
                process.give_back(None)

    def dies(self, process: Process, *, blamed: Seq | None = None, unsaid: int = 0) -> None:
        """Its last ``unsaid`` messages were not written. The pool has not heard of it so far."""
        process.gone = True
        process.blamed = blamed
        process.obituary = [
            *self.deliver(process, max(0, len(process.outbox) - unsaid)),
            WorkerExited(process.id, process.taken, blamed),
        ]
        self._lose(process.outbox)
        process.outbox.clear()

    def bury(self, process: Process) -> list[Event]:
        """The events that tell of its death."""
        self.dead[process.id] = self.processes.pop(process.id)
        return process.obituary

    def ends(self, process: Process) -> list[Event]:
        """It ends, killed or in good order."""
        self.dies(process)
        return self.bury(process)

    def passes(self, seconds: float) -> None:
        """Time, but not beyond the moment at which the pool asked to be called."""
        deadline = self.machine.next_deadline()
        self.now = self.now + seconds if deadline is None else min(self.now + seconds, deadline)
        self.happens()

    # What the core asks for

    def _perform(self, effect: Effect) -> None:
        assert self.stopped is None or isinstance(effect, Fail | Keep), f"{effect} after the end"
        match effect:
            case StartWorker(worker):
                assert worker not in self.processes
                assert worker not in self.dead
                ward = self.machine.fleet.workers[worker].ward
                self.processes[worker] = Process(worker, [0] * self.limits.threads, ward)
            case Dispatch(worker, tasks):
                self._given(self._process(worker), tasks)
            case Recall(worker):
                self._process(worker).control.append(effect)
            case Retire(worker):
                process = self._process(worker)
                process.no_more = True
                phase = getattr(self.machine.fleet.workers.get(worker), "phase", None)
                if isinstance(phase, Retiring) and phase.rotation:
                    assert self.machine.fleet.count(Serving) >= self.size
                process.control.append(effect)
            case Kill(worker, why):
                process = self._process(worker)
                assert not process.killed
                process.killed = process.no_more = True
                process.why = why
                reach(f"kill: {why}")
            case ReadBoard(worker):
                process = self._process(worker)
                self.answers.append(BoardSeen(worker, list(process.running.values())))
            case ReadMemory(worker):
                process = self._process(worker)
                self.answers.append(MemorySeen(worker, process.greedy, process.bloated))
            case ReadFreeMemory():
                assert self.limits.watch_free_memory
                assert self.asked_memory is None or self.now >= self.asked_memory + policy.MEMORY_SECONDS
                self.asked_memory = self.now
                self.answers.append(FreeMemorySeen(self.plenty))
            case Interrupt(worker, seq, limit):
                assert self.limits.timeout_raises
                assert seq not in self.interrupted
                assert limit == self.limit_of(self.place[seq][0])
                assert self.now >= self.starts[seq] + limit
                self.interrupted[seq] = self.now
                reach("interrupt")
            case DumpStacks(worker):
                self._process(worker).dumped = True
            case Settle(tasks):
                for task, seq in tasks:
                    assert self.place[seq][0] == task
                    assert seq in self.results
                    if self.raised.get(seq):
                        assert self._tries(task) > self._retries(task), "an error that asks for another attempt"
                    self._outcome(task, "result")
                self._count_failures(sum(seq in self.raised for _, seq in tasks))
            case Keep(tasks):
                for task in tasks:
                    self._kept(task)
            case Retried(task, seq, None):
                self.again[task] += 1
                assert self.raised[seq]
                assert self._tries(task) <= self._retries(task)
                reach("retry after an error")
            case Retried(task, seq, verdict):
                self.again[task] += 1
                assert verdict is not None
                self._verdict(task, seq, verdict)
                assert self._may_be_tried_again(task, verdict)
                if isinstance(verdict, Crash) and verdict.blamed is not False:
                    self.suspects.add(task)
            case Fail(task, seq, verdict):
                self._outcome(task, type(verdict).__name__)
                self._verdict(task, seq, verdict)
                assert not self._may_be_tried_again(task, verdict)
                if isinstance(verdict, Crash | Timeout):
                    self._count_failures(1)
            case Stopped():
                assert not self.processes or any(p.killed for p in self.processes.values())
                self.stopped = effect
                if effect.broken:
                    reach("broke")

    def _given(self, process: Process, tasks: Sequence[tuple[Seq, TaskId]]) -> None:
        """It is sent them."""
        assert process.up
        assert not process.no_more, "a task for a worker that takes no more"
        asked_back = any(isinstance(one, Recall) for one in process.control)
        # Who asks for his own end gives back unasked, and that passes for the answer.
        assert process.closing or not asked_back, "a task for a worker that has not given back"
        process.given += len(tasks)
        self.dispatched += len(tasks)
        assert self.limits.budget is None or process.given <= self.limits.budget
        self._check_gates(process, len(tasks))
        if not process.ward:
            self.just_sent += [task for _, task in tasks]
        for seq, task in tasks:
            assert (task in self.suspects) == process.ward, "a suspect among others, or one of them in the ward"
            assert seq > process.last_given
            assert seq not in self.place
            assert task not in self.outcomes
            process.last_given = seq
            self.place[seq] = task, process
            process.inbox.append((seq, task))

    def _process(self, worker: WorkerId) -> Process:
        """Its exit may have been told in the same breath as what the effect answers."""
        return self.processes.get(worker) or self.dead[worker]

    def _outcome(self, task: TaskId, what: str) -> None:
        assert task not in self.outcomes, f"task {task}: {what} after {self.outcomes[task]}"
        self.outcomes[task] = what
        if task in self.asked and what != "Withdrawn":
            del self.asked[task]
            reach("cancelled, and it ended before there was an answer")
        if task in self.suspects:
            self.suspects.discard(task)
            reach(f"suspect: {what}")

    def _kept(self, task: TaskId) -> None:
        before = self.asked.pop(task)
        if task in self.outcomes:
            reach("kept: it was over")
            return
        assert len(self.attempts[task]) > before, "kept, and it had not started"
        reach("kept: it had started")
        if self._attempts_over(task) > before:
            reach("kept: it is tried again")

    def _attempts_over(self, task: TaskId) -> int:
        return self.again[task] + self.innocent[task]

    def _count_failures(self, count: int) -> None:
        limits = self.limits
        self.failures += count
        if limits.stop_on is not None and self.failures >= limits.stop_on:
            self.too_many_failures = True
        if limits.stop_on_percent is not None and count and self.failures >= 3:
            share = 100 * self.failures / len(self.outcomes)
            self.too_many_failures = self.too_many_failures or share >= limits.stop_on_percent

    def _may_be_tried_again(self, task: TaskId, verdict: Verdict) -> bool:
        match verdict:
            case Crash(worker, blamed, attempts):
                if blamed is False and self.dead[worker].is_explained and self._retries(task):
                    attempts = 0  # it is innocent
                return self.limits.retry_crashes and attempts <= self._retries(task)
            case Timeout(_, _, attempts):
                return self.limits.retry_timeouts and attempts <= self._retries(task)
            case _:
                return False

    # What is so

    @property
    def full_bucket(self) -> float:
        """How many tasks may be started at once with a limited rate."""
        return max(1.0, (self.limits.max_rate or 0.0) * policy.BURST_SECONDS)

    def limit_of(self, task: TaskId) -> float | None:
        own, hard = self.options.get(task, _PLAIN).timeout, self.limits.lifecycle_duration_hard
        bounds = [self.limits.task_timeout if own is None else own, hard]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _retries(self, task: TaskId) -> int:
        own = self.options.get(task, _PLAIN).retries
        return self.limits.retries if own is None else own

    def _tries(self, task: TaskId) -> int:
        """How often it was tried, and what another task ended doesn't count."""
        return len(self.attempts[task]) - self.innocent[task]

    @property
    def _memory_may_be_short(self) -> bool:
        if not self.limits.watch_free_memory:
            return False
        return self.heard is None or not self.heard[0] or self.now >= self.heard[1] + policy.MEMORY_SECONDS

    def _check_gates(self, process: Process, count: int) -> None:
        """It is given so many tasks now."""
        assert not self._memory_may_be_short, "a task for a machine without memory"
        if self.limits.max_rate is not None:
            self.tokens -= count
            assert self.tokens > -1e-3, "too many at once"
        if process.ward:
            assert count == 1
            assert not process.inbox
            assert not process.running
            reach("a suspect alone")

    def _verdict(self, task: TaskId, seq: Seq | None, verdict: Verdict) -> None:
        """It is true."""
        process = None if seq is None else self.place[seq][1]
        match verdict:
            case Crash(worker, blamed, attempts):
                assert attempts == self._tries(task)
                assert process is not None
                assert seq is not None
                assert process.id == worker
                assert process.gone
                assert seq <= process.taken
                known = process.is_explained
                by_us = process.killed and process.why != "memory"
                alone = process.ward and not known and not by_us
                assert (blamed is True) == (process.blamed == seq or alone)
                assert (blamed is None) == (not known and not by_us and not process.ward)
                if alone:
                    reach("the ward found it out")
                if process.why == "memory":
                    reach("suspects of too much memory")
            case Timeout(_, limit, attempts):
                assert attempts == self._tries(task)
                assert seq is not None
                assert limit == self.limit_of(task)
                assert self.now >= self.starts[seq] + limit
                if self.limits.timeout_raises:
                    assert self.now >= self.interrupted[seq] + policy.SOFT_SECONDS
                    reach("timeout after an interrupt")
                if task in self.options and self.options[task].timeout is not None:
                    reach("timeout of its own")
                reach("timeout")
            case AbandonedTask(started):
                if process is None:
                    assert not started
                elif process.id in self.dead:  # or it was not seen to end, and may have started all it had
                    assert seq is not None
                    assert started == (seq <= process.taken)
                    if started:
                        reach("stopped with running tasks")
            case LostCause():
                pass
            case Withdrawn():
                before = self.asked.pop(task)
                assert len(self.attempts[task]) == self._attempts_over(task), "cancelled, and it had started"
                assert self._attempts_over(task) == before, "cancelled, and it had started when that was asked for"
                self._note_withdrawal(task)

    def _note_withdrawal(self, task: TaskId) -> None:
        seq = max((seq for seq, (placed, _) in self.place.items() if placed == task), default=_NONE)
        if self.attempts[task]:
            reach("cancelled after an attempt")
        if seq and seq not in self.attempts[task]:
            reach("cancelled after it was sent")
            if self.place[seq][1].gone:
                reach("cancelled after its worker had ended")
            if self.place[seq][1].ward:
                reach("cancelled in the ward")
        if self.options.get(task, _PLAIN).priority:
            reach("cancelled with a priority")
        if self.processes and not any(process.acts for process in self.processes.values()):
            reach("cancelled while no worker acts")

    # What is true

    def _started(self, seq: Seq, task: TaskId) -> None:
        self.attempts[task].append(seq)
        allowed = 1 + self._retries(task) + self.innocent[task]
        assert len(self.attempts[task]) <= allowed, f"task {task} started again"
        assert self.outcomes.get(task) != "Withdrawn", f"task {task} was cancelled, and starts"

    def _foresee(self, one: Event) -> None:
        """What an event is about to mean: taken down before the core has seen it."""
        match one:
            case ResultsArrived(worker, seqs):
                held = self.machine.fleet.workers.get(worker)
                if held is not None and any(seq not in held.sent for seq in seqs):
                    reach("late result")
            case WorkerExited(worker):
                self._foresee_end(self.dead[worker])
            case FreeMemorySeen(enough):
                self.heard = enough, self.now
                if not enough:
                    reach("short of memory")
            case CancelRequested(tasks):
                unsettled = [TaskId(n) for n in range(1, self.submitted + 1) if n not in self.outcomes]
                for task in unsettled if tasks is None else tasks:
                    self.asked[task] = self._attempts_over(task)
            case Resized(processes):
                reach("made smaller" if processes < self.size else "made larger")
                self.size = processes
                self.largest = max(self.largest, processes)
            case Closed() | StopRequested() | Broke():
                self.told_to_end = True
            case _:
                pass

    def _foresee_end(self, process: Process) -> None:
        held = self.machine.fleet.workers.get(process.id)
        if held is None:
            return
        lost = [seq for seq in held.sent if seq <= process.taken and seq not in self.results]
        if lost and process.blamed is None and not process.killed:
            reach("crash with suspects")
        if not lost and held.sent:
            reach("crash with tasks above the watermark only")
        if isinstance(held.phase, Retiring) and held.phase.rotation:
            reach("rotation completed")
        if process.ward:
            left = held.sent and not lost
            reach("the ward ended before its suspect had started" if left else "the ward ended")
        if self.limits.retry_crashes and process.is_explained:
            for seq in lost:
                task = self.place[seq][0]
                if seq != process.blamed and seq not in held.hung and self._retries(task):
                    self.innocent[task] += 1
                    reach("innocent sibling")

    def check(self) -> None:
        machine = self.machine
        self._check_cancels()
        if machine.ledger.suspects:
            reach("a suspect waits")
        if machine.ledger.delayed:
            reach("retry with delay")
        self._check_places()
        deadline = machine.next_deadline()
        assert deadline is None or deadline > self.now, "it asks for time that has passed"
        if machine.ledger.ready or machine.ledger.suspects:
            self._check_nobody_waits(deadline)
        takers = machine.fleet.count(Starting, Serving)
        is_open = isinstance(machine.mode, Open)
        assert takers <= (self.size if is_open else self.largest) + 1
        assert not is_open or takers >= self.size or deadline is not None, "less than full strength"
        wards = [w for w in machine.fleet.workers.values() if w.ward and isinstance(w.phase, Starting | Serving)]
        assert len(wards) <= 1
        assert machine.ledger.isolated == self.suspects
        if self.too_many_failures:
            assert not isinstance(machine.mode, Open | Closing), "too many failures"
            reach("too many failures")
        elif not self.told_to_end:
            assert isinstance(machine.mode, Open | Breaking | Ended)

    def _check_cancels(self) -> None:
        """Each is answered by now, or will be when something that is under way arrives."""
        for task in self.asked:
            holders = [w.id for w in self.machine.fleet.workers.values() if task in w.sent.values()]
            assert holders, f"nobody is asked about task {task}, that is to be cancelled"
            answered = {event.worker for event in self.coming if isinstance(event, TasksReturned)}
            assert all(worker in answered or self._process(worker).owes_an_answer for worker in holders), (
                "nothing is asked of the worker"
            )

    def _check_places(self) -> None:
        machine = self.machine
        places = [
            *machine.ledger.suspects,
            *(task for _, task in machine.ledger.delayed),
            *(task for worker in machine.fleet.workers.values() for task in worker.sent.values()),
            *self.outcomes,
        ]
        known = set(places)
        assert len(known) == len(places), "a task is in two places"
        assert machine.ledger.ready == self.submitted - len(known), "a task is nowhere, or twice"
        assert machine.ledger.outstanding == self.submitted - len(self.outcomes)
        if self.just_sent:
            self._check_order([TaskId(n) for n in range(1, self.submitted + 1) if n not in known])
            self.just_sent = []

    def _check_order(self, ready: list[TaskId]) -> None:
        """None of those that wait should have gone before those that were just sent."""
        rank = {task: self.options.get(task, _PLAIN).priority for task in (*ready, *self.just_sent)}
        if ready and min(rank[task] for task in self.just_sent) < max(rank[task] for task in ready):
            raise AssertionError("a task of a lower priority went first")
        if ready and len({*rank.values()}) > 1:
            reach("priorities")
        newest: dict[int, TaskId] = {}
        for task in self.just_sent:
            if task not in self.sent_before:
                assert task > newest.get(rank[task], 0), "a younger task went first"
                newest[rank[task]] = task
        for task in ready:
            if task not in self.sent_before:
                assert task > newest.get(rank[task], 0), "a younger task went first"
        self.sent_before.update(self.just_sent)

    def _check_nobody_waits(self, deadline: float | None) -> None:
        """For a thread, while there is one that is idle."""
        machine, limits = self.machine, self.limits
        if isinstance(machine.mode, Abandoning | Breaking | Ended):
            return
        if self._memory_may_be_short:
            asked = any(isinstance(answer, FreeMemorySeen) for answer in self.answers)
            assert self.heard is not None or asked
            again = 0.0 if self.heard is None else self.heard[1] + policy.MEMORY_SECONDS
            assert asked or (deadline is not None and deadline <= again), "nobody asks for memory again"
            return
        free = [w for w in machine.fleet.in_phase(Serving) if not w.recalling and self._room(w) > 0]
        idle = bool(machine.ledger.ready and free)
        ward = machine.fleet.ward
        if ward and isinstance(ward.phase, Serving) and not (ward.sent or ward.recalling) and self._room(ward) > 0:
            idle = idle or bool(machine.ledger.suspects)
        if limits.max_rate is not None and self.tokens < 1 + 1e-6:
            due = self.tokens_at + max(0.0, 1 - self.tokens) / limits.max_rate + 1e-4
            assert not idle or (deadline is not None and deadline <= due), "nobody waits for the next start"
            reach("a start waits for its time")
        else:
            assert not idle, "a task waits, and an idle thread"
        if machine.ledger.suspects and ward is None:
            assert deadline is not None, "no ward for a suspect"

    def _room(self, worker: Worker) -> int:
        bounds = [worker.threads - len(worker.sent)]
        if self.limits.budget is not None:
            bounds.append(self.limits.budget - worker.dispatched)
        return min(bounds)

    # The end

    def settle_down(self) -> None:
        """No more faults; all that is asked for happens, in its time. Returns when nothing is to be waited for.

        What hangs goes on hanging where a limit is to deal with it.
        """
        self.plenty = True
        for _ in range(500 + 30 * self.submitted):
            events = self._everybody_acts()
            if events or self.answers:
                self.happens(*events)
                continue
            deadline = self.machine.next_deadline()
            if deadline is None:
                return
            self.now = deadline
            self.happens()
        raise AssertionError("it comes to no end")

    def _everybody_acts(self) -> list[Event]:
        events: list[Event] = []
        for process in list(self.processes.values()):
            if process.gone:
                events += self.bury(process)
                continue
            if process.killed or process.finished or (self.cursed and not process.up):
                events += self.ends(process)
                continue
            if self.limits.running_limit is None:
                process.frozen = False
                process.hung = {seq for seq in process.hung if self.limit_of(self.place[seq][0]) is not None}
            if not process.up and not process.hopeless and not process.frozen:
                process.up = True
                process.outbox.append(WorkerReady(process.id))
            if process.acts:
                process.obey()
                self.start(process, self.limits.threads)
                for thread, (seq, _) in list(process.running.items()):
                    heeds = seq in self.interrupted and seq % 2 == 0
                    if heeds or seq not in process.hung:
                        self.finish(process, thread, raises=heeds, asks=heeds)
            events += self.deliver(process)
        return events

    def all_is_well(self) -> None:
        """Every task has its outcome, and if the pool lives, it has full strength and waits for nothing."""
        assert len(self.outcomes) == self.submitted
        assert not self.asked
        assert self.machine.next_deadline() is None
        if isinstance(self.machine.mode, Open):
            assert not self.cursed
            assert self.machine.fleet.count(Serving) == self.size
            assert not any(process.ward for process in self.processes.values())
        else:
            assert self.stopped is not None
            assert isinstance(self.machine.mode, Ended)

    def lose_link(self, process: Process) -> None:
        process.mute = True
        self.happens(LinkLost(process.id))
