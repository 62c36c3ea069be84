"""The future of one task."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ..engine import Engine
from ..ids import TaskId
from ..outcome import Cancelled, Outcome, Returned

__all__ = ["Future"]

T = TypeVar("T")

_CANCEL_SECONDS = 1.0
"""How long :meth:`Future.cancel` waits for a worker to say whether the task has started. A live one takes a
millisecond; a stopped one never does."""


_CANCELLED = {CANCELLED, CANCELLED_AND_NOTIFIED}
_DONE = {FINISHED, *_CANCELLED}

_without_condition = threading.RLock()
"""Guards every future that has no condition, and the making of one. One for all is seldom waited for: nothing of the
user's is called with it. But a handler of a signal, or Python's collector, may call something of his in between, which
has to do with another future: hence reentrant."""


def _renew_lock() -> None:
    """In a fork of the user's: it may be held by a thread that isn't here."""
    global _without_condition
    _without_condition = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class Future(concurrent.futures.Future[T], Generic[T]):
    """As that of ``concurrent.futures``, and it can be cancelled as long as the task has not started: also when it was
    sent to a worker already."""

    # What those of concurrent.futures cost most is their condition: with it a task through `submit` and a callback
    # takes the parent 15 µs, and without it 7. So it is made for who waits, and most futures never have one.

    def __init__(self, engine: Engine | None) -> None:
        self._state = PENDING  # and so on, in place of super().__init__()
        self._result: Any = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[concurrent.futures.Future[T]], object]] = []
        self._made: threading.Condition | None = None
        self._engine = engine
        self._task: TaskId | None = None

    if not TYPE_CHECKING:  # for which it stays the attribute that it is in concurrent.futures

        @property
        def _condition(self):
            if self._made is None:
                with _without_condition:
                    if self._made is None:
                        self._made = threading.Condition()
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
        if self._state == FINISHED and self._exception is None:
            return cast(T, self._result)
        try:
            return super().result(timeout)
        finally:
            del self  # the error holds this frame, and is not to hold itself by it

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the function has raised, ``None`` when it has returned; blocks and raises as :meth:`result`."""
        return self._exception if self._state == FINISHED else super().exception(timeout)

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Have ``fn`` called with the future when it is done: on the pool's delivery thread, or here and now when it is
        done already. What it raises is logged."""
        with _without_condition:
            if self._made is None and self._state not in _DONE:
                self._done_callbacks.append(fn)
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

    def settle(self, outcome: Outcome) -> None:
        """For the engine, once."""
        if isinstance(outcome, Returned):
            with _without_condition:
                unseen = self._made is None
                if unseen:
                    self._result = outcome.value
                    self._state = FINISHED
            if unseen:
                self._invoke_callbacks()  # type: ignore[attr-defined]
            else:
                self.set_result(cast(T, outcome.value))
        elif isinstance(outcome, Cancelled) and not outcome.error.started:
            super().cancel()
            self.set_running_or_notify_cancel()
        else:
            self.set_exception(outcome.error)
