"""What a task can have of its own: a priority, a time limit, retries."""

from __future__ import annotations

from typing import Any

import pytest

from mpms.core import policy
from mpms.core.messages import (
    CancelRequested,
    Crash,
    DumpStacks,
    Fail,
    ReadBoard,
    Retire,
    StopRequested,
    TasksSubmitted,
    Timeout,
)
from mpms.ids import TaskId, TaskOptions, WorkerId

from .driver import Pool, board, exited, only, pool_at_work, returned

W1, W2 = (WorkerId(n) for n in range(1, 3))


def single(**limits: object) -> Pool:
    """One worker with one thread, which is busy with task 1."""
    pool = Pool(**{"processes": 1, "threads": 1, **limits}).up()  # type: ignore[arg-type]
    pool.submits(1)
    return pool


def rest_in_order(pool: Pool) -> list[TaskId]:
    """The tasks that the only worker gets from now on, one after the other."""
    sent = len(pool.given())
    while pool.held(1):
        pool.finishes(1, *pool.held(1))
    return pool.given()[sent:]


# Priorities


def test_higher_priorities_go_first_and_among_equals_the_older_task() -> None:
    pool = single()
    for priority in (0, 5, -1, 5, 0, 7, -1):
        pool.submits(1, priority=priority)
    assert rest_in_order(pool) == [7, 3, 5, 2, 6, 4, 8]


def test_a_task_of_a_negative_priority_runs_when_there_is_no_other() -> None:
    pool = single()
    pool.submits(1, priority=-1)
    assert rest_in_order(pool) == [2]


def test_one_batch_may_have_tasks_with_and_without_options() -> None:
    pool = single()
    pool.happens(TasksSubmitted([TaskId(n) for n in (2, 3, 4)], {TaskId(3): TaskOptions(priority=1)}))
    assert rest_in_order(pool) == [3, 2, 4]


class Unseen(dict[int, Any]):
    """Nobody looks through it: that takes a time for each, and another thread may find it changed."""

    def __iter__(self) -> Any:
        raise AssertionError("looked through")

    keys = values = items = __iter__


def test_many_priorities_are_never_looked_through() -> None:
    pool = Pool(processes=1, threads=3)
    pool.machine.ledger._others = Unseen()
    for number in range(1, 100):
        pool.submits(1, priority=number * 37 % 100 - 50)
    assert pool.machine.ledger.ready == 99
    pool.happens(CancelRequested([TaskId(1)]))
    pool.up()
    assert pool.machine.ledger.ready == 95
    pool.happens(exited(1, watermark=0))
    assert pool.machine.ledger.ready == 98
    pool.up()
    while pool.held(2):
        pool.finishes(2, *pool.held(2))
    order = sorted((task for task in range(2, 100)), key=lambda task: -(task * 37 % 100))
    assert pool.given()[3:] == order
    assert pool.machine.ledger.ready == 0
    assert not pool.machine.ledger._order


def test_tasks_that_are_given_back_go_to_the_front_of_their_equals() -> None:
    pool = Pool(processes=1, threads=4).up()
    pool.submits(2)
    pool.submits(2, priority=3)
    pool.submits(1)
    pool.submits(1, priority=3)
    pool.submits(1, priority=9)
    pool.happens(exited(1, watermark=0))
    pool.up()
    assert pool.given()[4:] == [7, 3, 4, 6]
    pool.finishes(2, *pool.held(2))
    assert pool.given()[8:] == [1, 2, 5]


def test_a_task_that_is_tried_again_keeps_its_priority() -> None:
    pool = single(retries=1)
    pool.submits(1)
    pool.submits(1, priority=1)
    pool.submits(1, priority=1)
    pool.finishes(1, 1)
    assert pool.given()[-1] == 3
    pool.raises(1, *pool.held(1), retry=True)
    assert pool.given()[-1] == 3
    assert rest_in_order(pool) == [4, 2]


def test_all_priorities_are_cancelled_by_a_stop_in_the_order_of_acceptance() -> None:
    pool = single()
    for priority in (0, 5, -1):
        pool.submits(1, priority=priority)
    effects = pool.happens(StopRequested(pool.now))
    assert [fail.task for fail in only(Fail, effects)] == [2, 3, 4]


# Its own time


@pytest.mark.parametrize("limit", [None, 100.0], ids=["no limit of the pool", "a longer one"])
def test_a_shorter_time_of_its_own_holds(limit: float | None) -> None:
    pool = Pool(processes=1, task_timeout=limit).up()
    pool.submits(1, timeout=10.0)
    assert pool.wakes() == [ReadBoard(W1)]
    assert pool.now == 1010.0
    assert {DumpStacks(W1), Retire(W1)} <= set(pool.happens(board(1, s1=1000.0)))
    pool.wakes()
    assert pool.verdicts() == {1: Timeout(W1, 10.0, 1)}
    assert pool.now == 1010.0 + policy.DUMP_SECONDS


