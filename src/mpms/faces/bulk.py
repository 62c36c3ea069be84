"""One function over many items, in chunks that take some milliseconds, each item with an outcome of its own.

    source ─▶ feed ─▶ engine ─▶ settle ─▶ pieces, by place ─▶ values, or pairs

- The size of chunks follows the time and the bytes that items are measured to take. A worker hands a chunk that takes
  too long back, and the rest of it is shared among all.
- Of a chunk whose worker ends, the items that may have started have that outcome; the others go on in a new one.
- The source is read by who iterates, in its thread, and only so far ahead as the bound allows.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain, repeat
from time import monotonic, sleep

from ..config import PoolConfig
from ..engine import Engine, Refused
from ..errors import PoolBroken, TaskCancelled, TaskTimeout, WorkerCrashed
from ..ids import TaskId, TaskOptions
from ..locks import Condition, taken
from ..outcome import Crashed, Outcome, Returned, TimedOut
from ..record import Record
from ..typed import Any, TypeAlias, cast
from ..wire.chunks import Chunk, pack
from .pace import CHUNK_BYTES, Pace, Paces, is_at_hand

__all__ = ["Bulk"]

_MANY = 500
"""So many values of one chunk are let go of together. By its measured time 20 µs is what one of them takes to make, and
100 where the user has said how many are to go at a time (see ``wire.chunks``): as a rule they are small then."""

_FILL_SECONDS = 0.005
"""How long a chunk waits for a slow source to give it more items."""

_TURN_SECONDS = 0.0002
"""How long a thread packs chunks before it lets others have the interpreter, so that the first ones are sent. Others
would have it after 5 ms: by then all are packed, and no worker has one yet."""

_GIVE_WAY_SECONDS = 1e-6
"""A sleep in which it is let go of, and taken by who waits for it. It takes the system 55 µs."""


class _Failure(Record):
    """In place of a value."""

    error: BaseException


_Piece: TypeAlias = tuple[int, Sequence[Any], list[Any], bool]
"""The place of the first, items, and for each its value or :class:`_Failure`; whether there is one of these."""

_Part: TypeAlias = Callable[[Sequence[Any], list[Any]], Iterator[Any]]
"""What is to be seen of items and their values."""


class Bulk:
    """Feeds the items of ``source`` to ``engine``, and keeps what comes back until somebody takes it.

    ``function=None`` is the engine's own. ``star``: items are tuples of arguments. ``chunksize=None``: as measured.
    ``buffersize`` bounds the items that are read and not taken; ``None``: some chunks for each thread. ``eager``: all
    of ``source`` is at hand, and is fed though nobody takes anything; then ``ended`` is called when all is done.
    ``paces`` is what the pool remembers of earlier maps.
    """

    def __init__(
        self,
        engine: Engine,
        config: PoolConfig,
        function: Callable[..., Any] | None,
        source: Iterable[Any],
        *,
        star: bool = False,
        chunksize: int | None = None,
        buffersize: int | None = None,
        eager: bool = False,
        ended: Callable[[Bulk], None] | None = None,
        paces: Paces | None = None,
    ) -> None:
        threads = config.processes * config.threads
        self._engine = engine
        self._config = config
        self._function = function
        self._star = star
        self._chunksize = 1 if _must_be_single(config) else chunksize
        self._single = _must_be_single(config)
        self._exact = config.task_timeout is not None or config.lifecycle_duration_hard is not None
        self._threads = threads
        self._chunks_most = 2 * threads + 2
        self._buffersize = buffersize
        self._eager = eager
        self._ended = ended
        self._held = source if is_at_hand(source) else None  # Measured: 2 ns an item of a list, and not 80
        self._source = iter(() if self._held is not None else source)
        most = None if buffersize is None else max(1, buffersize // (2 * threads))
        self._pace = Pace(paces or Paces(), function, source, threads, most)
        self._feeding = threading.Lock()  # whoever has it feeds: guards the source, and the next one
        self._read = 0
        # Its lock guards all below. A reentrant one: an iterator that Python's collector finds is closed anywhere.
        self._changed = Condition()
        self._pieces: dict[int, _Piece] = {}  # by place, in the order in which they came
        self._out: dict[_Ticket, TaskId | None] = {}  # what the engine has
        self._untaken = 0  # items that were read and not taken
        self._asked = 0  # 1 as soon as somebody asks for one, which will not be in the buffer: as Python 3.14 counts
        self._exhausted = False
        self._closed = False
        self._raised = False  # an error, to who iterates
        self._problem: Exception | None = None  # what the source raised, or why no more is accepted

    # Items go out

    def feed(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Send what the bounds allow, until it is ``enough``. One thread does, and others leave it to that one."""
        turn = monotonic() + _TURN_SECONDS
        while not enough() and (room := self._room()) and self._sends_next(room):
            if monotonic() >= turn:
                sleep(_GIVE_WAY_SECONDS)
                turn = monotonic() + _TURN_SECONDS
        self._end_if_done()

    def _sends_next(self, room: int) -> bool:
        """Whether no other thread does just that."""
        for _ in taken(self._feeding):
            try:
                items = self._read_some(room)
                place, self._read = self._read, self._read + len(items)
                with self._changed:
                    self._untaken += len(items)
                self._send(place, items)
                return True
            finally:
                self._feeding.release()
        return False

    def _room(self) -> int:
        """How many items the next chunk may have; 0: it is not time for one."""
        with self._changed:
            size = self._chunksize or self._pace.size(self._read)
            if self._exhausted:
                return 0
            if self._buffersize is not None:
                return min(size, self._buffersize + self._asked - self._untaken)
            waiting = 0 if self._eager else len(self._pieces)
            return size if len(self._out) + waiting < self._chunks_most else 0

    def _read_some(self, most: int) -> Sequence[Any]:
        if self._held is not None:
            part = self._held[self._read : self._read + most]
            if len(part) < most:  # and no other way: it may have been closed meanwhile
                self._exhausted, self._held = True, ()  # the items are whose turn it is, and nobody else's
            return part
        items, until = list[Any](), monotonic() + _FILL_SECONDS
        try:
            for item in self._source:
                items.append(item)
                if len(items) >= most or monotonic() >= until:
                    return items
            self._exhausted = True
        except Exception as error:  # the user's; raised again when all before it is taken
            self._exhausted, self._problem = True, error
        except BaseException:  # Ctrl-C: nothing is lost by it
            self._source = chain(items, self._source)
            raise
        return items

    def _send(self, place: int, items: Sequence[Any]) -> None:
        if not items:
            return
        if self._single:
            for at, item in enumerate(items):
                self._send_single(place + at, item, self._config.retries)
            return
        packed, problems, size = pack(items, star=self._star, exact=self._exact)
        if problems:
            for at, item in enumerate(items):
                if at in problems:
                    self._arrive(place + at, [item], [_Failure(problems[at])], failed=True)
                else:
                    self._send_single(place + at, item, self._config.retries)
            return
        if size > 2 * CHUNK_BYTES and len(items) > 1 and self._chunksize is None:  # those before were smaller
            half = len(items) // 2
            self._send(place, items[:half])
            self._send(place + half, items[half:])
            return
        # The engine must not run it again as a whole: some of it has been done.
        options = TaskOptions(retries=0) if self._config.retries else None
        self._submit(_Ticket(self, place, items, size=size), packed, options, each=True)

    def _send_single(self, place: int, item: Any, retries: int, *earlier: BaseException) -> None:
        options = TaskOptions(retries=retries) if retries != self._config.retries else None
        ticket = _Ticket(self, place, [item], single=True, earlier=earlier)
        self._submit(ticket, tuple(item) if self._star else (item,), options, each=False)

    def _submit(self, ticket: _Ticket, args: tuple[Any, ...], options: TaskOptions | None, *, each: bool) -> None:
        with self._changed:
            closed = self._closed
            if not closed:
                self._out[ticket] = None
        if closed:  # the rest of a chunk that came back
            error = TaskCancelled("the rest of the items was cancelled")
            self._arrive(ticket.place, ticket.items, [_Failure(error)] * len(ticket.items), failed=True)
            return
        try:
            task = self._engine.submit(args, {}, options, function=self._function, each=each, ticket=ticket, wait=False)
        except Exception as error:  # it can't be pickled; or the pool is closed or broken, and will not take the rest
            with self._changed:
                del self._out[ticket]
                self._exhausted = self._exhausted or isinstance(error, Refused | PoolBroken)
            self._arrive(ticket.place, ticket.items, [_Failure(error)] * len(ticket.items), failed=True)
            return
        except BaseException:  # Ctrl-C: it may not have come there, and then nobody settles it
            with self._changed:
                self._out.pop(ticket, None)
            raise
        with self._changed:
            if ticket in self._out:
                self._out[ticket] = task
            closed = self._closed
        if closed:  # meanwhile, when it had no number by which it could be cancelled
            self._engine.cancel(task)

    # Outcomes come back, on the delivery thread

    def settle(self, ticket: _Ticket, outcome: Outcome) -> None:
        place, items = ticket.place, ticket.items
        if isinstance(outcome, Returned):
            if ticket.single:
                self._arrive(place, items, [outcome.value])
            else:
                self._settle_chunk(place, items, outcome.value, ticket.size)
        elif isinstance(outcome, Crashed | TimedOut) and not ticket.single:
            self._settle_crash(place, items, outcome)
        else:
            if ticket.earlier:
                _add_attempts(outcome.error, ticket.earlier)
            self._arrive(place, items, [_Failure(outcome.error)] * len(items), failed=True)
        with self._changed:
            self._out.pop(ticket, None)
            self._changed.notify_all()
        if self._eager:
            self.feed()

    def _settle_chunk(self, place: int, items: Sequence[Any], chunk: Chunk, size: int) -> None:
        values, errors = chunk.load()
        done = len(values)
        if done:
            with self._changed:
                self._pace.learn(chunk.seconds / done, size / len(items) + chunk.size / done)
        begin, failed = 0, bool(errors)
        for at, (error, asks_for_retry) in errors.items():
            if asks_for_retry and self._config.retries:
                self._arrive(place + begin, items[begin:at], values[begin:at], failed=failed)
                self._send_single(place + at, items[at], self._config.retries - 1, error)
                begin = at + 1
            else:
                values[at] = _Failure(error)
        if begin:
            self._arrive(place + begin, items[begin:done], values[begin:], failed=failed)
        else:
            self._arrive(place, items if done == len(items) else items[:done], values, failed=failed)
        # It took too long, and each of the others may take as long: not in one thread, while the rest have nothing.
        portion = max(1, -(-(len(items) - done) // self._threads))
        for at in range(done, len(items), portion):
            self._send(place + at, items[at : at + portion])

    def _settle_crash(self, place: int, items: Sequence[Any], outcome: Crashed | TimedOut) -> None:
        begun = len(items) if outcome.items is None else min(outcome.items, len(items))
        with self._changed:
            self._pace.restart()
        for at in range(begun):
            error: WorkerCrashed | TaskTimeout = outcome.error
            if isinstance(error, TaskTimeout) and at < begun - 1:
                error = _lost_with(error)
            if self._config.retries and self._config.retries_after(type(error)):
                self._send_single(place + at, items[at], self._config.retries - 1, error)
            else:
                self._arrive(place + at, [items[at]], [_Failure(error)], failed=True)
        self._send(place + begun, items[begun:])

    def _arrive(self, place: int, items: Sequence[Any], values: list[Any], *, failed: bool = False) -> None:
        if items:
            with self._changed:
                self._pieces[place] = place, items, values, failed
                self._changed.notify_all()

    def _end_if_done(self) -> None:
        with self._changed:
            # What is in hand may be the last: who feeds comes here again when he has sent it.
            if not self._exhausted or self._out or self._feeding.locked():
                return
            self._changed.notify_all()
            ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)

    # Who iterates

    def values(self, *, raise_errors: bool = True, until: float | None = None) -> Iterator[Any]:
        """The value of each item, in the order of the source. Raises
        ``concurrent.futures.TimeoutError`` after ``until``."""
        return _Stream.of(self._parts(_values, raise_errors, 0, until))

    def pairs(self, *, raise_errors: bool = False) -> Iterator[tuple[Any, Any]]:
        """Each item with its value, or with its error, as they come."""
        return _Stream.of(self._parts(_pairs, raise_errors, None, None))

    def _parts(
        self, part_of: _Part, raise_errors: bool, place: int | None, until: float | None
    ) -> Generator[Iterator[Any], None, None]:
        """What is to be iterated over, one after the other. ``place`` is that of the first, if the order matters."""
        part: Iterator[Any] = iter(())
        try:
            while not self._raised and (piece := self._take(place, until)) is not None:
                _, items, values, failed = piece
                del piece
                count = len(items)
                place = None if place is None else place + count
                part = self._open(part_of, items, values, raise_errors) if failed else part_of(items, values)
                del items, values
                yield part
                self._taken(count)
        finally:
            # Who has it gets no more of it.
            if isinstance(part, Generator):
                part.close()
            else:
                deque(part, maxlen=0)
            self.close()

    def _open(self, part_of: _Part, items: Sequence[Any], values: list[Any], raise_errors: bool) -> Iterator[Any]:
        """Of what has failures."""
        values.reverse()
        for item in items:
            if type(values[-1]) is not _Failure:
                yield from part_of([item], [values.pop()])
            elif raise_errors:
                self._raised = True
                self.close()
                raise values.pop().error  # in no variable: its traceback has this frame, and would hold it for good
            else:
                yield from part_of([item], [values.pop().error])

    def _take(self, place: int | None, until: float | None) -> _Piece | None:
        """What begins at ``place``, or what came first; blocks. ``None``: there is no more."""
        began = monotonic()

        def others_wait() -> bool:
            """For a slow source, though there is something to take."""
            there = self._pieces if place is None else place in self._pieces
            return bool(there) and monotonic() - began > _FILL_SECONDS

        while True:
            if not self._eager:
                self._asked = 1
                self.feed(others_wait)
            with self._changed:
                if place is None and self._pieces:
                    return self._pieces.pop(next(iter(self._pieces)))
                if place in self._pieces:
                    return self._pieces.pop(place)
                if self._exhausted and not self._out:
                    break
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    raise concurrent.futures.TimeoutError  # up to Python 3.10 it isn't the built-in one
                self._changed.wait(left)
        problem, self._problem = self._problem, None  # else it would hold itself, by the frames in its traceback
        try:
            if problem is not None:
                raise problem
        finally:
            del problem
        return None

    def _taken(self, items: int) -> None:
        with self._changed:
            self._untaken -= items

    def cancel(self) -> None:
        """Cancel what has not started. Who iterates comes to a ``TaskCancelled``."""
        with self._changed:
            if not self._exhausted:
                self._problem = TaskCancelled("the rest of the items was cancelled")
        self.close()

    def close(self) -> None:
        """Nobody takes the rest: what has not started is cancelled."""
        with self._changed:
            self._exhausted = self._closed = True
            tasks = [task for task in self._out.values() if task is not None]
        for task in tasks:
            self._engine.cancel(task)
        self._end_if_done()


class _Stream(chain[Any]):
    """Part after part, without a step of Python's for each item. Measured: 40 ns, where a generator takes 75."""

    @classmethod
    def of(cls, parts: Generator[Iterator[Any], None, None]) -> _Stream:
        stream = cast(_Stream, cls.from_iterable(parts))
        stream._parts = parts
        return stream

    _parts: Generator[Iterator[Any], None, None]

    def close(self) -> None:
        """As that of a generator: there is no more, and what has not started is cancelled."""
        self._parts.close()


def _values(items: Sequence[Any], values: list[Any]) -> Iterator[Any]:
    if len(values) > _MANY:
        return iter(values)
    values.reverse()  # popped as they are taken: who takes a value is the only one who holds it then
    return map(list.pop, repeat(values, len(values)))


def _pairs(items: Sequence[Any], values: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items, values, strict=True)


class _Ticket:
    """Items that the engine has: a chunk, or a single one that is a task of its own."""

    __slots__ = ("_bulk", "earlier", "items", "place", "single", "size")

    def __init__(
        self,
        bulk: Bulk,
        place: int,
        items: Sequence[Any],
        *,
        size: int = 0,
        single: bool = False,
        earlier: tuple[BaseException, ...] = (),
    ) -> None:
        self._bulk = bulk
        self.place = place
        self.items = items
        self.size = size  # of a chunk, in bytes
        self.single = single
        self.earlier = earlier

    def settle(self, outcome: Outcome) -> None:
        self._bulk.settle(self, outcome)


def _must_be_single(config: PoolConfig) -> bool:
    """Whether an option counts tasks as they start or fail, or strikes a thread that runs one: items of a chunk aren't
    seen by these."""
    return config.max_rate is not None or config.stop_on is not None or config.timeout_raises


def _lost_with(error: TaskTimeout) -> WorkerCrashed:
    """Of an item that had run, and whose result was lost because of one after it."""
    text = "the item had run, and its result was lost: a later one of its chunk ran too long, and its worker was ended"
    return WorkerCrashed(text, blamed=False, task=error.task, worker=error.worker, pid=error.pid)


def _add_attempts(error: BaseException, earlier: tuple[BaseException, ...]) -> None:
    try:
        setattr(error, "attempts", (*earlier, *getattr(error, "attempts", ())))  # noqa: B010  (any exception may come)
    except Exception:  # a class of the user's, that takes no attributes
        pass
