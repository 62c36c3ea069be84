"""What a pool decides, one situation at a time."""

from __future__ import annotations

import pytest

from mpms.core import policy
from mpms.core.fleet import Killed, Retiring, Serving, Starting
from mpms.core.messages import (
    AbandonedTask,
    BoardSeen,
    Broke,
    CancelRequested,
    Closed,
    Crash,
    Dispatch,
    DumpStacks,
    Fail,
    Keep,
    Kill,
    LinkLost,
    LostCause,
    MemorySeen,
    OfferTaken,
    ReadBoard,
    ReadMemory,
    Recall,
    Resized,
    ResultsArrived,
    Retire,
    Settle,
    StartWorker,
    Stopped,
    StopRequested,
    TasksSubmitted,
    Timeout,
    WorkerDue,
    WorkerDying,
    WorkerReady,
    WorkerUnborn,
)
from mpms.ids import Seq, TaskId, WorkerId

from .driver import Pool, board, exited, only, pool_at_work, returned

W1, W2, W3, W4 = (WorkerId(n) for n in range(1, 5))


# Full strength


def test_a_pool_starts_all_its_workers_at_once_and_before_there_are_tasks() -> None:
    assert Pool(processes=3).effects == [StartWorker(W1), StartWorker(W2), StartWorker(WorkerId(3))]


def test_an_idle_pool_waits_for_nothing() -> None:
    assert Pool(lifecycle_duration=60.0, lifecycle_duration_hard=90.0, task_timeout=1.0).up().rests()


def test_while_tasks_wait_nobody_need_be_told_of_more() -> None:
    pool = Pool().up()
    assert pool.machine.is_hungry
    pool.submits(4)
    assert pool.machine.is_hungry
    pool.submits(1)
    assert not pool.machine.is_hungry
    pool.submits(1)
    pool.finishes(1, 1)
    assert not pool.machine.is_hungry
    pool.finishes(2, 3)
    assert pool.machine.is_hungry


def test_a_task_that_waits_for_its_retry_is_no_reason_not_to_be_told_of_others() -> None:
    pool = Pool(retries=1, retry_backoff=10.0).up()
    pool.submits(1)
    pool.happens(ResultsArrived(W1, [Seq(1)], 1, frozenset({Seq(1)})))
    assert pool.machine.ledger.waiting == 1
    assert pool.machine.is_hungry


def test_a_pool_that_has_worked_waits_for_nothing_again() -> None:
    pool = Pool(task_timeout=1.0, watch_memory=True).up()
    pool.submits(2)
    pool.finishes(1, 1)
    pool.finishes(2, 2)
    while not pool.rests():
        effects = pool.wakes()
        pool.happens(*(BoardSeen(e.worker, []) for e in only(ReadBoard, effects)))
    assert pool.now < 1000 + 1.0 + policy.MEMORY_SECONDS


def test_a_worker_that_dies_idle_is_replaced_at_once() -> None:
    assert Pool().up().happens(exited(1)) == [StartWorker(W3)]


def test_a_worker_that_dies_at_work_is_replaced_at_once() -> None:
    pool = Pool().up()
    pool.submits(2)
    assert StartWorker(W3) in pool.happens(exited(1, watermark=1))


def test_a_worker_that_is_killed_is_replaced_before_it_has_ended() -> None:
    assert Pool().up().happens(LinkLost(W1)) == [Kill(W1, "link lost"), StartWorker(W3)]


def test_a_worker_that_retires_is_replaced_before_it_has_ended() -> None:
    assert Pool().up().happens(WorkerDying(W1)) == [Retire(W1), StartWorker(W3)]


# Who gets what


def test_who_is_idle_is_offered_the_next_task_as_a_dispatch_of_its_own() -> None:
    pool = Pool().up()
    assert pool.machine.offer() == (W1, 1)
    pool.submits(1)
    assert pool.machine.offer() == (W2, 2)
    pool.submits(1)
    assert pool.machine.offer() is None
    pool.finishes(1, 1)
    assert pool.machine.offer() == (W1, 3)


def test_a_task_that_took_an_offer_is_its_workers() -> None:
    pool = Pool().up()
    assert pool.happens(OfferTaken(W1, Seq(1), TaskId(1))) == []
    assert (pool.held(1), pool.held(2)) == ([1], [])
    assert pool.machine.offer() == (W2, 2)
    assert only(Settle, pool.finishes(1, 1)) == [Settle([(TaskId(1), Seq(1))])]
    pool.submits(1)
    assert pool.sent() == [(W1, TaskId(2))]
    assert pool.held(1) == [2]


def test_a_task_that_took_an_offer_goes_back_when_its_worker_ends_before_it_has_started() -> None:
    pool = Pool(processes=1).up()
    pool.happens(OfferTaken(W1, Seq(1), TaskId(1)), exited(1))
    pool.up()
    assert pool.sent() == [(W2, TaskId(1))]


def test_what_is_said_of_a_task_that_took_an_offer_is_understood_in_the_same_breath() -> None:
    pool = Pool(lifecycle_duration=60.0).up()
    effects = pool.happens(OfferTaken(W1, Seq(1), TaskId(1)), ResultsArrived(W1, [Seq(1)]))
    assert effects == [Settle([(TaskId(1), Seq(1))])]
    assert pool.machine.ledger.outstanding == 0


