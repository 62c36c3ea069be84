"""Interrupts, memory, rate, size, and the failures that end a pool."""

from __future__ import annotations

import math

import pytest

from mpms.core import policy
from mpms.core.fleet import Retiring, Serving, Starting
from mpms.core.messages import (
    AbandonedTask,
    BoardSeen,
    Closed,
    Crash,
    Dispatch,
    DumpStacks,
    Effect,
    FreeMemorySeen,
    Interrupt,
    Kill,
    MemorySeen,
    ReadBoard,
    ReadFreeMemory,
    ReadMemory,
    Resized,
    ResultsArrived,
    Retire,
    Settle,
    StartWorker,
    Stopped,
    StopRequested,
    Timeout,
    WorkerDue,
    WorkerReady,
)
from mpms.ids import Seq, TaskId, WorkerId

from .driver import Pool, board, exited, only, pool_at_work, returned

W1, W2, W3, W4 = (WorkerId(n) for n in range(1, 5))


# Interrupts


def test_a_task_over_its_time_is_interrupted_first_and_its_worker_goes_on() -> None:
    pool = pool_at_work(2, task_timeout=10.0, timeout_raises=True)
    pool.wakes()
    assert pool.happens(board(1, s1=1000.0, s2=1005.0)) == [Interrupt(W1, Seq(1), 10.0)]
    assert pool.serving() == [1]


def test_a_task_that_ends_after_its_interrupt_has_its_own_outcome() -> None:
    pool = pool_at_work(1, task_timeout=10.0, timeout_raises=True)
    pool.wakes()
    pool.happens(board(1, s1=1000.0))
    pool.raises(1, 1)
    pool.happens(after=60.0)
    assert pool.settled() == [1]
    assert not pool.verdicts()
    assert pool.serving() == [1]


def test_an_interrupted_task_may_be_tried_again() -> None:
    pool = pool_at_work(1, task_timeout=10.0, timeout_raises=True, retries=1)
    pool.wakes()
    pool.happens(board(1, s1=1000.0))
    pool.raises(1, 1, retry=True)
    assert pool.given() == [1, 1]


def test_the_hard_way_follows_when_an_interrupt_does_not_help() -> None:
    pool = pool_at_work(1, task_timeout=10.0, timeout_raises=True)
    pool.wakes()
    pool.happens(board(1, s1=1000.0))
    assert pool.wakes() == [ReadBoard(W1)]
    assert pool.now == 1010.0 + policy.SOFT_SECONDS
    assert pool.happens(board(1, s1=1000.0))[:2] == [DumpStacks(W1), Retire(W1)]
    pool.wakes()
    assert pool.verdicts() == {1: Timeout(W1, 10.0, 1)}


def test_a_task_is_interrupted_once() -> None:
    pool = pool_at_work(2, task_timeout=10.0, timeout_raises=True)
    pool.wakes()
    pool.happens(board(1, s1=1000.0, s2=1000.5))
    pool.happens(board(1, s1=1000.0, s2=1000.5))
    pool.wakes()
    pool.happens(board(1, s1=1000.0, s2=1000.5))
    pool.wakes()
    pool.happens(board(1, s1=1000.0, s2=1000.5))
    assert only(Interrupt, pool.effects) == [Interrupt(W1, Seq(1), 10.0), Interrupt(W1, Seq(2), 10.0)]


def test_an_interrupt_names_the_limit_of_the_task() -> None:
    pool = Pool(processes=1, timeout_raises=True, task_timeout=99.0).up()
    pool.submits(1, timeout=10.0)
    pool.wakes()
    assert pool.happens(board(1, s1=1000.0)) == [Interrupt(W1, Seq(1), 10.0)]


# A worker's memory


def test_a_worker_far_over_its_memory_is_killed_and_its_tasks_are_suspects() -> None:
    pool = pool_at_work(2, watch_memory=True, retries=1)
    assert pool.wakes() == [ReadMemory(W1)]
    assert pool.happens(MemorySeen(W1, True, over_hard=True))[:2] == [Kill(W1, "memory"), StartWorker(W2)]
    pool.dies(1)
    assert pool.retried() == [(2, Crash(W1, None, 1)), (1, Crash(W1, None, 1))]
    pool.up()
    ward = WorkerId(pool.ward())
    pool.happens(MemorySeen(ward, True, over_hard=True))
    pool.dies(ward)
    assert pool.verdicts() == {1: Crash(ward, True, 2)}


