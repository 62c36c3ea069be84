"""Tasks that are not wanted any more: they never start, or they are kept."""

from __future__ import annotations

import pytest

from mpms.core import policy
from mpms.core.fleet import Killed, Retiring, Serving
from mpms.core.machine import Abandoning, Breaking, Closing, Ended, Stopping
from mpms.core.messages import (
    AbandonedTask,
    Broke,
    CancelRequested,
    Closed,
    Crash,
    Dispatch,
    Fail,
    Keep,
    Kill,
    LinkLost,
    LostCause,
    ReadBoard,
    Recall,
    ResultsArrived,
    Retire,
    Retried,
    Settle,
    Stopped,
    StopRequested,
    TasksSubmitted,
    Timeout,
    Withdrawn,
    WorkerDying,
    WorkerReady,
)
from mpms.ids import Seq, TaskId, TaskOptions, WorkerId

from .driver import Pool, board, exited, only, pool_at_work, returned

W1, W2 = WorkerId(1), WorkerId(2)


def cancel(*tasks: int) -> CancelRequested:
    return CancelRequested([TaskId(n) for n in tasks])


ALL = CancelRequested(None)


def withdrawn(*tasks: int) -> list[Fail]:
    return [Fail(TaskId(task), None, Withdrawn()) for task in tasks]


def keep(*tasks: int) -> Keep:
    return Keep([TaskId(task) for task in tasks])


def pool_in_advance() -> Pool:
    """A worker with one thread that was fast: it holds the tasks 21 to 26, as dispatches of the same numbers."""
    pool = Pool(processes=1, threads=1).up()
    pool.works_fast(1)
    pool.submits(6)
    assert pool.held(1) == [21, 22, 23, 24, 25, 26]
    return pool


def pool_with_suspects(*, processes: int = 1, **limits: object) -> Pool:
    """The first worker has died with the tasks 1 to 3, and any of them may have ended it; the ward is not up yet."""
    pool = Pool(**{"processes": processes, "threads": 3, "retries": 1, **limits}).up()  # type: ignore[arg-type]
    pool.submits(3)
    pool.dies(1)
    return pool


# Those that wait


def test_a_waiting_task_is_over_at_once_and_is_never_sent() -> None:
    pool = Pool()
    pool.submits(4)
    assert pool.happens(cancel(2, 3)) == withdrawn(2, 3)
    pool.up()
    assert pool.given() == [1, 4]
    assert pool.machine.ledger.outstanding == 2


def test_a_task_is_cancelled_in_the_same_breath_in_which_it_was_accepted() -> None:
    pool = Pool().up()
    assert pool.happens(TasksSubmitted([TaskId(1), TaskId(2)]), cancel(1)) == [
        *withdrawn(1),
        Dispatch(W1, [(Seq(1), TaskId(2))]),
    ]


def test_the_first_and_the_last_one_of_many_can_be_cancelled() -> None:
    pool = Pool(processes=1, threads=9)
    pool.submits(9)
    pool.happens(cancel(9, 1))
    pool.up()
    assert pool.given() == [2, 3, 4, 5, 6, 7, 8]


def test_every_second_one_of_many_is_cancelled_and_the_others_come_in_their_order() -> None:
    pool = Pool(processes=1, threads=3)
    pool.submits(100)
    pool.happens(cancel(*range(1, 101, 2)))
    pool.up()
    while held := pool.held(1):
        pool.finishes(1, *held)
    assert pool.given() == list(range(2, 101, 2))


def test_no_thread_stays_idle_because_tasks_before_others_were_cancelled() -> None:
    pool = Pool(processes=1, threads=3)
    pool.submits(9)
    pool.happens(cancel(1, 2, 3, 5))
    pool.up()
    assert pool.given() == [4, 6, 7]


def test_a_task_that_came_back_waits_like_others() -> None:
    pool = pool_at_work(3)
    pool.happens(exited(1, watermark=0))
    assert withdrawn(2)[0] in pool.happens(cancel(2))
    pool.happens(after=1.0)
    pool.up()
    assert pool.given() == [1, 2, 3, 1, 3]
    assert pool.verdicts() == {2: Withdrawn()}