def test_a_task_that_took_an_offer_and_is_over_is_not_cancelled() -> None:
    pool = Pool().up()
    pool.happens(OfferTaken(W1, Seq(1), TaskId(1)), ResultsArrived(W1, [Seq(1)]))
    assert pool.happens(CancelRequested([TaskId(1)])) == [Keep([TaskId(1)])]


def test_the_time_of_a_task_that_took_an_offer_runs() -> None:
    pool = Pool(task_timeout=5.0).up()
    pool.submits(1)
    pool.finishes(1, 1)
    pool.happens(OfferTaken(W1, Seq(2), TaskId(2)), after=1.0)
    assert pool.machine.next_deadline() == pool.now + 5.0 - 1.0  # that of the one before it, which is looked at first
    pool.wakes()
    pool.happens(board(1, s2=pool.now - 4.0))
    assert pool.machine.next_deadline() == pool.now + 1.0


def test_a_worker_ages_from_an_offer_on_that_was_its_first_task() -> None:
    pool = Pool(processes=1, lifecycle_duration_hard=60.0).up()
    pool.submits(0)  # and is at rest
    pool.happens(OfferTaken(W1, Seq(1), TaskId(1)))
    pool.finishes(1, 1)
    assert pool.machine.next_deadline() is not None


def test_nothing_is_offered_of_a_worker_that_has_not_answered() -> None:
    pool = Pool(processes=2, threads=1).up()
    pool.works_fast(1)
    pool.submits(4)
    pool.happens(CancelRequested([TaskId(pool.machine.ledger.submitted)]))
    held = pool.held(1)
    pool.finishes(1, *held)
    pool.finishes(2, *pool.held(2))
    recalled = {recall.worker for recall in only(Recall, pool.effects)}
    assert recalled
    offered = pool.machine.offer()
    assert offered is None or offered[0] not in recalled


def test_nothing_is_offered_where_starts_are_limited() -> None:
    assert Pool(max_rate=10.0).up().machine.offer() is None
    assert Pool(watch_free_memory=True).up().machine.offer() is None


def test_a_worker_that_has_run_its_share_is_offered_nothing() -> None:
    pool = Pool(processes=1, threads=1, lifecycle=1).up()
    pool.happens(OfferTaken(W1, Seq(1), TaskId(1)))
    pool.finishes(1, 1)
    assert pool.machine.offer() is None


def test_tasks_wait_until_a_worker_is_ready() -> None:
    pool = Pool()
    assert pool.submits(1) == []
    assert pool.happens(WorkerReady(W2)) == [Dispatch(W2, [(Seq(1), TaskId(1))])]


def test_tasks_are_spread_over_the_workers() -> None:
    pool = Pool(processes=3, threads=4).up()
    pool.submits(6)
    assert [len(pool.held(worker)) for worker in (1, 2, 3)] == [2, 2, 2]


def test_a_single_task_goes_to_who_has_least_to_do() -> None:
    pool = Pool().up()
    pool.submits(2)
    pool.finishes(2, *pool.held(2))
    pool.submits(1)
    assert (len(pool.held(1)), len(pool.held(2))) == (1, 1)


@pytest.mark.parametrize(
    ("count", "rooms", "shares"),
    [
        (0, [3, 3], [0, 0]),
        (1, [], []),
        (1, [0, -1], [0, 0]),
        (1, [1, 3, 2], [0, 1, 0]),
        (1, [2, 3, 3], [0, 1, 0]),
        (2, [1, 3], [1, 1]),
        (4, [1, 8], [1, 3]),
        (5, [4, 4], [3, 2]),
        (7, [2, 0, 3, 4], [2, 0, 2, 3]),
        (9, [1, -1, 2], [1, 0, 2]),
    ],
)
def test_tasks_are_spread_evenly_and_what_is_over_goes_to_the_freest(
    count: int, rooms: list[int], shares: list[int]
) -> None:
    assert policy.spread(count, rooms) == shares


def test_an_unknown_worker_holds_no_more_tasks_than_it_has_threads() -> None:
    pool = Pool().up()
    pool.submits(100)
    assert [len(pool.held(worker)) for worker in (1, 2)] == [2, 2]


def test_tasks_are_sent_in_the_order_of_acceptance_with_growing_numbers() -> None:
    pool = Pool(processes=1, threads=3).up()
    pool.submits(3)
    assert only(Dispatch, pool.effects) == [Dispatch(W1, [(Seq(n), TaskId(n)) for n in (1, 2, 3)])]


def test_no_task_waits_for_a_thread_while_another_is_idle() -> None:
    pool = Pool(threads=4).up()
    pool.submits(8)
    pool.finishes(1, *pool.held(1))
    pool.submits(4)
    assert len(pool.held(1)) == 4


def test_a_worker_out_of_budget_does_not_keep_tasks_from_the_others() -> None:
    pool = Pool(threads=4, lifecycle=1).up()
    pool.submits(4)
    pool.happens(exited(2))
    pool.up()  # the other has run half of all it may
    pool.submits(40)
    assert len(pool.held(3)) == 4


def test_a_thread_that_is_idle_comes_before_one_that_would_have_another_task_in_advance() -> None:
    pool = Pool(processes=1).up()
    pool.works_fast(1)
    pool.submits(2)
    pool.happens(Resized(2))
    pool.up()
    pool.submits(2)
    assert (len(pool.held(1)), len(pool.held(2))) == (2, 2)
    pool.submits(3)
    assert (len(pool.held(1)), len(pool.held(2))) == (4, 3)