def test_without_retries_nobody_is_blamed_for_too_much_memory_where_several_ran() -> None:
    pool = pool_at_work(2, watch_memory=True)
    pool.happens(MemorySeen(W1, False, over_hard=True))
    pool.dies(1)
    assert set(pool.verdicts().values()) == {Crash(W1, None, 1)}


# The machine's memory


def gated(**limits: object) -> Pool:
    return Pool(**{"processes": 1, "watch_free_memory": True, **limits}).up()  # type: ignore[arg-type]


def test_with_a_gate_no_task_is_sent_before_the_machine_is_known_to_have_memory() -> None:
    pool = gated()
    assert pool.submits(1) == [ReadFreeMemory()]
    assert pool.rests()  # the answer comes by itself
    assert pool.happens(after=60.0) == []
    assert pool.happens(FreeMemorySeen(True)) == [Dispatch(W1, [(Seq(1), TaskId(1))])]


def test_no_task_is_sent_while_the_machine_is_short_of_memory() -> None:
    pool = gated()
    pool.submits(1)
    for _ in range(3):
        assert pool.happens(FreeMemorySeen(False)) == []
        before = pool.now
        assert pool.wakes() == [ReadFreeMemory()]
        assert pool.now == before + policy.MEMORY_SECONDS
    assert pool.happens(FreeMemorySeen(True)) == [Dispatch(W1, [(Seq(1), TaskId(1))])]


def test_the_gate_asks_at_most_once_a_second() -> None:
    pool = gated(threads=1)
    pool.submits(100)
    pool.happens(FreeMemorySeen(True))
    while pool.held(1):
        if only(ReadFreeMemory, pool.finishes(1, *pool.held(1), after=0.1)):
            pool.happens(FreeMemorySeen(True))
    assert len(pool.settled()) == 100
    assert 9 <= len(only(ReadFreeMemory, pool.effects)) <= 11


def test_the_gate_asks_only_when_tasks_wait() -> None:
    pool = gated()
    pool.happens(after=60.0)
    assert pool.rests()
    pool.submits(1)
    pool.happens(FreeMemorySeen(True))
    assert pool.rests()
    pool.finishes(1, 1, after=60.0)
    assert pool.rests()
    assert len(only(ReadFreeMemory, pool.effects)) == 1


def test_without_a_gate_nothing_is_asked() -> None:
    pool = pool_at_work(9)
    pool.happens(after=60.0)
    assert not only(ReadFreeMemory, pool.effects)


def test_suspects_wait_for_memory_too() -> None:
    pool = gated(retries=1, threads=1)
    pool.submits(1)
    pool.happens(FreeMemorySeen(True))
    pool.happens(exited(1, watermark=1), FreeMemorySeen(False))
    pool.up()
    assert len(pool.given()) == 1
    pool.wakes()
    pool.happens(FreeMemorySeen(True))
    assert pool.sent()[-1] == (pool.ward(), 1)


def test_a_pool_that_waits_for_an_answer_about_memory_does_not_ask_for_time_that_has_passed() -> None:
    pool = gated(max_rate=10.0)
    pool.submits(1)
    pool.happens(FreeMemorySeen(True))
    pool.finishes(1, 1, after=5.0)
    assert pool.submits(1) == [ReadFreeMemory()]
    assert pool.rests()


# Rate


def run_at_a_rate(pool: Pool, seconds: float) -> list[float]:
    """When tasks were started, where each ends at once. There are more than enough."""
    times: list[float] = []
    end = pool.now + seconds
    effects: list[Effect] = pool.submits(100_000)
    while pool.now < end:
        for sent in only(Dispatch, effects):
            times += [pool.now] * len(sent.tasks)
        seqs = pool.held(1)
        effects = pool.finishes(1, *seqs) if seqs else pool.wakes()
    return times


@pytest.mark.parametrize("rate", [0.5, 20.0, 1000.0])
def test_a_limited_rate_spreads_the_starts(rate: float) -> None:
    pool = Pool(processes=1, threads=4, max_rate=rate).up()
    seconds = 40 / rate
    times = run_at_a_rate(pool, seconds)
    burst = max(1.0, rate * policy.BURST_SECONDS)
    assert 38 <= len(times) <= 41 + burst
    for first, start in enumerate(times):
        inside = [t for t in times[first:] if t < start + 10 / rate]
        assert len(inside) <= 10 + burst + 1e-6


