"""The callers' side of the engine of this machine: what is accepted, and ordered, until the supervisor takes it.

    accept, cancel, close ─▶ records, inbox, orders ─▶ supervisor

Any number of threads, and handlers of signals, come in by the upper half; the supervisor alone by the lower one, and it
waits for them no longer than one takes to append a task, or to send it.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ..core.messages import CancelRequested, Closed, Event, Resized, TasksSubmitted
from ..engine import Ticket, refusal
from ..ids import Seq, TaskId, TaskOptions
from ..locks import Condition, Lock
from ..typed import TYPE_CHECKING, Any
from ..wire.messages import SMALL
from .answers import Answers
from .records import Record, record_of, ticket_of

if TYPE_CHECKING:
    from ..core.machine import PoolMachine
    from ..wire.files import Payload
    from ..wire.messages import Plain
    from .delivery import Delivery
    from .functions import Shipped
    from .link import Offer
    from .settling import Settling
    from .verdicts import Breakage
    from .wakeup import WakeUp

__all__ = ["Admission"]

_PORTION = 4096
"""After so many tasks the supervisor takes them in, though it has no use for them yet: a million would take it 0.1 s.
"""

_SEND_SECONDS = 0.05
"""For how long the supervisor waits for who is about to send a task himself. It takes 20 µs, and a processor."""


class Admission:
    """A half of :class:`mpms.local.engine.LocalEngine`, which makes what is only declared here, and starts it.

    A task is accepted when it has an id, and from then on has one outcome. ``bound``: so many may wait; ``None``: any
    number.
    """

    _machine: PoolMachine
    _settling: Settling
    _delivery: Delivery

    def __init__(self, bound: int | None) -> None:
        self._bound = bound or sys.maxsize
        self._limit = 0  # how many tasks may have been accepted in all; 0: ask, see `_admits`
        self._records: dict[TaskId, Record] = {}
        self._inbox: deque[TaskId] = deque()
        self._intake = 0  # of what was in it and isn't in the ledger yet
        self._options: dict[TaskId, TaskOptions] = {}  # of what is in the inbox, and has some
        self._orders: deque[Event] = deque()
        self._offers: list[Offer] = []  # one, while the supervisor sleeps and nobody has taken it
        self._lent: Offer | None = None  # the one that was taken last
        self._started = 0.0  # when; 0: it wasn't yet
        self._wakeup: WakeUp | None = None  # while there is a supervisor
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
        raise refusal(self.broken)  # without the lock, which the supervisor takes: it loads an exception of the user's

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

    def cancel_all(self) -> None:
        self._order(CancelRequested(None), closes=False)

    def close(self) -> None:
        self._order(Closed(), closes=True)

    def resize(self, processes: int) -> None:
        self._order(Resized(processes))

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

    @property
    def broken(self) -> BaseException | None:
        return None if self._breakage is None else self._breakage.error

    def disown(self) -> None:
        """In a fork of the user's: the supervisor isn't here, and the lock may be held."""
        self._lock = Lock()
        self._changed = Condition(self._lock)
        self._closed, self._limit = True, 0
        self._wakeup = None

    # The bound

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

    def _seal(self) -> bool:
        """Accept no more; whether that is all. If not, something was accepted that is not answered."""
        with self._changed:
            self._closed, self._limit = True, 0
            if not self._inbox:
                self._wakeup = None  # nobody rings it from now on
            return self._wakeup is None

    def _break(self, breakage: Breakage) -> None:
        """Accept no more, though nobody has ended it in order."""
        with self._changed:
            self._closed, self._limit = True, 0
            self._wakeup = None
            self._breakage = breakage