def test_a_task_that_came_back_and_was_sent_again_does_not_wait() -> None:
    pool = pool_at_work(2)
    pool.happens(exited(1, watermark=0))
    pool.up()
    assert pool.happens(cancel(1)) == [Recall(W2, Seq(4))]
    pool.finishes(2, 3, 4)
    assert pool.happens(cancel(1, 2)) == [keep(1, 2)]


@pytest.mark.parametrize("priority", [-1, 0, 2])
def test_a_task_with_a_priority_is_cancelled_while_it_waits(priority: int) -> None:
    pool = Pool(processes=1, threads=1)
    pool.submits(1, priority=1)
    pool.submits(3, priority=priority)
    pool.submits(1)
    assert pool.happens(cancel(3)) == withdrawn(3)
    pool.up()
    while held := pool.held(1):
        pool.finishes(1, *held)
    assert sorted(pool.given()) == [1, 2, 4, 5]


def test_the_last_task_of_a_priority_can_be_cancelled_and_others_with_it_follow() -> None:
    pool = Pool(processes=1, threads=1)
    pool.submits(1, priority=1)
    assert pool.happens(cancel(1)) == withdrawn(1)
    pool.submits(1)
    pool.submits(1, priority=1)
    pool.up()
    pool.finishes(1, 1)
    assert pool.given() == [3, 2]


def test_what_has_left_the_queues_with_priorities_does_not_wait_there() -> None:
    pool = Pool(processes=1, threads=2).up()
    pool.submits(1, priority=1)
    pool.submits(1)
    pool.finishes(1, 1)
    assert pool.happens(cancel(1)) == [keep(1)]
    assert pool.happens(cancel(2)) == [Recall(W1, Seq(2))]


def test_options_of_its_own_are_forgotten() -> None:
    pool = Pool()
    pool.happens(TasksSubmitted([TaskId(1)], {TaskId(1): TaskOptions(retries=3, priority=1)}))
    pool.happens(cancel(1))
    assert not pool.machine.ledger.options


def test_a_task_that_waits_for_its_delay_is_cancelled_and_nothing_is_waited_for() -> None:
    pool = pool_at_work(1, retries=1, retry_backoff=8.0)
    pool.raises(1, 1, retry=True)
    assert pool.machine.next_deadline() is not None
    assert pool.happens(cancel(1)) == withdrawn(1)
    assert pool.rests()
    pool.happens(after=60.0)
    assert pool.given() == [1]
    assert not pool.machine.ledger.tried


def test_the_others_that_wait_for_their_delay_wait_for_no_longer() -> None:
    pool = pool_at_work(5, retries=1, retry_backoff=8.0)
    pool.raises(1, 1, 2, 3, 4, retry=True)
    pool.raises(1, 5, retry=True)
    due = {task: at for at, task in pool.machine.ledger.delayed}
    first = min(due, key=due.__getitem__)
    pool.happens(cancel(first))
    del due[first]
    came: list[TaskId] = []
    while due:
        assert pool.machine.next_deadline() == min(due.values())
        pool.wakes()
        came.append(min(due, key=due.__getitem__))
        assert pool.given()[5:] == came
        del due[came[-1]]


def test_a_suspect_that_waits_is_cancelled_and_the_others_are_tried() -> None:
    pool = pool_with_suspects()
    assert pool.happens(cancel(2)) == withdrawn(2)
    pool.up()
    ward = pool.ward()
    pool.finishes(ward, *pool.held(ward))
    pool.finishes(ward, *pool.held(ward))
    assert pool.given()[3:] == [1, 3]


def test_the_ward_leaves_when_its_last_suspect_was_cancelled() -> None:
    pool = pool_with_suspects().up()
    ward = pool.ward()
    pool.finishes(ward, *pool.held(ward))
    pool.finishes(ward, *pool.held(ward))
    [seq] = pool.held(ward)
    pool.happens(cancel(3))
    assert Retire(WorkerId(ward)) in pool.happens(returned(ward, seq))


def test_no_ward_is_started_for_suspects_that_were_cancelled() -> None:
    pool = pool_with_suspects()
    pool.happens(exited(2), exited(3), cancel(1, 2, 3))
    pool.happens(after=60.0)
    pool.up()
    assert not pool.ward()


# Those that were sent


