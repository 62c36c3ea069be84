"""What crosses between client, scheduler and machines: plain tuples and bytes, in which no class of the user is loaded.

client ── parcel ─▶ machine ── answer ─▶ scheduler ── note ─▶ client
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..ids import TaskId, TaskOptions
from ..outcome import Outcome
from ..typed import Any, TypeAlias

__all__ = ["ARGUMENTS", "Answer", "Figures", "Given", "GivenBack", "Parcel", "Sealed", "answer_from", "parcel_from"]

ARGUMENTS = "\0arguments\0"
"""In the texts that a machine writes, the place of the task's arguments: as a text they are known to the client only,
and only when they are needed."""

Given: TypeAlias = "tuple[TaskId, bytes, int | None, TaskOptions | None]"
"""A task: its arguments as :func:`wire.pickling.dump` made them, the number of the function that it brings along."""


class Sealed(Exception):
    """An exception of the user's code, still pickled. ``attempts`` are the errors before it, sealed too if need be."""

    def __init__(self, data: bytes, attempts: tuple[BaseException, ...] = ()) -> None:
        super().__init__(data, attempts)
        self.data = data
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        return Sealed, (self.data, self.attempts)


class GivenBack:
    """In place of an outcome: the task has not started on this machine, and will not."""


class Figures(NamedTuple):
    """What a machine's pool has counted."""

    starts: int = 0
    retried: int = 0
    zombies: int = 0
    workers: Mapping[str, int] = {}
    crashes: Mapping[str, int] = {}


class Parcel(NamedTuple):
    """Tasks that go to one machine, whichever it is, and the functions that it may not have."""

    functions: Mapping[int, bytes]
    tasks: Sequence[Given]

    def dump(self) -> bytes:
        return pickle.dumps(tuple(self), 5)


class Answer(NamedTuple):
    """What has become of some tasks, each with the key of its parcel. ``ended``: parcels of which there is no more to
    say, with the number of their tasks and the seconds that they took. ``missing``: a parcel that was not run, for the
    machine hasn't these functions. ``broken``: why the machine's pool broke: the text, and the cause as ``dump_error``
    made it."""

    machine: str
    outcomes: Sequence[tuple[str, TaskId, Outcome | GivenBack]]
    ended: Mapping[str, tuple[int, float]]
    figures: Figures
    missing: tuple[str, Sequence[int]] | None = None
    broken: tuple[str, bytes | None] | None = None

    def dump(self) -> bytes:
        return pickle.dumps(tuple(self), 5)


def parcel_from(data: bytes) -> Parcel:
    return Parcel(*pickle.loads(data))


def answer_from(data: bytes) -> Answer:
    return Answer(*pickle.loads(data))
