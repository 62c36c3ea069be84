"""Handlers of signals, and what Python's collector finalizes, use a pool in the middle of a call of the same thread."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

import mpms.faces.executor
import mpms.local.admission
import mpms.local.engine
import mpms.testing
from mpms import MPMS, Executor, PoolBroken, TaskCancelled
from mpms.config import PoolConfig
from mpms.core.machine import PoolMachine
from mpms.engine import Refused
from mpms.faces.bulk import Bulk
from mpms.faces.sinks import IteratorSink
from mpms.ids import TaskId
from mpms.outcome import Cancelled
from mpms.testing import InlineEngine

from ..local.helpers import PATIENCE
from ..local.stage import Stage

Action = Callable[[], object]
Meanwhile = Callable[[Action], None]


def double(number: int) -> int:
    return number * 2


def in_time(function: Action) -> None:
    """A thread that waits for its own lock fails the test, and doesn't stop it."""
    errors: list[BaseException] = []

    def perform() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=perform, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it waits for ever"
    for error in errors:
        raise error


@pytest.fixture(params=["inline", "local"])
def options(request: pytest.FixtureRequest, method: str) -> dict[str, Any]:
    how: dict[str, Any] = {"engine": InlineEngine} if request.param == "inline" else {"start_method": method}
    return how


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Have something done in the middle of the next acceptance of a task, with the lock of its engine held."""
    actions: list[Action] = []

    def interrupted(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            while actions:
                actions.pop()()
            return make(*args)

        return made

    monkeypatch.setattr(mpms.local.admission, "record_of", interrupted(mpms.local.admission.record_of))
    monkeypatch.setattr(mpms.testing, "_Record", interrupted(mpms.testing._Record))
    return actions.append


def test_closing_in_the_middle_of_a_put_loses_no_task(options: dict[str, Any], meanwhile: Meanwhile) -> None:
    pool = MPMS(double, processes=1, threads=1, **options)
    pool.put(1)
    meanwhile(pool.close)
    in_time(lambda: pool.put(2))
    with pytest.raises(RuntimeError, match="closed"):
        pool.put(3)
    in_time(pool.join)
    results = [result for _, result in pool.iter_results()]
    assert len(results) == 2
    assert results[0] == 2
    assert results[1] == 4 or isinstance(results[1], TaskCancelled)  # the pool may have come to its end meanwhile


def test_stopping_in_the_middle_of_a_put_gives_every_task_an_outcome(
    options: dict[str, Any], meanwhile: Meanwhile
) -> None:
    pool = MPMS(double, processes=1, threads=1, **options)
    pool.put(1)
    meanwhile(lambda: pool.graceful_shutdown(0.0))
    with contextlib.suppress(Refused):  # it may come to its end within the half second that it takes at the most
        in_time(lambda: pool.put(2))
    in_time(pool.join)
    assert len([*pool.iter_results()]) == pool.total_count


def join(pool: MPMS) -> None:
    pool.join()


def shut_down(pool: MPMS) -> None:
    assert pool.graceful_shutdown(PATIENCE)


@pytest.mark.parametrize("end", [join, shut_down])
def test_who_waits_for_the_end_in_the_middle_of_a_put_has_it(
    options: dict[str, Any], meanwhile: Meanwhile, end: Callable[[MPMS], None]
) -> None:
    pool = MPMS(double, processes=1, threads=1, **options)
    pool.put(1)

    def put() -> None:
        meanwhile(lambda: end(pool))
        with pytest.raises(RuntimeError, match="closed"):
            pool.put(2)

    in_time(put)
    assert pool.total_count == pool.stats().submitted == 1
    assert pool.stats().running == pool.stats().queued == 0
    assert list(pool.running_tasks) == pool.unfinished() == []
    assert [result for _, result in pool.iter_results()] == [2]
    in_time(pool.join)


def test_who_shuts_down_in_the_middle_of_a_submit_has_all_results(
    options: dict[str, Any], meanwhile: Meanwhile
) -> None:
    executor = Executor(1, **options)
    first = executor.submit(double, 1)

    def submit() -> None:
        meanwhile(executor.shutdown)
        with pytest.raises(RuntimeError, match="shutdown"):
            executor.submit(double, 2)

    in_time(submit)
    assert first.result(0) == 2
    in_time(executor.shutdown)


def test_a_handler_that_puts_and_then_waits_has_what_it_put(options: dict[str, Any], meanwhile: Meanwhile) -> None:
    pool = MPMS(double, processes=1, threads=1, **options)

    def put_and_join() -> None:
        pool.put(1)
        pool.join()

    def put() -> None:
        meanwhile(put_and_join)
        with pytest.raises(RuntimeError, match="closed"):
            pool.put(2)

    in_time(put)
    assert [result for _, result in pool.iter_results()] == [2]
    assert pool.total_count == pool.stats().submitted == pool.stats().done == 1


def test_a_pool_that_breaks_in_the_middle_of_a_put_tells_what_became_of_it(
    method: Any, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = MPMS(double, processes=1, threads=1, start_method=method)
    pool.put(1)

    def break_down() -> None:
        def fail(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(PoolMachine, "handle", fail)
        with pytest.raises(PoolBroken):
            pool.join()

    def put() -> None:
        meanwhile(break_down)
        with pytest.raises(PoolBroken):
            pool.put(2)

    in_time(put)
    assert pool.total_count == pool.finish_count == 1


def test_cancelling_in_the_middle_of_a_submit(options: dict[str, Any], meanwhile: Meanwhile) -> None:
    with Executor(1, **options) as executor:
        first = executor.submit(double, 1)
        assert first.result(PATIENCE) == 2
        meanwhile(first.cancel)
        meanwhile(lambda: executor._engine.cancel(TaskId(2)))
        meanwhile(executor._engine.cancel_all)
        in_time(lambda: executor.submit(double, 2))


def test_a_map_that_is_thrown_away_in_the_middle_of_a_put(
    options: dict[str, Any], meanwhile: Meanwhile, stage: Stage, uncollected: None
) -> None:
    def leave_in_a_cycle() -> None:
        values = pool.map(lambda number: number and stage.wait(), range(1000), chunksize=1)
        assert next(values) == 0
        cycle: list[Any] = [values]
        cycle.append(cycle)

    pool = MPMS(double, processes=1, threads=1, **options)
    with pool:
        leave_in_a_cycle()
        meanwhile(gc.collect)
        in_time(lambda: pool.put(1))
        stage.open()
    assert [result for _, result in pool.iter_results()] == [2]


def test_an_executor_that_is_thrown_away_in_the_middle_of_a_submit(
    options: dict[str, Any], meanwhile: Meanwhile
) -> None:
    executor = Executor(1, **options)
    life = executor._life
    meanwhile(life.shut)
    in_time(lambda: executor.submit(double, 1))
    in_time(life.wait)


def test_what_closes_the_wake_up_may_be_interrupted(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[object] = []

    class WakeUp(mpms.local.engine.WakeUp):
        closed = False

        def ring(self) -> None:
            if self.closed:
                late.append(self)
            super().ring()

        def close(self) -> None:
            super().close()
            self.closed = True
            pool._engine.close()

    monkeypatch.setattr(mpms.local.engine, "WakeUp", WakeUp)
    pool = MPMS(double, processes=1, threads=1, start_method=method)
    pool.put(1)
    in_time(pool.join)
    assert late == []


def test_the_lock_is_reentrant_in_a_fork_of_the_user_too() -> None:
    engine = mpms.local.engine.LocalEngine(None, PoolConfig(processes=1, threads=1), IteratorSink("test"))
    engine.disown()

    def interrupted() -> None:
        with engine._changed:
            engine.close()

    in_time(interrupted)


# While it starts


class Interrupted(InlineEngine):
    action: Action

    def start(self) -> None:
        super().start()
        type(self).action()


@pytest.mark.parametrize("end", [MPMS.close, lambda pool: pool.graceful_shutdown(0.0)], ids=["close", "shutdown"])
def test_a_pool_that_is_ended_while_it_starts_has_ended(end: Callable[[MPMS], object]) -> None:
    pool = MPMS(double, engine=Interrupted)
    Interrupted.action = lambda: end(pool)

    def put() -> None:
        with pytest.raises(RuntimeError, match="closed"):
            pool.put(1)

    in_time(put)
    in_time(pool.join)
    assert [*pool.iter_results()] == []


def test_an_executor_that_is_shut_down_while_it_starts_has_ended() -> None:
    executor = Executor(engine=Interrupted)
    Interrupted.action = lambda: executor.shutdown(wait=False)

    def submit() -> None:
        with pytest.raises(RuntimeError, match="shutdown"):
            executor.submit(double, 1)

    in_time(submit)
    in_time(executor.shutdown)


def test_what_is_just_being_started_takes_no_task_from_a_handler() -> None:
    pool, executor = MPMS(double, engine=Interrupted), Executor(engine=Interrupted)

    def put() -> None:
        with pytest.raises(RuntimeError, match="signal handler"):
            pool.put(2)

    def submit() -> None:
        with pytest.raises(RuntimeError, match="signal handler"):
            executor.submit(double, 2)

    Interrupted.action = put
    in_time(lambda: pool.put(1))
    in_time(pool.join)
    assert [result for _, result in pool.iter_results()] == [2]
    Interrupted.action = submit
    in_time(lambda: executor.submit(double, 1))
    in_time(executor.shutdown)


# What else has a lock


def test_a_map_may_be_closed_while_its_results_arrive() -> None:
    class Interrupted(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            bulk.close()
            super().__setitem__(key, value)

    class Engine:
        def submit(self, *_: Any, ticket: Any, **options: Any) -> TaskId:
            self.ticket = ticket
            return TaskId(1)

        def cancel(self, task: TaskId) -> bool:
            return False

    engine = Engine()
    bulk = Bulk(engine, PoolConfig(processes=1, threads=1), str, [1], eager=True)  # type: ignore[arg-type]
    bulk.feed()
    bulk._pieces = Interrupted()
    in_time(lambda: engine.ticket.settle(Cancelled(TaskCancelled("it was cancelled"))))
    assert [item for item, _ in bulk.pairs()] == [1]


def test_who_waits_for_results_may_be_thrown_away_while_they_arrive() -> None:
    sink = IteratorSink("test")

    def wake() -> None:
        sink.forget(wake)
        sink.forget(other)

    def other() -> None: ...

    assert sink.poll(wake) == []
    assert sink.poll(other) == []
    in_time(lambda: sink.deliver([(TaskId(1), (), {}, 1, None)]))
    assert sink.poll(wake) == [(TaskId(1), (), {}, 1, None)]


# Ctrl-C


def test_an_interrupted_map_of_an_executor_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(engine=InlineEngine)
    submit, before = executor._engine.submit, iter([True, True])

    def interrupted(*args: Any, **options: Any) -> TaskId:
        if next(before, False):
            return submit(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(executor._engine, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executor.map(double, range(100), chunksize=1)
    in_time(executor.shutdown)


def test_a_map_that_begins_while_its_executor_is_shut_down_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(engine=InlineEngine)

    def late(*args: Any, **options: Any) -> Bulk:
        executor.shutdown(wait=False, cancel_futures=True)
        return Bulk(*args, **options)

    monkeypatch.setattr(mpms.faces.executor, "Bulk", late)
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.map(double, range(100))
    in_time(executor.shutdown)
