"""The last things that happened, for errors and for people."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..record import Record
from ..typed import TypeAlias
from .messages import Dispatch, Effect, Event, ResultsArrived, Settle, TasksSubmitted

__all__ = ["Story"]

_LENGTH = 200
_BATCH_MOST = 20

_BATCHES: dict[type[Event | Effect], str] = {
    TasksSubmitted: "tasks",
    ResultsArrived: "seqs",
    Dispatch: "tasks",
    Settle: "tasks",
}
"""What comes in batches, and which field of it is the batch."""


class Excerpt(Record):
    """Of a long batch, which would take memory for 200 steps: its beginning, and how many there were."""

    what: Event | Effect
    count: int

    def __repr__(self) -> str:
        return f"{self.what!r}, and so on, {self.count} in all"


_Told: TypeAlias = Event | Effect | Excerpt
_Step: TypeAlias = tuple[float, list[_Told], list[_Told]]


class Story:
    """The last 200 steps: when, the events, and the effects they had. Kept as objects, made text when asked for."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque(maxlen=_LENGTH)

    def add(self, now: float, events: Sequence[Event], effects: Sequence[Effect]) -> None:
        self._steps.append((now, _brief(events), _brief(effects)))

    def lines(self) -> list[str]:
        return [
            f"{now:.6f} {', '.join(map(_short, events)) or 'time'}" + "".join(f" -> {_short(e)}" for e in effects)
            for now, events, effects in self._so_far()
        ]

    def _so_far(self) -> list[_Step]:
        """For callers, while the supervisor adds."""
        while True:
            try:
                return list(self._steps)
            except RuntimeError:  # it did, meanwhile; without a GIL
                continue


def _brief(things: Sequence[Event | Effect]) -> list[_Told]:
    told: list[_Told] = []
    for thing in things:
        field = _BATCHES.get(type(thing))
        if field is None or len(batch := getattr(thing, field)) <= _BATCH_MOST:
            told.append(thing)
        else:
            told.append(Excerpt(thing.replace(**{field: batch[:_BATCH_MOST]}), len(batch)))
    return told


def _short(thing: object) -> str:
    text = repr(thing)
    return text if len(text) <= 200 else f"{text[:197]}..."
