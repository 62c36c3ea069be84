"""What an engine keeps of a task until it is delivered."""

from __future__ import annotations

from collections.abc import Mapping
from time import time

from ..engine import Ticket
from ..ids import TaskId
from ..typed import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from ..wire.files import Payload
    from ..wire.messages import Plain
    from .functions import Shipped

__all__ = ["ARGUMENTS", "Record", "record_of", "shown", "ticket_of"]

Record: TypeAlias = tuple[Any, ...]
"""Pickled arguments, ``None`` if they are plain; the function that it brings along; keyword arguments, if there are
some; time of acceptance, by the wall clock, for it is shown to people; who gets the outcome in place of the sink; and
then, from ``ARGUMENTS`` on, the arguments.

One tuple, and no empty dict: of numbers and strings alone, Python's collector forgets it at its first look. Two in one
another, or with a dict, it looks at a million records again and again, which takes a microsecond for each new task.
"""


ARGUMENTS = 5


def record_of(
    payload: Payload | Plain,
    shipped: Shipped | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    ticket: Ticket | None,
) -> Record:
    return (None if payload is args else payload, shipped, kwargs or None, time(), ticket, *args)


def ticket_of(record: Record) -> Ticket | None:
    ticket: Ticket | None = record[4]
    return ticket


def shown(task: TaskId, record: Record) -> tuple[TaskId, tuple[Any, ...], Mapping[str, Any], float]:
    """Its number, arguments, keyword arguments, time of acceptance."""
    return task, record[ARGUMENTS:], record[2] or {}, record[3]
