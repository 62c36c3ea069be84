"""The supervisor: what has happened → the machine → what is to be done. One thread runs it, and it decides nothing.

    inbox, sockets, deaths, deadlines ─▶ events ─▶ PoolMachine.handle ─▶ effects ─▶ sockets, fork server, host

It runs no code of the user's and never blocks but to wait for something to happen.
"""

from __future__ import annotations

import logging
import os
import selectors
from collections import deque
from collections.abc import Callable, Sequence

from ..core.machine import PoolMachine
from ..core.messages import (
    BoardSeen,
    Broke,
    Dispatch,
    DumpStacks,
    Effect,
    Event,
    Fail,
    Interrupt,
    Keep,
    Kill,
    LinkLost,
    LostCause,
    OfferTaken,
    ReadBoard,
    ReadFreeMemory,
    ReadMemory,
    Recall,
    ResultsArrived,
    Retire,
    Retried,
    Settle,
    StartWorker,
    Stopped,
    TasksReturned,
    WorkerDue,
    WorkerDying,
    WorkerReady,
    WorkerUnborn,
)
from ..ids import Seq, TaskId, WorkerId
from ..typed import TYPE_CHECKING, Any
from ..wire import messages as wire
from ..wire.failures import dump_error
from ..wire.frames import Message
from ..wire.lookout import LookOut
from .deaths import Deaths
from .launcher import Born, Gone, Launcher, LoadFailed, ServerLost
from .link import Link, Offer
from .memory_watch import MemoryLimits, MemoryWatch
from .verdicts import StartFailure, Verdicts
from .wakeup import WakeUp

if TYPE_CHECKING:
    from .hosts import Host, Outcomes

__all__ = ["Loop"]

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

_DEBUG = os.environ.get("MPMS_DEBUG", "") not in ("", "0")
"""Whether every effect is logged."""

_BRISK = 0.0003
"""Seconds from when a worker was sent a task by an offer, after which it has nothing to do again, and nobody else was
sent one. Then the result of the next one is looked out for, and the core hears of both at once."""

_MOMENT = 0.00005
"""For so many seconds at the most. Measured, one task at a time: a tenth less time for each, with 20 to 100 µs."""

_LEFT_MOST = 20_000
"""Dispatches that are remembered for late log records: a worker sends results first, and then at most 1,000 records."""

_LONGEST = 86_400.0
"""Seconds that one wait takes at the most: the system counts them in an int of milliseconds, which ends at 24 days."""


