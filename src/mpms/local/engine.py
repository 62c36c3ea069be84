"""The engine of this machine: admits tasks, keeps what must be kept of them, and holds the threads together.

   submit ─▶ records, inbox ─▶ supervisor (loop) ─▶ workers ─▶ supervisor ─▶ delivery ─▶ sink

- ``submit`` pickles in the caller. A task is accepted when it has an id, and from then on has one outcome.
- The supervisor never waits for the delivery thread, nor for a caller.
"""

from __future__ import annotations

import math
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ..config import PoolConfig
from ..core.messages import CancelRequested, Closed, Event, Resized, StopRequested, TasksSubmitted
from ..engine import Pending, Refused, Sink, Ticket, Unopened, WorkerHandle, let_go
from ..ids import Seq, TaskId, TaskOptions, WorkerId
from ..locks import Condition, Lock
from ..outcome import Broken
from ..typed import TYPE_CHECKING, Any
from ..wire.messages import SMALL
from ..wire.plain import are_plain
from . import exits
from .answers import Answers
from .launching import launch
from .records import Record, record_of, shown, ticket_of
from .wakeup import WakeUp

if TYPE_CHECKING:
    from ..core.machine import PoolMachine
    from ..figures import Stats, WorkerInfo, WorkerStacks
    from ..wire.files import Payload
    from ..wire.messages import Plain
    from .delivery import Delivery
    from .figures import Figures
    from .functions import Shipped
    from .launcher import Launcher
    from .link import Link, Offer
    from .loop import Loop
    from .packing import Packing
    from .reports import Reporter
    from .settling import Settling
    from .shipment import Shipment
    from .verdicts import Breakage

__all__ = ["LocalEngine"]

_PORTION = 4096
"""After so many tasks the supervisor takes them in, though it has no use for them yet: a million would take it 0.1 s.
"""

_KEPT = 1 << 24
"""Bytes: of what is freed twice as much is kept in each thread. A program frees what is large by the many, when results
come. Measured, with 128 and 256 KiB to a worker and back: a third more tasks a second than with a quarter of it, and 25
to 50 pages less from the kernel for each; twice of it is no better."""

_ANSWER_SECONDS = 2.0
"""How long ``unfinished`` waits for a supervisor that should have answered all, on a machine that is too busy."""

_SEND_SECONDS = 0.05
"""For how long the supervisor waits for who is about to send a task himself. It takes 20 µs, and a processor."""


class _Late:
    """Is made at the start, or for who asks before. (By ``__getattr__`` every attribute would be looked up by Python's
    slow way: half a microsecond for each task.)"""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, engine: LocalEngine, _: type[LocalEngine]) -> Any:
        engine._furnish()
        return engine.__dict__[self._name]