def test_a_task_that_was_sent_is_asked_back_and_dropped_when_it_comes() -> None:
    pool = pool_in_advance()
    assert pool.happens(cancel(24)) == [Recall(W1, Seq(26))]
    assert not pool.verdicts()
    effects = pool.happens(returned(1, 22))
    assert effects[0] == withdrawn(24)[0]
    assert pool.given()[-4:] == [22, 23, 25, 26]  # again, and in their order


def test_a_task_that_has_started_is_kept_and_has_its_own_outcome() -> None:
    pool = pool_in_advance()
    pool.happens(cancel(21))
    assert pool.happens(returned(1, 22))[0] == keep(21)
    pool.finishes(1, 21)
    assert pool.settled()[-1] == 21
    assert not pool.verdicts()


def test_of_those_that_were_sent_some_come_back_and_some_are_kept() -> None:
    pool = pool_in_advance()
    pool.happens(cancel(21, 22, 25, 26))
    effects = pool.happens(returned(1, 23))
    assert effects[:3] == [*withdrawn(25, 26), keep(21, 22)]
    assert pool.held(1)[2:] == [27, 28]
    assert pool.given()[-2:] == [23, 24]


def test_a_result_that_comes_before_what_is_given_back_is_the_outcome() -> None:
    pool = pool_in_advance()
    pool.happens(cancel(21))
    assert pool.finishes(1, 21) == [Settle([(TaskId(21), Seq(21))])]
    effects = pool.happens(returned(1, 22))
    assert not only(Keep, effects)
    assert not only(Fail, effects)


def test_one_question_is_enough_for_all_that_a_worker_holds() -> None:
    pool = pool_in_advance()
    assert pool.happens(cancel(24), cancel(25)) == [Recall(W1, Seq(26))]
    assert pool.happens(cancel(26)) == []
    assert only(Fail, pool.happens(returned(1, 22))) == withdrawn(24, 25, 26)


def test_every_worker_that_has_some_of_them_is_asked() -> None:
    pool = Pool().up()
    pool.submits(4)
    assert pool.happens(cancel(1, 2, 3, 4)) == [Recall(W1, Seq(2)), Recall(W2, Seq(4))]


def test_nothing_is_sent_to_a_worker_until_it_has_answered() -> None:
    pool = Pool(processes=1, threads=2).up()
    pool.submits(1)
    pool.happens(cancel(1))
    assert pool.submits(3) == []
    assert pool.finishes(1, 1) == [Settle([(TaskId(1), Seq(1))])]
    assert pool.happens(returned(1, 2)) == [Dispatch(W1, [(Seq(2), TaskId(2)), (Seq(3), TaskId(3))])]


def test_nothing_is_sent_to_the_ward_until_it_has_answered() -> None:
    pool = pool_with_suspects().up()
    ward = pool.ward()
    [seq] = pool.held(ward)
    assert pool.happens(cancel(1)) == [Recall(WorkerId(ward), seq)]
    assert not only(Dispatch, pool.finishes(ward, seq))
    assert only(Dispatch, pool.happens(returned(ward, seq + 1))) == [
        Dispatch(WorkerId(ward), [(Seq(seq + 1), TaskId(2))])
    ]


def test_a_suspect_that_was_sent_to_the_ward_comes_back_and_is_dropped() -> None:
    pool = pool_with_suspects().up()
    ward = pool.ward()
    [seq] = pool.held(ward)
    pool.happens(cancel(1))
    effects = pool.happens(returned(ward, seq))
    assert effects == [*withdrawn(1), Dispatch(WorkerId(ward), [(Seq(seq + 1), TaskId(2))])]
    assert 1 not in pool.machine.ledger.isolated


def test_a_worker_that_was_asked_for_another_reason_is_not_asked_again() -> None:
    pool = Pool().up()
    pool.works_fast(1)
    pool.submits(5)
    pool.finishes(2, *pool.held(2))
    recall = pool.wakes()
    held = pool.held(1)
    assert recall == [Recall(W1, held[-1])]
    task = pool.given()[-1]
    assert pool.happens(cancel(task)) == []
    assert only(Fail, pool.happens(returned(1, held[2]))) == withdrawn(task)


def test_a_task_that_is_dropped_leaves_its_place_in_the_budget_of_the_worker() -> None:
    pool = Pool(processes=1, threads=1, lifecycle=2).up()
    pool.submits(1)
    pool.happens(cancel(1))
    pool.happens(returned(1, 1))
    pool.submits(1)
    pool.finishes(1, 2)
    pool.submits(1)
    assert pool.sent() == [(W1, 1), (W1, 2), (W1, 3)]


