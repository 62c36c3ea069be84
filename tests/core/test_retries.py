"""What is tried again, and how the one that ends workers is found among many."""

from __future__ import annotations

import pytest

from mpms.core.fleet import Retiring, Serving, Starting
from mpms.core.messages import (
    AbandonedTask,
    Closed,
    Crash,
    Fail,
    Kill,
    LinkLost,
    MemorySeen,
    ReadBoard,
    ReadMemory,
    ResultsArrived,
    Retire,
    Retried,
    StartWorker,
    Stopped,
    StopRequested,
    Timeout,
    WorkerDue,
    WorkerExited,
    WorkerReady,
)
from mpms.ids import Seq, TaskId, WorkerId

from .driver import Pool, board, exited, only, pool_at_work, returned

W1, W2, W3, W4 = (WorkerId(n) for n in range(1, 5))


# Retries after an end


def test_with_retries_the_guilty_is_run_again_and_then_fails() -> None:
    pool = pool_at_work(1, retries=1)
    effects = pool.happens(exited(1, watermark=1, blamed=1))
    assert only(Retried, effects) == [Retried(TaskId(1), Seq(1), Crash(W1, True, 1))]
    assert not only(Fail, effects)
    pool.up()
    ward = pool.ward()
    pool.happens(exited(ward, watermark=2, blamed=2))
    assert pool.verdicts() == {1: Crash(WorkerId(ward), True, 2)}


def test_siblings_of_the_guilty_are_run_again_for_nothing_and_in_their_order() -> None:
    pool = pool_at_work(3, retries=1, retry_backoff=5.0)
    pool.happens(exited(1, watermark=3, blamed=2))
    assert [task for task, _ in pool.retried()] == [2]
    pool.up()
    assert pool.given()[3:] == [1, 3]


def test_a_retry_waits_longer_each_time() -> None:
    pool = pool_at_work(1, retries=9, retry_backoff=8.0)
    delays = []
    for worker, seq in ((1, 1), (3, 2), (4, 3)):
        pool.happens(exited(worker, watermark=seq, blamed=seq))
        pool.up()
        sent, before = len(pool.given()), pool.now
        while len(pool.given()) == sent:
            pool.wakes()
            pool.up()
        delays.append(pool.now - before)
    assert 4 <= delays[0] <= 8 <= delays[1] <= 16 <= delays[2] <= 32


def test_a_task_that_failed_once_and_then_returned_is_settled_and_forgotten() -> None:
    pool = pool_at_work(1, retries=1)
    pool.dies(1)
    pool.up()
    pool.finishes(pool.ward(), 2)
    assert pool.settled() == [1]
    ledger = pool.machine.ledger
    assert not ledger.tried
    assert not ledger.isolated


def test_where_crashes_are_not_to_be_retried_they_are_not() -> None:
    pool = pool_at_work(2, retries=1, retry_crashes=False)
    pool.happens(exited(1, watermark=2, blamed=1))
    assert pool.verdicts() == {1: Crash(W1, True, 1), 2: Crash(W1, False, 1)}
    assert not pool.ward()


def test_where_timeouts_are_not_to_be_retried_they_are_not() -> None:
    pool = pool_at_work(1, retries=1, retry_timeouts=False, task_timeout=10.0)
    pool.wakes()
    pool.happens(board(1, s1=1000.0))
    pool.wakes()
    assert pool.verdicts() == {1: Timeout(W1, 10.0, 1)}


# Retries after an error


def test_an_error_that_asks_for_it_is_tried_again_and_its_result_is_not_settled() -> None:
    pool = pool_at_work(1, retries=1)
    effects = pool.raises(1, 1, retry=True)
    assert effects[0] == Retried(TaskId(1), Seq(1), None)
    assert pool.settled() == []
    assert pool.held(1) == [2]  # any worker will do: it ended none


def test_the_error_of_the_last_attempt_is_the_outcome() -> None:
    pool = pool_at_work(1, retries=2)
    for seq in (1, 2, 3):
        pool.raises(1, seq, retry=True)
    assert pool.retried() == [(1, None), (1, None)]
    assert pool.settled() == [1]


def test_an_error_that_does_not_ask_for_it_is_the_outcome_at_once() -> None:
    pool = pool_at_work(1, retries=2)
    pool.raises(1, 1)
    assert pool.settled() == [1]


