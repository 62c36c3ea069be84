"""The face `MPMS`, name by name, as callers of mpms 2.6 use it."""

from __future__ import annotations

import gc
import inspect
import logging
import multiprocessing
import os
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

import mpms
from mpms import MPMS, Meta, TaskCancelled, WorkerGracefulDie
from mpms.core.messages import StopRequested

from ..local.helpers import PATIENCE, at_full_strength, promised
from ..local.stage import Stage

PARAMETERS_OF_2_6: dict[str, Any] = {
    "worker": inspect.Parameter.empty,
    "collector": None,
    "processes": None,
    "threads": 2,
    "task_queue_maxsize": None,
    "meta": None,
    "lifecycle": None,
    "lifecycle_duration": None,
    "lifecycle_duration_hard": None,
    "subproc_check_interval": 3,
    "process_initializer": None,
    "process_initargs": (),
    "thread_initializer": None,
    "thread_initargs": (),
    "process_finalizer": None,
    "process_finargs": (),
    "thread_finalizer": None,
    "thread_finargs": (),
    "name": None,
    "worker_graceful_die_timeout": 5,
    "worker_graceful_die_exceptions": (WorkerGracefulDie,),
}
NEW_PARAMETERS = {
    "task_timeout",
    "retries",
    "retry_backoff",
    "start_method",
    "preload",
    "max_memory_per_process",
    "max_start_failures",
    "start_timeout",
    "forward_logs",
    "engine",
}


def identity() -> tuple[str, str, int]:
    return multiprocessing.current_process().name, threading.current_thread().name, os.getpid()


# The constructor