def test_a_rate_that_was_not_used_is_not_made_up_for() -> None:
    pool = Pool(processes=1, threads=4, max_rate=10.0).up()
    for _ in range(2):
        pool.happens(after=3600.0)
        pool.submits(1)
        pool.finishes(1, *pool.held(1))
    pool.happens(after=3600.0)
    pool.submits(4)
    assert len(pool.held(1)) == 1


def test_an_infinite_rate_is_no_limit() -> None:
    pool = Pool(processes=1, threads=4, max_rate=math.inf).up()
    pool.submits(9)
    assert len(pool.held(1)) == 4
    pool.finishes(1, *pool.held(1))
    pool.finishes(1, *pool.held(1), after=1.0)
    pool.finishes(1, *pool.held(1), after=1.0)
    assert len(pool.settled()) == 9
    assert pool.rests()


def test_with_a_limited_rate_nothing_is_sent_in_advance() -> None:
    pool = Pool(processes=1, threads=1, max_rate=1e6).up()
    pool.works_fast(1)
    pool.submits(100)
    assert len(pool.held(1)) == 1


def test_a_pool_with_a_limited_rate_rests_when_nothing_waits_or_nobody_is_free() -> None:
    pool = Pool(processes=1, threads=1, max_rate=10.0).up()
    assert pool.rests()
    pool.submits(2)
    assert pool.rests()
    pool.finishes(1, 1)
    pool.wakes()
    pool.finishes(1, 2)
    assert pool.rests()


def test_suspects_count_for_the_rate_too() -> None:
    pool = Pool(processes=1, threads=3, retries=1, max_rate=2.0).up()
    pool.submits(3)
    while len(pool.held(1)) < 3:
        pool.wakes()
    pool.dies(1)
    pool.up()
    ward, times = pool.ward(), list[float]()
    while len(times) < 3:
        if pool.held(ward):
            times.append(pool.now)
            pool.finishes(ward, *pool.held(ward))
        else:
            pool.wakes()
    assert times[1] - times[0] >= 0.499
    assert times[2] - times[1] >= 0.499


def test_suspects_that_wait_for_the_ward_do_not_make_the_pool_ask_for_time_that_has_passed() -> None:
    pool = Pool(processes=1, threads=2, retries=1, max_rate=1000.0).up()
    pool.submits(2)
    pool.dies(1)
    pool.up()
    assert len(pool.held(pool.ward())) == 1
    pool.happens(after=5.0)
    deadline = pool.machine.next_deadline()
    assert deadline is None or deadline > pool.now


def test_a_worker_that_is_to_give_back_is_not_waited_for_by_the_rate() -> None:
    pool = Pool(processes=2, threads=2, max_rate=1000.0).up()
    pool.submits(2)
    pool.submits(2)
    pool.happens(WorkerDue(W1, 1))
    pool.finishes(2, *pool.held(2))
    pool.wakes()  # the first is to give back what its lost thread would have run
    assert pool.machine.fleet.workers[W1].recalling
    pool.finishes(1, *pool.held(1))
    pool.happens(after=1.0)
    pool.submits(9)
    assert pool.held(1) == []
    deadline = pool.machine.next_deadline()
    assert deadline is not None
    assert deadline > pool.now + 1.0  # the start of its replacement
    pool.happens(returned(1, 99))
    assert pool.held(1)


# Size


def test_a_pool_that_is_made_larger_starts_workers_at_once() -> None:
    assert Pool().up().happens(Resized(4)) == [StartWorker(W3), StartWorker(W4)]


def test_a_pool_that_is_made_smaller_retires_those_first_that_are_not_up() -> None:
    pool = Pool(processes=4)
    pool.happens(WorkerReady(W1), WorkerReady(W3))
    pool.submits(1)
    assert pool.happens(Resized(2)) == [Retire(W4), Retire(W2)]
    assert pool.serving() == [1, 3]


def test_then_those_with_the_least_to_do() -> None:
    pool = Pool(processes=3).up()
    pool.submits(6)
    pool.finishes(2, *pool.held(2))
    assert pool.happens(Resized(2)) == [Retire(W2)]
    pool.finishes(1, pool.held(1)[0])
    assert pool.happens(Resized(1)) == [Retire(W1)]