def test_of_one_batch_only_those_that_ask_are_tried_again() -> None:
    pool = pool_at_work(2, retries=1)
    pool.happens(ResultsArrived(W1, [Seq(1), Seq(2)], failed=2, retry=frozenset([Seq(2)])))
    assert pool.settled() == [1]
    assert pool.given()[2:] == [2]


def test_errors_and_crashes_count_as_attempts_alike() -> None:
    pool = pool_at_work(1, retries=1)
    pool.raises(1, 1, retry=True)
    pool.happens(exited(1, watermark=2, blamed=2))
    assert pool.verdicts() == {1: Crash(W1, True, 2)}


def test_a_task_that_is_tried_again_after_an_error_waits_for_its_delay() -> None:
    pool = pool_at_work(1, retries=9, retry_backoff=8.0)
    delays = []
    for seq in (1, 2, 3):
        pool.raises(1, seq, retry=True)
        before = pool.now
        assert not pool.held(1)
        pool.wakes()
        assert pool.held(1) == [seq + 1]
        delays.append(pool.now - before)
    assert 4 <= delays[0] <= 8 <= delays[1] <= 16 <= delays[2] <= 32


def test_an_error_that_comes_too_late_is_not_tried_again() -> None:
    pool = pool_at_work(1, retries=0, task_timeout=10.0)
    pool.wakes()
    pool.happens(board(1, s1=1000.0))
    pool.wakes()
    assert pool.raises(1, 1, retry=True) == []


# Quarantine


def pool_with_suspects(count: int = 3, processes: int = 2, **limits: object) -> Pool:
    """The first worker has died with ``count`` tasks, and any of them may have ended it."""
    pool = Pool(**{"processes": processes, "threads": count, "retries": 1, **limits}).up()  # type: ignore[arg-type]
    pool.submits(count * processes)
    pool.dies(1)
    return pool


def run_with_poison(pool: Pool, poison: int) -> int:
    """Until all is settled, where every worker that runs this task ends, and says nothing. How many did."""
    crashes = 0
    while pool.machine.ledger.outstanding:
        for worker in list(pool.machine.fleet.workers.values()):
            if poison in worker.sent.values():
                pool.dies(worker.id)
                crashes += 1
            elif worker.sent:
                pool.finishes(worker.id, *worker.sent)
        pool.up()
    return crashes


@pytest.mark.parametrize("processes", [1, 3])
def test_suspects_run_one_at_a_time_in_a_worker_beyond_the_others(processes: int) -> None:
    pool = pool_with_suspects(3, processes)
    assert len(pool.of(Starting, Serving)) == processes
    pool.up()
    ward = pool.ward()
    assert pool.started() == ward == processes + 2
    for task in (1, 2, 3):
        assert pool.sent()[-1] == (ward, task)
        assert len(pool.held(ward)) == 1
        pool.finishes(ward, *pool.held(ward))
    assert pool.settled() == [1, 2, 3]


@pytest.mark.parametrize("processes", [1, 3])
def test_the_others_go_on_at_full_strength_meanwhile(processes: int) -> None:
    pool = pool_with_suspects(3, processes)
    pool.up()
    assert len(pool.serving()) == processes
    pool.submits(99)
    assert [len(pool.held(worker)) for worker in pool.serving()] == [3] * processes
    assert pool.serving()[0] != pool.ward()
    for worker in pool.serving():
        pool.finishes(worker, *pool.held(worker))
        assert len(pool.held(worker)) == 3


@pytest.mark.parametrize("attempts", [2, 3, 4])
def test_the_poison_is_found_in_as_many_crashes_as_it_has_attempts_and_the_innocent_settle(attempts: int) -> None:
    pool = Pool(processes=2, threads=8, retries=attempts - 1).up()
    pool.submits(50)
    assert run_with_poison(pool, poison=13) == attempts
    ((task, verdict),) = pool.verdicts().items()
    assert isinstance(verdict, Crash)
    assert (task, verdict.blamed, verdict.attempts) == (13, True, attempts)
    assert sorted(pool.settled()) == [n for n in range(1, 51) if n != 13]


def test_what_had_not_started_is_no_suspect() -> None:
    pool = pool_at_work(3, retries=1)
    pool.happens(exited(1, watermark=2))
    pool.up()
    assert (W2, 3) in pool.sent()
    assert pool.sent()[3:] == [(WorkerId(pool.ward()), 1), (W2, 3)]


