"""Many calls of one function in one task, at the speed of ``map``, each with an outcome of its own.

A chunk is packed in the parent (:func:`pack`), run in a worker (:class:`Each`), and what comes of it is a
:class:`Chunk`. Where a chunk runs it says how many of its items may have started, so that whatever ends its worker
costs only those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import starmap
from operator import length_hint
from time import monotonic

from ..errors import RemoteWorkerError
from ..record import Record
from ..typed import Any, TypeAlias, cast
from .failures import dump_error, load_error, said, unsendable
from .pickling import dump, load
from .values import Together, together

__all__ = ["CHUNK_SECONDS", "Chunk", "Each", "Packed", "Place", "here", "pack"]

CHUNK_SECONDS = 0.05
"""After so long a chunk comes back as far as it got: what is behind its slow items goes on elsewhere meanwhile."""

_STEP_SECONDS = 40e-6
"""How long the items take between two notes on the board, as long as they go on as before: a note takes 0.4 µs, one
percent of it. An item that takes longer than half of it has a note of its own, unless those before it were fast: then
it shares one with as many as would have been in time."""

Packed: TypeAlias = tuple[Together, bool, bool, bool]
"""The items; whether they are pickled one by one; whether each is a tuple of arguments; whether each is noted on the
board before it runs, however quick it is. What :class:`Each` is called with."""


_nothing = nullcontext()


class Place:
    """What a chunk has to know of the thread that runs it, and to tell it. This one is nowhere in particular."""

    forked = False
    """Whether this is a child that an item has forked."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        """Those that are run between two notes. Whoever empties it has the rest of them not begun."""

    def hold(self, items: list[Any]) -> None:
        """These come next."""
        self.items = items

    @property
    def most(self) -> int | None:
        """How many more items this thread runs."""
        return None

    def go_on(self, items: int, now: float) -> None:
        """So many items may have started from now on."""

    def enter(self, now: float) -> None:
        """What follows is the user's code, as of ``now``: it may be interrupted when it takes too long."""

    def leave(self) -> None:
        """It is no more. This may itself be interrupted, and is then to be called again."""

    def unstruck(self) -> AbstractContextManager[object]:
        """What is done in it is not interrupted."""
        return _nothing

    def told(self, error: BaseException) -> BaseException:
        """The error as the user is to see it."""
        return error

    def asks_for_retry(self, error: BaseException) -> bool:
        return False

    def is_the_last(self, error: BaseException) -> bool:
        """Whether no more items are to be run after this error."""
        return False

    def ran(self, items: int) -> None:
        """So many were run in all."""


class _Here(threading.local):
    def __init__(self) -> None:
        self.place = Place()


here = _Here()
"""``here.place`` is where the calling thread runs chunks."""


class Chunk(Record):
    """What came of the first ``len(values)`` items; the others were not started.

    ``one_by_one`` says how the values were pickled. ``errors`` has what an item raised, pickled, and whether it asks
    for another attempt; its value is None. ``seconds`` is how long it took, ``size`` how many bytes the values take,
    about.
    """

    values: Together
    one_by_one: bool
    errors: dict[int, tuple[bytes, bool]]
    seconds: float
    size: int

    def load(self) -> tuple[list[Any], dict[int, tuple[BaseException, bool]]]:
        """The values, and the errors by their place. Runs code of the user's, as unpickling does."""
        errors = {at: (load_error(data), asks_for_retry) for at, (data, asks_for_retry) in self.errors.items()}
        if not self.one_by_one:
            return cast("list[Any]", self.values), errors  # as it arrives
        values = list[Any]()
        for at, data in enumerate(cast("list[bytes]", self.values)):
            try:
                values.append(load(data))
            except BaseException as problem:  # what pickles there may not unpickle here
                detail = f"it could not be unpickled: {said(problem)}"
                errors[at] = RemoteWorkerError("mpms_unpickleable_result", detail), False
                values.append(None)
        return values, dict(sorted(errors.items()))


class Each:
    """``function`` for a chunk: calls it for every item, and returns a :class:`Chunk`."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return Each, (self._function,)

    def __call__(self, items: list[Any] | range, one_by_one: bool, star: bool, exact: bool) -> Chunk:
        # Measured: 38 ns an item for a function that does nothing, where list(map(function, items)) takes 29.
        place = here.place
        function, call = self._function, starmap if star else map
        if one_by_one:
            call, function = map, _Unpacked(function, star)
        place.leave()
        values, errors = list[Any](), dict[int, tuple[bytes, bool]]()
        total = len(items) if place.most is None else min(len(items), place.most)
        begun = before = monotonic()
        step = 1
        while (at := len(values)) < total:
            now = monotonic()
            if now - before > _STEP_SECONDS:
                step = max(1, int(step * _STEP_SECONDS / (now - before)))
            elif now - before < _STEP_SECONDS / 2 and at and not exact:
                step *= 2
            if at and now - begun > CHUNK_SECONDS:
                break
            before, step = now, min(step, total - at)
            place.go_on(at + step, now)
            part = list(items[at : at + step])
            source = iter(part)
            place.hold(part)
            try:
                try:
                    place.enter(now)
                    values.extend(call(function, source))  # what came before an exception stays
                finally:
                    place.leave()
                if place.forked:
                    break
                # That is what `map` makes of a StopIteration, and not what comes of it when the rest was taken away.
                if len(values) < at + step and not _is_at_its_end(source):
                    raise StopIteration
            except BaseException as error:  # the user's: SystemExit and KeyboardInterrupt are outcomes too
                if place.forked:
                    raise
                place.leave()  # again: the first one may have been interrupted, and that happens once
                if step - length_hint(source) == len(values) - at:
                    continue  # interrupted between two items: it was about the one before, which is over
                told = place.told(error)
                errors[len(values)] = dump_error(told), place.asks_for_retry(told)
                values.append(None)
                if place.is_the_last(told):
                    break
        place.items = []
        place.ran(len(values))
        return _chunk(values, errors, monotonic() - begun)


def _is_at_its_end(source: Iterator[Any]) -> bool:
    """Of a list's iterator: whether it has looked for one more item and has found none."""
    return len(source.__reduce__()) < 3


class _Unpacked:
    __slots__ = ("_function", "_star")

    def __init__(self, function: Callable[..., Any], star: bool) -> None:
        self._function = function
        self._star = star

    def __call__(self, data: bytes) -> Any:
        return self._function(*load(data)) if self._star else self._function(load(data))


def pack(items: Sequence[Any], *, star: bool, exact: bool) -> tuple[Packed, dict[int, Exception], int]:
    """The items as :class:`Each` takes them, without those that can't be pickled: these with the reason. And how many
    bytes they take, about."""
    found = together(items)
    if found is not None:
        return (found[0], False, star, exact), {}, found[1]
    packed, problems = list[Any](), dict[int, Exception]()
    for at, item in enumerate(items):
        try:
            packed.append(dump(item))
        except Exception as error:  # the reducers of the user's objects raise anything
            problems[at] = error
    return (packed, True, star, exact), problems, sum(map(len, packed))


def _chunk(values: list[Any], errors: dict[int, tuple[bytes, bool]], seconds: float) -> Chunk:
    found = together(values)
    if found is not None:
        return Chunk(found[0], False, errors, seconds, found[1])
    for at, value in enumerate(values):
        try:
            values[at] = dump(value)
        except BaseException as problem:  # as of a single result
            errors[at] = dump_error(unsendable(value, problem)), False
            values[at] = dump(None)
    return Chunk(values, True, errors, seconds, sum(map(len, values)))