def test_a_worker_that_comes_up_is_taken_for_as_fast_as_the_others_until_it_has_shown_how_fast_it_is() -> None:
    pool = Pool(processes=1).up()
    pool.works_fast(1)
    pool.happens(Resized(2))
    pool.submits(100)
    pool.up()
    assert len(pool.held(2)) == 2 + 5
    pool.finishes(2, *pool.held(2)[:2], after=0.1)
    assert len(pool.held(2)) == 5
    pool.finishes(2, *pool.held(2)[:4], after=0.1)
    assert len(pool.held(2)) == 2


def test_a_worker_is_due_once_it_was_given_most_of_what_it_may_run() -> None:
    pool = Pool(processes=1, threads=1, lifecycle=20).up()
    worker = pool.machine.fleet.workers[W1]
    pool.submits(20)
    while pool.started() == 1:
        pool.finishes(1, *pool.held(1), after=0.1)
    assert 14 <= worker.dispatched <= 19
    assert isinstance(worker.phase, Serving)
    due = worker.phase.due
    assert due == pool.now
    pool.finishes(1, *pool.held(1), after=0.1)
    assert worker.phase == Serving(due, None), "its turn begins anew"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fast_worker_gets_tasks_in_advance(threads: int) -> None:
    pool = Pool(processes=1, threads=threads).up()
    pool.works_fast(1)
    pool.submits(100)
    assert len(pool.held(1)) == threads + 5  # 5 ms at one task per ms


@pytest.mark.parametrize(
    ("weight", "ahead"),
    [(1, 5), (600_000, 5), (700_000, 4), (1 << 20, 3), (policy.PREFETCH_BYTES, 1), (1 << 40, 1)],
)
def test_a_fast_worker_gets_so_many_bytes_in_advance_and_no_more_but_one_task(weight: int, ahead: int) -> None:
    pool = Pool(processes=1, threads=2).up()
    pool.works_fast(1, weight=weight)
    pool.submits(100)
    assert len(pool.held(1)) == 2 + ahead


def test_idle_time_does_not_make_a_worker_look_slow() -> None:
    pool = Pool(processes=1, threads=1).up()
    pool.works_fast(1, tasks=4)
    pool.happens(after=3600.0)
    pool.works_fast(1, tasks=4)
    pool.submits(100)
    assert len(pool.held(1)) > 1


def test_a_slow_worker_gets_nothing_in_advance() -> None:
    pool = Pool(processes=1).up()
    pool.submits(9)
    pool.finishes(1, 1, 2, after=1.0)
    assert len(pool.held(1)) == 2


def test_nothing_is_given_in_advance_while_another_thread_is_idle() -> None:
    pool = Pool().up()
    pool.works_fast(1)
    pool.finishes(2, *pool.held(2))
    pool.submits(4)
    assert [len(pool.held(worker)) for worker in (1, 2)] == [2, 2]


# Recall


def pool_with_a_full_and_a_dry_worker() -> Pool:
    """The first was given tasks in advance and got stuck; the second has two to finish yet."""
    pool = Pool().up()
    pool.works_fast(1)
    pool.submits(5)
    return pool


def test_tasks_behind_others_are_recalled_when_another_worker_runs_dry() -> None:
    pool = pool_with_a_full_and_a_dry_worker()
    held = pool.held(1)
    assert pool.finishes(2, *pool.held(2)) == [Settle([(TaskId(3), Seq(3)), (TaskId(4), Seq(4))])]
    assert pool.wakes() == [Recall(W1, held[-1])]
    assert pool.now == pytest.approx(1000.018 + policy.STALL_SECONDS)
    pool.happens(returned(1, held[2]))
    assert [len(pool.held(worker)) for worker in (1, 2)] == [2, 2]


def test_a_worker_that_is_to_give_back_gets_nothing_until_it_has() -> None:
    pool = pool_with_a_full_and_a_dry_worker()
    pool.finishes(2, *pool.held(2))
    pool.wakes()
    before = pool.held(1)
    pool.submits(9)
    assert pool.held(1) == before
    pool.finishes(1, *before[:-1])
    assert pool.held(1) == before[-1:]
    pool.happens(returned(1, before[-1]))
    assert len(pool.held(1)) == 2


def test_nothing_is_recalled_while_all_are_busy() -> None:
    assert pool_with_a_full_and_a_dry_worker().rests()


def test_a_worker_that_is_due_on_all_threads_does_not_recall_from_others() -> None:
    pool = pool_with_a_full_and_a_dry_worker()
    pool.happens(WorkerDying(W2))
    assert pool.machine.next_deadline() == pool.now + 5.0  # its grace, and nothing before


# What the end of a worker means


def test_a_task_that_had_started_is_not_run_again() -> None:
    pool = pool_at_work(1)
    assert Fail(TaskId(1), Seq(1), Crash(W1, None, 1)) in pool.happens(exited(1, watermark=1))
    assert pool.machine.ledger.outstanding == 0


def test_what_had_not_started_goes_back_to_the_front_in_its_order() -> None:
    pool = pool_at_work(5)
    pool.happens(exited(1, watermark=2))
    assert set(pool.verdicts()) == {1, 2}
    pool.up()
    assert pool.sent()[4:] == [(W2, 3), (W2, 4), (W2, 5)]