def test_what_the_pool_itself_killed_is_no_suspect() -> None:
    pool = pool_at_work(1, retries=1)
    pool.happens(LinkLost(W1))
    pool.dies(1)
    assert pool.retried() == [(1, Crash(W1, False, 1))]
    pool.up()
    assert pool.sent()[-1] == (W2, 1)
    assert pool.ward() == 0


def test_who_ends_the_ward_is_blamed() -> None:
    pool = pool_with_suspects()
    pool.up()
    ward = pool.ward()
    pool.dies(ward)
    assert pool.verdicts() == {1: Crash(WorkerId(ward), True, 2)}


def test_who_is_in_the_ward_when_the_fork_server_ends_is_not_blamed() -> None:
    pool = pool_with_suspects()
    pool.up()
    ward = pool.ward()
    pool.happens(WorkerExited(WorkerId(ward), pool.held(ward)[0], orphaned=True))
    assert pool.verdicts() == {1: Crash(WorkerId(ward), None, 2)}


def test_an_attempt_that_the_pool_itself_ended_in_the_ward_is_nobodys_fault() -> None:
    pool = pool_with_suspects(1)
    pool.up()
    ward = pool.ward()
    pool.happens(LinkLost(WorkerId(ward)))
    pool.dies(ward)
    assert pool.verdicts() == {1: Crash(WorkerId(ward), False, 2)}


def test_a_ward_that_ends_before_it_started_its_suspect_is_replaced_and_nobody_pays() -> None:
    pool = pool_with_suspects()
    pool.up()
    first = pool.ward()
    pool.happens(exited(first, watermark=0))
    assert not pool.verdicts()
    while pool.ward() in (0, first):
        pool.wakes()
    pool.up()
    assert pool.sent()[-1] == (pool.ward(), 1)
    pool.finishes(pool.ward(), *pool.held(pool.ward()))
    assert pool.settled() == [1]


def test_a_suspect_that_was_given_back_is_still_one_and_in_front() -> None:
    pool = pool_with_suspects()
    pool.up()
    ward = pool.ward()
    pool.happens(returned(ward, pool.held(ward)[0]))
    assert pool.sent()[-2:] == [(ward, 1), (ward, 1)]


def test_a_ward_that_nobody_is_in_any_more_is_retired() -> None:
    pool = pool_with_suspects(2)
    pool.up()
    ward = WorkerId(pool.ward())
    assert Retire(ward) not in pool.finishes(ward, *pool.held(ward))
    assert pool.finishes(ward, *pool.held(ward))[-1] == Retire(ward)
    assert pool.ward() == 0
    assert pool.wakes() == [Kill(ward, "grace over")]  # if it never ends


def test_suspects_that_wait_at_a_stop_are_cancelled_once() -> None:
    pool = pool_with_suspects(1)
    ward = WorkerId(pool.ward())
    pool.happens(StopRequested(pool.now))
    assert (ward, "stopped") in pool.kills()
    pool.happens(exited(2, watermark=2), exited(3), exited(4))
    fails = [(fail.task, fail.verdict) for fail in only(Fail, pool.effects)]
    assert fails == [(1, AbandonedTask(False)), (2, AbandonedTask(True))]
    assert pool.effects[-1] == Stopped(broken=False)


def test_a_ward_lives_on_while_its_suspect_waits_for_the_next_attempt() -> None:
    pool = pool_with_suspects(1, retries=2, retry_backoff=8.0)
    assert pool.ward() == 0  # there is nothing for it to do yet
    pool.wakes()
    pool.up()
    ward = pool.ward()
    pool.raises(ward, *pool.held(ward), retry=True)
    assert pool.ward() == ward
    pool.wakes()
    assert pool.sent()[-1] == (ward, 1)


def test_suspects_wait_for_their_delay_too() -> None:
    pool = pool_with_suspects(2, retry_backoff=8.0)
    pool.up()
    assert pool.ward() == 0
    pool.happens(after=8.0)
    pool.up()
    assert len(pool.held(pool.ward())) == 1


def test_a_later_crash_makes_more_suspects_for_the_same_ward() -> None:
    pool = pool_with_suspects(2)
    pool.up()
    ward = pool.ward()
    pool.dies(2)
    for _ in range(4):
        pool.finishes(ward, *pool.held(ward))
    assert [task for worker, task in pool.sent() if worker == ward] == [1, 3, 4, 2]


