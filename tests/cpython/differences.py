"""What of CPython's tests doesn't apply to :class:`mpms.Executor`, test by test. A test holds it to be exact."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ABOUT_FUTURES", "CLASSES", "OTHERS", "SLOW", "TESTS", "Difference"]

CLASSES = (
    "ProcessPoolExecutorTest",
    "ProcessPoolShutdownTest",
    "InitializerMixin",
    "FailingInitializerMixin",
    "WaitTests",
    "AsCompletedTests",
    "ExecutorDeadlockTest",
)
"""What of the suite is put together with ours."""

ABOUT_FUTURES = ("WaitTests", "AsCompletedTests")
"""These are about `wait` and `as_completed`, and hardly about executors: in most runs with one thread is enough."""

_BASE = "it is in the class for process pools, that derives from it"
_THREADS = "it is about ThreadPoolExecutor: its threads, their names, and what they share with the caller"

OTHERS = {
    "ExecutorTest": _BASE,
    "ExecutorShutdownTest": _BASE,
    "ThreadPoolExecutorTest": _THREADS,
    "ThreadPoolShutdownTest": _THREADS,
    "ThreadPoolWaitTests": _THREADS,
    "FutureTests": "it is about the class Future itself, that ours derives from",
    "FailingInitializerResourcesTest": "it is about the semaphores of ProcessPoolExecutor's own queues",
}
"""The other classes, and why they are not."""


class Difference(NamedTuple):
    """``since``: the first Python that has the test for certain. ``only``: the start methods for which it is so.
    ``may_pass``: it does, now and then. ``hangs``: it doesn't end, for its task waits for what it doesn't come to."""

    why: str
    since: tuple[int, int] = (3, 10)
    only: tuple[str, ...] = ("forkserver", "fork", "spawn")
    may_pass: bool = False
    hangs: bool = False


_PROCESSES = "it looks at `_processes`, a private dict of Process objects"
_BUSY = "it counts `_processes`, a private dict: processes that are started as they are needed, and ours at once"
_FORCE = "it is about `_force_shutdown`, a private method by which that one does it"
_ITS_OWN = "it looks at private attributes of a ProcessPoolExecutor that it makes itself"
_OF_THE_TASK = "what unpickling raises is the outcome of that task, whatever it is: nothing ends or breaks by it"
_REMOTE = "it is a RemoteWorkerError that names the type and the reason: what pickling raises may not travel either"

TESTS: dict[str, dict[str, Difference]] = {
    "ProcessPoolExecutorTest": {
        "test_kill_workers": Difference(_FORCE, since=(3, 14)),
        "test_terminate_workers": Difference(_FORCE, since=(3, 14)),
        "test_force_shutdown_workers_invalid_op": Difference(_FORCE, since=(3, 14)),
        "test_force_shutdown_workers": Difference(_PROCESSES, since=(3, 14), hangs=True),
        "test_force_shutdown_workers_stops_pool": Difference(_PROCESSES, since=(3, 14)),
        "test_killed_child": Difference(f"{_PROCESSES}; and here a worker that is killed breaks nothing"),
        "test_saturation": Difference(_BUSY),
        "test_idle_process_reuse_one": Difference(_BUSY),
        "test_idle_process_reuse_multiple": Difference(_BUSY),
        "test_max_tasks_per_child": Difference(
            f"{_PROCESSES}; and with fork it is to be a ValueError, where ours can do it", (3, 11)
        ),
        "test_max_tasks_per_child_defaults_to_spawn_context": Difference(
            "it looks at `_mp_context`; and ours needs no other start method for it", (3, 11)
        ),
        "test_python_finalization_error": Difference("it makes private functions fail that start threads", (3, 12)),
    },
    "ProcessPoolShutdownTest": {
        "test_shutdown_gh_132969_case_1": Difference(_ITS_OWN, since=(3, 14)),
        "test_shutdown_gh_132969_case_2": Difference(_ITS_OWN, since=(3, 14)),
        "test_processes_terminate": Difference(_PROCESSES),
        "test_context_manager_shutdown": Difference(_ITS_OWN),
        "test_del_shutdown": Difference(_ITS_OWN),
        "test_shutdown_no_wait": Difference(_ITS_OWN),
        "test_cancel_futures": Difference(
            "it wants some of its tasks to have started, though it waits for none: they can be cancelled until then",
            may_pass=True,
        ),
    },
    "ExecutorDeadlockTest": {
        "test_exit_at_task_unpickle": Difference(_OF_THE_TASK),
        "test_error_at_task_unpickle": Difference(_OF_THE_TASK),
        "test_exit_during_result_pickle_on_worker": Difference(_REMOTE),
        "test_error_during_result_pickle_on_worker": Difference(_REMOTE),
        "test_shutdown_deadlock_pickle": Difference("it waits for `_executor_manager_thread`, a private attribute"),
    },
}

SLOW = {
    "test_map_timeout",
    "test_timeout",
    "test_zero_timeout",
    "test_future_times_out",
    "test_duplicate_futures",
    "test_first_exception",
    "test_first_exception_one_already_failed",
    "test_first_exception_some_already_complete",
    "test_first_completed_some_already_completed",
}
"""They sleep for seconds: not in every run."""