def test_a_task_that_had_not_started_has_made_no_attempt() -> None:
    pool = pool_at_work(1)
    for worker in (1, 2, 3):
        pool.happens(exited(worker, watermark=0))
        pool.happens(after=10.0)
        pool.up()
    pool.happens(exited(4, watermark=4))
    assert pool.verdicts() == {1: Crash(W4, None, 1)}


def test_results_that_were_sent_before_the_end_count() -> None:
    pool = pool_at_work(2)
    pool.happens(ResultsArrived(W1, [Seq(1)]), exited(1, watermark=2))
    assert pool.settled() == [1]
    assert set(pool.verdicts()) == {2}


def test_who_is_known_to_have_done_it_is_blamed_and_the_others_are_not() -> None:
    pool = pool_at_work(3)
    pool.happens(exited(1, watermark=3, blamed=2))
    assert pool.verdicts() == {1: Crash(W1, False, 1), 2: Crash(W1, True, 1), 3: Crash(W1, False, 1)}


def test_nobody_is_blamed_when_the_pool_itself_killed_the_worker() -> None:
    pool = pool_at_work(1)
    pool.happens(LinkLost(W1))
    pool.happens(exited(1, watermark=1))
    assert pool.verdicts() == {1: Crash(W1, False, 1)}


def test_word_of_a_worker_that_is_gone_changes_nothing() -> None:
    pool = pool_at_work(1)
    pool.happens(exited(1, watermark=1))
    events = [
        ResultsArrived(W1, [Seq(1)]),
        returned(1, 1),
        WorkerReady(W1),
        WorkerDue(W1, 0),
        WorkerDying(W1),
        board(1, s1=0.0),
        MemorySeen(W1, True),
        LinkLost(W1),
        exited(1, watermark=1),
    ]
    assert pool.happens(*events) == []


def test_the_story_tells_what_happened() -> None:
    pool = pool_at_work(1)
    pool.happens(exited(1, watermark=1))
    last = pool.machine.story.lines()[-1]
    assert last.startswith("1000.000000 WorkerExited(worker=1")
    assert "-> Fail(task=1" in last


# Timeouts


def pool_with_a_hung_task(**limits: object) -> Pool:
    """Task 1 is over its time, which was seen; its siblings 2 and 3 began later."""
    pool = pool_at_work(3, task_timeout=10.0, **limits)
    assert pool.wakes() == [ReadBoard(W1)]
    pool.happens(board(1, s1=1000.0, s2=1004.0, s3=1009.0))
    return pool


def test_the_board_is_read_when_a_running_time_may_be_over_and_not_before() -> None:
    pool = pool_at_work(1, task_timeout=10.0)
    assert pool.wakes() == [ReadBoard(W1)]
    assert pool.now == 1010.0
    assert pool.happens(board(1, s1=1006.0)) == []
    assert pool.machine.next_deadline() == 1016.0


def test_a_task_over_its_time_has_its_stack_written_and_its_worker_retired() -> None:
    pool = pool_with_a_hung_task()
    assert pool.effects[-3:] == [DumpStacks(W1), Retire(W1), StartWorker(W2)]
    assert not pool.verdicts()


def test_a_task_over_its_time_has_its_outcome_as_soon_as_the_stack_is_there() -> None:
    pool = pool_with_a_hung_task()
    assert pool.wakes() == [Fail(TaskId(1), Seq(1), Timeout(W1, 10.0, 1))]
    assert pool.now == 1010 + policy.DUMP_SECONDS


def test_when_nobody_but_the_hung_task_is_left_its_worker_is_killed_at_once() -> None:
    pool = Pool(processes=1, threads=2, task_timeout=10.0, grace=60.0).up()
    pool.submits(1)
    pool.happens(BoardSeen(W1, [(Seq(1), pool.now - 10)]))
    assert pool.kills() == []
    assert Kill(W1, "timeout") in pool.wakes()


def test_siblings_of_a_hung_task_have_the_grace_to_finish_and_then_the_worker_is_killed() -> None:
    pool = pool_with_a_hung_task(grace=3.0)
    pool.up()
    pool.finishes(1, 2)
    pool.happens(after=2.999)
    assert pool.kills() == []
    pool.happens(after=0.001)
    assert pool.kills() == [(W1, "timeout")]
    pool.happens(exited(1, watermark=3))
    assert pool.settled() == [2]
    assert pool.verdicts()[TaskId(3)] == Crash(W1, False, 1)


def test_a_sibling_that_hangs_too_has_its_own_timeout() -> None:
    pool = pool_with_a_hung_task()
    pool.up()
    pool.wakes()
    assert pool.machine.next_deadline() == 1014.0
    pool.wakes()
    pool.happens(board(1, s1=1000.0, s2=1004.0, s3=1009.0))
    pool.wakes()
    assert [type(verdict) for verdict in pool.verdicts().values()] == [Timeout, Timeout]


def test_a_result_that_comes_after_the_timeout_is_ignored() -> None:
    pool = pool_with_a_hung_task()
    pool.wakes()
    assert pool.finishes(1, 1) == []


