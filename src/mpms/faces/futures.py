"""The future of one task."""

from __future__ import annotations

import concurrent.futures
from typing import Generic, TypeVar, cast

from ..engine import Engine
from ..ids import TaskId
from ..outcome import Cancelled, Outcome, Returned

__all__ = ["Future"]

T = TypeVar("T")

_CANCEL_SECONDS = 1.0
"""How long :meth:`Future.cancel` waits for a worker to say whether the task has started. A live one takes a
millisecond; a stopped one never does."""


class Future(concurrent.futures.Future[T], Generic[T]):
    """As that of ``concurrent.futures``, and it can be cancelled as long as the task has not started: also when it was
    sent to a worker already."""

    def __init__(self, engine: Engine | None) -> None:
        super().__init__()
        self._engine = engine
        self._task: TaskId | None = None

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
            self.set_result(cast(T, outcome.value))
        elif isinstance(outcome, Cancelled) and not outcome.error.started:
            super().cancel()
            self.set_running_or_notify_cancel()
        else:
            self.set_exception(outcome.error)