def test_who_is_retired_by_a_smaller_size_finishes_in_its_own_time_and_is_not_replaced() -> None:
    pool = Pool(processes=2, threads=1, start_timeout=60.0).up()
    pool.submits(2)
    assert pool.happens(Resized(1)) == [Retire(W2)]
    assert pool.rests()
    assert pool.finishes(2, *pool.held(2), after=3600.0) == [Settle([(TaskId(2), Seq(2))])]
    assert pool.machine.next_deadline() == pool.now + 60.0
    assert pool.happens(exited(2, watermark=2)) == []
    assert pool.serving() == [1]


def test_a_smaller_pool_rotates_within_its_new_size() -> None:
    pool = Pool(processes=3, threads=1, lifecycle_duration=100.0).up()
    pool.submits(3)
    pool.happens(after=100.0)
    assert pool.started() == 4
    pool.happens(Resized(1))
    assert len(pool.of(Serving, Starting)) == 1
    pool.happens(*(exited(int(r.worker), watermark=9) for r in only(Retire, pool.effects)))
    pool.up()
    assert 1 <= len(pool.of(Serving, Starting)) <= 2


def test_a_larger_pool_still_rotates() -> None:
    pool = Pool(processes=1, threads=1, lifecycle_duration=100.0).up()
    pool.submits(1)
    pool.happens(after=100.0)
    assert pool.started() == 2
    pool.happens(Resized(2))
    assert pool.started() == 3
    assert not only(Retire, pool.happens(WorkerReady(W2)))
    assert only(Retire, pool.happens(WorkerReady(W3))) == [Retire(W1)]


def test_a_pool_that_is_resized_to_what_it_is_does_nothing() -> None:
    assert Pool().up().happens(Resized(2)) == []


def test_a_pool_that_is_resized_again_and_again_starts_no_more_than_end() -> None:
    """Who is retired while it starts ends when it has come up, and that takes a while."""
    pool = Pool(processes=4).up()
    for _ in range(100):
        pool.happens(Resized(1))
        pool.happens(Resized(4))
    assert 7 <= pool.started() <= 10
    assert len(pool.of(Starting, Serving)) < 4
    for worker in pool.of(Retiring):
        pool.happens(exited(worker))
    assert len(pool.of(Starting, Serving)) == 4
    assert pool.started() <= 10


def test_a_worker_without_a_colleague_is_replaced_whoever_leaves() -> None:
    pool = Pool(processes=1).up()
    pool.happens(Resized(2))
    pool.happens(Resized(1))
    assert pool.of(Retiring) == [2]
    assert only(StartWorker, pool.dies(1)) == [StartWorker(W3)]


def test_who_leaves_with_tasks_keeps_nobody_from_being_started() -> None:
    pool = Pool(processes=2, threads=1).up()
    pool.submits(3)
    pool.happens(Resized(1))
    assert only(StartWorker, pool.happens(Resized(2))) == [StartWorker(W3)]
    pool.happens(WorkerReady(W3), Resized(1))
    assert len(pool.of(Retiring)) == 2
    assert only(StartWorker, pool.happens(Resized(2))) == [StartWorker(W4)]


def test_a_closed_pool_may_be_made_smaller() -> None:
    pool = Pool().up()
    pool.submits(9)
    pool.happens(Closed())
    assert pool.happens(Resized(1)) == [Retire(W2)]
    pool.finishes(2, *pool.held(2))
    while pool.held(1):
        pool.finishes(1, *pool.held(1))
    assert len(pool.settled()) == 9
    assert pool.happens(exited(1), exited(2))[-1] == Stopped(broken=False)


# Failures that end a pool


def test_so_many_failures_stop_the_pool_and_the_rest_is_cancelled() -> None:
    pool = pool_at_work(9, stop_on=2)
    pool.raises(1, 1)
    pool.finishes(1, 2)
    assert pool.kills() == []
    pool.raises(1, 3)
    assert pool.kills() == [(W1, "stopped")]
    pool.dies(1)
    assert pool.effects[-1] == Stopped(broken=False)
    assert pool.settled() == [1, 2, 3]
    assert {task for task, v in pool.verdicts().items() if isinstance(v, AbandonedTask)} == {4, 5, 6, 7, 8, 9}