def test_a_result_that_comes_while_the_stack_is_written_counts() -> None:
    pool = pool_with_a_hung_task()
    pool.finishes(1, 1)
    pool.happens(after=1.0)
    assert pool.settled() == [1]
    assert not pool.verdicts()


def test_a_hung_task_whose_worker_ends_meanwhile_has_timed_out() -> None:
    pool = pool_with_a_hung_task()
    pool.happens(exited(1, watermark=3))
    assert isinstance(pool.verdicts()[TaskId(1)], Timeout)
    assert pool.verdicts()[TaskId(2)] == Crash(W1, False, 1)


def test_with_retries_a_task_that_timed_out_is_run_again_and_then_fails() -> None:
    pool = pool_at_work(1, task_timeout=10.0, retries=1)
    for worker, seq in ((1, 1), (2, 2)):
        pool.wakes()
        pool.happens(BoardSeen(WorkerId(worker), [(Seq(seq), pool.now - 10)]))
        pool.wakes()
        pool.up()
    assert pool.retried() == [(1, Timeout(W1, 10.0, 1))]
    assert pool.verdicts() == {1: Timeout(W2, 10.0, 2)}


def test_with_retries_siblings_of_a_hung_task_are_run_again_for_nothing() -> None:
    pool = pool_with_a_hung_task(retries=1)
    pool.happens(exited(1, watermark=3))
    assert pool.retried() == [(1, Timeout(W1, 10.0, 1))]
    pool.up()
    assert pool.given()[3:] == [1, 2, 3]
    assert not pool.verdicts()


def test_a_worker_that_gets_no_processor_for_a_moment_is_not_taken_for_a_stopped_one() -> None:
    pool = pool_at_work(1, task_timeout=0.02)
    began = pool.now
    while pool.now < began + 0.9:
        assert pool.wakes() == [ReadBoard(W1)]
        pool.happens(board(1))
    assert pool.kills() == []


def test_a_worker_that_never_reads_its_tasks_is_killed_and_they_go_to_others() -> None:
    pool = pool_at_work(2, task_timeout=10.0)
    for _ in range(2):
        assert pool.wakes() == [ReadBoard(W1)]
        pool.happens(board(1))
    assert pool.kills() == [(W1, "unresponsive")]
    pool.happens(exited(1))
    pool.up()
    assert len(pool.held(2)) == 2
    assert not pool.verdicts()


def test_a_worker_that_has_begun_meanwhile_is_not_unresponsive() -> None:
    pool = pool_at_work(2, task_timeout=10.0)
    pool.wakes()
    pool.happens(board(1))
    pool.wakes()
    pool.happens(board(1, s1=1019.0))
    pool.wakes()
    pool.happens(ResultsArrived(W1, [Seq(1)]), board(1))
    assert pool.kills() == []


def test_the_hard_lifetime_bounds_the_running_time_of_a_task_too() -> None:
    pool = pool_at_work(1, task_timeout=100.0, lifecycle_duration_hard=10.0)
    assert pool.machine.limits.running_limit == 10.0


# Lifetimes


def test_a_worker_is_given_no_more_tasks_than_its_threads_may_run() -> None:
    pool = Pool(processes=1, threads=2, lifecycle=3).up()
    pool.submits(50)
    while pool.held(1):
        pool.finishes(1, pool.held(1)[0])
    assert len(pool.settled()) == 6


def test_tasks_that_were_given_back_are_not_counted_against_the_budget() -> None:
    pool = Pool(processes=1, threads=2, lifecycle=1).up()
    pool.submits(2)
    pool.happens(returned(1, 1))
    assert len(pool.held(1)) == 2


def test_a_worker_that_will_soon_be_due_has_its_replacement_brought_first() -> None:
    pool = Pool(processes=1, threads=1, lifecycle=10).up()
    pool.submits(9)
    while pool.started() == 1:
        pool.finishes(1, pool.held(1)[0], after=1.0)
    assert 7 <= len(pool.settled()) + 1 < 10
    assert pool.serving() == [1]
    assert Retire(W1) in pool.happens(WorkerReady(W2))


def test_a_worker_without_threads_that_take_tasks_does_not_wait_for_its_turn() -> None:
    pool = Pool(lifecycle=1).up()
    assert pool.happens(WorkerDue(W1, 0)) == [Retire(W1), StartWorker(W3)]


def test_a_worker_that_was_sent_a_task_as_its_last_thread_ended_has_only_the_time_for_its_finalizers() -> None:
    """A chunk is one dispatch, and as many tasks as it has items."""
    pool = Pool(processes=1, threads=1, lifecycle=100, start_timeout=60.0).up()
    pool.submits(2)
    pool.finishes(1, 1)
    assert pool.held(1) == [2]
    pool.happens(WorkerDue(W1, 0), Closed())
    assert pool.machine.next_deadline() == pool.now + 60.0
    assert pool.wakes() == [Kill(W1, "grace over")]
    pool.happens(exited(1, watermark=1))
    pool.up()
    assert pool.sent()[-1] == (2, 2)


def test_a_worker_that_retires_gets_the_time_of_its_finalizers_when_its_last_thread_has_ended() -> None:
    pool = Pool(processes=2, threads=1, lifecycle=100, start_timeout=60.0).up()
    pool.submits(2)
    pool.happens(Resized(1))
    (leaver,) = pool.of(Retiring)
    pool.happens(WorkerDue(leaver, 0))
    assert pool.machine.fleet.workers[leaver].phase == Retiring(pool.now + 60.0)