def test_the_parameters_of_2_6_have_their_names_order_and_defaults() -> None:
    parameters = list(inspect.signature(MPMS).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert {p.name: p.default for p in positional} == PARAMETERS_OF_2_6
    assert [p.name for p in positional] == list(PARAMETERS_OF_2_6)


def test_what_is_new_is_keyword_only_and_off() -> None:
    keyword_only = {
        p.name for p in inspect.signature(MPMS).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert keyword_only >= NEW_PARAMETERS
    pool = MPMS(abs)
    assert (pool.lifecycle, pool.lifecycle_duration, pool.lifecycle_duration_hard) == (None, None, None)


def test_the_parameters_of_2_6_may_be_given_by_position(method: str) -> None:
    got: list[tuple[Any, Any]] = []
    pool = MPMS(
        pow,
        lambda meta, result: got.append((meta["note"], result)),
        1,
        1,
        7,
        {"note": "mine"},
        1000,
        60,
        120,
        1,
        None,
        (),
        None,
        (),
        None,
        (),
        None,
        (),
        "positions",
        1,
        (KeyError,),
        start_method=method,
    )
    pool.put(2, 5)
    pool.join()
    assert got == [("mine", 32)]
    assert (pool.name, pool.lifecycle, pool.lifecycle_duration, pool.lifecycle_duration_hard) == (
        "positions",
        1000,
        60,
        120,
    )
    assert (pool.worker_graceful_die_timeout, pool.worker_graceful_die_exceptions) == (1, (KeyError,))
    assert pool.subproc_check_interval == 1


def test_the_names_are_exported() -> None:
    for name in ("MPMS", "Meta", "WorkerGracefulDie", "RemoteWorkerError"):
        assert name in mpms.__all__
        assert getattr(mpms, name).__name__ == name


def test_one_worker_process_per_processor_is_the_default() -> None:
    pool = MPMS(abs)
    assert pool.processes_count == len(os.sched_getaffinity(0))
    assert pool.threads_count == 2


def test_a_pool_that_is_never_started_costs_nothing_and_is_freed() -> None:
    pool = weakref.ref(MPMS(abs))
    gc.collect()
    assert pool() is None


# Names


def test_the_name_is_the_module_and_name_of_the_function() -> None:
    assert MPMS(identity).name == "tests.compat.test_face.identity"
    assert MPMS(abs, name="mine").name == "mine"


def test_what_has_no_name_is_called_mpms_worker() -> None:
    class Callable:
        def __call__(self) -> None: ...

    assert MPMS(Callable()).name == "mpms_worker"


def test_tasks_see_the_names_of_process_and_thread(any_method: str) -> None:
    with MPMS(identity, processes=1, threads=2, name="N", start_method=any_method) as pool:
        for _ in range(50):
            pool.put()
        pool.close()
        seen = {result[:2] for _, result in pool.iter_results()}
    assert seen <= {("mpms-N-p1", "mpms-N-p1#t1"), ("mpms-N-p1", "mpms-N-p1#t2")}
    assert seen


def test_workers_that_come_later_have_higher_numbers(method: str) -> None:
    with MPMS(identity, processes=1, threads=1, name="N", lifecycle=1, start_method=method) as pool:
        seen = []
        for _ in range(3):
            pool.put()
            seen.append(next(pool.iter_results())[1][0])
    # A worker whose replacement is up before it has begun its only task leaves that to it.
    numbers = [int(name.removeprefix("mpms-N-p")) for name in seen]
    assert numbers == sorted(set(numbers))


def test_titles_show_the_names_to_other_programs(any_method: str, stage: Stage) -> None:
    pytest.importorskip("setproctitle")
    with MPMS(stage.say_and_wait, processes=1, threads=1, name="N", start_method=any_method) as pool:
        pool.put()
        stage.hear()
        at_full_strength(pool)  # a worker may speak before the word of its birth, with its pid, has come
        (process,) = pool.worker_processes_pool.values()
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        threads = {path.read_text().strip() for path in Path(f"/proc/{process.pid}/task").glob("*/comm")}
        stage.open()
    assert title == "mpms-N-p1"
    assert "mpms-N-p1#t1" in threads


# The life of a pool


def test_the_first_put_starts_the_pool(method: str) -> None:
    got: list[int] = []
    pool = MPMS(abs, lambda meta, result: got.append(result), 1, 1, start_method=method)
    assert dict(pool.worker_processes_pool) == {}
    pool.put(-1)
    pool.join()
    assert got == [1]


def test_a_second_start_raises(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method)
    pool.start()
    with pytest.raises(RuntimeError, match="once"):
        pool.start()
    pool.join()


def test_start_after_the_first_put_raises(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method)
    pool.put(1)
    with pytest.raises(RuntimeError, match="once"):
        pool.start()
    pool.join()


def test_many_threads_may_put_first_and_start_one_pool(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method)
    together = threading.Barrier(8)

    def put() -> None:
        together.wait()
        pool.put(-1)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert [result for _, result in pool.iter_results()] == [1] * 8
    pool.join()
    assert pool.stats().starts == 1


def test_put_after_close_raises(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method)
    pool.put(1)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.put(2)
    pool.join()
    with pytest.raises(RuntimeError, match="closed"):
        pool.put(3)
    assert pool.total_count == pool.finish_count == 1


def test_put_after_close_of_a_pool_that_was_never_started_raises() -> None:
    pool = MPMS(abs)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.put(1)
    pool.join()


def test_a_pool_may_end_without_a_task(any_method: str) -> None:
    pool = MPMS(abs, processes=2, threads=2, start_method=any_method)
    pool.start()
    pool.join()
    assert (pool.total_count, pool.finish_count, len(pool)) == (0, 0, 0)


def test_close_and_join_may_be_called_twice(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method)
    pool.put(1)
    for _ in range(2):
        pool.close()
    for _ in range(2):
        pool.join()
    pool.close()
    pool.join(close=False)
    assert pool.finish_count == 1


def test_join_without_close_waits_for_somebody_to_close(method: str, stage: Stage) -> None:
    pool = MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method)
    pool.put()
    joined = threading.Thread(target=pool.join, kwargs={"close": False}, daemon=True)
    joined.start()
    stage.hear()
    stage.open()
    next(pool.iter_results())
    assert joined.is_alive()
    pool.put()  # it was not closed
    pool.close()
    joined.join(30)
    assert not joined.is_alive()
    assert pool.finish_count == 2


def test_close_waits_until_no_task_waits_for_a_thread(method: str, stage: Stage) -> None:
    pool = MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method)
    for _ in range(3):
        pool.put()
    closing = threading.Thread(target=pool.close, kwargs={"wait_for_empty": True}, daemon=True)
    closing.start()
    stage.hear()
    assert closing.is_alive()
    assert not pool.task_queue_closed
    pool.put()
    stage.open()
    closing.join(30)
    assert not closing.is_alive()
    assert pool.task_queue_closed
    pool.join()
    assert pool.finish_count == 4


def test_close_that_waits_does_so_for_a_pool_without_a_task_too(method: str) -> None:
    MPMS(abs, processes=1).close(wait_for_empty=True)
    pool = MPMS(abs, processes=1, start_method=method)
    pool.start()
    pool.close(wait_for_empty=True)
    pool.join()