def test_crashes_and_timeouts_are_failures_too() -> None:
    pool = Pool(processes=1, threads=1, stop_on=2, task_timeout=10.0).up()
    pool.submits(3)
    pool.dies(1)
    pool.up()
    pool.wakes()
    pool.happens(BoardSeen(W2, [(Seq(2), pool.now - 10)]))
    pool.wakes()
    assert pool.kills() == [(W2, "timeout"), (W3, "stopped")]
    assert isinstance(pool.verdicts()[TaskId(3)], AbandonedTask)


def test_attempts_that_are_tried_again_are_no_failures() -> None:
    pool = pool_at_work(2, stop_on=1, retries=1)
    pool.raises(1, 1, retry=True)
    assert pool.kills() == []
    pool.raises(1, 3, retry=True)
    assert pool.kills() == [(W1, "stopped")]


def test_a_failure_that_comes_too_late_is_not_counted_again() -> None:
    pool = pool_at_work(2, stop_on=2, task_timeout=10.0)
    pool.wakes()
    pool.happens(board(1, s1=1000.0, s2=1009.0))
    pool.wakes()
    pool.raises(1, 1)  # it has timed out, and that was its failure
    assert not any(why == "stopped" for _, why in pool.kills())


def test_a_share_of_failures_stops_the_pool_when_there_are_three_at_least() -> None:
    pool = Pool(processes=1, threads=4, stop_on_percent=50.0).up()
    pool.submits(20)
    pool.raises(1, 1, 2)
    assert pool.kills() == []
    pool.finishes(1, 3, 4, 5, 6)
    pool.raises(1, 7)
    assert pool.kills() == []  # 3 of 7
    pool.raises(1, 8)
    assert pool.kills() == [(W1, "stopped")]  # 4 of 8


def test_a_share_counts_the_other_results_of_its_batch() -> None:
    pool = Pool(processes=1, threads=8, stop_on_percent=50.0).up()
    pool.submits(20)
    pool.happens(ResultsArrived(W1, [Seq(n) for n in range(1, 8)], failed=3))
    assert pool.kills() == []


@pytest.mark.parametrize("end", [Closed(), StopRequested(1030.0)], ids=["closed", "to stop later"])
def test_failures_stop_a_pool_that_is_about_to_end_too(end: Closed | StopRequested) -> None:
    pool = pool_at_work(2, stop_on=1)
    pool.happens(end)
    pool.raises(1, 1)
    assert pool.kills() == [(W1, "stopped")]


# All of them


@pytest.mark.parametrize(
    "option",
    [
        {"task_timeout": 1.0, "timeout_raises": True},
        {"retries": 1, "retry_backoff": 1.0},
        {"watch_memory": True},
        {"watch_free_memory": True},
        {"max_rate": 7.0},
        {"max_rate": 7.0, "watch_free_memory": True, "retries": 2},
        {"stop_on": 3},
        {"stop_on_percent": 10.0},
        {"lifecycle": 2, "max_rate": 7.0},
        {"lifecycle_duration": 1.0, "lifecycle_duration_hard": 2.0, "retries": 1},
    ],
    ids=lambda option: " ".join(option),
)
def test_no_option_makes_a_pool_ask_for_time_that_has_passed(option: dict[str, object]) -> None:
    pool = Pool(**option).up()  # type: ignore[arg-type]
    answers: list[object] = []
    for step in range(200):
        if step % 5 == 0:
            pool.submits(2)
        if step % 7 == 3 and pool.serving():
            pool.dies(pool.serving()[0])
        if step == 50:
            pool.happens(Resized(3))
        if step == 100:
            pool.happens(Resized(1))
        for worker in [*pool.serving(), pool.ward()]:
            if step % 3 and pool.held(worker):
                pool.raises(worker, pool.held(worker)[0], retry=step % 2 == 0)
        pool.up()
        deadline = pool.machine.next_deadline()
        assert deadline is None or deadline > pool.now
        effects = pool.happens(*answers, after=0.05 if deadline is None else min(0.05, deadline - pool.now))  # type: ignore[arg-type]
        answers = [BoardSeen(e.worker, []) for e in only(ReadBoard, effects)]
        answers += [MemorySeen(e.worker, step % 4 == 0) for e in only(ReadMemory, effects)]
        answers += [FreeMemorySeen(step % 4 == 0) for _ in only(ReadFreeMemory, effects)]
        deadline = pool.machine.next_deadline()
        assert deadline is None or deadline > pool.now