# Those that are over, and requests that come again


def test_a_task_that_is_over_is_kept() -> None:
    pool = pool_at_work(2)
    pool.finishes(1, 1)
    pool.happens(exited(1, watermark=2))
    assert pool.happens(cancel(1, 2)) == [keep(1, 2)]


def test_a_task_is_cancelled_once_however_often_that_is_asked_for() -> None:
    pool = Pool()
    pool.submits(2)
    assert pool.happens(cancel(1, 1)) == [*withdrawn(1), keep(1)]
    assert pool.happens(cancel(1)) == [keep(1)]
    pool.up()
    assert pool.given() == [2]
    assert pool.happens(cancel(1)) == [keep(1)]
    assert pool.machine.ledger.outstanding == 1


def test_a_task_that_was_kept_can_be_asked_for_again() -> None:
    pool = pool_at_work(1, retries=1)
    pool.happens(cancel(1))
    assert pool.happens(returned(1, 2)) == [keep(1)]
    assert pool.happens(cancel(1)) == [Recall(W1, Seq(1))]
    assert pool.happens(returned(1, 2)) == [keep(1)]


def test_a_request_that_was_answered_is_forgotten() -> None:
    pool = pool_at_work(1)
    pool.happens(cancel(1))
    pool.happens(returned(1, 2))  # it had started, and is kept
    pool.happens(returned(1, 1))  # now it comes back, as it might do from another worker
    assert not pool.verdicts()
    assert pool.given() == [1, 1]


def test_no_request_is_remembered_when_all_is_over() -> None:
    pool = pool_in_advance()
    pool.happens(cancel(*range(19, 27)))
    pool.finishes(1, 21)
    pool.happens(returned(1, 22))
    assert not pool.machine.ledger.unwanted


# All


def test_all_tasks_are_cancelled_wherever_they_wait() -> None:
    pool = Pool(processes=1, threads=2, retries=2, retry_backoff=8.0).up()
    pool.submits(2)
    pool.submits(2, priority=1)
    pool.raises(1, 1, retry=True)
    assert pool.held(1) == [2, 3]
    assert pool.happens(ALL) == [*withdrawn(1, 4), Recall(W1, Seq(3))]
    assert pool.happens(returned(1, 3)) == [*withdrawn(3), keep(2)]
    pool.finishes(1, 2)
    assert pool.machine.ledger.outstanding == 0


def test_all_suspects_are_cancelled() -> None:
    pool = pool_with_suspects()
    assert only(Fail, pool.happens(ALL)) == withdrawn(1, 2, 3)
    assert not pool.machine.ledger.isolated
    assert not pool.ward()  # nobody is to be in it


def test_that_all_are_cancelled_is_about_those_that_were_there() -> None:
    pool = Pool()
    assert pool.happens(ALL) == []
    pool.submits(1)
    pool.happens(ALL)
    pool.submits(1)
    pool.up()
    assert pool.given() == [2]
    assert not pool.machine.ledger.unwanted


def test_all_are_cancelled_after_some() -> None:
    pool = Pool()
    pool.submits(3)
    pool.happens(cancel(2))
    assert pool.happens(ALL) == withdrawn(1, 3)
    pool.submits(1)
    pool.up()
    assert pool.given() == [4]


# Workers that retire, are killed, or end


def test_of_a_retiring_worker_what_it_gives_back_is_dropped() -> None:
    pool = pool_at_work(3)
    pool.happens(WorkerDying(W1))
    assert pool.happens(cancel(3)) == [Recall(W1, Seq(3))]
    assert pool.happens(returned(1, 3)) == withdrawn(3)


def test_of_a_retiring_worker_that_has_given_back_the_rest_is_kept() -> None:
    pool = pool_at_work(3)
    pool.happens(WorkerDying(W1), returned(1, 3))
    assert isinstance(pool.machine.fleet.workers[W1].phase, Retiring)
    assert pool.happens(cancel(1)) == [Recall(W1, Seq(2))]
    assert keep(1) in pool.happens(returned(1, 3))