def test_join_in_a_collector_raises(method: str) -> None:
    said: list[BaseException] = []

    def collector(meta: Meta, result: Any) -> None:
        for wait in (meta.mpms.join, meta.mpms.graceful_shutdown):
            try:
                wait()
            except RuntimeError as error:
                said.append(error)

    with MPMS(abs, collector, 1, 1, start_method=method) as pool:
        pool.put(1)
    assert len(said) == 2
    assert "collector" in str(said[0])


# `with`


def test_with_starts_and_joins(any_method: str) -> None:
    got: list[int] = []
    with MPMS(abs, lambda meta, result: got.append(result), 1, 2, start_method=any_method) as pool:
        with pytest.raises(RuntimeError, match="once"):
            pool.start()
        for number in range(20):
            pool.put(-number)
    assert sorted(got) == list(range(20))
    assert pool.task_queue_closed
    assert dict(pool.worker_processes_pool) == {}


def test_with_takes_a_pool_that_has_begun(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method)
    pool.put(-1)
    with pool:
        pool.put(-2)
    assert [result for _, result in pool.iter_results()] == [1, 2]


def test_an_exception_in_the_block_stops_at_once_and_cancels_what_is_left(method: str, stage: Stage) -> None:
    got: list[Any] = []
    began = 0.0
    pool = MPMS(stage.say_and_wait, lambda meta, result: got.append((meta.args, result)), 1, 2, start_method=method)

    def leave_by_an_exception() -> None:
        nonlocal began
        with pool:
            for number in range(5):
                pool.put(number)
            stage.hear(2)
            began = time.monotonic()
            1 / 0

    with pytest.raises(ZeroDivisionError):
        leave_by_an_exception()
    assert time.monotonic() - began < promised(1.0)
    pool.join()  # the stop waits for half a second only
    assert {type(result) for _, result in got} == {TaskCancelled}
    assert {args: result.started for args, result in got} == {
        (0,): True,
        (1,): True,
        (2,): False,
        (3,): False,
        (4,): False,
    }
    assert pool.unfinished() == [((number,), {}) for number in range(5)]


def test_unfinished_has_all_though_the_stop_returned_before_they_were_answered(
    method: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.local.engine._ANSWER_SECONDS", PATIENCE)
    pool = MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method)
    machine, go_on = pool._engine._machine, threading.Event()  # type: ignore[attr-defined]
    handle = machine.handle

    def handle_late(events: list[Any], now: float) -> Any:
        if any(isinstance(event, StopRequested) for event in events):
            go_on.wait(PATIENCE)
        return handle(events, now)

    machine.handle = handle_late
    for number in range(4):
        pool.put(number)
    stage.hear()
    assert not pool.graceful_shutdown(0.0)
    late = threading.Timer(0.1, go_on.set)
    late.start()
    assert pool.unfinished() == [((number,), {}) for number in range(4)]
    late.join()
    pool.join()


# Attributes


@pytest.mark.parametrize(
    ("processes", "threads", "given", "is_"),
    [(1, 1, None, 33), (2, 4, None, 54), (2, 4, 10, 54), (2, 4, 54, 54), (2, 4, 500, 500), (2, 4, 0, 54)],
)
def test_task_queue_maxsize_is_what_was_given_or_three_per_thread_and_thirty(
    processes: int, threads: int, given: int | None, is_: int
) -> None:
    pool = MPMS(abs, processes=processes, threads=threads, task_queue_maxsize=given)
    assert pool.task_queue_maxsize == is_


def test_put_blocks_while_so_many_tasks_wait(method: str, stage: Stage) -> None:
    with MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method) as pool:
        putting = threading.Thread(target=lambda: [pool.put(number) for number in range(100)], daemon=True)
        putting.start()
        stage.hear()
        # One runs, one may be on its way, and so many wait.
        full = pool.task_queue_maxsize
        assert _becomes(lambda: pool.total_count >= full)
        putting.join(0.2)
        assert putting.is_alive()
        assert full <= pool.total_count <= full + 3
        stage.open()
        putting.join(30)
        assert not putting.is_alive()
    assert pool.finish_count == 100


def test_counts_length_and_running_tasks_follow_the_tasks(method: str, stage: Stage) -> None:
    before = time.time()
    with MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method) as pool:
        pool.put("a")
        pool.put(word="b")
        stage.hear()
        assert (pool.total_count, pool.finish_count, len(pool)) == (2, 0, 2)
        running = pool.running_tasks
        assert [(args, kwargs) for _, args, kwargs, _ in running.values()] == [
            (("a",), {}),
            ((), {"word": "b"}),
        ]
        assert all(task == key for key, (task, *_) in running.items())
        assert all(before <= put <= time.time() for *_, put in running.values())
        assert pool  # though len() may be 0
        stage.open()
    assert (pool.total_count, pool.finish_count, len(pool)) == (2, 2, 0)
    assert dict(pool.running_tasks) == {}
    assert bool(pool)