def test_a_worker_with_a_thread_less_gets_a_task_less() -> None:
    pool = Pool(processes=1, threads=3).up()
    pool.happens(WorkerDue(W1, 2))
    pool.submits(5)
    assert len(pool.held(1)) == 2


def pool_of_old_workers(**limits: object) -> Pool:
    """All three have worked, and are over their age."""
    pool = Pool(processes=3, threads=1, lifecycle_duration=100.0, **limits).up()
    pool.submits(3)
    pool.happens(*(ResultsArrived(WorkerId(n), pool.held(n)) for n in (1, 2, 3)))
    pool.happens(after=100.0)
    return pool


def test_workers_of_one_birth_are_due_at_different_times_within_the_last_fifth() -> None:
    pool = Pool(processes=3, threads=1, lifecycle_duration=100.0).up()
    pool.submits(3)
    phases = [worker.phase for worker in pool.machine.fleet.workers.values()]
    dues = {phase.due for phase in phases if isinstance(phase, Serving)}
    assert len(dues) == 3
    assert all(due is not None and 1080 <= due <= 1100 for due in dues)


def test_workers_are_rotated_in_turns_with_one_more_than_asked_for_at_most() -> None:
    pool = pool_of_old_workers()
    for old, new in ((1, 4), (2, 5), (3, 6)):
        assert pool.started() == new
        assert len(pool.of(Serving, Starting)) == 4
        assert pool.happens(WorkerReady(WorkerId(new))) == [Retire(WorkerId(old))]
        pool.happens(exited(old))
    assert pool.serving() == [4, 5, 6]
    assert pool.rests()  # who did nothing isn't worn


def test_a_rotated_worker_serves_until_its_replacement_is_up() -> None:
    pool = pool_of_old_workers()
    pool.submits(3)
    assert len(pool.held(1)) == 1


def test_a_rotated_worker_may_finish_what_it_runs_however_long_it_takes() -> None:
    pool = pool_of_old_workers()
    pool.submits(3)
    pool.happens(WorkerReady(W4))
    assert pool.of(Retiring) == [1]
    assert pool.rests()


def test_an_idle_rotated_worker_that_never_ends_is_killed_and_the_next_has_its_turn() -> None:
    pool = pool_of_old_workers(start_timeout=60.0)
    pool.happens(WorkerReady(W4))
    pool.wakes()
    assert pool.kills() == [(W1, "grace over")]
    assert StartWorker(WorkerId(5)) in pool.effects


def test_a_rotated_worker_whose_last_task_ends_has_its_time_for_finalizers() -> None:
    pool = pool_of_old_workers(start_timeout=60.0)
    pool.submits(3)
    pool.happens(WorkerReady(W4))
    pool.finishes(1, *pool.held(1))
    assert pool.machine.next_deadline() == pool.now + 60.0


def test_a_turn_ends_when_its_worker_dies_before_the_replacement_is_up() -> None:
    pool = pool_of_old_workers()
    pool.happens(exited(1))
    assert len(pool.of(Serving, Starting)) == 4
    assert Retire(W2) in pool.happens(WorkerReady(W4), WorkerReady(WorkerId(5)))


def test_idle_workers_that_did_nothing_are_never_rotated() -> None:
    pool = Pool(lifecycle_duration=1.0, lifecycle_duration_hard=2.0, lifecycle=1).up()
    pool.happens(after=3600.0)
    assert pool.serving() == [1, 2]
    assert pool.rests()


def test_the_age_of_a_worker_counts_from_its_first_task() -> None:
    pool = Pool(lifecycle_duration_hard=10.0).up()
    pool.happens(after=3600.0)
    pool.submits(4)
    pool.happens(after=7.0)
    assert pool.serving() == [1, 2]
    assert pool.started() == 2


def test_at_its_hard_age_a_worker_ends_without_waiting_for_its_turn() -> None:
    pool = Pool(lifecycle_duration_hard=10.0, grace=3.0).up()
    pool.submits(4)
    pool.happens(after=9.0)  # both are due by now, but the replacement never comes up
    effects = pool.happens(after=1.0)
    assert {Retire(W1), Retire(W2)} <= set(effects)
    assert {phase.phase for phase in pool.machine.fleet.workers.values()} >= {Retiring(1013.0)}


def test_a_worker_with_too_much_memory_is_rotated() -> None:
    pool = Pool(processes=1, watch_memory=True).up()
    pool.submits(1)
    assert pool.wakes() == [ReadMemory(W1)]
    assert pool.happens(MemorySeen(W1, False)) == []
    assert pool.wakes() == [ReadMemory(W1)]
    assert pool.happens(MemorySeen(W1, True)) == [StartWorker(W2)]
    assert pool.happens(WorkerReady(W2)) == [Retire(W1)]


def test_what_a_retiring_worker_gives_back_goes_to_the_front() -> None:
    pool = pool_at_work(6)
    pool.happens(WorkerDying(W1), returned(1, 3))
    pool.finishes(1, 1, 2)
    assert pool.settled() == [1, 2]
    pool.up()
    assert pool.given()[4:] == [3, 4, 5, 6]


def test_a_dying_worker_has_the_grace_to_end() -> None:
    pool = Pool(grace=3.0).up()
    pool.happens(WorkerDying(W1))
    pool.wakes()
    assert pool.now == 1003.0
    assert pool.kills() == [(W1, "grace over")]


