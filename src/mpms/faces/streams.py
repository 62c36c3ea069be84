"""``map`` over streams: lazy, bounded, and each item with an outcome of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..config import check_integer
from ..typed import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, overload
from .calls import Calls

if TYPE_CHECKING:
    from .bulk import Bulk

__all__ = ["Streams"]

R = TypeVar("R")
T = TypeVar("T")
U = TypeVar("U")

_Chunksize: TypeAlias = int | Literal["auto"]


class Streams(Calls, Generic[R]):
    """A pool with a function of its own, which returns ``R``."""

    # With `star` nothing is known of the items' types: a tuple of them fits no ParamSpec.

    @overload
    def map(
        self,
        fn: None,
        iterable: Iterable[Any],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: bool = ...,
        raise_errors: Literal[True] = ...,
    ) -> Iterator[R]: ...

    @overload
    def map(
        self,
        fn: None,
        iterable: Iterable[Any],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: bool = ...,
        raise_errors: bool,
    ) -> Iterator[R | BaseException]: ...

    @overload
    def map(
        self,
        fn: Callable[[T], U],
        iterable: Iterable[T],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: Literal[False] = ...,
        raise_errors: Literal[True] = ...,
    ) -> Iterator[U]: ...

    @overload
    def map(
        self,
        fn: Callable[[T], U],
        iterable: Iterable[T],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: Literal[False] = ...,
        raise_errors: bool,
    ) -> Iterator[U | BaseException]: ...

    @overload
    def map(
        self,
        fn: Callable[..., U],
        iterable: Iterable[Iterable[Any]],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: Literal[True],
        raise_errors: Literal[True] = ...,
    ) -> Iterator[U]: ...

    @overload
    def map(
        self,
        fn: Callable[..., U],
        iterable: Iterable[Iterable[Any]],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: Literal[True],
        raise_errors: bool,
    ) -> Iterator[U | BaseException]: ...

    def map(
        self,
        fn: Callable[..., Any] | None,
        iterable: Iterable[Any],
        *,
        chunksize: _Chunksize = "auto",
        buffersize: int | None = None,
        star: bool = False,
        raise_errors: bool = True,
    ) -> Iterator[Any]:
        """``fn`` for each item of ``iterable``, which may be endless: the results, in its order.

        As ``multiprocessing.Pool.imap`` with the ``buffersize`` of Python 3.14's ``Executor.map``. ``fn=None`` is the
        pool's own ``worker``. With ``star``, items are tuples of arguments. Starts the pool if nobody has. Results go
        to who iterates, and not to the collector or ``iter_results``; ``total_count``, ``finish_count`` and ``len``
        don't count them, and ``task_queue_maxsize`` doesn't bound them.

        The thread that iterates reads the iterable, from its first ``next`` on, and only so far ahead as the bound
        allows: ``buffersize`` items whose results it hasn't taken; ``None``: as many as keep all threads busy.
        ``next`` blocks until the next result is there; once one is, it waits for a slow iterable no more than one item.

        ``chunksize`` is how many items go to a worker at a time; ``"auto"``: as many as take some milliseconds, or a
        megabyte, as measured. Each has its own outcome in any case: one that raises, hangs or ends its worker doesn't
        take along those of its chunk that had not started.

        An item's error is raised at its place, and ends the iteration; without ``raise_errors`` it is yielded. So is
        what pickling an item raises. When the iteration ends early, or is closed, what has not started is cancelled.
        What the iterable raises is raised after the results of all items before it.

        Raises ``RuntimeError`` after :meth:`close`, ``PoolBroken`` when no worker can be started, ``TypeError`` and
        ``ValueError`` for an option.
        """
        return self._bulk(fn, iterable, chunksize, buffersize, star).values(raise_errors=raise_errors)

    @overload
    def map_unordered(
        self,
        fn: None,
        iterable: Iterable[T],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: bool = ...,
        raise_errors: Literal[True],
    ) -> Iterator[tuple[T, R]]: ...

    @overload
    def map_unordered(
        self,
        fn: None,
        iterable: Iterable[T],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: bool = ...,
        raise_errors: bool = ...,
    ) -> Iterator[tuple[T, R | BaseException]]: ...

    @overload
    def map_unordered(
        self,
        fn: Callable[[T], U],
        iterable: Iterable[T],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: Literal[False] = ...,
        raise_errors: Literal[True],
    ) -> Iterator[tuple[T, U]]: ...

    @overload
    def map_unordered(
        self,
        fn: Callable[[T], U],
        iterable: Iterable[T],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: Literal[False] = ...,
        raise_errors: bool = ...,
    ) -> Iterator[tuple[T, U | BaseException]]: ...

    @overload
    def map_unordered(
        self,
        fn: Callable[..., U],
        iterable: Iterable[T],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: Literal[True],
        raise_errors: Literal[True],
    ) -> Iterator[tuple[T, U]]: ...

    @overload
    def map_unordered(
        self,
        fn: Callable[..., U],
        iterable: Iterable[T],
        *,
        chunksize: _Chunksize = ...,
        buffersize: int | None = ...,
        star: Literal[True],
        raise_errors: bool = ...,
    ) -> Iterator[tuple[T, U | BaseException]]: ...

    def map_unordered(
        self,
        fn: Callable[..., Any] | None,
        iterable: Iterable[Any],
        *,
        chunksize: _Chunksize = "auto",
        buffersize: int | None = None,
        star: bool = False,
        raise_errors: bool = False,
    ) -> Iterator[tuple[Any, Any]]:
        """``(item, result)`` for each item of ``iterable``, as they come; ``(item, error)`` where there is no result.

        As ``multiprocessing.Pool.imap_unordered``, but one knows whose result it is, and an error is no end: with
        ``raise_errors`` the first one is raised. The rest is as of :meth:`map`.
        """
        return self._bulk(fn, iterable, chunksize, buffersize, star).pairs(raise_errors=raise_errors)

    def _bulk(
        self,
        fn: Callable[..., Any] | None,
        iterable: Iterable[Any],
        chunksize: _Chunksize,
        buffersize: int | None,
        star: bool,
    ) -> Bulk:
        from .bulk import Bulk  # here: not every pool maps, and it takes 1 ms of the time to the first result
        from .pace import is_at_hand

        if fn is not None and not callable(fn):
            raise TypeError(f"fn must be a callable, or None for the pool's own, not {fn!r}")
        if isinstance(chunksize, str):
            if chunksize != "auto":
                raise ValueError(f'chunksize must be an int of at least 1 or "auto", not {chunksize!r}')
        else:
            check_integer("chunksize", chunksize, 1)
        if buffersize is not None:
            check_integer("buffersize", buffersize, 1)
        source = iterable if is_at_hand(iterable) else iter(iterable)  # raises here rather than at the first next
        self._begin()
        size = None if isinstance(chunksize, str) else chunksize
        return Bulk(
            self._engine,
            self._config,
            fn,
            source,
            star=star,
            chunksize=size,
            buffersize=buffersize,
            paces=self._remembered(),
        )