def test_of_a_killed_worker_its_end_tells_what_had_started() -> None:
    pool = pool_at_work(3)
    pool.happens(LinkLost(W1))
    assert isinstance(pool.machine.fleet.workers[W1].phase, Killed)
    pool.happens(cancel(1, 3))
    effects = pool.happens(exited(1, watermark=2))
    assert only(Fail, effects)[:1] == withdrawn(3)
    assert pool.verdicts() == {1: Crash(W1, False, 1), 2: Crash(W1, False, 1), 3: Withdrawn()}
    assert not only(Keep, effects)  # its own outcome says the same


def test_a_worker_that_ends_before_it_answers_answers_so() -> None:
    pool = pool_at_work(4)
    pool.happens(cancel(2, 4))
    effects = pool.happens(exited(1, watermark=2))
    assert only(Fail, effects)[0] == withdrawn(4)[0]
    pool.up()
    assert pool.given()[4:] == [3]
    assert pool.verdicts() == {1: Crash(W1, None, 1), 2: Crash(W1, None, 1), 4: Withdrawn()}


def test_a_task_that_is_to_be_tried_again_after_the_end_of_its_worker_is_kept() -> None:
    pool = pool_at_work(2, retries=1)
    pool.happens(cancel(1))
    effects = pool.happens(exited(1, watermark=2, blamed=1))
    assert only(Keep, effects) == [keep(1)]
    pool.up()
    ward = pool.ward()
    assert pool.happens(returned(ward, pool.held(ward)[0]))[0] == Dispatch(WorkerId(ward), [(Seq(5), TaskId(1))])


def test_an_innocent_sibling_that_is_tried_again_is_kept() -> None:
    pool = pool_at_work(2, retries=1)
    pool.happens(cancel(2))
    assert only(Keep, pool.happens(exited(1, watermark=2, blamed=1))) == [keep(2)]


def test_a_task_that_is_tried_again_after_an_error_is_kept() -> None:
    pool = pool_at_work(1, retries=1)
    pool.happens(cancel(1))
    assert pool.raises(1, 1, retry=True) == [Retried(TaskId(1), Seq(1), None), keep(1)]
    assert pool.happens(returned(1, 2)) == [Dispatch(W1, [(Seq(2), TaskId(1))])]
    pool.happens(exited(1, watermark=1))
    assert not only(Fail, pool.effects)


def test_a_task_that_is_tried_again_after_its_time_was_over_is_kept() -> None:
    pool = pool_at_work(1, retries=1, task_timeout=10.0)
    pool.happens(cancel(1))
    pool.wakes()
    pool.happens(board(1, s1=1000.0))
    assert pool.wakes()[:2] == [Retried(TaskId(1), Seq(1), Timeout(W1, 10.0, 1)), keep(1)]


def test_a_task_that_is_tried_again_can_be_cancelled_before_it_is_sent() -> None:
    pool = pool_at_work(1, processes=1, retries=1)
    pool.dies(1)
    assert only(Fail, pool.happens(cancel(1))) == withdrawn(1)
    pool.up()
    assert pool.given() == [1]


def test_a_task_that_was_sent_again_can_be_cancelled_before_it_starts_again() -> None:
    pool = pool_at_work(1, retries=1)
    pool.raises(1, 1, retry=True)
    assert pool.happens(cancel(1)) == [Recall(W1, Seq(2))]
    assert pool.happens(returned(1, 2)) == withdrawn(1)


def test_a_stopped_worker_that_is_killed_for_it_answers_by_its_end() -> None:
    pool = pool_at_work(1, task_timeout=0.5)
    pool.happens(cancel(1))
    while not pool.kills():
        effects = pool.wakes()
        if any(not isinstance(effect, Kill) for effect in effects):
            pool.happens(board(1))
    assert only(Fail, pool.happens(exited(1))) == withdrawn(1)


# Modes


@pytest.mark.parametrize("end", [Closed(), StopRequested(2000.0)])
def test_a_pool_that_was_to_end_with_its_tasks_ends_when_the_last_ones_are_cancelled(
    end: Closed | StopRequested,
) -> None:
    pool = Pool(processes=1, threads=1).up()
    pool.submits(3)
    pool.happens(end)
    assert isinstance(pool.machine.mode, Closing | Stopping)
    assert pool.happens(ALL) == [*withdrawn(2, 3), Recall(W1, Seq(1))]
    assert Retire(W1) in pool.happens(returned(1, 1))
    assert Stopped(broken=False) in pool.happens(exited(1))