# Starts that fail


def test_a_failed_start_is_tried_again_after_a_while() -> None:
    pool = Pool(processes=1)
    assert pool.happens(exited(1)) == []
    assert pool.wakes() == [StartWorker(W2)]
    assert pool.now == pytest.approx(1000.1)


def test_failed_starts_wait_longer_each_time_and_then_the_pool_breaks() -> None:
    pool = Pool(processes=1, max_start_failures=3)
    pool.submits(2)
    pool.happens(exited(1))
    pool.wakes()
    pool.happens(exited(2))
    pool.wakes()
    assert pool.now == pytest.approx(1000.3)
    assert pool.happens(exited(3)) == [
        Fail(TaskId(1), None, LostCause()),
        Fail(TaskId(2), None, LostCause()),
        Stopped(broken=True),
    ]
    assert pool.rests()


def test_starts_that_fail_together_are_one_failure() -> None:
    pool = Pool(processes=5, max_start_failures=2)
    pool.happens(*(exited(n) for n in range(1, 6)), after=0.01)
    pool.wakes()
    assert pool.started() == 10


def test_a_start_that_succeeds_makes_the_failures_forgotten() -> None:
    pool = Pool(processes=1, max_start_failures=2)
    pool.happens(exited(1))
    pool.wakes()
    pool.up()
    pool.happens(exited(2))
    assert pool.happens(exited(3)) == []
    assert not pool.verdicts()
    assert pool.wakes() == [StartWorker(W4)]


def test_while_another_worker_serves_a_shortage_is_waited_for_and_never_ends_the_pool() -> None:
    pool = Pool(processes=2, max_start_failures=1).up()
    pool.happens(exited(2))
    for number, pause in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], 3):
        assert pool.happens(WorkerUnborn(WorkerId(number))) == []
        before = pool.now
        assert pool.wakes() == [StartWorker(WorkerId(number + 1))]
        assert pool.now - before == pytest.approx(pause)
    pool.up()
    assert pool.serving() == [1, 11]
    pool.happens(exited(11))
    assert pool.happens(WorkerUnborn(WorkerId(12))) == []
    assert pool.wakes() == [StartWorker(WorkerId(13))]
    assert pool.now - before == pytest.approx(5.0 + 0.1)


def test_a_shortage_in_which_nobody_serves_breaks_the_pool_in_the_end() -> None:
    pool = Pool(processes=2, max_start_failures=2)
    assert pool.happens(WorkerUnborn(W1), WorkerUnborn(W2), after=0.01) == []
    assert pool.wakes() == [StartWorker(W3), StartWorker(W4)]
    assert pool.happens(WorkerUnborn(W3), WorkerUnborn(W4)) == [Stopped(broken=True)]


def test_a_worker_that_does_not_come_up_in_time_is_killed_and_counts_as_failed() -> None:
    pool = Pool(processes=1, start_timeout=60.0, max_start_failures=2)
    assert pool.wakes() == [Kill(W1, "start timeout")]
    assert pool.now == 1060.0
    assert pool.wakes() == [StartWorker(W2)]
    pool.happens(exited(1), exited(2))
    assert pool.effects[-1] == Stopped(broken=True)


def test_a_worker_that_loses_its_link_while_it_starts_counts_as_failed() -> None:
    pool = Pool(processes=1, max_start_failures=2)
    assert pool.happens(LinkLost(W1)) == [Kill(W1, "link lost")]
    pool.happens(exited(1))
    pool.wakes()
    pool.happens(LinkLost(W2), exited(2))
    assert isinstance(pool.effects[-1], Stopped)


def test_a_pool_that_breaks_gives_every_task_the_cause_and_kills_its_workers() -> None:
    pool = Pool().up()
    pool.submits(6)
    pool.happens(Broke())
    assert pool.kills() == [(W1, "stopped"), (W2, "stopped")]
    assert pool.happens(exited(1, watermark=2), exited(2, watermark=3))[-1] == Stopped(broken=True)
    assert set(pool.verdicts().values()) == {LostCause()}
    assert len(pool.verdicts()) == 6


def test_a_broken_pool_does_not_wait_for_a_process_that_never_ends() -> None:
    pool = Pool().up()
    pool.submits(6)
    pool.happens(Broke())
    assert pool.wakes()[-1] == Stopped(broken=True)
    assert len(pool.verdicts()) == 6


def test_workers_that_end_as_soon_as_they_are_up_are_started_ever_more_slowly() -> None:
    pool = Pool()
    for worker in range(1, 12):
        while not pool.of(Starting):
            pool.wakes()
        pool.happens(WorkerReady(WorkerId(worker)))
        pool.happens(exited(worker))
    assert pool.now > 1005.0
    assert not pool.verdicts()


def test_one_worker_that_was_killed_idle_does_not_slow_the_pool_down() -> None:
    pool = Pool().up()
    for worker in (1, 2):
        assert len(pool.happens(exited(worker))) == 1
        pool.up()


# The end


def test_a_closed_pool_finishes_its_tasks_and_then_retires_its_workers() -> None:
    pool = Pool().up()
    pool.submits(2)
    assert pool.happens(Closed()) == []
    pool.finishes(1, *pool.held(1))
    assert pool.finishes(2, *pool.held(2))[1:] == [Retire(W1), Retire(W2)]
    assert pool.happens(exited(1)) == []
    assert pool.happens(exited(2)) == [Stopped(broken=False)]
    assert pool.rests()