class Loop:
    def __init__(
        self,
        machine: PoolMachine,
        links: dict[WorkerId, Link],
        launcher: Launcher,
        selector: selectors.BaseSelector,
        wakeup: WakeUp,
        host: Host,
        outcomes: Outcomes,
        clock: Callable[[], float],
        *,
        name: str,
        memory: MemoryLimits | None = None,
        forward_logs: bool = False,
    ) -> None:
        self.machine = machine
        self.links = links
        self.stopped = False
        self._launcher = launcher
        self._selector = selector
        self._wakeup = wakeup
        self._host = host
        self._outcomes = outcomes
        self._clock = clock
        self._name = name
        self._stem = name.encode("utf-8", "replace").replace(b"\0", b"?").decode()  # as the system takes it
        self._memory = MemoryWatch(memory or MemoryLimits(), host.say, name)
        self._verdicts = Verdicts(self.links, name)
        self._events: deque[Event] = deque()  # to be handled in the next pass
        self._deaths = Deaths(
            machine,
            links,
            launcher,
            self._verdicts,
            host,
            clock,
            name,
            tell=self._events.append,
            hear_out=lambda link: self._hear(link, link.drain()),
            unwatch=self._unwatch,
        )
        self.crashes = self._deaths.crashes
        self._taken: list[OfferTaken] = []  # likewise, and before these: the offer, if it was taken
        self._lent = WorkerId(0), 0.0  # who was sent a task by the last one, and when
        self._look_out = LookOut(clock)
        self._results: dict[int, tuple[int, Any]] = {}  # of this pass: kinds and payloads
        self._raised = 0  # of these, the errors
        self._left: dict[Seq, TaskId] = {}  # dispatches that were over lately: their log records come late
        self._forward_logs = forward_logs
        self._writing: set[Link | Launcher] = set()  # those of which it is watched whether there is room
        self._written: set[Link] = set()  # those of which that may have changed in this pass
        selector.register(wakeup, _READ, wakeup)
        self._watch_launcher()

    def run(self) -> None:
        """Until every task is settled and every worker has ended."""
        while not self.stopped:
            self.step()

    def step(self) -> None:
        """Wait for something to happen, and answer it."""
        self._listen(self._patience())
        now = self._clock()
        if self._deaths.is_waiting:
            self._deaths.check(now)
        events = [*self._taken, *self._events, *self._host.take_orders()]
        self._taken.clear()
        self._events.clear()
        effects = self.machine.handle(events, now)
        self._host.decided()
        for effect in effects:
            if _DEBUG:
                self._host.say(logging.WARNING, "mpms %s debug: %.6f %r", self._name, now, effect)
            self._perform(effect)
        self._results.clear()
        self._raised = 0
        self._verdicts.forget()
        self._update_interest()
        self._host.passed()

    def close(self) -> None:
        """Let go of everything; what still lives is killed."""
        self._deaths.kill_all()
        self._launcher.close()
        for link in self.links.values():
            link.close()
        self.links.clear()
        self._selector.close()

    # Waiting

    def _patience(self) -> float | None:
        if self._events:
            return 0.0
        due = self.machine.next_deadline()
        if self._deaths.is_waiting:
            until = self._deaths.next_deadline()
            due = until if due is None else min(due, until)
        return None if due is None else max(0.0, min(due - self._clock(), _LONGEST))

    def _listen(self, patience: float | None) -> None:
        hungry = self.machine.is_hungry
        self._wakeup.falling_asleep(for_tasks=hungry)
        if self._host.has_orders(tasks=hungry):
            patience = 0.0
        ready = self._sleep(patience, hungry)
        self._wakeup.awake()
        for key, mask in ready:
            source: Any = key.data
            if isinstance(source, Link) and source.worker not in self.links:
                continue  # its death was heard a moment ago
            if mask & _WRITE:
                source.flush()
                if source is not self._launcher:
                    self._written.add(source)
            if not mask & _READ:
                continue
            if source is self._wakeup:
                source.hush()
                continue
            if source is self._launcher:
                self._hear_launcher()
            else:
                self._hear(source, source.read())
                if source.lost:
                    self._unwatch(source)
                    self._deaths.stream_ended(source)

    def _sleep(self, patience: float | None, hungry: bool) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait; meanwhile who submits a task may send it to a worker that is idle."""
        offer = self._offer() if hungry and patience != 0.0 else None
        if offer is None:
            return self._selector.select(patience)
        self._host.offer(offer)
        is_brisk = self._is_brisk(offer.worker)
        try:
            ready = self._selector.select(patience)
        finally:
            self._host.withdraw()
            link = self.links[offer.worker]
            task = link.taken(offer)
            if task is not None:
                self._taken = [OfferTaken(offer.worker, offer.seq, task)]
                self._lent = offer.worker, self._clock()
                if link.wants_write:
                    self._written.add(link)
        if is_brisk and task is not None and [key.data for key, _ in ready] == [self._wakeup]:
            self._wakeup.hush()
            ready = self._look_out(lambda: self._selector.select(0), self._lent[1], _MOMENT) or []
        return ready

    def _is_brisk(self, worker: WorkerId) -> bool:
        """Whether this worker, that has nothing to do, was done with a task in no time just now."""
        latest, since = self._lent
        return worker == latest and self._clock() - since < _BRISK

    def _offer(self) -> Offer | None:
        """Measured, one task at a time: three quarters of the time that it takes when this thread is woken first, and
        wakes the worker. It is woken all the same: it does its part while the worker does his, and is often still awake
        when the result comes, which saves a tenth. So one is enough: one of each worker took the supervisor a third
        more time for each task, with eight of them."""
        offered = self.machine.offer()
        if offered is None or offered[0] not in self.links:
            return None
        worker, seq = offered
        return self.links[worker].offer(seq)

    def _update_interest(self) -> None:
        """Who has something left to be written waits for room, too."""
        self._watch_room(self._launcher)
        for link in self._written:
            self._watch_room(link)
        self._written.clear()

    def _watch_room(self, source: Link | Launcher) -> None:
        if source.wants_write != (source in self._writing):
            if source.wants_write:
                self._selector.modify(source, _READ | _WRITE, source)
                self._writing.add(source)
            else:
                self._selector.modify(source, _READ, source)
                self._writing.discard(source)

    def _unwatch(self, source: Link | Launcher) -> None:
        self._selector.unregister(source)
        self._writing.discard(source)
        if isinstance(source, Link):
            self._written.discard(source)

    def _watch_launcher(self) -> None:
        self._selector.register(self._launcher, _READ, self._launcher)

    # What workers say

    def _hear(self, link: Link, messages: Sequence[Message]) -> None:
        worker = link.worker
        seqs: list[Any] = []
        retry: list[Seq] = []
        failed = 0
        for kind, number, payload in messages:
            if kind == wire.RESULTS:
                try:
                    finished, kinds, payloads = wire.unpack_results(payload)
                    self._results.update(zip(finished, zip(kinds, payloads)))  # noqa: B905  (one is as long as another)
                    values = kinds.count(wire.PLAIN) + kinds.count(wire.RETURNED) + kinds.count(wire.BYTES)
                except Exception:  # its memory was overwritten: nothing that it says can be believed
                    self._host.say(logging.ERROR, "mpms %s (pid %s) sends nonsense, and is killed", link.name, link.pid)
                    self._events.append(LinkLost(worker))
                    break
                seqs += finished
                if values < len(kinds):
                    failed += len(kinds) - values
                    retry += [Seq(seq) for seq, how in zip(finished, kinds, strict=True) if how == wire.RETRY]
            elif kind in (wire.RETURNED, wire.RAISED, wire.RETRY):
                seqs.append(number)
                self._results[number] = kind, payload
                if kind != wire.RETURNED:
                    failed += 1
                if kind == wire.RETRY:
                    retry.append(Seq(number))
            elif kind == wire.READY:
                self._memory.weigh(link)
                self._events.append(WorkerReady(worker))
            elif kind == wire.GIVEN_BACK:
                self._events.append(TasksReturned(worker, Seq(number)))
            elif kind == wire.DUE:
                self._events.append(WorkerDue(worker, number))
            elif kind == wire.DYING:
                self._events.append(WorkerDying(worker))
            elif kind == wire.LOG:
                self._host.logged(link.name, self._task_of(worker, Seq(number)), payload)
            elif kind == wire.LOGS_DROPPED:
                self._host.say(
                    logging.WARNING, "mpms %s logged faster than is read: %d records were lost", link.name, number
                )
            elif kind == wire.START_FAILED:
                self._verdicts.start_failure = StartFailure(payload)
                self._host.say(logging.ERROR, "mpms %s can't start: %s", link.name, self._verdicts.start_failure)
        if seqs:
            # Before what was said after them, such as DYING: the order among results and the rest doesn't matter else.
            self._raised += failed
            self._events.appendleft(ResultsArrived(worker, seqs, failed, frozenset(retry), link.weight))

    def _task_of(self, worker: WorkerId, seq: Seq) -> TaskId | None:
        for taken in self._taken:  # of which the machine will hear in this pass
            if taken.seq == seq:
                return taken.task
        there = self.machine.fleet.workers.get(worker)
        return self._left.get(seq) if there is None or seq not in there.sent else there.sent[seq]

    def _leave_to_logs(self, dispatches: Sequence[tuple[TaskId, Seq | None]]) -> None:
        if self._forward_logs:
            self._left.update((seq, task) for task, seq in dispatches if seq is not None)
            while len(self._left) > _LEFT_MOST:
                del self._left[next(iter(self._left))]

    # What the fork server says

    def _hear_launcher(self) -> None:
        for report in self._launcher.read():
            match report:
                case Born(worker, pid):
                    if worker in self.links:
                        self.links[worker].pid = pid
                        self._memory.weigh(self.links[worker])  # it may have said before that it is ready
                case Gone(worker, exitcode, peak):
                    if worker in self.links:
                        self._deaths.exited(self.links[worker], exitcode, peak)
                case LoadFailed(error):
                    self._verdicts.start_failure = StartFailure(error)
                    self._events.append(Broke())
                case ServerLost():
                    self._deaths.server_lost()

    # What is to be done

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Settle(tasks):
                results = self._results
                settled = [(task, results[seq]) for task, seq in tasks]
                raised = sum(kind not in wire.VALUES for _, (kind, _) in settled) if self._raised else 0
                self._outcomes.settled(settled, raised)
                self._leave_to_logs(tasks)
            case Dispatch(worker, tasks):
                link = self.links.get(worker)
                if link is not None:
                    link.send_tasks(self._host.parcels(tasks))
                    if not link.lost:
                        self._written.add(link)
            case Fail(task, seq, verdict):
                if isinstance(verdict, LostCause):
                    self._host.note_broken(self._verdicts.breakage())
                self._outcomes.failed(task, verdict, self._verdicts.explain(verdict, seq))
                self._leave_to_logs([(task, seq)])
            case Retried(task, seq, verdict):
                if verdict is None:
                    self._outcomes.retried_after(task, *self._results[seq])
                else:
                    self._outcomes.retried(task, self._verdicts.explain(verdict, seq))
                self._leave_to_logs([(task, seq)])
            case StartWorker(worker):
                name = f"mpms-{self._stem}-p{worker}"
                try:
                    self._start(worker, name)
                except OSError as error:  # no descriptor, memory or process left
                    self._verdicts.start_failure = StartFailure(dump_error(error))
                    self._host.say(logging.ERROR, "mpms %s can't be started now: %s", name, error)
                    self._events.append(WorkerUnborn(worker))
            case Recall(worker, upto):
                if worker in self.links:
                    self.links[worker].control(wire.RECALL, upto)
            case Retire(worker):
                if worker in self.links:
                    self.links[worker].control(wire.RETIRE)
            case ReadBoard(worker):
                if worker in self.links:
                    running = [(Seq(slot.seq), slot.start) for slot in self.links[worker].running()]
                    self._events.append(BoardSeen(worker, running))
            case ReadMemory(worker):
                looked = self._memory.look_at(self.links[worker]) if worker in self.links else None
                if looked is not None:
                    seen, figures = looked
                    self._events.append(seen)
                    if seen.over_hard:
                        self._deaths.note_cause(worker, f"memory: {figures}")
            case ReadFreeMemory():
                self._events.append(self._memory.look_at_machine())
            case Interrupt(worker, seq, limit):
                if worker in self.links:
                    self.links[worker].control(wire.INTERRUPT, seq, wire.LIMIT.pack(limit))
            case DumpStacks(worker):
                self._deaths.ask_for_stacks(worker)
            case Kill(worker, why):
                self._deaths.kill(worker, why)
            case Keep(tasks):
                self._outcomes.kept(tasks)
            case Stopped(broken):
                if broken:
                    self._host.note_broken(self._verdicts.breakage())
                self.stopped = True

    def _start(self, worker: WorkerId, name: str) -> None:
        if not self._launcher.is_open:
            self._launcher.open()
            try:
                self._watch_launcher()
            except OSError:
                self._launcher.close()
                raise
        link = self._launcher.start(worker, name)
        try:
            self._selector.register(link, _READ, link)
        except OSError:
            link.close()  # by which the process that was asked for ends
            raise
        self.links[worker] = link
