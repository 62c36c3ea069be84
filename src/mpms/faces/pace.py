"""How many items of a map make a chunk: as many as take some milliseconds, or a megabyte, as measured."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

from ..typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = ["Pace", "Paces", "is_at_hand"]

_CHUNK_SECONDS = 0.01
"""What a chunk is to take. Measured, 1,000 items that compute for 2 ms, beside two processes that do nothing else: 0.95
as many a second with one thread in each of two workers, and 0.90 with four; with 4 ms 0.90 and 0.87; 20 and 40 ms are
hardly better."""

_LEAST_SECONDS = 0.002
"""What one is to take towards the end of what is at hand, where chunks get smaller: each is a fair share of the rest,
so that all threads end at about the same time ("guided self-scheduling", Polychronopoulos and Kuck 1987). Measured,
200,000 that do nothing: with 1 ms a tenth slower by `Executor.map`, and this as fast as without."""

_CHUNK_MOST = 25_000
"""Items of a chunk. Measured, 200,000 that do nothing: 23 ms in chunks of 12,500 to 50,000, 25 in those of 5,000."""

CHUNK_BYTES = 1 << 20
"""Bytes of the items of a chunk and of their values: so its size is bounded where quick calls take or return much."""

_GROWTH = 16  # of chunks in one step, so that some quick items in front of slow ones don't mislead

_SMALL = 1000  # characters of an item or a part of it, with which it is taken for one of many small ones

_FEW = 16  # parts of an item

_SMALL_TYPES = {int, float, complex, bool, type(None)}


def is_at_hand(source: Iterable[Any]) -> TypeGuard[list[Any] | tuple[Any, ...] | range]:
    """Whether to read items of it takes no time, and raises nothing."""
    return type(source) in (list, tuple, range)


_ONE = 1, 1
"""Of what nothing is known: the size of its chunks, and the least of those at the end."""


class Paces:
    """What a pool knows of the function that it mapped last."""

    def __init__(self) -> None:
        self._last: tuple[Callable[[], Any], tuple[int, int]] = (_nothing, _ONE)

    def of(self, function: Callable[..., Any] | None) -> tuple[int, int]:
        last, sizes = self._last
        return sizes if last() is (_own if function is None else function) else _ONE

    def note(self, function: Callable[..., Any] | None, size: int, least: int) -> None:
        try:
            self._last = weakref.ref(_own if function is None else function), (size, least)
        except TypeError:  # of a type that has no place for it
            pass


def _nothing() -> None:
    return None


def _own() -> None:
    """Stands for the pool's own function."""


class Pace:
    """The size of the chunks of one map: what was right for the last one of this function, and what is learned then.

    ``threads``: those of all workers. ``most``: never more than these. The first ones are of one item, unless the
    source holds all, and small ones.
    """

    def __init__(
        self, paces: Paces, function: Callable[..., Any] | None, source: Iterable[Any], threads: int, most: int | None
    ) -> None:
        self._paces = paces
        self._function = function
        self._most = _CHUNK_MOST if most is None else min(most, _CHUNK_MOST)
        self._threads = threads
        self._total: int | None = None  # of what is at hand
        self._size, self._least = _ONE
        if is_at_hand(source):
            self._total = len(source)
            first = source[0] if source else None
            if _is_small(first):
                self._size, self._least = paces.of(function)

    def size(self, read: int) -> int:
        """Of the next chunk, after so many items."""
        size = min(self._size, self._most)
        if self._total is not None:
            size = min(size, max(1, self._least, (self._total - read) // self._threads))
        return size

    def learn(self, seconds: float, size: float) -> None:
        """So long an item takes, and so many bytes."""
        seconds = max(seconds, 1e-9)
        wanted = min(_CHUNK_SECONDS / seconds, CHUNK_BYTES / max(size, 1.0), _CHUNK_MOST)
        self._size = max(1, min(int(wanted), self._size * _GROWTH))
        self._least = min(self._size, int(_LEAST_SECONDS / seconds))
        self._paces.note(self._function, self._size, self._least)

    def restart(self) -> None:
        self._size, self._least = _ONE


def _is_small(item: Any) -> bool:
    """Also of a few that are."""
    parts = [*item, *item.values()] if type(item) is dict else item if type(item) in (tuple, list) else [item]
    return len(parts) <= _FEW and all(
        type(part) in _SMALL_TYPES or (isinstance(part, str | bytes) and len(part) < _SMALL) for part in parts
    )
