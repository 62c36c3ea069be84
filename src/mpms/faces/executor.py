"""``Executor``: what ``concurrent.futures.ProcessPoolExecutor`` is, on a pool that loses nothing."""

from __future__ import annotations

import concurrent.futures
import multiprocessing.context
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic

from ..config import PoolConfig, check_integer, default_processes, hook, parse_size
from ..engine import Refused
from ..errors import PoolBroken, TaskTimeout, WorkerCrashed, WorkerGracefulDie
from ..ids import START_METHODS, StartMethod
from ..typed import Any, Literal, ParamSpec, TypeVar
from .bulk import Bulk
from .calls import Calls
from .engines import EngineOption, resolve
from .futures import Future
from .life import Life

__all__ = ["Executor"]

P = ParamSpec("P")
T = TypeVar("T")

_TERMINATE_SECONDS = 1.0
"""How long workers have to end after SIGTERM, before they are killed."""


class Executor(Calls, concurrent.futures.Executor):
    """A ``concurrent.futures.Executor`` of ``max_workers`` processes with ``threads`` threads each.

    Stands in for ``ProcessPoolExecutor`` by a change of the import. What is different: a worker that dies costs the
    tasks that ran in it and no others, each of which has :class:`WorkerCrashed` as its exception, and is replaced at
    once; ``cancel`` of a future works until the task starts; functions and classes may be defined anywhere; a script
    needs no main guard. ``submit`` ships a function once to each worker: what it refers to is as it was at its first
    use. A bound method and any other callable object is sent as it is at each call.

    Workers start with the first task. Usable as a context manager: leaving it waits for all tasks. All methods may be
    called from any thread, and none but ``shutdown`` and ``map`` of a bounded buffer blocks.

    Args:
        max_workers: how many processes; by default one per processor that this process may use.
        threads: how many threads in each; ``1`` is as ``ProcessPoolExecutor``.
        mp_context: a context of ``multiprocessing``, of which the start method is taken.
        initializer: called with ``initargs`` at the start of each worker, in its main thread. If it raises, another
            worker is tried, and after ``max_start_failures`` in a row the executor is broken.
        max_tasks_per_child: after how many tasks a worker is replaced, the replacement coming first.
        thread_initializer: called with ``thread_initargs`` at the start of each thread.
        engine: what runs the tasks: ``None`` for this machine, ``"dask://HOST:PORT"`` or a
            :class:`mpms.dask.DaskEngine` for a cluster, or a callable ``(function, config, sink, bounded)``.

    The other options are those of :class:`mpms.MPMS`, with their meanings.

    Raises:
        TypeError, ValueError: for an option; the text names it, what was given, and what may be.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        threads: int = 1,
        mp_context: multiprocessing.context.BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        max_tasks_per_child: int | None = None,
        name: str | None = None,
        start_method: StartMethod | None = None,
        preload: Callable[[], object] | None = None,
        thread_initializer: Callable[..., object] | None = None,
        thread_initargs: Sequence[Any] = (),
        process_finalizer: Callable[..., object] | None = None,
        process_finargs: Sequence[Any] = (),
        thread_finalizer: Callable[..., object] | None = None,
        thread_finargs: Sequence[Any] = (),
        lifecycle: int | None = None,
        lifecycle_duration: float | None = None,
        lifecycle_duration_hard: float | None = None,
        worker_graceful_die_timeout: float = 5,
        worker_graceful_die_exceptions: tuple[type[BaseException], ...] = (WorkerGracefulDie,),
        task_timeout: float | None = None,
        timeout_raises: bool = False,
        retries: int = 0,
        retry_backoff: float = 0.0,
        retry_on: tuple[type[BaseException], ...] | Callable[[BaseException], bool] = (WorkerCrashed, TaskTimeout),
        max_memory_per_process: int | str | None = None,
        max_memory_hard: int | str | None = None,
        min_free_memory: int | str | None = None,
        max_rate: float | None = None,
        max_start_failures: int = 5,
        start_timeout: float = 60.0,
        native_threads: int | None = None,
        forward_logs: bool = False,
        engine: EngineOption = None,
    ) -> None:
        if max_workers is not None:
            _check_count("max_workers", max_workers)
        check_integer("threads", threads, 1)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")  # the words of concurrent.futures
        if max_tasks_per_child is not None:
            _check_count("max_tasks_per_child", max_tasks_per_child)
            if lifecycle is not None:
                raise ValueError("max_tasks_per_child and lifecycle say the same: leave one of them out")
            lifecycle = max(1, max_tasks_per_child // threads)
        self._config = PoolConfig(
            processes=default_processes() if max_workers is None else max_workers,
            threads=threads,
            name=_new_name() if name is None else name,
            start_method=start_method if mp_context is None else _method_of(mp_context, start_method),
            preload=preload,
            process_initializer=hook("initializer", initializer, "initargs", initargs),
            thread_initializer=hook("thread_initializer", thread_initializer, "thread_initargs", thread_initargs),
            process_finalizer=hook("process_finalizer", process_finalizer, "process_finargs", process_finargs),
            thread_finalizer=hook("thread_finalizer", thread_finalizer, "thread_finargs", thread_finargs),
            lifecycle=lifecycle,
            lifecycle_duration=lifecycle_duration,
            lifecycle_duration_hard=lifecycle_duration_hard,
            grace=worker_graceful_die_timeout,
            die_exceptions=worker_graceful_die_exceptions,
            task_timeout=task_timeout,
            timeout_raises=timeout_raises,
            retries=retries,
            retry_backoff=retry_backoff,
            retry_on=retry_on,
            max_memory_per_process=parse_size("max_memory_per_process", max_memory_per_process),
            max_memory_hard=parse_size("max_memory_hard", max_memory_hard),
            min_free_memory=parse_size("min_free_memory", min_free_memory),
            max_rate=max_rate,
            max_start_failures=max_start_failures,
            start_timeout=start_timeout,
            native_threads=native_threads,
            forward_logs=forward_logs,
        )
        self._life = Life()
        self._life.engine = self._engine = resolve(engine)(None, self._config, self._life, bounded=False)
        # Dropped without a shutdown: what was submitted is done, and then the workers end.
        weakref.finalize(self, self._life.shut).atexit = False

    @property
    def name(self) -> str:
        """Part of the names of its processes and threads."""
        return self._config.name

    # Tasks

    def _begin(self) -> None:
        self._life.begin()

    @property
    def _begun(self) -> bool:
        return self._life.begun

    def _join(self) -> None:
        self.shutdown()

    def _stop(self, kind: type[BaseException]) -> None:
        self.kill_workers()
        self.shutdown()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` called in a worker. Does not block.

        Raises ``RuntimeError`` after :meth:`shutdown`, and :class:`PoolBroken`, which is a ``BrokenExecutor``, when no
        worker can be started. What can't be pickled is the exception of the future, as with ``ProcessPoolExecutor``.
        """
        _check_callable(fn)
        future: Future[T] = Future(self._engine)
        self._life.begin()
        try:
            future._task = self._engine.submit(args, kwargs, function=fn, ticket=future, wait=False)
        except (PoolBroken, Refused):
            self._life.refuse_if_over()
            raise
        except Exception as error:  # the reducers of the user's objects raise anything
            future.set_exception(error)
            del self  # the error has this frame: who keeps the future would keep the executor, and so its workers
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """``fn`` for the items of ``iterables``, which are taken together as ``zip`` does; the results in their order.

        As ``Executor.map`` of Python 3.14: the iterables are read at once, and all is done though nobody takes the
        results; with ``buffersize`` only so many items are read before their results are taken, by who takes them. An
        exception of an item is raised at its place, and ends the iteration.

        ``chunksize``: how many items go to a worker at a time; ``"auto"``, as many as take some milliseconds, or a
        megabyte, as measured. Each has an outcome of its own in any case: one that raises, or ends its worker, doesn't
        take along those of its chunk that had not started.

        Raises ``concurrent.futures.TimeoutError`` in the iteration when a result isn't there ``timeout`` seconds after
        this call.
        """
        until = None if timeout is None else monotonic() + timeout
        _check_callable(fn)
        if buffersize is not None:
            if isinstance(buffersize, bool) or not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")  # the words of concurrent.futures; so below
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        if chunksize != "auto":
            if isinstance(chunksize, bool) or not isinstance(chunksize, int):
                raise TypeError(f'chunksize must be an int of at least 1 or "auto", not {chunksize!r}')
            if chunksize < 1:
                raise ValueError("chunksize must be >= 1.")
        star = len(iterables) != 1
        source: Iterable[Any] = zip(*iterables, strict=False) if star else iterables[0]
        if buffersize is None and type(source) not in (range, tuple):  # those stay as they are
            source = list(source)
        self._life.begin()
        bulk = Bulk(
            self._engine,
            self._config,
            fn,
            source,
            star=star,
            chunksize=None if chunksize == "auto" else chunksize,
            buffersize=buffersize,
            eager=buffersize is None,
            ended=self._life.fed if buffersize is None else None,
            paces=self._remembered(),
        )
        try:
            if buffersize is None:
                self._life.feeds(bulk)
            bulk.feed()
        except BaseException:  # Ctrl-C; or it was shut down meanwhile: nobody has the iterator
            bulk.close()
            self._life.fed(bulk)
            raise
        values = bulk.values(until=until)
        return values if buffersize is None else _hold(self, values)

    # Ends

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks. With ``wait``, block until all are done and the workers have ended; with
        ``cancel_futures``, first cancel what has not started. May be called again."""
        self._life.shut(cancel=cancel_futures)
        if wait:
            self._life.wait()

    def terminate_workers(self) -> None:
        """Cancel what waits, and end the workers by SIGTERM, or by SIGKILL when that doesn't do; then shut down.

        As ``ProcessPoolExecutor.terminate_workers`` of Python 3.14. What ran has :class:`WorkerCrashed` or
        :class:`TaskCancelled` as its exception. Does not block.
        """
        self._life.shut(cancel=True)
        for worker in self._engine.workers():
            if worker.pid is not None:
                try:
                    os.kill(worker.pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass  # it has ended
        self._engine.stop(_TERMINATE_SECONDS)

    def kill_workers(self) -> None:
        """Kill the workers at once, and shut down. What ran has :class:`TaskCancelled` as its exception.

        As ``ProcessPoolExecutor.kill_workers`` of Python 3.14. Does not block.
        """
        self._life.shut()
        self._engine.stop(0.0)

    def __repr__(self) -> str:
        return f"<Executor {self.name}: {self._config.processes} x {self._config.threads}, {self._life.state}>"


_names = iter(range(1, sys.maxsize))


def _new_name() -> str:
    return f"executor-{next(_names)}"


def _method_of(context: multiprocessing.context.BaseContext, start_method: StartMethod | None) -> StartMethod:
    asked = getattr(context, "get_start_method", lambda: None)()
    method = next((known for known in START_METHODS if known == asked), None)
    if method is None:
        raise TypeError(f"mp_context must be a context of multiprocessing, or None, not {context!r}")
    if start_method not in (None, method):
        raise ValueError(f"mp_context asks for {method!r}, start_method for {start_method!r}: leave one of them out")
    return method


def _hold(executor: Executor, values: Iterator[T]) -> Iterator[T]:
    """With it goes the executor, which ends when nobody has it, and is needed for the rest."""
    yield from values


def _check_callable(fn: object) -> None:
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {fn!r}")


def _check_count(name: str, value: object) -> None:
    """With the words of ``concurrent.futures`` for what it refuses too."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer")
    if value <= 0:
        raise ValueError(f"{name} must be {'greater than 0' if name == 'max_workers' else '>= 1'}")
