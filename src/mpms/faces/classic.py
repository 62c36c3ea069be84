"""``MPMS``: the face of mpms since its first version."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from ..config import PoolConfig, check_integer, check_seconds, default_processes, hook, parse_size
from ..engine import Engine, WorkerHandle
from ..errors import TaskTimeout, WorkerCrashed, WorkerGracefulDie
from ..ids import StartMethod, TaskOptions
from ..locks import Lock
from ..typed import TYPE_CHECKING, Any, Generic
from .engines import EngineOption, resolve
from .meta import Meta
from .outlet import Outlet
from .sinks import CollectorSink, IteratorSink
from .streams import Streams

if TYPE_CHECKING:  # type checkers know this module, installed or not
    from typing_extensions import ParamSpec, Self, TypeVar

    # With defaults, a plain `MPMS` in an annotation is what it was before it had types: of anything.
    P = ParamSpec("P", default=...)
    R = TypeVar("R", default=Any)
else:
    from ..typed import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["MPMS", "Meta"]

_SHUTDOWN_SLACK = 0.45
"""Seconds after the timeout of a shutdown in which workers are killed, and their ends and outcomes are waited for."""


class MPMS(Streams[R], Outlet[R], Generic[P, R]):
    """A pool of ``processes`` workers with ``threads`` threads each that calls ``worker`` for every :meth:`put`.

    Every accepted task has exactly one outcome. With a ``collector`` it goes to ``collector(meta, result)``, in one
    thread of this process; without, :meth:`iter_results` yields the same. ``result`` is what ``worker`` returned, or
    the exception that it raised, with the remote traceback as its ``__cause__``; or what became of the task otherwise:
    :class:`WorkerCrashed`, :class:`TaskTimeout`, :class:`TaskCancelled`, :class:`PoolBroken`.

    Usable as a context manager: leaving the block joins; leaving it by an exception stops at once and cancels what is
    not done. The first :meth:`put` starts the pool if nobody has. All methods may be called from any thread.

    Args:
        worker: the function. It may be a lambda, a closure, or be defined in ``__main__``.
        collector: takes the results. What it raises is logged, and the next result follows.
        processes: how many workers; by default one per processor that this process may use.
        threads: how many threads in each.
        task_queue_maxsize: how many tasks may wait before :meth:`put` blocks; at the least
            ``processes * threads * 3 + 30``.
        meta: items to begin with in the ``meta`` that the collector sees.
        lifecycle: tasks that a thread runs before it ends. Its worker is replaced, the replacement coming first.
        lifecycle_duration: seconds after which a worker is replaced in the same way; 80 % to 100 % of it, so that
            workers that were born together don't all go together. One that has run no task stays.
        lifecycle_duration_hard: seconds that a worker lives, and a task runs, at the most. Counted from the start
            of the task and not from its ``put``.
        subproc_check_interval: accepted for programs that name it; nothing is checked at intervals.
        process_initializer: called with ``process_initargs`` at the start of each worker, in its main thread.
        thread_initializer: called with ``thread_initargs`` at the start of each thread. If an initializer raises, the
            worker does not start, and another one is tried.
        process_finalizer: called with ``process_finargs`` at the orderly end of each worker, rotation included.
        thread_finalizer: called with ``thread_finargs`` at the orderly end of each thread.
        name: part of the names of processes and threads; by default the module and name of ``worker``.
        worker_graceful_die_timeout: seconds that the other tasks of a worker have to finish when it is to end because
            of one of them.
        worker_graceful_die_exceptions: a task that raises one of these has its worker replaced.
        task_timeout: seconds that a task may run. Then its outcome is :class:`TaskTimeout`, and its worker is replaced.
        retries: how often a task is run again whose worker died or that ran too long; 0: a task is run once at most.
        retry_backoff: seconds before the first retry, doubled for each one after it up to 60, and jittered by half.
        start_method: ``"forkserver"`` (the default on Linux), ``"fork"`` or ``"spawn"`` (the default on macOS). When it
            isn't named and ``worker`` can't be pickled, ``"fork"``, with a warning.
        preload: called without arguments in the process from which workers are forked (with ``"spawn"``, in each).
        max_memory_per_process: bytes, or a text like ``"1.5GB"``, that a worker may hold more than when it had started;
            then it is replaced, the replacement coming first. Looked at once a second while it works. That by which
            large arguments and results come and go is of it: up to 8 MiB, if many of them are under way.
        max_start_failures: after how many starts of workers in a row that failed the pool is broken.
        start_timeout: seconds that initializers may take, and finalizers.
        forward_logs: whether what workers log is handled by the loggers of this process.
        retry_on: which ends of a task are retried: a tuple of exception classes, or a function that is asked, in the
            worker, about what the task raised; crashes and timeouts are then retried too.
        timeout_raises: at the deadline, first raise :class:`TaskTimeout` in the thread of the task. If Python code was
            running the worker lives on; the task has a second to end before it is treated as without this option.
        max_memory_hard: as ``max_memory_per_process``, but the worker is killed.
        min_free_memory: while the machine has less free memory than this, no task is handed out.
        max_rate: how many tasks are started in a second, at the most.
        stop_on: stop the pool when so many tasks have failed, or such a share of the finished ones: ``1``, ``"10%"``
            (of at least three failed ones, as GNU parallel's ``--halt``). The rest is cancelled.
        native_threads: how many threads BLAS and OpenMP may start in each worker: in the environment before anything
            is imported, and by threadpoolctl where that is installed.
        on_error: called as ``on_error(meta, error)``, in the collector's thread, for every task that did not return;
            ``collector`` then sees values only.
        engine: what runs the tasks: ``None`` for this machine, ``"dask://HOST:PORT"`` or a
            :class:`mpms.dask.DaskEngine` for a cluster, or a callable ``(function, config, sink, bounded)`` that
            returns an :class:`mpms.engine.Engine`.

    Raises:
        TypeError, ValueError: for an option; the text names it, what was given, and what may be.
    """

    def __init__(
        self,
        worker: Callable[P, R],
        # It takes errors too, unless there is an on_error: R alone is what can be asked of every collector.
        collector: Callable[[Meta, R], object] | None = None,
        processes: int | None = None,
        threads: int = 2,
        task_queue_maxsize: int | None = None,
        meta: Mapping[str, Any] | None = None,
        lifecycle: int | None = None,
        lifecycle_duration: float | None = None,
        lifecycle_duration_hard: float | None = None,
        subproc_check_interval: float = 3,
        process_initializer: Callable[..., object] | None = None,
        process_initargs: Sequence[Any] = (),
        thread_initializer: Callable[..., object] | None = None,
        thread_initargs: Sequence[Any] = (),
        process_finalizer: Callable[..., object] | None = None,
        process_finargs: Sequence[Any] = (),
        thread_finalizer: Callable[..., object] | None = None,
        thread_finargs: Sequence[Any] = (),
        name: str | None = None,
        worker_graceful_die_timeout: float = 5,
        worker_graceful_die_exceptions: tuple[type[BaseException], ...] = (WorkerGracefulDie,),
        *,
        task_timeout: float | None = None,
        retries: int = 0,
        retry_backoff: float = 0.0,
        start_method: StartMethod | None = None,
        preload: Callable[[], object] | None = None,
        max_memory_per_process: int | str | None = None,
        max_start_failures: int = 5,
        start_timeout: float = 60.0,
        forward_logs: bool = False,
        retry_on: tuple[type[BaseException], ...] | Callable[[BaseException], bool] = (WorkerCrashed, TaskTimeout),
        timeout_raises: bool = False,
        max_memory_hard: int | str | None = None,
        min_free_memory: int | str | None = None,
        max_rate: float | None = None,
        stop_on: int | str | None = None,
        native_threads: int | None = None,
        on_error: Callable[[Meta, BaseException], object] | None = None,
        engine: EngineOption = None,
    ) -> None:
        if not callable(worker):
            raise TypeError(f"worker must be a callable, not {worker!r}")
        if collector is not None and not callable(collector):
            raise TypeError(f"collector must be a callable or None, not {collector!r}")
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be a callable or None, not {on_error!r}")
        make_engine = resolve(engine)
        check_seconds("subproc_check_interval", subproc_check_interval, above_zero=True)
        if task_queue_maxsize is not None:
            check_integer("task_queue_maxsize", task_queue_maxsize, 0)
        config = PoolConfig(
            processes=default_processes() if processes is None else processes,
            threads=threads,
            name=_name_of(worker) if name is None else name,
            max_pending=0 if task_queue_maxsize is None else task_queue_maxsize,
            start_method=start_method,
            preload=preload,
            process_initializer=hook("process_initializer", process_initializer, "process_initargs", process_initargs),
            thread_initializer=hook("thread_initializer", thread_initializer, "thread_initargs", thread_initargs),
            process_finalizer=hook("process_finalizer", process_finalizer, "process_finargs", process_finargs),
            thread_finalizer=hook("thread_finalizer", thread_finalizer, "thread_finargs", thread_finargs),
            lifecycle=None if lifecycle == 0 and not isinstance(lifecycle, bool) else lifecycle,
            lifecycle_duration=lifecycle_duration,
            lifecycle_duration_hard=lifecycle_duration_hard,
            task_timeout=task_timeout,
            retries=retries,
            retry_backoff=retry_backoff,
            max_memory_per_process=parse_size("max_memory_per_process", max_memory_per_process),
            max_start_failures=max_start_failures,
            start_timeout=start_timeout,
            grace=worker_graceful_die_timeout,
            die_exceptions=worker_graceful_die_exceptions,
            forward_logs=forward_logs,
            retry_on=retry_on,
            timeout_raises=timeout_raises,
            max_memory_hard=parse_size("max_memory_hard", max_memory_hard),
            min_free_memory=parse_size("min_free_memory", min_free_memory),
            max_rate=max_rate,
            stop_on=stop_on,
            native_threads=native_threads,
        )
        self.worker = worker
        self.collector = collector
        self.name = config.name
        self.processes_count = config.processes
        self.threads_count = config.threads
        self.task_queue_maxsize = max(config.processes * config.threads * 3 + 30, config.max_pending)
        self.lifecycle = lifecycle
        self.lifecycle_duration = lifecycle_duration
        self.lifecycle_duration_hard = lifecycle_duration_hard
        self.subproc_check_interval = subproc_check_interval
        self.worker_graceful_die_timeout = worker_graceful_die_timeout
        self.worker_graceful_die_exceptions = worker_graceful_die_exceptions
        self.meta = Meta(self)
        if meta is not None:
            try:
                self.meta.update(meta)
            except (TypeError, ValueError):
                raise TypeError(f"meta must be a mapping or None, not {meta!r}") from None
        self._sink = (
            IteratorSink(self.name)
            if collector is None and on_error is None
            else CollectorSink(collector, on_error, self.meta)
        )
        self._config = config = config.replace(max_pending=self.task_queue_maxsize)
        self._engine: Engine = make_engine(worker, config, self._sink, bounded=isinstance(self._sink, CollectorSink))
        self._submit = self._engine.submit
        self._lock = Lock()  # guards the three below; reentrant: handlers of signals close and shut down
        self._starting = False
        self._started = False
        self._closed = False

    # The life of a pool

    def start(self) -> None:
        """Start the workers, without waiting for them.

        Raises ``RuntimeError`` the second time, also after the first :meth:`put` has done it; ``TypeError`` when
        ``worker`` or a hook can't be sent to a new process and a ``start_method`` was named that has to;
        ``OSError`` or ``RuntimeError`` when there are no descriptors or threads left. Nothing of the pool is left then,
        nor after Ctrl-C; another start may raise ``RuntimeError``, which says to make a new one.
        """
        with self._lock:
            if self._started:
                raise RuntimeError("the pool was started already; that can be done only once")
            self._start()

    def _start(self) -> None:
        if self._closed:
            raise RuntimeError("the pool was closed before it was started; make a new one")
        if self._starting:
            raise RuntimeError("a signal handler that has interrupted the start of the pool can't use it")
        self._starting = True
        try:
            self._engine.start()
            self._started = True
        finally:
            self._starting = False
        if self.task_queue_closed:  # meanwhile, by the handler of a signal
            self._engine.close()

    def _start_unless_started(self) -> None:
        with self._lock:
            if not self._started:
                self._start()

    def _begin(self) -> None:
        if not self._started:
            self._start_unless_started()
        self._raise_if_broken()
        if self._closed:
            raise RuntimeError("cannot put a task into a pool that was closed")

    @property
    def _begun(self) -> bool:
        return self._started

    def put(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Accept a task: ``worker(*args, **kwargs)`` will be called in a thread of a worker.

        Blocks while ``task_queue_maxsize`` tasks wait, or as many results wait for a slow collector (or 1,000, if that
        is more; or 256 MiB of large ones); never in the collector itself. Raises what pickling the arguments raises,
        ``RuntimeError`` after :meth:`close`, and ``PoolBroken`` when no worker can be started; the task is not accepted
        then.
        """
        if not self._started:
            self._start_unless_started()
        self._submit(args, kwargs)

    def put_with(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        priority: int = 0,
    ) -> None:
        """As :meth:`put`, with options of this task's own: ``put_with((url,), timeout=5, retries=2, priority=1)``.

        ``timeout`` is in seconds of running time, in place of ``task_timeout``; ``retries`` in place of the pool's.
        Tasks of a higher ``priority`` start first; the default is 0, and it may be negative. Raises as :meth:`put`, and
        ``TypeError`` or ``ValueError`` for an option.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, above_zero=True)
        if retries is not None:
            check_integer("retries", retries, 0)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority must be an int, not {priority!r}")
        if not self._started:
            self._start_unless_started()
        options = TaskOptions(timeout=timeout, retries=retries, priority=priority)
        self._engine.submit(tuple(args), dict(kwargs or {}), None if options == TaskOptions() else options)

    def put_many(self, iterable: Iterable[Any], *, star: bool = False) -> int:
        """:meth:`put` for each item: a task of its own, with the item as its argument. How many there were.

        With ``star``, items are tuples of arguments. Blocks and raises as :meth:`put` does, and what the iterable
        raises; the items before the one that can't be pickled are accepted then, and those behind it are not read.
        For results that belong to the items, in their order or not, see :meth:`map` and :meth:`map_unordered`.
        """
        self._begin()
        submit, count = self._engine.submit, 0
        for item in iterable:
            submit(tuple(item) if star else (item,), {})
            count += 1
        return count

    def close(self, wait_for_empty: bool = False) -> None:
        """Accept no more tasks; those that were accepted go on. Again: no effect.

        With ``wait_for_empty``, first wait until no task waits for a thread, or the pool is broken; else don't block.
        """
        if wait_for_empty and self._started and not self._closed:
            self._engine.wait_queued()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._started:
                self._engine.close()
            if not self._started:
                self._sink.end()

    def join(self, close: bool = True) -> None:
        """Wait until every task has its outcome, the collector has seen it, and every process has ended.

        However long that takes; but for a handler of logging only as long as it takes a record within ten seconds.
        Closes the pool first, unless ``close`` is false: then another thread has to. Raises ``PoolBroken`` when no
        worker could be started, and ``RuntimeError`` in a collector: it would wait for itself.
        """
        if close:
            self.close()
        if not self._started:
            return
        self._engine.wait_stopped()
        self._raise_if_broken()

    def graceful_shutdown(self, timeout: float = 30.0) -> bool:
        """Close, and wait ``timeout`` seconds for what was accepted. Whether all of it was done.

        If not, what runs is killed, what waits is dropped, and each of those tasks has the outcome ``TaskCancelled``;
        :meth:`unfinished` lists their arguments for a successor. Returns within half a second of the timeout, whatever
        hangs.
        """
        check_seconds("timeout", timeout)
        with self._lock:
            self._closed = True
            if not self._started:
                self._sink.end()
                return True
        until = time.monotonic() + timeout + _SHUTDOWN_SLACK
        self._engine.stop(timeout)
        ended = self._engine.wait_stopped(max(0.0, until - time.monotonic()))
        return ended and not self._engine.unfinished()

    def __enter__(self) -> Self:
        self._start_unless_started()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.join()
            except BaseException:  # Ctrl-C, mostly: the same as if it had come a line earlier
                self.graceful_shutdown(0.0)
                raise
            return
        self._stop(kind)

    def _join(self) -> None:
        self.join()

    def _stop(self, kind: type[BaseException]) -> None:
        if not self.graceful_shutdown(0.0):
            import logging  # loaded long since: see `errors.__getattr__`

            message = "mpms %s was stopped by %s: unfinished() has what was not done"
            logging.getLogger("mpms").info(message, self.name, kind.__name__)

    def resize(self, processes: int) -> None:
        """Have this many workers from now on. Those that are too many finish what they run. Does not wait for it."""
        check_integer("processes", processes, 1)
        self._engine.resize(processes)
        self.processes_count = processes

    # Figures

    @property
    def task_queue_closed(self) -> bool:
        return self._closed

    @property
    def worker_processes_pool(self) -> Mapping[str, WorkerHandle]:
        """The worker processes now, by name: each with ``pid``, ``is_alive()`` and ``exitcode``."""
        return self._engine.handles()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "started" if self._started else "not started"
        return f"<MPMS {self.name}: {self.processes_count} x {self.threads_count}, {state}, {len(self)} tasks>"


def _name_of(worker: Callable[..., Any]) -> str:
    try:
        return f"{worker.__module__}.{worker.__name__}"
    except AttributeError:  # a partial, or an object that can be called
        return "mpms_worker"
