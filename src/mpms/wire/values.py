"""Many values that go together: in one pickle where nobody can tell, else each in its own.

In one pickle they would share what is in several of them, a list or an object; one that can't be pickled or unpickled
would take the others along, and code of the user's would run where it has no place. So only numbers, texts, bytes and
None go so, and tuples, lists and dicts of these; and of many also tuples of tuples.
"""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Sequence
from io import BytesIO
from itertools import chain
from types import NoneType

from ..typed import Any, TypeAlias

__all__ = ["Together", "together"]

_NUMBERS = {int, float, bool, NoneType}
_PLAIN = {*_NUMBERS, complex, str, bytes}
_IMMUTABLE = {*_NUMBERS, tuple}
_FLAT = {tuple, list, dict}
_SIZED = {str, bytes}  # of the plain ones, those that may be large

_SIZE_OF_NUMBER = 8

_FEW = 200
"""Below, it takes longer to pickle them by themselves than it saves: 6 µs, with what it takes to unpickle them."""

_PICKLED_MOST = 1 << 22
"""Bytes that are kept beside what is sent. Few chunks have more: those of as many items as the user says."""

_LENGTH_MOST = 64
"""Of tuples, lists and dicts, on average: to look at all that is in longer ones would take longer than it saves."""

_HASHED_MOST = 200
"""Bytes of a value, on average: to make a hash of more takes longer than to look at the types of what is in it."""

Together: TypeAlias = "list[Any] | range | _Pickled"
"""What arrives as a list, or as a range."""


def together(values: Sequence[Any]) -> tuple[Together, int] | None:
    """The values as they go in one pickle, and how many bytes they take, about; unless they can't. Raises nothing."""
    if isinstance(values, range):
        return values, _SIZE_OF_NUMBER * len(values)
    try:
        return _together(values)
    except Exception:  # as of a buffer that is no more, or of what another thread changes: it is that one's error alone
        return None


def _together(values: Sequence[Any]) -> tuple[Together, int] | None:
    if not isinstance(values, list):
        values = list(values)
    if len(values) < _FEW:
        return (values, _size_of(values)) if _are_plain(values) else None
    pickled = _Pickled.of(values)
    if pickled is None:
        return None
    return pickled if pickled.size <= _PICKLED_MOST else values, pickled.size


class _Pickled:
    """Many values that go together, pickled already."""

    __slots__ = ("_data", "_values")

    def __init__(self, data: bytes, values: list[Any]) -> None:
        self._data = data
        self._values = values

    @classmethod
    def of(cls, values: list[Any]) -> _Pickled | None:
        seem_so = type(values[0]) in _IMMUTABLE and type(values[-1]) in _IMMUTABLE
        data, is_immutable = _strictly(values) if seem_so else (None, False)
        if not is_immutable and not _are_plain(values):
            return None
        return cls(pickle.dumps(values, 5) if data is None else data, values)

    @property
    def size(self) -> int:
        return len(self._data)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (pickle.PickleBuffer(self._data),)  # beside the rest, if it is large

    def __repr__(self) -> str:
        return reprlib.repr(self._values)


def _strictly(values: list[Any]) -> tuple[bytes | None, bool]:
    """Pickled, if nothing of the user's is among them or in them; and whether nothing is that can be changed, as far as
    that is seen quickly."""
    data = BytesIO()
    pickler = _StrictPickler(data, 5, buffer_callback=_refuse)
    try:
        pickler.dump(values)
    except (_ForeignError, RecursionError):
        return None, False
    # To look at the types of all takes 6 ns a number, as long as to pickle it. But what is no number is noted there, by
    # which pickle would know it when it came again: so is the list itself.
    if type(values[0]) is not tuple and len(pickler.memo.copy()) == 1:
        return data.getvalue(), True
    if data.tell() > _HASHED_MOST * len(values):
        return data.getvalue(), False
    try:
        hash(tuple(values))  # Measured, pairs: 25 to 40 ns. To look at the types of all that is in them takes 65.
    except TypeError:
        return data.getvalue(), False
    return data.getvalue(), True


class _ForeignError(Exception):
    """There is something of the user's."""


def _refuse(_: object) -> None:
    raise _ForeignError


class _StrictPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:  # asked of what is of none of the types that pickle knows
        if type(value) is complex or value is complex:
            return NotImplemented
        raise _ForeignError


def _are_plain(values: list[Any]) -> bool:
    """Whether all are plain, or are tuples, lists or dicts of what is."""
    if not values:
        return True
    kinds = list(map(type, values))
    kind = kinds[0]
    # Mostly they are of one type. Measured: to count it takes 8 ns a value, to make a set of all 14.
    if kinds.count(kind) < len(kinds):
        return _PLAIN.issuperset(kinds)
    if kind not in _FLAT:
        return kind in _PLAIN
    if sum(map(len, values)) > _LENGTH_MOST * len(values):
        return False
    if kind is not tuple and len(set(map(id, values))) < len(values):
        return False  # one that is there twice would be one over there, too
    if kind is dict and not _PLAIN.issuperset(map(type, chain.from_iterable(map(dict.values, values)))):
        return False
    return _PLAIN.issuperset(map(type, chain.from_iterable(values)))


def _size_of(values: list[Any]) -> int:
    """How many bytes a few plain ones take, about."""
    if _NUMBERS.issuperset(map(type, values)):
        return _SIZE_OF_NUMBER * len(values)
    parts = values
    if type(values[0]) in _FLAT:
        parts = list(chain.from_iterable(values))
        if type(values[0]) is dict:
            parts += chain.from_iterable(map(dict.values, values))
    return sum([len(part) if type(part) in _SIZED else _SIZE_OF_NUMBER for part in parts])