def test_a_longer_time_of_its_own_holds_and_that_of_the_pool_for_the_others() -> None:
    pool = Pool(processes=1, task_timeout=10.0).up()
    pool.submits(1, timeout=100.0)
    pool.submits(1)
    assert pool.wakes() == [ReadBoard(W1)]
    pool.happens(board(1, s1=1000.0, s2=1000.0))
    pool.happens(after=policy.DUMP_SECONDS)
    assert pool.verdicts() == {2: Timeout(W1, 10.0, 1)}


def test_a_task_with_a_longer_time_is_looked_at_when_that_is_over() -> None:
    pool = Pool(processes=1, task_timeout=10.0).up()
    pool.submits(1, timeout=100.0)
    assert pool.wakes() == [ReadBoard(W1)]
    assert pool.now == 1100.0


def test_without_a_limit_of_the_pool_only_tasks_with_one_of_their_own_are_timed() -> None:
    pool = Pool(processes=1).up()
    pool.submits(1)
    assert pool.rests()
    pool.submits(1, timeout=10.0)
    pool.wakes()
    assert pool.happens(board(1, s1=1000.0, s2=1003.0)) == []
    assert pool.wakes() == [ReadBoard(W1)]
    assert pool.now == 1013.0
    pool.happens(board(1, s1=1000.0, s2=1003.0))
    pool.wakes()
    assert pool.verdicts() == {2: Timeout(W1, 10.0, 1)}


def test_the_hard_lifetime_bounds_a_longer_time_of_its_own() -> None:
    pool = Pool(processes=1, lifecycle_duration_hard=10.0).up()
    pool.submits(1, timeout=100.0)
    assert ReadBoard(W1) in pool.wakes() + pool.wakes()
    pool.happens(board(1, s1=1000.0))
    pool.happens(after=1.0)
    assert isinstance(pool.verdicts()[TaskId(1)], Timeout)


def test_the_time_of_a_task_that_waits_in_advance_is_looked_at_too() -> None:
    pool = Pool(processes=1, threads=1).up()
    pool.works_fast(1)
    pool.submits(1)
    pool.submits(1, timeout=10.0)
    assert len(pool.held(1)) == 2
    first, second = pool.held(1)
    pool.wakes()
    pool.happens(board(1, **{f"s{first}": pool.now - 10.0}))
    pool.wakes()
    pool.happens(board(1, **{f"s{second}": pool.now - 10.0}))
    pool.wakes()
    assert pool.verdicts() == {22: Timeout(W1, 10.0, 1)}


# Its own retries


def test_a_task_without_retries_in_a_pool_with_some_is_not_tried_again() -> None:
    pool = Pool(processes=1, retries=3).up()
    pool.submits(1, retries=0)
    pool.submits(1)
    pool.dies(1)
    assert pool.verdicts() == {1: Crash(W1, None, 1)}
    assert [task for task, _ in pool.retried()] == [2]


def test_a_task_with_retries_in_a_pool_without_is_tried_again() -> None:
    pool = Pool(processes=1).up()
    pool.submits(1, retries=1)
    pool.submits(1)
    pool.dies(1)
    assert pool.verdicts() == {2: Crash(W1, None, 1)}
    assert [task for task, _ in pool.retried()] == [1]
    pool.up()
    ward = pool.ward()
    pool.dies(ward)
    assert pool.verdicts()[TaskId(1)] == Crash(WorkerId(ward), True, 2)


def test_errors_are_tried_again_as_often_as_the_task_says() -> None:
    pool = Pool(processes=1, threads=1, retries=5).up()
    pool.submits(1, retries=1)
    pool.raises(1, 1, retry=True)
    pool.raises(1, 2, retry=True)
    assert pool.settled() == [1]


def test_an_innocent_task_without_retries_of_its_own_is_not_run_again() -> None:
    pool = Pool(processes=1, retries=1).up()
    pool.submits(1)
    pool.submits(1, retries=0)
    pool.dies(1, blamed=1)
    assert pool.verdicts() == {2: Crash(W1, False, 1)}


def test_what_a_task_had_of_its_own_is_forgotten_when_it_is_settled() -> None:
    pool = pool_at_work(0)
    pool.submits(2, timeout=10.0, priority=2)
    pool.happens(returned(1, 2))
    pool.finishes(1, *pool.held(1))
    assert not pool.machine.ledger.options