def test_a_closed_pool_starts_workers_for_tasks_that_wait_and_not_for_those_that_run() -> None:
    pool = pool_at_work(2)
    pool.happens(Closed())
    assert StartWorker(W2) in pool.happens(exited(1, watermark=1))
    pool.up()
    assert pool.happens(exited(2, watermark=4))[-1] == Stopped(broken=False)
    assert pool.started() == 2


def test_a_closed_pool_kills_a_worker_that_does_not_end() -> None:
    pool = Pool(processes=1, start_timeout=60.0).up()
    pool.happens(Closed())
    pool.wakes()
    assert pool.kills() == [(W1, "grace over")]
    assert pool.wakes() == [Stopped(broken=False)]  # and doesn't wait for ever for its end


def test_a_pool_that_is_closed_while_it_starts_ends() -> None:
    pool = Pool(processes=1)
    assert pool.happens(Closed()) == [Retire(W1)]
    assert pool.happens(WorkerReady(W1)) == []
    assert pool.happens(exited(1)) == [Stopped(broken=False)]


def test_until_its_deadline_a_pool_that_is_to_stop_goes_on() -> None:
    pool = Pool(processes=1, threads=1).up()
    pool.submits(2)
    pool.happens(StopRequested(pool.now + 30))
    pool.finishes(1, *pool.held(1))
    assert pool.finishes(1, *pool.held(1))[-1] == Retire(W1)
    assert pool.happens(exited(1))[-1] == Stopped(broken=False)


def test_what_has_no_outcome_at_the_deadline_is_cancelled_and_says_whether_it_had_started() -> None:
    pool = pool_at_work(6)
    pool.happens(StopRequested(pool.now + 30))
    pool.wakes()
    assert pool.now == 1030.0
    assert pool.verdicts() == {5: AbandonedTask(False), 6: AbandonedTask(False)}
    assert pool.kills() == [(W1, "stopped")]
    assert pool.machine.next_deadline() == pool.now + policy.KILL_SECONDS
    assert pool.happens(exited(1, watermark=3))[-1] == Stopped(broken=False)
    assert {task: verdict for task, verdict in pool.verdicts().items() if task < 5} == {
        1: AbandonedTask(True),
        2: AbandonedTask(True),
        3: AbandonedTask(True),
        4: AbandonedTask(False),
    }


def test_a_pool_that_is_stopped_does_not_wait_for_a_process_that_never_ends() -> None:
    pool = pool_at_work(1)
    pool.happens(StopRequested(pool.now))
    assert pool.wakes() == [Fail(TaskId(1), Seq(1), AbandonedTask(True)), Stopped(broken=False)]
    assert pool.now == 1000 + policy.KILL_SECONDS
    assert pool.happens(exited(1, watermark=1)) == []


def test_a_worker_that_was_killed_before_is_not_killed_again_by_a_stop() -> None:
    pool = pool_at_work(1)
    pool.happens(LinkLost(W1))
    pool.happens(StopRequested(pool.now))
    assert (W1, "stopped") not in pool.kills()
    assert pool.wakes()[-1] == Stopped(broken=False)


def test_the_earlier_of_two_deadlines_holds() -> None:
    pool = pool_at_work(1)
    pool.happens(StopRequested(1005.0))
    pool.happens(StopRequested(1009.0))
    assert pool.machine.next_deadline() == 1005.0
    pool.happens(StopRequested(1001.0))
    assert pool.machine.next_deadline() == 1001.0


def test_a_stop_comes_before_retries_and_their_delays() -> None:
    pool = pool_at_work(1, retries=1, retry_backoff=60.0)
    pool.happens(exited(1, watermark=1))
    pool.happens(StopRequested(pool.now))
    assert pool.happens(exited(2)) == [Stopped(broken=False)]
    assert only(Fail, pool.effects) == [Fail(TaskId(1), None, AbandonedTask(False))]


def test_a_task_accepted_after_the_end_has_an_outcome() -> None:
    pool = Pool(processes=1).up()
    pool.happens(Closed())
    pool.happens(exited(1))
    assert pool.happens(TasksSubmitted([TaskId(1)])) == [Fail(TaskId(1), None, AbandonedTask(started=False))]
    assert pool.machine.ledger.outstanding == 0


def test_a_task_accepted_after_the_pool_broke_is_told_so() -> None:
    pool = Pool(processes=1).up()
    pool.happens(Broke())
    pool.happens(exited(1))
    assert pool.happens(TasksSubmitted([TaskId(1)])) == [Fail(TaskId(1), None, LostCause())]


def test_a_pool_that_has_ended_hears_nothing_more() -> None:
    pool = Pool(processes=1).up()
    pool.happens(Closed())
    pool.happens(exited(1))
    assert pool.happens(Closed(), StopRequested(0.0), Broke(), exited(1), after=99.0) == []
    assert pool.rests()


def test_a_killed_worker_gets_no_task() -> None:
    pool = Pool(processes=1).up()
    pool.happens(LinkLost(W1))
    pool.submits(1)
    assert pool.of(Killed) == [1]
    assert not pool.held(1)
