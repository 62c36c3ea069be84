"""What became of a task: exactly one of these, for every accepted task."""

from __future__ import annotations

from .record import Record
from .typed import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .errors import PoolBroken, TaskCancelled, TaskTimeout, WorkerCrashed

__all__ = ["Broken", "Cancelled", "Crashed", "Failure", "Outcome", "Raised", "Returned", "TimedOut"]


class Returned(Record):
    """The function returned ``value``, which may well be an exception instance: a value stays a value."""

    value: Any


class Raised(Record):
    """The function raised ``error``; its ``__cause__`` holds the remote traceback."""

    error: BaseException


class Crashed(Record):
    """The worker ended while it ran the task. ``items``: of a chunk, how many may have started; ``None``: all."""

    error: WorkerCrashed
    items: int | None = None


class TimedOut(Record):
    """The task ran longer than it may; ``items`` as of :class:`Crashed`: it is the last of them that did."""

    error: TaskTimeout
    items: int | None = None


class Cancelled(Record):
    """The pool was stopped before the task had finished."""

    error: TaskCancelled


class Broken(Record):
    """The pool broke before the task had finished."""

    error: PoolBroken


Failure: TypeAlias = Raised | Crashed | TimedOut | Cancelled | Broken
Outcome: TypeAlias = Returned | Failure
