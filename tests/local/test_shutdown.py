"""`graceful_shutdown`: in time whatever hangs, and what is left is known."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mpms import MPMS, TaskCancelled
from mpms.faces import classic

from .helpers import PATIENCE, at_full_strength, promised, still_alive, stop, until
from .stage import Stage

SLACK = 0.5
"""Seconds after the timeout within which the shutdown is promised to return."""


def shut_down(pool: MPMS, timeout: float) -> bool:
    began = time.monotonic()
    done = pool.graceful_shutdown(timeout)
    took = time.monotonic() - began
    assert took < timeout + promised(SLACK)
    return done


def hang_in_python(stage: Stage) -> None:
    stage.say()
    while True:
        time.sleep(60)


def hang_with_the_gil(stage: Stage) -> None:
    stage.say()
    ctypes.PyDLL(None).pause()  # PyDLL: without letting go of the GIL


def hang_busy(stage: Stage) -> None:
    stage.say()
    while True:
        pass


def hang_deaf(stage: Stage) -> None:
    """Every signal that can be ignored is."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    stage.say()
    while True:
        time.sleep(60)


def stop_itself(stage: Stage) -> None:
    stage.say()
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)  # this thread may run on for a moment


HANGS = [hang_in_python, hang_with_the_gil, hang_busy, hang_deaf, stop_itself]


def test_it_is_true_when_all_was_done(any_method: str) -> None:
    got: list[int] = []
    pool = MPMS(abs, lambda meta, result: got.append(result), 2, 2, start_method=any_method)
    for number in range(100):
        pool.put(-number)
    assert shut_down(pool, 20) is True
    assert sorted(got) == list(range(100))
    assert pool.unfinished() == []


def test_it_returns_when_all_is_done_and_not_later(method: str) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method)
    pool.put(1)
    began = time.monotonic()
    assert pool.graceful_shutdown() is True
    assert time.monotonic() - began < promised(5)


def test_without_a_task_or_a_start_it_is_true(method: str) -> None:
    assert MPMS(abs).graceful_shutdown(0) is True
    pool = MPMS(abs, processes=1, start_method=method)
    pool.start()
    assert shut_down(pool, 5) is True


def test_it_closes_the_pool(method: str) -> None:
    for pool in (MPMS(abs), MPMS(abs, processes=1, start_method=method)):
        pool.graceful_shutdown(5)
        assert pool.task_queue_closed
        with pytest.raises(RuntimeError):
            pool.put(1)
        pool.join()


@pytest.mark.parametrize("hang", HANGS)
def test_it_is_false_in_time_whatever_a_task_does(hang: Callable[[Stage], None], any_method: str, stage: Stage) -> None:
    pool = MPMS(hang, processes=2, threads=1, start_method=any_method)
    for _ in range(5):
        pool.put(stage)
    stage.hear(2)
    assert shut_down(pool, 0.2) is False
    outcomes = {meta.taskid: result for meta, result in pool.iter_results()}
    assert len(outcomes) == 5
    assert {type(result) for result in outcomes.values()} == {TaskCancelled}
    assert [outcomes[task].started for task in sorted(outcomes)] == [True, True, False, False, False]
    assert len(pool.unfinished()) == 5
    assert len(pool) == 0
    pool.join()


def test_it_is_false_in_time_for_a_worker_that_was_stopped(method: str, stage: Stage) -> None:
    pool = MPMS(stage.say_and_wait, processes=2, threads=1, start_method=method)
    for _ in range(2):
        pool.put()
    stage.hear(2)
    stop(min(at_full_strength(pool)))
    stage.open()
    assert next(pool.iter_results())[1] == "here"
    assert shut_down(pool, 0.3) is False
    pool.join()  # the figures of the end: in time, it may not have come to all
    assert len(pool.unfinished()) == 1
    assert pool.stats().crashes == {}


def test_it_is_false_in_time_while_a_collector_hangs(method: str) -> None:
    hanging, go_on = threading.Event(), threading.Event()
    got: list[Any] = []

    def collector(meta: Any, result: Any) -> None:
        got.append(result)
        hanging.set()
        go_on.wait()

    pool = MPMS(abs, collector, 1, 1, start_method=method)
    for number in range(5):
        pool.put(number)
    hanging.wait()
    assert shut_down(pool, 0.3) is False
    go_on.set()
    pool.join()
    assert len(got) == 5


def test_it_is_in_time_while_workers_start(method: str, stage: Stage) -> None:
    pool = MPMS(abs, processes=2, threads=1, process_initializer=stage.wait, start_method=method)
    pool.put(1)
    assert shut_down(pool, 0.2) is False
    pool.join()
    ((_, error),) = pool.iter_results()
    assert isinstance(error, TaskCancelled)
    assert not error.started