class LocalEngine:
    """See :class:`mpms.engine.Engine`. ``bounded``: the sink takes outcomes at once, so those that wait are bounded.

    An engine that carries tasks to other machines has one of these on each, with the ``shipment`` that it has made
    elsewhere and its own kind of ``delivery``, and submits by :meth:`accept`.
    """

    def __init__(
        self,
        function: Callable[..., Any] | None,
        config: PoolConfig,
        sink: Sink,
        *,
        bounded: bool = True,
        shipment: Shipment | None = None,
        delivery: type[Delivery] | None = None,
    ) -> None:
        self._config = config
        self._function = function
        self._bound = config.max_pending or sys.maxsize
        self._limit = 0  # how many tasks may have been accepted in all; 0: ask, see `_admit`
        self._bounded = bounded
        self._sink, self._kind = sink, delivery
        self._records: dict[TaskId, Record] = {}
        self._inbox: deque[TaskId] = deque()
        self._intake = 0  # of what was in it and isn't in the ledger yet
        self._options: dict[TaskId, TaskOptions] = {}  # of what is in the inbox, and has some
        self._orders: deque[Event] = deque()
        self._offers: list[Offer] = []  # one, while the supervisor sleeps and nobody has taken it
        self._lent: Offer | None = None  # the one that was taken last
        self._stop_due = math.inf  # when all is to be answered, whatever hangs
        self._answered = threading.Event()  # all is
        self._shipment = shipment
        self._supervisor = self._new_supervisor()
        self._loop: Loop | None = None
        self._links: dict[WorkerId, Link] = {}
        self._wakeup: WakeUp | None = None
        # Guards admission: the limit, and all below up to the waiters. Reentrant: a handler of a signal, or what
        # Python's collector finalizes, may cancel, close or stop while this thread has it.
        self._lock = Lock()
        self._changed = Condition(self._lock)
        self._last = 0
        self.submitted = 0  # of these, those without a ticket; read without the lock, also by handlers of signals
        self._closed = False
        self._breakage: Breakage | None = None
        self._cancels: list[TaskId] = []
        self._answers = Answers()
        self._waiters = 0
        self._slack = 0  # tasks that may wait beyond the bound, for they are done in no time
        self._started = 0.0
        self._ended: float | None = None
        self._supervised = False  # all that was begun is the supervisor's to end; guarded by the lock, as is this:
        self._given_up = False  # the start has failed before

    # Starting

    _machine: PoolMachine
    _packing: Packing
    _delivery: Delivery
    _settling: Settling
    _reporter: Reporter
    _figures: Figures

    def _furnish(self) -> None:
        # Not before it is needed: the fork server comes up while all this is imported.
        from ..core.machine import PoolMachine
        from .delivery import Delivery
        from .figures import Figures
        from .options import limits
        from .packing import Packing
        from .reports import Reporter
        from .settling import Settling

        with self._lock:
            if "_machine" in self.__dict__:
                return
            name = self._config.name
            make = self._kind or Delivery
            self._figures = Figures(machine := PoolMachine(limits(self._config)), self._links)
            self._reporter = Reporter(name)
            self._packing = Packing(self._function)
            self._delivery = make(self._sink, self._records, self._delivered, f"mpms-{name}-collector")
            bound = self._bound if self._bounded else None
            self._settling = Settling(self._records, self._delivery, self._answers, bound=bound)
            self._machine = machine

    def start(self) -> None:
        if self._given_up:
            raise RuntimeError("the start of the pool has failed or was interrupted; make a new one")
        launcher = launch(self._function, self._config, self._shipment)
        try:
            self._start(launcher)
        except BaseException:  # Ctrl-C; or there is no descriptor or thread left
            self._give_up(launcher)
            raise

    def _start(self, launcher: Launcher) -> None:
        self._furnish()
        from ..wire.frames import keep_memory
        from .loop import Loop
        from .options import memory_limits

        self._wakeup = WakeUp()
        self._loop = Loop(
            self._machine,
            self._links,
            launcher,
            selectors.DefaultSelector(),
            self._wakeup,
            self,
            self._settling,
            time.monotonic,
            name=self._config.name,
            memory=memory_limits(self._config),
            forward_logs=self._config.forward_logs,
        )
        self._started = time.monotonic()
        keep_memory(_KEPT)
        self._delivery.start()
        self._reporter.start()
        self._supervisor = self._new_supervisor()  # as the two above
        self._supervisor.start()
        exits.watch(self)

    def _give_up(self, launcher: Launcher) -> None:
        """Nothing is left of the start."""
        with self._lock:
            self._given_up = self._closed = True
        if self._supervised:  # and never from now on
            self.stop(0.0)
            self.wait_stopped(exits.SECONDS)
            return
        loop, wakeup, self._loop, self._wakeup = self._loop, self._wakeup, None, None
        if loop is not None:
            loop.close()
        else:
            launcher.close()
        if wakeup is not None:
            wakeup.close()
        self._delivery.end()
        self._reporter.end()
        for thread in (self._delivery.thread, self._reporter.thread):
            if thread.is_alive():
                thread.join(exits.SECONDS)

    def _new_supervisor(self) -> threading.Thread:
        return threading.Thread(target=self._supervise, name=f"mpms-{self._config.name}-supervisor", daemon=True)

    # The callers' side

    def submit(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: TaskOptions | None = None,
        function: Callable[..., Any] | None = None,  # from here on by name; to say so takes Python 0.05 µs
        each: bool = False,
        ticket: Ticket | None = None,
        wait: bool = True,
    ) -> TaskId:
        payload = args if not kwargs and are_plain(args) else self._packing.pack(args, kwargs)
        own = self._function is not None and function is None and not each
        shipped = None if own else self._packing.ship(function, each=each)
        return self.accept(payload, shipped, args, kwargs, options, ticket, wait)

    def accept(
        self,
        payload: Payload | Plain,
        shipped: Shipped | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: TaskOptions | None,
        ticket: Ticket | None,
        wait: bool,
    ) -> TaskId:
        """:meth:`submit` of what is packed already; ``args`` and ``kwargs`` are only shown."""
        # Measured, `put` of a number: 1.4 µs, of which the lock is 0.2; of what is pickled, 1.7.
        with self._lock:
            if self._last < self._limit or self._admits(wait):
                record = record_of(payload, shipped, args, kwargs, ticket)
                # All of what follows or nothing, though KeyboardInterrupt may come with any call: so there is none but
                # the one that may send it. (In Python 3.10 it may come between any two steps.)
                task: TaskId = self._last + 1  # type: ignore[assignment]
                self._last = task
                self._records[task] = record
                if ticket is None:
                    self.submitted += 1
                if options is not None:
                    self._options[task] = options
                elif self._offers:
                    try:
                        if self._sends(task, payload, shipped):
                            return task
                    except BaseException:
                        if self._lent is None or not self._lent.has_sent(task):
                            self._takes_back(task)
                        raise
                self._inbox += (task,)
                wakeup = self._wakeup
                if wakeup is not None:
                    if wakeup.is_needed and (wakeup.for_tasks or not task % _PORTION):
                        wakeup.ring()
                    return task
                if not self._started or not self._takes_back(task):
                    return task
        raise self._refusal()  # without the lock, which the supervisor takes: it loads an exception of the user's

    def _sends(self, task: TaskId, payload: Payload | Plain, shipped: Shipped | None) -> bool:
        """With the lock held: whether an idle worker was sent the task, from here."""
        if self._inbox or not isinstance(payload, (bytes, tuple)) or len(payload) > SMALL:
            return False  # in their order; and without a copy of much
        try:
            self._lent = offer = self._offers.pop()
        except IndexError:  # a handler of a signal was here, and the supervisor meanwhile
            return False
        if offer.function is not shipped or not offer.take(task, payload):
            return False
        self._ring()  # who sees to it comes while the worker does: he has no part in how long it takes
        return True

    def _admits(self, wait: bool) -> bool:
        """With the lock held: whether one more is accepted, when there is room for it."""
        if wait and self._is_full() and threading.current_thread() is not self._delivery.thread:  # it waits for itself
            self._wait(self._has_room, None)
        return not self._closed and self._breakage is None

    def _takes_back(self, task: TaskId) -> bool:
        """With the lock held: nobody is left who could run it, for the handler of a signal came in between, and has
        waited for the end; or has raised, before it was sent. Not when it has its outcome, as all have of a pool that
        broke."""
        record = self._records.pop(task, None)
        if record is None:
            return False
        self._options.pop(task, None)
        if task in self._inbox:
            self._inbox.remove(task)
        if self._last == task:
            self._last -= 1
        if ticket_of(record) is None:
            self.submitted -= 1
        return True

    def cancel(self, task: TaskId, timeout: float = 0.0) -> bool:
        with self._changed:
            if self._wakeup is None or task not in self._records:
                return False
            self._cancels.append(task)
            answer = self._answers.ask(task) if timeout else None
            self._ring()
        return answer is not None and answer.wait(timeout)

    def expect(self, task: TaskId, take: Callable[[Unopened], bool] | None) -> None:
        self._settling.expect(task, take)

    def cancel_all(self) -> None:
        self._order(CancelRequested(None), closes=False)

    def close(self) -> None:
        self._order(Closed(), closes=True)

    def stop(self, timeout: float) -> None:
        due = time.monotonic() + timeout
        self._stop_due = min(self._stop_due, due)
        self._order(StopRequested(due), closes=True)

    def _order(self, order: Event, *, closes: bool = False) -> None:
        with self._changed:
            self._closed = self._closed or closes
            self._limit = 0
            self._orders.append(order)
            self._changed.notify_all()
            self._ring()

    def wait_queued(self, timeout: float | None = None) -> bool:
        with self._changed:
            return self._wait(lambda: not self._queued() or self._breakage is not None, timeout)

    def wait_stopped(self, timeout: float | None = None) -> bool:
        if threading.current_thread() is self._delivery.thread:
            raise RuntimeError("a collector can't wait for its own pool to end")
        until = math.inf if timeout is None else time.monotonic() + timeout
        threads = (self._supervisor, self._delivery.thread)
        with let_go(self._changed):
            for thread in threads:
                left = None if until == math.inf else max(0.0, min(until - time.monotonic(), threading.TIMEOUT_MAX))
                thread.join(left)
            self._reporter.wait(until)
        return not any(thread.is_alive() for thread in threads)

    def resize(self, processes: int) -> None:
        self._order(Resized(processes))

    def pending(self) -> Mapping[TaskId, tuple[Any, ...]]:
        return Pending(self._records, shown)

    def unfinished(self) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        if time.monotonic() >= self._stop_due:
            self._answered.wait(_ANSWER_SECONDS)
        return self._settling.unfinished()

    @property
    def broken(self) -> BaseException | None:
        return None if self._breakage is None else self._breakage.error

    def stats(self) -> Stats:
        from ..figures import Stats

        oldest = max(((r.seconds, r.task) for info in self.workers() for r in info.running), default=None)
        now = time.monotonic()
        uptime = (self._ended or now) - self._started if self._started else 0.0
        settling = self._settling
        taken = settling.taken  # first: what is delivered meanwhile was settled before
        done, failed, queued, submitted = settling.done, settling.failed_count, self._queued(), self._last
        queued = min(queued, submitted - done - failed)
        return Stats(
            submitted=submitted,
            done=done,
            failed=failed,
            queued=queued,
            running=max(0, submitted - done - failed - queued),
            undelivered=done + failed - taken,
            retried=self._machine.ledger.retried,
            starts=self._machine.fleet.starts,
            zombies=self._figures.zombies(),
            workers=self._figures.phases(),
            crashes=dict(self._loop.crashes) if self._loop is not None else {},
            oldest=None if oldest is None else oldest[0],
            oldest_task=None if oldest is None else oldest[1],
            uptime=uptime,
            throughput=(done + failed) / uptime if uptime else 0.0,
        )

    def workers(self) -> list[WorkerInfo]:
        return self._figures.workers()

    def stacks(self) -> list[WorkerStacks]:
        return self._figures.stacks()

    def handles(self) -> Mapping[str, WorkerHandle]:
        return self._figures.handles()

    def story(self) -> Sequence[str]:
        return self._machine.story.lines()

    def _queued(self) -> int:
        # On its way from the one to the other it is counted twice for a moment, and never missed.
        return len(self._inbox) + self._intake + self._machine.ledger.waiting

    def _is_full(self, spare: int = 0) -> bool:
        return self._queued() >= self._bound + self._slack - spare or self._settling.is_late()

    def _has_room(self) -> bool:
        """Whether who waits for room is to be woken. Of what may wait beyond the bound, for it is done in no time, half
        is to be gone: woken for each of them, by sleeps of 1 ms in 2 x 4 threads, the parent took 38 µs of processor
        time for a task, and so 28."""
        return not self._is_full(self._slack // 2) or self._closed or self._breakage is not None

    def _set_limit(self) -> None:
        """So many tasks may come before it is to be asked again: then a single comparison does for each."""
        ledger = self._machine.ledger
        limit, late = ledger.submitted + self._bound + self._slack - ledger.waiting, self._settling.is_late()
        if self._last + self._bound // 2 < self._limit <= limit and not late:
            return  # enough for now: who has the lock may be in `ring`, by which he has woken us
        with self._lock:
            self._limit = 0 if self._closed or self._breakage is not None or late else limit

    def _refusal(self) -> BaseException:
        if self._breakage is not None:
            broken = self._breakage.error
            error = type(broken)(*broken.args)
            error.__cause__ = broken.__cause__
            return error
        return Refused("cannot put a task into a pool that was closed")

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """With the lock held. The supervisor and the delivery thread notify when somebody waits."""
        self._waiters += 1
        try:
            return self._changed.wait_for(ready, timeout)
        finally:
            self._waiters -= 1

    def _notify(self) -> None:
        if self._waiters and (self._has_room() or not self._queued()):
            with self._changed:
                self._changed.notify_all()

    def _ring(self) -> None:
        """With the lock held: the descriptor is closed under it, and its number might be another file's then."""
        if self._wakeup is not None:
            self._wakeup.ring()

    # The supervisor's side: see hosts.Host

    def has_orders(self, *, tasks: bool) -> bool:
        return bool((tasks and self._inbox) or self._orders or self._cancels)

    def take_orders(self) -> list[Event]:
        # The orders first: what was accepted before one of them is in the inbox by then.
        orders = [self._orders.popleft() for _ in range(len(self._orders))] if self._orders else []
        if self._cancels:
            with self._changed:
                cancels, self._cancels = self._cancels, []
            orders.append(CancelRequested(cancels))
        inbox = self._inbox
        if not inbox:
            return orders
        self._intake = len(inbox)
        tasks = [inbox.popleft() for _ in range(self._intake)]
        options = {task: self._options.pop(task) for task in tasks if task in self._options} if self._options else {}
        return [TasksSubmitted(tasks, options), *orders]

    def offer(self, offer: Offer) -> None:
        self._offers = [offer]

    def withdraw(self) -> None:
        # Who has the lock for longer than a send takes is in a handler of a signal, which may wait for this thread.
        held = self._lock.acquire(timeout=_SEND_SECONDS)
        self._offers = []
        if held:
            self._lock.release()

    def parcels(self, dispatches: Sequence[tuple[Seq, TaskId]]) -> list[tuple[int, Record]]:
        records = self._records
        return [(seq, records[task]) for seq, task in dispatches]

    def logged(self, worker: str, task: TaskId | None, payload: bytes) -> None:
        self._reporter.forward(worker, task, payload)

    def say(self, level: int, message: str, *args: object) -> None:
        self._reporter.say(level, message, *args)

    def note_broken(self, breakage: Breakage) -> None:
        if self._breakage is None:
            self._breakage = breakage
            self._limit = 0

    def decided(self) -> None:
        self._intake = 0
        self._slack = self._machine.slack
        self._set_limit()  # now and not when it is done, so that callers needn't ask meanwhile

    def passed(self) -> None:
        if self._settling.is_late():
            self._limit = 0  # now and not in the next pass: until then callers would ask nobody
        self._notify()
        self._settling.hand_over()

    def _delivered(self, count: int) -> None:
        """On the delivery thread."""
        self._settling.delivered(count)
        self._notify()

    def _supervise(self) -> None:
        with self._lock:
            if self._given_up:
                return
            self._supervised = True
        loop, wakeup = self._loop, self._wakeup
        assert loop is not None
        assert wakeup is not None
        try:
            loop.run()
            while not self._seal():  # accepted while it was ending: each of them is answered
                loop.step()
        except BaseException as error:  # our own: without this thread nothing would ever be answered
            self._internal_error(error)
        finally:
            self._ended = time.monotonic()
            self._answered.set()
            self._let_go(loop.close)
            self._let_go(wakeup.close)
            self._packing.close()
            self._answers.end()
            self._delivery.end()
            self._reporter.end()
            self._notify()

    def _let_go(self, close: Callable[[], None]) -> None:
        try:
            close()
        except OSError as error:  # the user's program has closed descriptors that weren't its own
            import logging  # loaded at the start: see `errors.__getattr__`

            self.say(logging.ERROR, "mpms %s can't close all that it had open: %s", self._config.name, error)

    def _seal(self) -> bool:
        """Accept no more; whether that is all. If not, something was accepted that is not answered."""
        with self._changed:
            self._closed, self._limit = True, 0
            if not self._inbox:
                self._wakeup = None  # nobody rings it from now on
            return self._wakeup is None

    def _internal_error(self, problem: BaseException) -> None:
        import logging  # as above
        import traceback

        from ..errors import PoolBroken
        from .verdicts import Breakage

        steps = "\n".join(self.story()[-20:])
        where = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__))
        name = self._config.name
        self.say(logging.CRITICAL, "mpms %s: internal error; the last steps were:\n%s\n%s", name, steps, where)
        breakage = Breakage.by(PoolBroken(f"the pool {name} broke by an internal error: {problem!r}"), problem)
        with self._changed:
            self._closed, self._limit = True, 0
            self._wakeup = None
            self._breakage = breakage
        self._settling.hand_over()
        rest = list(self._records)
        for task in rest:
            self._settling.abandon(task)
        # Those of them that wait for delivery have their own outcome before this one comes.
        self._delivery.put_failures([(task, lambda _: Broken(breakage.error)) for task in rest])

    def disown(self) -> None:
        # Its threads aren't here; its lock may be held.
        self._lock = Lock()
        self._changed = Condition(self._lock)
        self._closed, self._limit = True, 0
        self._answered = threading.Event()
        self._answered.set()
        self._wakeup = None


for _name in LocalEngine.__annotations__:
    setattr(LocalEngine, _name, _Late(_name))
