"""The future of one task."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING

from ..engine import Engine, Unopened
from ..ids import TaskId
from ..locks import Condition, Lock
from ..outcome import Cancelled, Outcome, Returned
from ..typed import TYPE_CHECKING, Any, Generic, TypeVar, cast

__all__ = ["Future"]

T = TypeVar("T")

_CANCEL_SECONDS = 1.0
"""How long :meth:`Future.cancel` waits for a worker to say whether the task has started. A live one takes a
millisecond; a stopped one never does."""


_CANCELLED = {CANCELLED, CANCELLED_AND_NOTIFIED}
_DONE = {FINISHED, *_CANCELLED}

_without_condition = Lock()
"""Guards every future that has no condition, and the making of one. One for all is seldom waited for: nothing of the
user's is called with it. But a handler of a signal, or Python's collector, may call something of his in between, which
has to do with another future: hence reentrant."""


def _renew_lock() -> None:
    """In a fork of the user's: it may be held by a thread that isn't here."""
    global _without_condition
    _without_condition = Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Future(concurrent.futures.Future[T], Generic[T]):
    """As that of ``concurrent.futures``, and it can be cancelled as long as the task has not started: also when it was
    sent to a worker already."""

    # What those of concurrent.futures cost most is their condition: with it a task through `submit` and a callback
    # takes the parent 15 µs, and without it 7. So it is made for who needs it, such as `concurrent.futures.wait`, and
    # most futures never have one. Nor have they lists, at which Python's collector looks again and again while the task
    # waits: with three in each, `submit` and `add_done_callback` take 4.0 µs, and without them 2.1.
    _state: str = PENDING  # and so on, in place of super().__init__()
    _result: Any = None
    _exception: BaseException | None = None
    _callback: Callable[[concurrent.futures.Future[T]], object] | None = None  # the first one
    _done_callbacks: Any = ()  # the others; all of them in a list, from when there is a condition, as is this:
    _waiters: Any = ()
    _made: threading.Condition | None = None
    _task: TaskId | None = None
    _gates: Sequence[threading.Lock] = ()  # each of a thread that waits in :meth:`result` for it to open
    _unopened: Unopened | None = None  # the result, for who asks first

    def __init__(self, engine: Engine | None) -> None:
        self._engine = engine

    if not TYPE_CHECKING:  # for which it stays the attribute that it is in concurrent.futures

        @property
        def _condition(self):
            if self._made is None:
                with _without_condition:
                    if self._made is None:
                        first = [] if self._callback is None else [self._callback]
                        self._waiters, self._done_callbacks = [], [*first, *self._done_callbacks]
                        self._made = Condition()
            return self._made

    def done(self) -> bool:
        """Whether it has a result or an exception, or is cancelled."""
        return self._state in _DONE

    def cancelled(self) -> bool:
        """Whether it is cancelled."""
        return self._state in _CANCELLED

    def result(self, timeout: float | None = None) -> T:
        """The value that the function has returned; blocks until it is there. Raises what the function has raised,
        ``CancelledError``, and after ``timeout`` seconds ``concurrent.futures.TimeoutError``."""
        try:
            if self._state not in _DONE:
                self._await(timeout)
            if self._unopened is not None:
                self._open()
            if self._state == FINISHED and self._exception is None:
                return cast(T, self._result)
            return super().result(0)
        finally:
            del self  # the error holds this frame, and is not to hold itself by it

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the function has raised, ``None`` when it has returned; blocks and raises as :meth:`result`."""
        try:
            if self._state not in _DONE:
                self._await(timeout)
            if self._unopened is not None:
                self._open()
            return self._exception if self._state == FINISHED else super().exception(0)
        finally:
            del self  # as above

    def _await(self, timeout: float | None) -> None:
        """Until it is done, or for so many seconds. Without a lock: a handler of a signal may come, and wait too."""
        gate = threading.Lock()
        gate.acquire()
        gates: list[threading.Lock] = vars(self).setdefault("_gates", [])
        gates.append(gate)
        with _without_condition:  # who makes it done from now on sees the gate, without a GIL too
            if self._state in _DONE:
                return
        engine, task = self._engine, self._task
        if engine is None or task is None:
            self._pass(gates, gate, timeout)
            return
        engine.expect(task, self._take)
        try:
            self._pass(gates, gate, timeout)
        finally:
            engine.expect(task, None)

    def _pass(self, gates: list[threading.Lock], gate: threading.Lock, timeout: float | None) -> None:
        try:
            gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            gates.remove(gate)

    def _take(self, result: Unopened) -> bool:
        """For the engine, in place of :meth:`settle`: nothing of the user's runs by it, and it doesn't wait."""
        if not _without_condition.acquire(blocking=False):
            return False
        try:
            if self._made is not None or self._callback is not None or self._state in _DONE:
                return False
            self._unopened = result
            self._state = FINISHED
        finally:
            _without_condition.release()
        self._let_pass()
        return True

    def _let_pass(self) -> None:
        """Once, after it was made done, and the lock was held since: who adds a gate from now on sees that it is done,
        without a GIL too."""
        for gate in list(self._gates):
            gate.release()

    def _invoke_callbacks(self) -> None:  # whatever of concurrent.futures has made it done
        with _without_condition:
            pass
        self._let_pass()
        super()._invoke_callbacks()  # type: ignore[misc]

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """Whether it is done and cancelled, and with what: for the ``asyncio`` of Python 3.15, which by it has a result
        that was taken, too."""
        is_done = self.done()
        self._open()
        return is_done, self.cancelled(), self._result, self._exception

    def _open(self) -> None:
        """Make what has come the result. Two threads may do that at once, and then there is the result of one."""
        unopened = self._unopened
        if unopened is None:
            return
        try:
            self._keep(Returned(unopened.load()))
        except BaseException:
            # Once more: an error of the data comes again, and what a handler of a signal has raised doesn't.
            outcome = unopened.open()
            self._keep(outcome)
            if isinstance(outcome, Returned):
                raise

    def _keep(self, outcome: Outcome) -> None:
        first: Outcome = vars(self).setdefault("_opened", outcome)
        if isinstance(first, Returned):
            self._result = first.value
        else:
            self._exception = first.error
        self._unopened = None

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Have ``fn`` called with the future when it is done: on the pool's delivery thread, or here and now when it is
        done already. What it raises is logged."""
        with _without_condition:
            if self._made is None and self._state not in _DONE:
                if self._callback is None:
                    self._callback = fn
                else:
                    self._done_callbacks += (fn,)
                return
        super().add_done_callback(fn)

    def cancel(self) -> bool:
        """Cancel the task unless it has started; whether it is cancelled.

        Blocks for a millisecond when a worker has to be asked, and for a second at the most. Then it returns ``False``,
        and the future is cancelled as soon as the worker gives the task back.
        """
        if self.done():
            return self.cancelled()
        if self._engine is None or self._task is None or not self._engine.cancel(self._task, _CANCEL_SECONDS):
            return self.cancelled()
        return super().cancel()

    def running(self) -> bool:
        """Whether a thread of a worker runs the task."""
        if self._engine is None or self.done():
            return False
        return any(running.task == self._task for worker in self._engine.workers() for running in worker.running)

    def __repr__(self) -> str:
        self._open()
        return super().__repr__()

    def settle(self, outcome: Outcome) -> None:
        """For the engine, once."""
        if isinstance(outcome, Returned):
            # With `with` it takes 0.1 µs more. This is no thread that Ctrl-C comes to.
            _without_condition.acquire()
            try:
                unseen, first, others = self._made is None, self._callback, self._done_callbacks
                if unseen:
                    self._result = outcome.value
                    self._state = FINISHED
            finally:
                _without_condition.release()
            if unseen:
                if self._gates:
                    self._let_pass()
                if first is not None:
                    for callback in (first, *others) if others else (first,):
                        try:
                            callback(self)
                        except Exception:
                            LOGGER.exception("exception calling callback for %r", self)
            else:
                self.set_result(cast(T, outcome.value))
        elif isinstance(outcome, Cancelled) and not outcome.error.started:
            super().cancel()
            self.set_running_or_notify_cancel()
        else:
            self.set_exception(outcome.error)