def test_a_collector_that_finds_no_task_left_has_the_last_one(method: str, stage: Stage) -> None:
    """Though the results come all at once: those that wait for the collector are left."""
    left: list[int] = []
    held = threading.Event()

    def collector(meta: Any, result: Any) -> None:
        if result == 0:
            held.wait(30)
        left.append(len(meta.mpms.running_tasks))

    with MPMS(abs, collector, processes=1, threads=1, task_queue_maxsize=1000, start_method=method) as pool:
        for number in range(1000):
            pool.put(number)
        assert _becomes(lambda: pool.stats().done == 1000)
        held.set()
    assert left == list(range(999, -1, -1))


def test_counts_are_read_without_a_lock_as_a_handler_of_a_signal_does(method: str, stage: Stage) -> None:
    """It may come while the same thread is within ``put``."""
    counts: list[int] = []
    with MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method) as pool:
        pool.put(1)
        stage.hear()  # it is held: no result comes between the two counts
        handler = threading.Thread(target=lambda: counts.extend([pool.total_count, len(pool) + pool.finish_count]))
        with pool._engine._lock:  # type: ignore[attr-defined]
            handler.start()
            handler.join(30)
            assert not handler.is_alive()
        assert counts == [1, 1]
        stage.open()


def test_finish_count_counts_the_result_that_the_collector_has_in_hand(method: str) -> None:
    counts: list[int] = []
    with MPMS(abs, lambda meta, result: counts.append(meta.mpms.finish_count), 1, 1, start_method=method) as pool:
        for number in range(5):
            pool.put(number)
    assert counts == [1, 2, 3, 4, 5]


def test_worker_processes_pool_maps_names_to_processes(any_method: str, stage: Stage) -> None:
    with MPMS(stage.say_and_wait, processes=2, threads=1, name="N", start_method=any_method) as pool:
        for _ in range(2):
            pool.put()
        stage.hear(2)
        at_full_strength(pool)
        workers = dict(pool.worker_processes_pool)
        assert sorted(workers) == ["mpms-N-p1", "mpms-N-p2"]
        for name, worker in workers.items():
            assert worker.name == name
            assert worker.is_alive()
            assert worker.exitcode is None
            assert worker.pid is not None
            os.kill(worker.pid, 0)
        stage.open()
    for worker in workers.values():
        assert not worker.is_alive()
        assert worker.exitcode == 0
    assert dict(pool.worker_processes_pool) == {}


def test_a_worker_that_was_killed_shows_its_exitcode(method: str, stage: Stage) -> None:
    with MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method) as pool:
        pool.put()
        stage.hear()
        at_full_strength(pool)
        (worker,) = pool.worker_processes_pool.values()
        os.kill(worker.pid, signal.SIGKILL)
        next(pool.iter_results())
        assert (worker.is_alive(), worker.exitcode) == (False, -signal.SIGKILL)
        stage.open()


