"""Initializers and finalizers of process and thread, and `preload`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from itertools import pairwise
from typing import Any, NoReturn

import pytest

from mpms import MPMS, PoolBroken, TaskTimeout, WorkerGracefulDie

from .helpers import promised
from .stage import Stage


class NoDatabase(Exception):
    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)


def fail() -> NoReturn:
    raise NoDatabase("db", 5432)


def noting(stage: Stage) -> dict[str, Any]:
    """All four hooks, each with an argument of its own."""

    def note(what: str, argument: int) -> None:
        stage.note(what, argument, os.getpid(), threading.current_thread() is threading.main_thread())

    return {
        "process_initializer": note,
        "process_initargs": ("process begins", 1),
        "thread_initializer": note,
        "thread_initargs": ["thread begins", 2],
        "thread_finalizer": note,
        "thread_finargs": ("thread ends", 3),
        "process_finalizer": note,
        "process_finargs": ("process ends", 4),
    }


def test_each_runs_once_in_its_place_and_in_order(any_method: str, stage: Stage) -> None:
    def task() -> None:
        stage.note("task")

    with MPMS(task, processes=1, threads=2, start_method=any_method, **noting(stage)) as pool:
        pool.put()
        pool.close()
        list(pool.iter_results())
    words = stage.words()
    pid = words[0].split()[3]
    assert words[0] == f"process begins 1 {pid} True"
    assert words.count(f"thread begins 2 {pid} False") == 2
    assert words.count(f"thread ends 3 {pid} False") == 2
    assert words[-1] == f"process ends 4 {pid} True"
    assert words.index(f"thread begins 2 {pid} False") < words.index("task")
    assert len(words) == 7


def test_every_worker_and_thread_has_them(method: str, stage: Stage) -> None:
    with MPMS(stage.say_and_wait, processes=2, threads=3, start_method=method, **noting(stage)) as pool:
        for _ in range(6):
            pool.put()
        stage.hear(6)  # a worker that has nothing to do before the end may not have begun
        stage.open()
    words = [" ".join(word.split()[:2]) for word in stage.words()]
    assert {what: words.count(what) for what in words} == {
        "process begins": 2,
        "thread begins": 6,
        "thread ends": 6,
        "process ends": 2,
    }


@pytest.mark.parametrize(
    "options", [{"lifecycle": 3}, {"lifecycle_duration": 0.05}, {"lifecycle_duration_hard": 2.0}], ids=str
)
def test_finalizers_run_when_workers_are_rotated(options: Any, method: str, stage: Stage) -> None:
    options = {"processes": 1, "threads": 2, "task_queue_maxsize": 20, "start_method": method, **options}
    with MPMS(time.sleep, **options, **noting(stage)) as pool:
        for _ in range(20_000):  # until one has ended while the pool goes on, however long a start takes
            if any(word.startswith("process ends") for word in stage.words()):
                break
            pool.put(0.02)
    words = [" ".join(word.split()[:2]) for word in stage.words()]
    assert words.count("process ends") == words.count("process begins") >= 2
    assert words.count("thread ends") == words.count("thread begins") == 2 * words.count("process begins")


def test_finalizers_run_when_a_worker_dies_gracefully(method: str, stage: Stage) -> None:
    def task() -> NoReturn:
        raise WorkerGracefulDie

    with MPMS(task, processes=1, threads=2, start_method=method, **noting(stage)) as pool:
        pool.put()
        pool.close()
        next(pool.iter_results())
    words = [" ".join(word.split()[:2]) for word in stage.words()]
    assert words.count("thread ends") >= 2
    assert words[:1] == ["process begins"]
    assert "process ends" in words


def test_what_an_initializer_sets_up_is_there_for_the_tasks(any_method: str) -> None:
    here = threading.local()

    def initialize(value: str) -> None:
        here.value = value

    with MPMS(
        lambda: here.value,
        processes=1,
        threads=2,
        thread_initializer=initialize,
        thread_initargs=("mine",),
        start_method=any_method,
    ) as pool:
        for _ in range(10):
            pool.put()
        pool.close()
        assert [result for _, result in pool.iter_results()] == ["mine"] * 10


# Initializers that fail


@pytest.mark.parametrize("hook", ["process_initializer", "thread_initializer"])
def test_an_initializer_that_raises_breaks_the_pool_with_its_own_exception(hook: str, any_method: str) -> None:
    pool = MPMS(
        abs,
        processes=2,
        threads=2,
        max_start_failures=2,
        start_method=any_method,
        **{hook: fail},  # type: ignore[arg-type]
    )
    for number in range(5):
        pool.put(number)
    with pytest.raises(PoolBroken, match="NoDatabase") as info:
        pool.join()
    assert isinstance(info.value.__cause__, NoDatabase)
    assert info.value.__cause__.args == ("db", 5432)
    assert "in fail" in str(info.value.__cause__.__cause__)  # its traceback in the worker
    with pytest.raises(PoolBroken):
        pool.join()


def allow_no_more_threads() -> None:
    def start(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    threading.Thread.start = start  # type: ignore[method-assign]


def test_a_worker_that_may_not_start_its_threads_says_so(any_method: str) -> None:
    pool = MPMS(
        abs,
        processes=1,
        threads=2,
        start_method=any_method,
        process_initializer=allow_no_more_threads,
        max_start_failures=1,
    )
    with contextlib.suppress(PoolBroken):  # when it is late already
        pool.put(1)
    with pytest.raises(PoolBroken, match="can't start new thread"):
        pool.join()


def test_every_outstanding_task_has_the_break_as_its_outcome(method: str) -> None:
    got: list[Any] = []
    pool = MPMS(
        abs,
        lambda meta, result: got.append((meta.args, result)),
        1,
        1,
        process_initializer=fail,
        max_start_failures=2,
        start_method=method,
    )
    for number in range(20):
        pool.put(number)
    with pytest.raises(PoolBroken):
        pool.join()
    assert sorted(args for args, _ in got) == [(number,) for number in range(20)]
    assert {(type(result), type(result.__cause__)) for _, result in got} == {(PoolBroken, NoDatabase)}
    assert pool.unfinished() == [((number,), {}) for number in range(20)]
    assert (len(pool), pool.finish_count) == (0, 20)


def test_iteration_ends_with_the_break(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, process_initializer=fail, max_start_failures=2, start_method=method)
    pool.put(1)
    results = pool.iter_results()
    assert isinstance(next(results)[1], PoolBroken)
    with pytest.raises(PoolBroken) as info:
        next(results)
    assert isinstance(info.value.__cause__, NoDatabase)
    pool.close()
    with pytest.raises(PoolBroken):
        pool.join()


def test_put_raises_the_break_and_does_not_wait_for_ever(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, process_initializer=fail, max_start_failures=2, start_method=method)

    def put_many() -> None:
        for number in range(100_000):  # more than may wait: at some time it blocks
            pool.put(number)

    with pytest.raises(PoolBroken) as info:
        put_many()
    assert isinstance(info.value.__cause__, NoDatabase)
    with pytest.raises(PoolBroken):
        pool.close(wait_for_empty=True) or pool.join()


def test_failed_starts_are_backed_off(method: str, stage: Stage) -> None:
    """0.1, 0.2, 0.4 s: not as fast as the machine can."""

    def initialize() -> NoReturn:
        stage.note("begins")
        fail()

    pool = MPMS(abs, processes=1, threads=1, process_initializer=initialize, max_start_failures=4, start_method=method)
    pool.put(1)
    with pytest.raises(PoolBroken):
        pool.join()
    begins = [when for when, _ in stage.notes()]
    assert len(begins) == 4
    pauses = [later - sooner for sooner, later in pairwise(begins)]
    assert all(pause > 0.09 * 2**n for n, pause in enumerate(pauses))


def test_an_initializer_that_fails_now_and_then_is_no_end(method: str, stage: Stage) -> None:
    """Every second start fails: it never does so twice in a row."""

    def initialize() -> None:
        stage.note("begins")
        if len(stage.words()) % 2:
            fail()

    with MPMS(
        abs,
        processes=1,
        threads=1,
        lifecycle=5,
        process_initializer=initialize,
        max_start_failures=2,
        start_method=method,
    ) as pool:
        for number in range(20):
            pool.put(number)
        pool.close()
        assert sorted(result for _, result in pool.iter_results()) == list(range(20))


def test_an_initializer_that_kills_its_process_breaks_the_pool(any_method: str) -> None:
    pool = MPMS(
        abs,
        processes=1,
        threads=1,
        process_initializer=lambda: os.kill(os.getpid(), signal.SIGKILL),
        max_start_failures=2,
        start_method=any_method,
    )
    pool.put(1)
    with pytest.raises(PoolBroken, match="before they were ready"):
        pool.join()
    assert pool.stats().crashes == {"SIGKILL": 2}


@pytest.mark.parametrize("hook", ["process_initializer", "thread_initializer"])
def test_an_initializer_that_hangs_breaks_the_pool_after_start_timeout(hook: str, method: str, stage: Stage) -> None:
    began = time.monotonic()
    pool = MPMS(
        abs,
        processes=1,
        threads=1,
        start_timeout=0.3,
        max_start_failures=2,
        start_method=method,
        **{hook: stage.wait},  # type: ignore[arg-type]
    )
    pool.put(1)
    with pytest.raises(PoolBroken):
        pool.join()
    assert time.monotonic() - began < promised(3)
    assert pool.stats().crashes == {"start timeout": 2}


def test_an_initializer_that_exits_is_one_that_fails(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, process_initializer=exit, max_start_failures=2, start_method=method)
    pool.put(1)
    with pytest.raises(PoolBroken) as info:
        pool.join()
    assert isinstance(info.value.__cause__, SystemExit)


def test_an_initializer_whose_exception_does_not_pickle_is_named_all_the_same(method: str) -> None:
    def initialize() -> NoReturn:
        error = NoDatabase("db", 1)
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    pool = MPMS(abs, processes=1, threads=1, process_initializer=initialize, max_start_failures=2, start_method=method)
    pool.put(1)
    with pytest.raises(PoolBroken, match="NoDatabase"):
        pool.join()


# Finalizers that fail


@pytest.mark.parametrize("hook", ["process_finalizer", "thread_finalizer"])
@pytest.mark.parametrize("failing", [fail, exit])
def test_a_finalizer_that_raises_is_logged_and_the_end_goes_on(
    failing: Any, hook: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = MPMS(
        abs,
        processes=1,
        threads=2,
        forward_logs=True,
        start_method=method,
        **{hook: failing},  # type: ignore[arg-type]
    )
    for number in range(10):
        pool.put(number)
    pool.close()
    assert len(list(pool.iter_results())) == 10
    pool.join()
    assert "finalizer failed" in caplog.text
    assert pool.stats().crashes == {}


def test_a_finalizer_that_hangs_is_killed_after_start_timeout(method: str, stage: Stage) -> None:
    pool = MPMS(abs, processes=1, threads=1, process_finalizer=stage.wait, start_timeout=0.5, start_method=method)
    pool.put(-1)
    began = time.monotonic()
    pool.join()
    assert time.monotonic() - began < promised(3)
    assert [result for _, result in pool.iter_results()] == [1]


# What is loaded before


def test_preload_runs_once_in_the_fork_server(stage: Stage) -> None:
    loaded: list[int] = []

    def preload() -> None:
        loaded.append(os.getpid())
        stage.note("loaded")

    with MPMS(
        lambda: (loaded, os.getppid()),
        processes=2,
        threads=1,
        lifecycle=3,
        preload=preload,
        start_method="forkserver",
    ) as pool:
        for _ in range(20):
            pool.put()
        pool.close()
        got = [result for _, result in pool.iter_results()]
    assert stage.words() == ["loaded"]
    assert all(loaded_by == [server] for loaded_by, server in got)
    assert os.getpid() not in {server for _, server in got}


def test_preload_runs_before_everything_else(any_method: str, stage: Stage) -> None:
    with MPMS(
        abs,
        processes=1,
        threads=1,
        preload=lambda: stage.note("loaded"),
        process_initializer=lambda: stage.note("initialized"),
        start_method=any_method,
    ) as pool:
        pool.put(1)
    assert stage.words() == ["loaded", "initialized"]


def test_preload_that_raises_breaks_the_pool_with_its_exception(any_method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, preload=fail, max_start_failures=2, start_method=any_method)
    pool.start()
    with pytest.raises(PoolBroken, match="NoDatabase") as info:
        next(pool.iter_results())
    assert isinstance(info.value.__cause__, NoDatabase)
    with pytest.raises(PoolBroken):
        pool.join()  # its threads end


def test_preload_that_hangs_breaks_the_pool_after_start_timeout(any_method: str, stage: Stage) -> None:
    pool = MPMS(
        abs,
        processes=1,
        threads=1,
        preload=stage.wait,
        start_timeout=0.4,
        max_start_failures=2,
        start_method=any_method,
    )
    began = time.monotonic()
    pool.put(1)
    with pytest.raises(PoolBroken):
        pool.join()
    assert time.monotonic() - began < promised(5)


def test_initializers_have_their_time_and_tasks_theirs(method: str, stage: Stage) -> None:
    """A task timeout is about tasks."""
    with MPMS(
        stage.wait,
        processes=1,
        threads=1,
        process_initializer=time.sleep,
        process_initargs=(0.6,),
        task_timeout=0.3,
        worker_graceful_die_timeout=0.1,
        start_method=method,
    ) as pool:
        pool.put()
        ((_, error),) = [next(pool.iter_results())]
    assert isinstance(error, TaskTimeout)
    assert pool.stats().starts <= 2


def test_the_pool_logs_why_a_worker_did_not_start(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "mpms"):
        pool = MPMS(abs, processes=1, threads=1, process_initializer=fail, max_start_failures=2, start_method=method)
        pool.put(1)
        with pytest.raises(PoolBroken):
            pool.join()
    assert "NoDatabase" in caplog.text
