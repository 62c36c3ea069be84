"""How many items of a map make a chunk: as many as take some milliseconds, or a megabyte, as measured."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

from ..typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = ["Pace", "Paces", "is_at_hand"]

_CHUNK_SECONDS = 0.004
"""What a chunk is to take: to send one and to hear of it costs 20 µs and more, some half a percent of it."""

_CHUNK_MOST = 25_000
"""Items of a chunk. Measured, 200,000 that do nothing: 23 ms in chunks of 12,500 to 50,000, 25 in those of 5,000."""

CHUNK_BYTES = 1 << 20
"""Bytes of the items of a chunk and of their values: so its size is bounded where quick calls take or return much."""

_GROWTH = 16  # of chunks in one step, so that some quick items in front of slow ones don't mislead

_SHARES = 4  # that each process has of what is at hand, at the least: so the last ones end at about the same time

_SMALL = 1000  # characters of an item or a part of it, with which it is taken for one of many small ones

_FEW = 16  # parts of an item

_SMALL_TYPES = {int, float, complex, bool, type(None)}


def is_at_hand(source: Iterable[Any]) -> TypeGuard[list[Any] | tuple[Any, ...] | range]:
    """Whether to read items of it takes no time, and raises nothing."""
    return type(source) in (list, tuple, range)


class Paces:
    """What a pool knows of the function that it mapped last."""

    def __init__(self) -> None:
        self._last: tuple[Callable[[], Any], int] = (_nothing, 1)

    def of(self, function: Callable[..., Any] | None) -> int:
        last, size = self._last
        return size if last() is (_own if function is None else function) else 1

    def note(self, function: Callable[..., Any] | None, size: int) -> None:
        try:
            self._last = weakref.ref(_own if function is None else function), size
        except TypeError:  # of a type that has no place for it
            pass


def _nothing() -> None:
    return None


def _own() -> None:
    """Stands for the pool's own function."""


class Pace:
    """The size of the chunks of one map: what was right for the last one of this function, and what is learned then.

    ``most``: never more than these. The first ones are of one item, unless the source holds all, and small ones.
    """

    def __init__(
        self, paces: Paces, function: Callable[..., Any] | None, source: Iterable[Any], processes: int, most: int | None
    ) -> None:
        self._paces = paces
        self._function = function
        self._most = _CHUNK_MOST if most is None else min(most, _CHUNK_MOST)
        self._size = 1
        if is_at_hand(source):
            self._most = min(self._most, max(1, len(source) // (processes * _SHARES)))
            first = source[0] if source else None
            if _is_small(first):
                self._size = paces.of(function)

    @property
    def size(self) -> int:
        return min(self._size, self._most)

    def learn(self, seconds: float, size: float) -> None:
        """So long an item takes, and so many bytes."""
        wanted = min(_CHUNK_SECONDS / max(seconds, 1e-9), CHUNK_BYTES / max(size, 1.0), _CHUNK_MOST)
        self._size = max(1, min(int(wanted), self._size * _GROWTH))
        self._paces.note(self._function, self._size)

    def restart(self) -> None:
        self._size = 1


def _is_small(item: Any) -> bool:
    """Also of a few that are."""
    parts = [*item, *item.values()] if type(item) is dict else item if type(item) in (tuple, list) else [item]
    return len(parts) <= _FEW and all(
        type(part) in _SMALL_TYPES or (isinstance(part, str | bytes) and len(part) < _SMALL) for part in parts
    )
