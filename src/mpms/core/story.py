"""The last things that happened, for errors and for people."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .messages import Effect, Event

__all__ = ["Story"]

_LENGTH = 200


class Story:
    """The last 200 steps: when, the events, and the effects they had. Kept as objects, made text when asked for."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, Sequence[Event], Sequence[Effect]]] = deque(maxlen=_LENGTH)

    def add(self, now: float, events: Sequence[Event], effects: Sequence[Effect]) -> None:
        self._steps.append((now, events, effects))

    def lines(self) -> list[str]:
        return [
            f"{now:.6f} {', '.join(map(_short, events)) or 'time'}" + "".join(f" -> {_short(e)}" for e in effects)
            for now, events, effects in self._so_far()
        ]

    def _so_far(self) -> list[tuple[float, Sequence[Event], Sequence[Effect]]]:
        """For callers, while the supervisor adds."""
        while True:
            try:
                return list(self._steps)
            except RuntimeError:  # it did, meanwhile; without a GIL
                continue


def _short(thing: object) -> str:
    text = repr(thing)
    return text if len(text) <= 200 else f"{text[:197]}..."
