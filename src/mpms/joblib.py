"""joblib on mpms: after ``import mpms.joblib``, ``joblib.parallel_config(backend="mpms")``. Needs the extra ``joblib``.

    with joblib.parallel_config(backend="mpms", n_jobs=-1, task_timeout=60, retries=1):
        cross_val_score(model, X, y)

- ``n_jobs`` is how many processes, of ``threads=1`` threads each; ``-1``: one per processor. With one thread in all,
  joblib runs the calls here, one after the other, as it does with its own backends.
- Every option of :class:`mpms.Executor` is one of ``parallel_config`` and ``Parallel``. What it says of a task holds
  for what joblib makes one: a batch of calls that take less than 0.2 seconds each, and else a single call. With
  ``batch_size=1``, each call.
- A worker that dies costs the batch that it ran: ``Parallel`` raises its :class:`mpms.WorkerCrashed`, as any error;
  with ``retries`` it is run again, and nothing is seen of it.
- The workers stay for all calls within one ``parallel_config``, and end after it; they are killed when a call fails.
- ``inner_max_num_threads`` bounds the threads of BLAS and OpenMP in each worker; by default the processors are shared
  out among the workers, unless the environment says how many. Calls of joblib within a task run in threads of the same
  worker, and those within these one after the other: as with loky.
- Arguments are sent with each batch: large arrays are not shared by memory-mapped files, as loky does it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

from .typed import TYPE_CHECKING, Any

try:
    from joblib import cpu_count
    from joblib._parallel_backends import FallbackToBackend, SequentialBackend
    from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend
except ImportError as problem:
    raise ImportError("mpms.joblib needs joblib, 1.5 or newer: pip install 'mpms[joblib]'") from problem

from .faces.executor import Executor
from .faces.futures import Future

if TYPE_CHECKING:
    import concurrent.futures

__all__ = ["MpmsBackend"]

_OF_OTHERS = {"max_nbytes", "temp_folder", "mmap_mode", "verbose", "context"}
"""What joblib tells every backend, and only others have a use for."""


_ABORT_SECONDS = 10.0
"""How long an abort waits for callbacks of joblib that are under way: one may be in the caller's iterable."""


class MpmsBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """The backend ``"mpms"`` of joblib, on an :class:`mpms.Executor`. joblib makes it, and calls all of its methods."""

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._executor: Executor | None = None
        self._made_with: dict[str, Any] = {}
        self._threads: int = options.get("threads", 1)  # in each process; a call may have an option of its own
        # Weak: it has this backend, and both end when the caller lets go of them.
        self._parallel: weakref.ref[Any] | None = None

    @property
    def parallel(self) -> Any:
        """The ``joblib.Parallel`` that is called."""
        return None if self._parallel is None else self._parallel()

    # How many

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at a time."""
        return _processes(n_jobs) * self._threads

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **options: Any,
    ) -> int:
        """Make ready for a call of ``parallel``, with the workers of the one before if it had the same options."""
        options = {**self.backend_kwargs, **options}
        options = {name: value for name, value in options.items() if name not in _OF_OTHERS}
        processes = _processes(n_jobs)
        self._threads = options.get("threads", 1)
        at_a_time = processes * self._threads
        if at_a_time == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options.setdefault("native_threads", self._native_threads(at_a_time))
        options.setdefault("name", "joblib")
        options["max_workers"] = processes
        if self._executor is None or self._made_with != options:
            self._let_go()
            self._executor, self._made_with = Executor(**options), options
        self._parallel = None if parallel is None else weakref.ref(parallel)
        return at_a_time

    def _native_threads(self, n_jobs: int) -> int | None:
        if self.inner_max_num_threads is not None:
            return int(self.inner_max_num_threads)
        if any(name in os.environ for name in self.MAX_NUM_THREADS_VARS):
            return None
        return max(1, int(cpu_count()) // n_jobs)

    # Calls

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        assert self._executor is not None
        try:
            future = self._executor.submit(_call, func)
        except RuntimeError as error:  # it is broken; or it was aborted, and then nobody asks
            future = Future(None)
            future.set_exception(error)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: concurrent.futures.Future[Any]) -> Any:
        return out.result()

    # Ends

    def terminate(self) -> None:
        """A call has ended; its workers stay for the next one, as long as this backend lives."""
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed: nobody wants what runs."""
        self._made_with = {}  # not to be used again; still there for a call that is just being submitted
        if self._executor is not None:
            self._executor.kill_workers()
            # joblib asks after a call has begun whose it is that ends: what ends of this one would be taken for a part
            # of the next one, in which its result is then, or for which it is an error.
            if self._executor._begun:
                self._executor._engine.wait_stopped(_ABORT_SECONDS)
        parallel = self.parallel
        if ensure_ready and parallel is not None:
            self.configure(n_jobs=parallel.n_jobs, parallel=parallel, **parallel._backend_kwargs)

    def _let_go(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)


def _call(batch: Callable[[], Any]) -> Any:
    """In the worker. A function that all batches have in common: it is shipped once, and they are its arguments."""
    return batch()


def _processes(n_jobs: int | None) -> int:
    if n_jobs == 0:
        raise ValueError("n_jobs == 0 in Parallel has no meaning")  # the words of joblib
    if n_jobs is None:
        return 1
    return n_jobs if n_jobs > 0 else max(1, int(cpu_count()) + 1 + n_jobs)


register_parallel_backend("mpms", MpmsBackend)
