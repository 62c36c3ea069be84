"""The delivery thread: the only place where results are unpickled and the user is called.

Batches come from the supervisor; a slow or failing collector keeps nobody waiting but itself.
"""

from __future__ import annotations

import queue
import reprlib
import threading
from collections.abc import Callable, Iterator, Sequence

from ..engine import Delivered, Sink, Ticket, Unopened, log_error
from ..errors import RemoteWorkerError
from ..ids import TaskId
from ..outcome import Failure, Outcome, Raised, Returned
from ..typed import Any, TypeAlias, cast
from ..wire.failures import load_error, said
from ..wire.messages import BYTES, OPEN, PLAIN, RETURNED, SMALL
from ..wire.pickling import load
from .evidence import Who
from .records import ARGUMENTS, Record, shown
from .verdicts import Maker

__all__ = ["Delivery", "Results"]

Results: TypeAlias = Sequence[tuple[TaskId, tuple[int, Any]]]
"""Tasks, the kinds of their results, the payloads."""

Failures: TypeAlias = Sequence[tuple[TaskId, Maker]]


class Delivery:
    """Takes the records of tasks out of ``records`` as they are delivered; then calls ``delivered``, on this thread.

    A task that is not there any more was delivered, and is not delivered again.
    """

    def __init__(self, sink: Sink, records: dict[TaskId, Record], delivered: Callable[[int], None], name: str) -> None:
        self._sink = sink
        self._records = records
        self._delivered = delivered
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._earlier: dict[TaskId, list[Maker]] = {}  # how earlier attempts ended; of the few that were retried
        self._count = 0
        self.bytes = 0
        """Of large results, that were handed to the sink."""
        self._name = name
        self.thread = self._new_thread()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name=self._name, daemon=True)

    def start(self) -> None:
        self.thread = self._new_thread()  # Python 3.13 takes one that was made before a fork for ended
        self.thread.start()

    def put_results(self, results: Results) -> None:
        self._queue.put(lambda: self._deliver(self._take_results(results)))

    def put_failures(self, failures: Failures) -> None:
        self._queue.put(lambda: self._deliver(self._take_failures(failures)))

    def put_attempt(self, task: TaskId, make: Maker) -> None:
        """An attempt that is not the last one: its error goes with the final one."""
        self._queue.put(lambda: self._earlier.setdefault(task, []).append(make))

    def put_failed_attempt(self, task: TaskId, kind: int, data: bytes) -> None:
        self.put_attempt(task, lambda _: cast(Failure, self.open(kind, data)))

    def end(self) -> None:
        """After all that was put before."""
        self._queue.put(None)

    def _run(self) -> None:
        while True:
            deliver = self._queue.get()
            if deliver is None:
                self._sink.end()
                return
            deliver()
            del deliver  # with all that is in it, while nothing comes

    def _deliver(self, batch: Iterator[Delivered]) -> None:
        before = self._count
        try:
            self._sink.deliver(batch)
        except BaseException:  # the user's; SystemExit in a collector is no reason to lose the rest
            log_error("mpms: the delivery of outcomes failed")
        for _ in batch:  # what it has not taken
            pass
        self._delivered(self._count - before)

    # Each is taken out when its turn comes: a collector that finds no tasks left has the last one in hand.

    def _take_results(self, results: Results) -> Iterator[Delivered]:
        take, earlier = self._records.pop, self._earlier
        for task, (kind, data) in results:
            value, failure = data, None
            if kind != PLAIN:
                if kind != BYTES:
                    value, failure = self.opened(kind, data)
                size = len(data)
                if size > SMALL:
                    self.bytes += size
            if earlier:
                self._add_attempts(task, failure)
            record = take(task, None)
            if record is None:
                continue
            self._count += 1
            if record[4] is None:
                yield task, record[ARGUMENTS:], record[2] or {}, value, failure
            else:
                self._settle(record[4], failure or Returned(value))

    def _take_failures(self, failures: Failures) -> Iterator[Delivered]:
        for task, make in failures:
            failure = make(self.who(task))
            self._add_attempts(task, failure)
            record = self._records.pop(task, None)
            if record is None:
                continue
            self._count += 1
            if record[4] is None:
                yield task, record[ARGUMENTS:], record[2] or {}, None, failure
            else:
                self._settle(record[4], failure)

    def _settle(self, ticket: Ticket, outcome: Outcome) -> None:
        try:
            ticket.settle(outcome)
        except BaseException:  # as above
            log_error("mpms: the delivery of an outcome failed")

    def _add_attempts(self, task: TaskId, failure: Failure | None) -> None:
        makers = self._earlier.pop(task, None)
        if makers is None or failure is None:
            return
        who = self.who(task)
        earlier = [make(who).error for make in makers]
        try:
            setattr(failure.error, "attempts", tuple(earlier))  # noqa: B010  (any exception may come)
        except Exception:  # a class of the user's, that takes no attributes
            pass

    def opened(self, kind: int, data: Any) -> tuple[Any, Failure | None]:
        """The value that a worker has sent pickled, or the error in place of it."""
        try:
            return (load(data), None) if kind == RETURNED else (None, Raised(load_error(data)))
        except BaseException as error:  # the user's classes: what unpickles there may not unpickle here
            detail = f"it could not be unpickled: {said(error)}"
            return None, Raised(RemoteWorkerError("mpms_unpickleable_result", detail))

    def open(self, kind: int, data: Any) -> Outcome:
        """The outcome that a worker has sent."""
        value, failure = (data, None) if kind in OPEN else self.opened(kind, data)
        return failure or Returned(value)

    def unopened(self, kind: int, data: Any) -> Unopened:
        """A value that a worker has sent, for who opens it himself."""
        return _Returning(kind, data, self)

    def who(self, task: TaskId) -> Who:
        """With the arguments as a short text. ``repr`` is code of the user's: it may fail."""
        record = self._records.get(task)
        if record is None:
            return Who(task, "")
        try:
            _, args, kwargs, _ = shown(task, record)
            words = [_short.repr(arg) for arg in args]
            words += [f"{name}={_short.repr(value)}" for name, value in kwargs.items()]
        except BaseException as error:
            words = [f"<no repr: {type(error).__name__}>"]
        return Who(task, f"({', '.join(words)})")


class _Returning:
    __slots__ = ("_data", "_delivery", "_kind")

    def __init__(self, kind: int, data: Any, delivery: Delivery) -> None:
        self._kind = kind
        self._data = data
        self._delivery = delivery

    def load(self) -> object:
        return self._data if self._kind in OPEN else load(self._data)

    def open(self) -> Outcome:
        return self._delivery.open(self._kind, self._data)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
