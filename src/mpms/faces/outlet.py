"""Where results come out of an ``MPMS``: iterators over them, and what is known of those that are to come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from ..config import check_seconds
from ..engine import Delivered, Engine
from ..ids import TaskId
from ..typed import Any, Generic, Literal, TypeVar, cast, overload
from .meta import Meta
from .sinks import CollectorSink, IteratorSink

__all__ = ["Outlet"]

R = TypeVar("R")


class Outlet(Generic[R]):
    """The side of a pool on which its results come out."""

    meta: Meta
    _engine: Engine
    _sink: IteratorSink | CollectorSink
    _started: bool

    # That a result may be an error is part of its type: a program that doesn't ask fails at the first one.

    @overload
    def iter_results(
        self, timeout: float | None = None, *, raise_errors: Literal[False] = False
    ) -> Iterator[tuple[Meta, R | BaseException]]: ...

    @overload
    def iter_results(
        self, timeout: float | None = None, *, raise_errors: Literal[True]
    ) -> Iterator[tuple[Meta, R]]: ...

    @overload
    def iter_results(
        self, timeout: float | None = None, *, raise_errors: bool
    ) -> Iterator[tuple[Meta, R | BaseException]]: ...

    def iter_results(self, timeout: float | None = None, *, raise_errors: bool = False) -> Iterator[tuple[Meta, Any]]:
        """Yield ``(meta, result)`` of every task as they come, until the pool is closed and all are yielded.

        May be called before or after :meth:`close`, also from several threads: each result goes to one of them. Blocks
        while there is none. With ``raise_errors`` an error is raised instead of being yielded; ``next`` then goes on
        with the following result. ``timeout`` is accepted as in mpms 2.6, where it ended a wait and began the next; it
        ends nothing. Raises ``RuntimeError`` at once for a pool with a collector or that was not started;
        ``PoolBroken`` after the last result when no worker could be started.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        return Results[R](self._results("iter_results"), self._opened, self._raise_if_broken, raise_errors=raise_errors)

    @overload
    def aiter_results(
        self, *, raise_errors: Literal[False] = False
    ) -> AsyncIterator[tuple[Meta, R | BaseException]]: ...

    @overload
    def aiter_results(self, *, raise_errors: Literal[True]) -> AsyncIterator[tuple[Meta, R]]: ...

    @overload
    def aiter_results(self, *, raise_errors: bool) -> AsyncIterator[tuple[Meta, R | BaseException]]: ...

    def aiter_results(self, *, raise_errors: bool = False) -> AsyncIterator[tuple[Meta, Any]]:
        """As :meth:`iter_results`, by ``async for`` under asyncio or trio; it doesn't block the loop, nor keep others
        from their turn when many results are there. :meth:`put` blocks when many tasks wait: where that would hold up
        the loop, give ``task_queue_maxsize``, or use :meth:`run`."""
        from .aio import AsyncResults

        sink = self._results("aiter_results")
        return AsyncResults[R](sink, self._opened, self._raise_if_broken, raise_errors=raise_errors)

    def _results(self, asked: str) -> IteratorSink:
        if not isinstance(self._sink, IteratorSink):
            raise RuntimeError(f"a pool with a collector gives it all results; {asked} needs collector=None")
        if not self._started:
            raise RuntimeError(f"start the pool before {asked}, by start(), put() or `with`")
        return self._sink

    def _opened(self, delivered: Delivered, *, raise_errors: bool) -> tuple[Meta, R | BaseException]:
        task, args, kwargs, value, failure = delivered
        if raise_errors and failure is not None:
            try:
                raise failure.error
            finally:
                del delivered, task, args, kwargs, failure  # the error holds this frame, and isn't to hold itself by it
        meta = Meta(self)
        meta.update(self.meta)
        meta.hold(task, args, kwargs)
        return meta, cast(R, value) if failure is None else failure.error

    def unfinished(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """``(args, kwargs)`` of the tasks that were cancelled or lost with a broken pool, in the order of ``put``.

        ``for args, kwargs in old.unfinished(): new.put(*args, **kwargs)`` loses nothing, and may run again what ran.
        Those of ``map`` and ``run`` aren't listed: whoever waits for them has the error.
        """
        return [(args, dict(kwargs)) for args, kwargs in self._engine.unfinished()]

    def _raise_if_broken(self) -> None:
        broken = self._engine.broken
        if broken is not None:
            raise type(broken)(*broken.args) from broken.__cause__

    # How many

    def __len__(self) -> int:
        """How many tasks of ``put`` have no outcome yet; the one that the collector has in hand has one.

        In a collector, ``0`` means that this is the last result, unless another thread puts more.
        """
        finished = self._sink.count  # first: it is never more than what the other one is a moment later
        return self._engine.submitted - finished

    def __bool__(self) -> bool:
        return True  # not whether it is empty: `if pool:` asks whether there is one

    @property
    def total_count(self) -> int:
        """How many tasks were accepted from ``put``; those of ``map`` and ``run`` aren't counted."""
        return self._engine.submitted

    @property
    def finish_count(self) -> int:
        """How many of them have their outcome, the one that the collector has in hand included."""
        return self._sink.count

    @property
    def running_tasks(self) -> Mapping[TaskId, tuple[Any, ...]]:
        """The tasks without an outcome: ``{taskid: (taskid, args, kwargs, time of put)}``; a live view.

        Those of ``run`` are among them, and those of ``map``, by chunks.
        """
        return self._engine.pending()


class Results(Iterator[tuple[Meta, R | BaseException]], Generic[R]):
    """``(meta, result)`` of one outcome after the other. Not a generator: it goes on after an error that it raised."""

    def __init__(
        self,
        sink: IteratorSink,
        opened: Callable[..., tuple[Meta, R | BaseException]],
        at_end: Callable[[], None],
        *,
        raise_errors: bool,
    ) -> None:
        self._sink = sink
        self._opened = opened
        self._at_end = at_end
        self._raise_errors = raise_errors

    def __next__(self) -> tuple[Meta, R | BaseException]:
        delivered = self._sink.take()
        if delivered is None:
            self._at_end()
            raise StopIteration
        try:
            return self._opened(delivered, raise_errors=self._raise_errors)
        finally:
            del delivered  # as above