def test_a_closed_pool_has_its_suspects_tried_and_then_ends() -> None:
    pool = pool_with_suspects(2)
    pool.happens(Closed())
    pool.up()
    pool.finishes(2, *pool.held(2))
    ward = pool.ward()
    pool.dies(ward)
    assert pool.verdicts() == {1: Crash(WorkerId(ward), True, 2)}
    pool.up()
    ward = pool.ward()
    pool.finishes(ward, *pool.held(ward))
    assert sorted(pool.settled()) == [2, 3, 4]
    pool.happens(*(exited(n) for n in range(1, pool.started() + 1)))
    assert pool.effects[-1] == Stopped(broken=False)


def test_a_suspect_that_hangs_in_the_ward_has_timed_out_and_the_next_has_another_one() -> None:
    pool = pool_with_suspects(2, task_timeout=10.0)
    pool.up()
    pool.finishes(2, *pool.held(2))
    ward = pool.ward()
    (seq,) = pool.held(ward)
    assert ReadBoard(WorkerId(ward)) in pool.wakes()
    pool.happens(board(ward, **{f"s{seq}": 1000.0}))
    assert pool.ward() != ward
    pool.up()
    assert pool.sent()[-1] == (pool.ward(), 2)
    pool.wakes()
    assert pool.verdicts() == {1: Timeout(WorkerId(ward), 10.0, 2)}


def test_the_ward_takes_no_part_in_rotation() -> None:
    pool = pool_with_suspects(1, processes=1, lifecycle_duration=100.0)
    pool.up()
    pool.submits(1)
    staff, ward = pool.serving()[0], pool.ward()
    pool.happens(after=100.0)  # both are over their age
    new = pool.started()
    assert pool.of(Starting) == [new]
    assert Retire(staff) not in pool.effects
    assert Retire(staff) in pool.happens(WorkerReady(WorkerId(new)))
    assert pool.ward() == ward
    pool.happens(exited(staff))
    assert pool.started() == new


def test_a_ward_that_comes_up_is_nobodys_replacement() -> None:
    pool = Pool(processes=2, threads=1, retries=1, lifecycle_duration=100.0).up()
    pool.submits(2)
    pool.happens(after=100.0)  # somebody is due, and has a replacement on its way
    assert pool.started() == 3
    pool.dies(2)
    ward = WorkerId(pool.ward())
    assert not only(Retire, pool.happens(WorkerReady(ward)))
    assert pool.of(Retiring) == []


def test_a_ward_whose_threads_have_run_their_share_is_replaced() -> None:
    pool = pool_with_suspects(2, lifecycle=1)
    pool.up()
    ward = WorkerId(pool.ward())
    pool.happens(ResultsArrived(ward, pool.held(ward)), WorkerDue(ward, 0))
    assert Retire(ward) in pool.effects
    pool.up()
    assert pool.sent()[-1] == (pool.ward(), 2)


def test_a_ward_that_has_grown_is_replaced_between_two_suspects() -> None:
    pool = pool_with_suspects(2, watch_memory=True)
    pool.up()
    ward = WorkerId(pool.ward())
    while ReadMemory(ward) not in pool.effects:
        pool.wakes()
    assert not only(Retire, pool.happens(MemorySeen(ward, True)))
    assert Retire(ward) in pool.finishes(ward, *pool.held(ward))
    assert pool.settled() == [1]
    pool.up()
    assert pool.ward() not in (0, ward)
    assert pool.sent()[-1] == (pool.ward(), 2)


def test_a_ward_at_its_hard_age_is_replaced() -> None:
    pool = pool_with_suspects(2, lifecycle_duration_hard=10.0, grace=3.0)
    pool.up()
    ward = WorkerId(pool.ward())
    (seq,) = pool.held(ward)
    pool.happens(after=9.0)
    pool.happens(board(ward, **{f"s{seq}": 1009.0}))
    assert Retire(ward) in pool.happens(after=1.0)
    assert pool.ward() not in (0, ward)


def test_wards_that_fail_to_start_are_waited_for_like_others() -> None:
    pool = pool_with_suspects(1, max_start_failures=2)
    pool.happens(WorkerReady(W3))
    assert pool.happens(exited(4)) == []
    assert pool.wakes() == [StartWorker(WorkerId(5))]
    pool.happens(exited(5))
    assert pool.effects[-1] == Kill(W3, "stopped")  # it broke
