"""What is particular to ``mpms.testing``."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mpms import MPMS
from mpms.config import Hook, PoolConfig
from mpms.outcome import Returned
from mpms.testing import FakeClock, InlineEngine

from . import tasks
from .conftest import PATIENCE, Recorder


@pytest.mark.parametrize(
    "options",
    [
        {"start_method": "fork"},
        {"start_timeout": 1.0},
        {"task_timeout": 1.0},
        {"lifecycle": 10},
        {"lifecycle_duration": 1.0},
        {"lifecycle_duration_hard": 1.0},
        {"max_memory_per_process": "1GB"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_that_needs_processes_is_refused_by_its_name(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=f"^{name}=.* needs processes"):
        MPMS(tasks.give, engine=InlineEngine, **options)


def test_every_other_option_is_taken() -> None:
    pool = MPMS(
        tasks.give,
        processes=3,
        threads=8,
        task_queue_maxsize=500,
        name="inline",
        worker_graceful_die_timeout=1,
        retries=3,
        retry_backoff=1.0,
        forward_logs=True,
        preload=int,
        max_start_failures=2,
        engine=InlineEngine,
    )
    pool.put(1)
    pool.join()
    assert [result for _, result in pool.iter_results()] == [1]


def test_tasks_run_in_order_on_the_delivery_thread_of_this_process() -> None:
    seen: list[tuple[int, int]] = []
    collected: list[int] = []

    def work(number: int) -> None:
        seen.append((number, threading.get_ident()))  # a closure of this process: no copy of it

    with MPMS(
        work, lambda *_: collected.append(threading.get_ident()), 4, 4, engine=InlineEngine, name="inline"
    ) as pool:
        for number in range(20):
            pool.put(number)
    assert [number for number, _ in seen] == list(range(20))
    assert {ident for _, ident in seen} == set(collected)
    assert threading.get_ident() not in collected


def test_preload_comes_first_and_is_not_tried_again() -> None:
    order: list[str] = []

    def fail() -> None:
        order.append("preload")
        raise ValueError("no model")

    sink = Recorder()
    engine = InlineEngine(
        tasks.give,
        PoolConfig(processes=1, preload=fail, process_initializer=Hook(order.append, ("initializer",))),
        sink,
    )
    engine.start()
    assert engine.wait_stopped(PATIENCE)
    assert order == ["preload"]
    assert str(engine.broken).endswith("can't start workers: ValueError: no model")


def test_an_initializer_is_tried_again_as_often_as_the_option_says() -> None:
    attempts: list[int] = []

    def fail_twice() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ValueError("not yet")

    sink = Recorder()
    config = PoolConfig(processes=1, process_initializer=Hook(fail_twice), max_start_failures=3)
    engine = InlineEngine(tasks.give, config, sink)
    engine.submit((1,), {})
    engine.start()
    engine.close()
    assert engine.wait_stopped(PATIENCE)
    assert len(attempts) == 3
    assert sink.outcomes() == {1: Returned(1)}


def test_a_fake_clock_moves_only_when_it_is_told_to() -> None:
    clock = FakeClock()
    start = clock()
    assert start > 0
    assert clock() == start
    clock.advance(0.5)
    clock.advance(0)
    assert clock() - start == 0.5
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="at least 0"):
            clock.advance(wrong)
    assert clock() - start == 0.5


def test_fake_clocks_start_at_different_times() -> None:
    assert len({FakeClock()() for _ in range(20)}) > 1