def test_it_is_in_time_while_a_finalizer_hangs(method: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """All was done, but it can't end in an orderly way."""
    monkeypatch.setattr(classic, "_SHUTDOWN_SLACK", PATIENCE)  # false also when the kill and the end don't fit into it
    pool = MPMS(abs, processes=1, threads=1, process_finalizer=stage.wait, start_method=method)
    pool.put(-1)
    assert next(pool.iter_results())[1] == 1
    assert shut_down(pool, 0.3) is True
    assert pool.unfinished() == []


def test_it_is_in_time_while_preload_hangs(any_method: str, stage: Stage) -> None:
    pool = MPMS(abs, processes=1, threads=1, preload=stage.wait, start_method=any_method)
    pool.put(1)
    assert shut_down(pool, 0.2) is False
    pool.join()
    assert pool.unfinished() == [((1,), {})]


def test_it_is_in_time_while_others_wait_in_put(method: str, stage: Stage) -> None:
    pool = MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method)
    refused: list[BaseException] = []

    def put_for_ever() -> None:
        try:
            while True:
                pool.put()
        except RuntimeError as error:
            refused.append(error)

    putting = [threading.Thread(target=put_for_ever, daemon=True) for _ in range(3)]
    for thread in putting:
        thread.start()
    stage.hear()
    assert shut_down(pool, 0.2) is False
    for thread in putting:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(refused) == 3
    pool.join()
    assert len(pool.unfinished()) == pool.total_count == pool.finish_count


def test_no_time_at_all_cancels_everything(method: str, stage: Stage) -> None:
    pool = MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method)
    for number in range(100):
        if number < 30:
            pool.put(number)
    stage.hear()
    assert shut_down(pool, 0) is False
    pool.join()
    assert len(pool.unfinished()) == 30


def test_unfinished_is_in_the_order_of_put_with_all_arguments(method: str, stage: Stage) -> None:
    def task(number: int, **words: Any) -> int:
        if number % 2:
            stage.say_and_wait()
        return number

    pool = MPMS(task, processes=1, threads=3, start_method=method)
    for number in range(20):
        pool.put(number, word=str(number))
    stage.hear(3)  # 1, 3, 5 run; 0, 2, 4 are done
    until(lambda: pool.finish_count == 3)  # and we know it
    assert shut_down(pool, 0.1) is False
    pool.join()
    left = [1, 3, *range(5, 20)]
    assert pool.unfinished() == [((number,), {"word": str(number)}) for number in left]
    assert sorted(result for _, result in pool.iter_results() if isinstance(result, int)) == [0, 2, 4]


def test_a_successor_that_is_fed_with_the_unfinished_loses_nothing(method: str) -> None:
    got: list[int] = []
    progress = threading.Semaphore(0)

    def task(number: int) -> int:
        time.sleep(0.01)
        return number

    def collector(meta: Any, result: Any) -> None:
        if not isinstance(result, TaskCancelled):
            got.append(result)
            progress.release()

    left: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((number,), {}) for number in range(300)]
    generations = 0
    while left:
        pool = MPMS(task, collector, 2, 2, task_queue_maxsize=1000, start_method=method)
        for args, kwargs in left:
            pool.put(*args, **kwargs)
        for _ in range(min(50, len(left))):
            progress.acquire()
        pool.graceful_shutdown(0.05)
        pool.join()  # or what runs still is in no list
        left = pool.unfinished()
        generations += 1
        while progress.acquire(blocking=False):  # what was done in the time of the shutdown
            pass
    assert generations >= 3
    assert sorted(got) == list(range(300))  # none is lost, and none that was done is done again


def test_it_may_be_called_twice_and_from_several_threads(method: str, stage: Stage) -> None:
    pool = MPMS(stage.say_and_wait, processes=1, threads=1, start_method=method)
    pool.put()
    stage.hear()
    said: list[bool] = []
    threads = [
        threading.Thread(target=lambda t=timeout: said.append(shut_down(pool, t))) for timeout in (0.5, 0.1, 0.3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [False] * 3
    assert shut_down(pool, 1) is False
    pool.join()


def test_it_does_not_wait_for_retries(method: str, stage: Stage) -> None:
    def task() -> None:
        stage.note("tried")
        os.kill(os.getpid(), signal.SIGKILL)

    pool = MPMS(task, processes=1, threads=1, retries=100, retry_backoff=100, start_method=method)
    pool.put()
    until(lambda: pool.stats().retried == 1)
    assert shut_down(pool, 0.5) is False
    pool.join()
    assert len(pool.unfinished()) == 1
    ((_, error),) = pool.iter_results()
    assert isinstance(error, TaskCancelled)
    assert stage.words() == ["tried"]


def test_what_a_killed_task_has_started_ends_with_it(method: str, stage: Stage) -> None:
    def task() -> None:
        pid = os.fork()
        if not pid:
            stage.wait()
            os._exit(0)
        stage.say_and_wait(pid)

    pool = MPMS(task, processes=1, threads=1, start_method=method)
    pool.put()
    (pid,) = stage.hear()
    assert shut_down(pool, 0.1) is False
    pool.join()
    assert still_alive([int(pid)], promised(1)) == []
