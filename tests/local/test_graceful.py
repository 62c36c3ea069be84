"""A task that asks for the end of its worker: `WorkerGracefulDie`, and what happens to its siblings."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from mpms import MPMS, WorkerCrashed, WorkerGracefulDie

from .helpers import promised
from .stage import Stage


class Unhealthy(BaseException):
    """Not an ``Exception``."""


def test_the_exception_is_the_outcome_and_the_worker_is_replaced(any_method: str) -> None:
    def task(die: bool) -> int:
        if die:
            raise WorkerGracefulDie("I leak", os.getpid())
        return os.getpid()

    with MPMS(task, processes=1, threads=1, start_method=any_method) as pool:
        results = pool.iter_results()
        pool.put(False)
        before = next(results)[1]
        pool.put(True)
        error = next(results)[1]
        assert type(error) is WorkerGracefulDie
        assert error.args == ("I leak", before)
        assert "in task" in str(error.__cause__)
        pool.put(False)
        assert next(results)[1] != before
    assert pool.stats().crashes == {}


def test_siblings_finish_and_keep_their_results(any_method: str, stage: Stage) -> None:
    def task(what: str) -> Any:
        if what == "die":
            raise WorkerGracefulDie
        return what, stage.say_and_wait(os.getpid())

    with MPMS(task, processes=1, threads=3, start_method=any_method) as pool:
        results = pool.iter_results()
        pool.put("sibling 1")
        pool.put("sibling 2")
        (old,) = set(stage.hear(2))
        pool.put("die")
        assert isinstance(next(results)[1], WorkerGracefulDie)
        # Full strength at once, while the siblings still run.
        pool.put("new 1")
        pool.put("new 2")
        pool.put("new 3")
        (new,) = set(stage.hear(3))
        assert new != old
        stage.open()
        got = {result for _, result in (next(results) for _ in range(5))}
    assert got == {
        *((f"sibling {n}", int(old)) for n in (1, 2)),
        *((f"new {n}", int(new)) for n in (1, 2, 3)),
    }
    assert pool.stats().crashes == {}


def test_tasks_that_wait_in_the_dying_worker_are_run_by_others(method: str) -> None:
    """Thousands of short tasks are sent ahead; one in fifty has its worker replaced."""

    def task(number: int) -> int:
        if number % 50 == 0:
            raise WorkerGracefulDie(number)
        return number

    with MPMS(task, processes=2, threads=2, start_method=method) as pool:
        for number in range(1000):
            pool.put(number)
        pool.close()
        outcomes = [(meta.args[0], result) for meta, result in pool.iter_results()]
    assert sorted(number for number, _ in outcomes) == list(range(1000))
    for number, result in outcomes:
        if number % 50 == 0:
            assert isinstance(result, WorkerGracefulDie)
        else:
            assert result == number
    assert pool.stats().crashes == {}


def test_siblings_that_take_too_long_are_crashed(method: str, stage: Stage) -> None:
    def task(what: str) -> None:
        if what == "die":
            raise WorkerGracefulDie
        stage.say_and_wait()

    with MPMS(task, processes=1, threads=2, worker_graceful_die_timeout=0.3, start_method=method) as pool:
        pool.put("long")
        stage.hear()
        began = time.monotonic()
        pool.put("die")
        results = pool.iter_results()
        assert isinstance(next(results)[1], WorkerGracefulDie)
        error = next(results)[1]
        took = time.monotonic() - began
    assert isinstance(error, WorkerCrashed)
    assert error.blamed is False
    assert 0.25 < took < promised(2)


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, SystemExit, Unhealthy])
def test_any_exception_may_be_one_that_ends_the_worker(kind: type[BaseException], method: str) -> None:
    def task(die: bool) -> int:
        if die:
            raise kind("enough")
        return os.getpid()

    with MPMS(
        task, processes=1, threads=1, worker_graceful_die_exceptions=(OSError, kind), start_method=method
    ) as pool:
        results = pool.iter_results()
        pids = set()
        for _ in range(2):
            pool.put(False)
            pids.add(next(results)[1])
            pool.put(True)
            assert type(next(results)[1]) is kind
        assert len(pids) == 2


def test_subclasses_count_and_others_do_not(method: str) -> None:
    def task(kind: type[BaseException] | None) -> int:
        if kind is not None:
            raise kind
        return os.getpid()

    with MPMS(task, processes=1, threads=1, worker_graceful_die_exceptions=(LookupError,), start_method=method) as pool:
        results = pool.iter_results()

        def pid() -> int:
            pool.put(None)
            return next(results)[1]

        first = pid()
        for kind in (ValueError, WorkerGracefulDie, SystemExit, KeyboardInterrupt):
            pool.put(kind)
            assert type(next(results)[1]) is kind
            assert pid() == first
        pool.put(KeyError)
        assert type(next(results)[1]) is KeyError
        assert pid() != first


def test_several_threads_may_ask_for_it_at_once(method: str, stage: Stage) -> None:
    def task() -> None:
        stage.say_and_wait()
        raise WorkerGracefulDie

    with MPMS(task, processes=2, threads=4, start_method=method) as pool:
        for _ in range(40):
            pool.put()
        stage.hear(8)
        stage.open()
        pool.close()
        assert [type(result) for _, result in pool.iter_results()] == [WorkerGracefulDie] * 40


def test_the_last_task_of_a_pool_may_ask_for_it(method: str) -> None:
    def task() -> None:
        raise WorkerGracefulDie

    got: list[Any] = []
    pool = MPMS(task, lambda meta, result: got.append(type(result)), 1, 1, start_method=method)
    pool.put()
    began = time.monotonic()
    pool.join()
    assert got == [WorkerGracefulDie]
    assert time.monotonic() - began < promised(3)
