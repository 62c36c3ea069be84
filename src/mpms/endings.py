"""The errors of a pool that ends before its tasks, which are those of ``concurrent.futures`` too: see ``errors``."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, CancelledError

from .errors import MpmsError, rebuild

__all__ = ["PoolBroken", "TaskCancelled"]


class PoolBroken(MpmsError, BrokenExecutor):
    """The pool has given up: no worker can be started, and no task will run any more.

    Its ``__cause__`` is the initializer's own exception, where there was one.
    """


class TaskCancelled(MpmsError, CancelledError):
    """The task was cancelled, or the pool stopped, before it had finished; ``started`` says whether it had begun."""

    def __init__(self, message: str, *, started: bool = False) -> None:
        super().__init__(message)
        self.started = started

    def __reduce__(self) -> tuple[object, ...]:
        return rebuild, (type(self), self.args, self.__dict__)


for _error in (PoolBroken, TaskCancelled):
    _error.__module__ = "mpms.errors"  # where users find them, and pickles