def test_a_pool_that_is_closed_and_has_lost_its_workers_starts_none_for_cancelled_tasks() -> None:
    pool = Pool(processes=1)
    pool.submits(2)
    pool.happens(Closed())
    before = pool.started()
    effects = pool.happens(ALL, exited(1))
    assert pool.started() == before
    assert effects[-1] == Stopped(broken=False)


def test_while_a_pool_is_abandoned_a_request_changes_nothing() -> None:
    pool = pool_at_work(6)
    pool.happens(StopRequested(pool.now))
    assert isinstance(pool.machine.mode, Abandoning)
    pool.happens(cancel(5, 4))
    assert only(Keep, pool.effects) == [keep(5)]
    pool.happens(exited(1, watermark=2))
    assert pool.verdicts() == {n: AbandonedTask(started=n <= 2) for n in range(1, 7)}


def test_while_a_pool_breaks_a_request_changes_nothing() -> None:
    pool = pool_at_work(6)
    pool.happens(Broke())
    assert isinstance(pool.machine.mode, Breaking)
    pool.happens(cancel(5, 4))
    pool.happens(exited(1, watermark=2))
    assert pool.verdicts() == dict.fromkeys(range(1, 7), LostCause())


def test_when_a_killed_worker_is_not_seen_to_end_its_tasks_are_over_all_the_same() -> None:
    pool = pool_at_work(1)
    pool.happens(cancel(1), StopRequested(pool.now))
    pool.happens(after=policy.KILL_SECONDS)
    assert pool.verdicts() == {1: AbandonedTask(started=True)}
    assert not pool.machine.ledger.unwanted


def test_after_the_end_a_task_that_slipped_in_can_be_cancelled_or_is_kept() -> None:
    pool = Pool(processes=1)
    pool.happens(Closed(), exited(1))
    assert isinstance(pool.machine.mode, Ended)
    assert pool.happens(TasksSubmitted([TaskId(1), TaskId(2)]), cancel(1)) == [
        *withdrawn(1),
        Fail(TaskId(2), None, AbandonedTask(started=False)),
    ]
    assert pool.happens(cancel(2)) == [keep(2)]


# What they count for


def test_cancelled_tasks_are_no_failures() -> None:
    pool = Pool(stop_on=1)
    pool.submits(2)
    pool.happens(cancel(1))
    pool.up()
    assert pool.given() == [2]
    assert pool.serving() == [1, 2]


def test_cancelled_tasks_cost_nothing_of_a_limited_rate() -> None:
    pool = Pool(processes=1, threads=1, max_rate=1.0)
    pool.submits(3)
    pool.happens(cancel(1, 2))
    pool.up()
    assert pool.given() == [3]


def test_an_idle_pool_waits_for_nothing_when_all_was_cancelled() -> None:
    pool = Pool(task_timeout=1.0).up()
    pool.submits(1)
    pool.happens(cancel(1))
    pool.happens(returned(1, 1))
    for _ in range(3):
        if not pool.rests():
            pool.wakes()
            pool.happens(board(1))
    assert pool.rests()
    assert pool.of(Serving) == [1, 2]


def test_a_result_of_a_task_that_was_dropped_is_late() -> None:
    pool = pool_at_work(1)
    pool.happens(cancel(1))
    pool.happens(returned(1, 1))
    pool.happens(ResultsArrived(W1, [Seq(1)]), WorkerReady(W1))
    assert pool.verdicts() == {1: Withdrawn()}
    assert pool.settled() == []


def test_a_worker_that_was_stopped_before_it_gave_back_what_is_not_wanted_is_replaced() -> None:
    """It holds nothing, and while it owes an answer it is sent nothing."""
    pool = pool_at_work(1, processes=1, threads=1, task_timeout=10.0)
    pool.happens(cancel(1))
    pool.finishes(1, 1)
    pool.submits(1)
    assert pool.held(1) == []
    for _ in range(2):
        assert pool.wakes() == [ReadBoard(W1)]
        pool.happens(board(1))
    assert pool.kills() == [(W1, "unresponsive")]
    pool.happens(exited(1))
    pool.up()
    assert pool.given() == [1, 2]