def test_a_death_is_logged_with_the_health_of_the_pool(
    method: str, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mpms"):
        with MPMS(stage.say_and_wait, processes=2, threads=1, start_method=method) as pool:
            for _ in range(2):
                pool.put()
            stage.hear(2)
            at_full_strength(pool)
            os.kill(next(iter(pool.worker_processes_pool.values())).pid, signal.SIGKILL)
            next(pool.iter_results())
            stage.open()
    health = [record for record in caplog.records if record.msg.startswith("mpms process health check")]
    assert [record.getMessage() for record in health] == [
        "mpms process health check: 1/2 processes alive, running_tasks=2"
    ]
    assert health[0].msg == "mpms process health check: %d/%d processes alive, running_tasks=%d"
    assert health[0].name == "mpms"


def test_a_run_in_which_all_goes_well_logs_nothing(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mpms"):
        with MPMS(abs, processes=1, threads=2, lifecycle=5, start_method=method) as pool:
            for number in range(30):
                pool.put(number)
    assert caplog.messages == []


# Meta


def test_meta_is_whose_result_the_collector_has_in_hand(method: str) -> None:
    got: list[Any] = []

    def collector(meta: Meta, result: Any) -> None:
        assert isinstance(meta, dict)
        assert isinstance(meta, Meta)
        assert meta.mpms.name == meta.self.name == "N"
        got.append((meta.args, meta.kwargs, meta.taskid, result))

    with MPMS(pow, collector, 1, 1, name="N", start_method=method) as pool:
        pool.put(2, 3)
        pool.put(2, exp=4)
    (first, second) = got
    assert first[:2] == ((2, 3), {})
    assert second[:2] == ((2,), {"exp": 4})
    assert (first[3], second[3]) == (8, 16)
    assert first[2] != second[2]


def test_between_results_meta_is_of_no_task(method: str) -> None:
    with MPMS(abs, lambda meta, result: None, 1, 1, start_method=method) as pool:
        pool.put(1)
    assert (pool.meta.args, pool.meta.kwargs, pool.meta.taskid) == ((), {}, None)


def test_meta_mpms_is_a_weak_proxy() -> None:
    pool = MPMS(abs)
    assert isinstance(pool.meta.mpms, weakref.ProxyType)
    assert isinstance(pool.meta.self, weakref.ProxyType)


def test_items_of_meta_are_shared_by_all_collector_calls_and_the_caller(method: str) -> None:
    def collector(meta: Meta, result: int) -> None:
        meta["sum"] += result

    given = {"sum": 100}
    with MPMS(abs, collector, 1, 2, meta=given, start_method=method) as pool:
        for number in range(10):
            pool.put(-number)
    assert pool.meta["sum"] == 145
    assert given == {"sum": 100}


def test_the_result_of_a_worker_that_raised_is_its_exception(method: str) -> None:
    got: list[Any] = []
    with MPMS(int, lambda meta, result: got.append(result), 1, 1, start_method=method) as pool:
        pool.put("no number")
    (error,) = got
    assert isinstance(error, ValueError)
    assert "no number" in str(error)


def test_the_collector_runs_in_one_thread_of_this_process(method: str) -> None:
    threads: set[tuple[int, str]] = set()
    with MPMS(
        abs,
        lambda meta, result: threads.add((os.getpid(), threading.current_thread().name)),
        2,
        2,
        name="N",
        start_method=method,
    ) as pool:
        for number in range(50):
            pool.put(number)
    assert threads == {(os.getpid(), "mpms-N-collector")}


# iter_results


def test_iter_results_yields_a_meta_of_its_own_per_result(method: str) -> None:
    with MPMS(abs, processes=1, threads=1, meta={"note": "mine"}, start_method=method) as pool:
        for number in range(5):
            pool.put(-number)
        pool.close()
        got = list(pool.iter_results())
    assert [(meta.args, result) for meta, result in got] == [((-n,), n) for n in range(5)]
    assert len({meta.taskid for meta, _ in got}) == 5
    assert {meta["note"] for meta, _ in got} == {"mine"}
    assert {meta.mpms.name for meta, _ in got} == {pool.name}


def test_iter_results_may_begin_before_close_and_ends_after_it(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method)
    pool.put(-1)
    results = pool.iter_results()
    assert next(results)[1] == 1
    pool.put(-2)
    assert next(results)[1] == 2
    pool.close()
    assert list(results) == []
    pool.join()


def test_iter_results_with_a_collector_raises_at_once(method: str) -> None:
    with MPMS(abs, lambda meta, result: None, 1, 1, start_method=method) as pool:
        with pytest.raises(RuntimeError, match="collector"):
            pool.iter_results()


def test_iter_results_before_start_raises_at_once() -> None:
    with pytest.raises(RuntimeError, match="start"):
        MPMS(abs).iter_results()


def test_iter_results_accepts_a_timeout_that_ends_nothing(method: str, stage: Stage) -> None:
    with MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method) as pool:
        pool.put("slow")
        opening = threading.Timer(0.3, stage.open)
        opening.start()
        assert next(pool.iter_results(timeout=0.01))[1] == "slow"
        opening.join()


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    for method in (MPMS(abs).iter_results, MPMS(abs).graceful_shutdown):
        with pytest.raises((TypeError, ValueError), match=r"timeout must be .* not "):
            method(timeout)


def test_join_before_iteration_keeps_the_results(method: str) -> None:
    with MPMS(abs, processes=1, threads=2, start_method=method) as pool:
        for number in range(100):
            pool.put(-number)
    assert sorted(result for _, result in pool.iter_results()) == list(range(100))


def _becomes(condition: Any) -> bool:
    """For what the pool shows and does not tell: looked at again and again, within some seconds."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            return False
        threading.Event().wait(0.005)
    return True
