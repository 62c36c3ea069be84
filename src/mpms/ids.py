"""Names of things: which task, which worker, how workers are started."""

from __future__ import annotations

from .record import Record
from .typed import Literal, NewType

__all__ = ["START_METHODS", "Seq", "StartMethod", "TaskId", "TaskOptions", "WorkerId"]

TaskId = NewType("TaskId", int)
"""A task, numbered by the order in which the pool accepted it, from 1."""

Seq = NewType("Seq", int)
"""One dispatch of one task to one worker. Grows with every dispatch and is never used twice, so a task that
is sent again has a new one, and an answer to the old one is recognised as late."""

WorkerId = NewType("WorkerId", int)
"""A worker process. Never used twice, unlike a pid."""

StartMethod = Literal["forkserver", "fork", "spawn"]
START_METHODS: tuple[StartMethod, ...] = ("forkserver", "fork", "spawn")


class TaskOptions(Record, kw_only=True):
    """What one task has of its own: seconds that it may run, retries (``None``: as the pool), and its priority.

    Tasks of a higher priority go first; among equals, the older one.
    """

    timeout: float | None = None
    retries: int | None = None
    priority: int = 0
