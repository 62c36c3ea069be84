"""Tasks that come one at a time to an idle pool: their callers send them, and who waits for a result opens it."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpms import MPMS, Executor, Future, TaskTimeout, WorkerCrashed
from mpms.ids import TaskId
from mpms.local.link import Offer
from mpms.local.records import record_of
from mpms.local.wakeup import WakeUp
from mpms.wire.messages import PLAIN, RETURNED

from .helpers import PATIENCE, kill, meet, meeting, note, noted, until
from .stage import Stage


def same(word: Any) -> Any:
    return word


class Asked:
    """A pool that is asked one thing at a time."""

    def __init__(self, **options: Any) -> None:
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.pool = MPMS(same, lambda _, result: self._answers.put(result), **options)

    def __call__(self, word: Any) -> Any:
        self.pool.put(word)
        return self.answer()

    def answer(self) -> Any:
        return self._answers.get(timeout=PATIENCE)


def offers_taken(pool: MPMS | Executor) -> int:
    """Of the last things that happened."""
    return sum(line.count("OfferTaken(") for line in pool.story())


def at_rest(pool: MPMS | Executor) -> bool:
    """Its supervisor sleeps, and would have taken up what has come."""
    engine: Any = pool._engine
    return bool(engine._offers)


@pytest.fixture
def executor(method: Any) -> Iterator[Executor]:
    with Executor(1, start_method=method) as one:
        one.submit(same, 0).result(PATIENCE)
        until(lambda: at_rest(one))
        yield one


def test_a_task_for_an_idle_worker_is_sent_by_who_submits_it(method: Any) -> None:
    ask = Asked(processes=2, threads=2, start_method=method)
    with ask.pool as pool:
        for number in range(50):
            assert ask(number) == number
            until(lambda: at_rest(pool))
        assert offers_taken(pool) >= 25
        assert pool.stats().submitted == pool.stats().done == 50


def test_the_same_of_an_executor_once_the_function_is_there(executor: Executor) -> None:
    before = offers_taken(executor)
    assert executor.submit(same, 1).result(PATIENCE) == 1
    assert offers_taken(executor) == before + 1
    until(lambda: at_rest(executor))
    assert executor.submit(abs, -2).result(PATIENCE) == 2  # which the worker doesn't have
    assert offers_taken(executor) == before + 1
    until(lambda: at_rest(executor))
    assert executor.submit(abs, -3).result(PATIENCE) == 3
    assert offers_taken(executor) == before + 2


def test_tasks_start_in_the_order_in_which_they_were_put(method: Any, tmp_path: Path) -> None:
    """Whether they find the pool idle or not."""
    log, chance = str(tmp_path / "log"), random.Random(3)
    with MPMS(note, processes=1, threads=1, start_method=method) as pool:
        number, taken = 0, 0
        for _ in range(60):
            for _ in range(chance.choice([1, 1, 2, 5, 30])):
                # One with an option, and one that is large, take the other way.
                if chance.random() < 0.2:
                    pool.put_with((log, number), timeout=PATIENCE)
                elif chance.random() < 0.2:
                    pool.put(log, Long(number))
                else:
                    pool.put(log, number)
                number += 1
            if chance.random() < 0.7:
                until(lambda: at_rest(pool), every=0.001)
                taken += offers_taken(pool) > 0
        assert taken
    assert noted(log) == [str(n) for n in range(number)]


class Long:
    """A number that takes more bytes than go with others."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._more = bytes(5000)

    def __str__(self) -> str:
        return str(self._number)


def test_one_outcome_for_each_while_workers_are_killed(method: Any, tmp_path: Path) -> None:
    """At every instant of so short a task: while it is sent, runs, is answered."""
    log, chance, over = str(tmp_path / "log"), random.Random(5), threading.Event()

    def noting(number: int) -> int:
        note(log, number)
        return number

    def storm() -> None:
        next_at = 0
        while not over.wait(chance.uniform(0.0, 0.003)):
            workers = [worker.pid for worker in one.workers() if worker.pid is not None]
            done = one.stats().done
            if workers and done >= next_at:  # and not all that come up, before they have done anything
                next_at = done + chance.randrange(5, 15)
                kill(chance.choice(workers))

    crashed = []
    with Executor(2, threads=2, start_method=method) as one:
        killer = threading.Thread(target=storm)
        killer.start()
        try:
            for number in range(1500):
                try:
                    assert one.submit(noting, number).result(PATIENCE) == number
                except WorkerCrashed:
                    crashed.append(number)
        finally:
            over.set()
            killer.join()
        stats = one.stats()
        offers = offers_taken(one)
    ran = noted(log)
    assert len(set(ran)) == len(ran), "one was run again"
    assert stats.done + stats.failed == 1500
    assert stats.failed == len(crashed)
    assert stats.undelivered == 0
    assert offers > 30


def test_the_time_of_a_task_that_was_sent_by_its_caller_runs(method: Any) -> None:
    # Where the task's module is there already: to load it may take a busy machine longer.
    with meeting() as place, Executor(1, task_timeout=0.5, start_method=method, preload=nothing) as one:
        one.submit(meet, place.address).add_done_callback(lambda _: None)
        [guest] = place.arrivals(1)
        guest.release()
        engine: Any = one._engine
        until(lambda: at_rest(one) and engine._machine.next_deadline() is None)  # or that would wake it
        before = offers_taken(one)
        with pytest.raises(TaskTimeout):
            one.submit(meet, place.address).result(PATIENCE)
        assert offers_taken(one) == before + 1


def nothing() -> None:
    """But its module is loaded, and so are those that this one needs."""


def test_a_task_with_options_of_its_own_keeps_them(method: Any) -> None:
    with meeting() as place:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with MPMS(meet, lambda _, result: answers.put(result), processes=1, start_method=method) as pool:
            pool.put(place.address)
            place.arrive().release()
            answers.get(timeout=PATIENCE)
            until(lambda: at_rest(pool))
            pool.put_with((place.address,), timeout=0.2)
            assert isinstance(answers.get(timeout=PATIENCE), TaskTimeout)


def test_who_waits_for_a_result_does_not_wait_for_the_callbacks_of_others(executor: Executor, stage: Stage) -> None:
    hanging, over = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        hanging.set()
        over.wait(PATIENCE)

    try:
        executor.submit(same, 1).add_done_callback(hang)
        assert hanging.wait(PATIENCE)
        got: queue.SimpleQueue[int] = queue.SimpleQueue()
        future = executor.submit(waiting, stage, 2)
        waiter = threading.Thread(target=lambda: got.put(future.result(PATIENCE)))
        waiter.start()
        until(lambda: future._gates)
        stage.open()
        assert got.get(timeout=PATIENCE) == 2
        waiter.join()
        assert not over.is_set()
        assert executor.stats().undelivered <= 1
    finally:
        over.set()


def waiting(stage: Stage, word: int) -> int:
    stage.wait()
    return word


def test_a_result_after_a_retry_leaves_nothing_behind(method: Any, tmp_path: Path) -> None:
    with Executor(1, retries=1, start_method=method) as one:
        future = one.submit(dies_first, str(tmp_path / "log"))
        assert future.result(PATIENCE) == 2
        engine: Any = one._engine
        until(lambda: not engine._delivery._earlier)
        assert not engine._settling._tried
        assert not engine._settling._expected


def dies_first(log: str) -> int:
    note(log, "begun")
    if len(noted(log)) == 1:
        os._exit(1)
    return len(noted(log))


def test_a_log_record_that_comes_before_the_pool_knows_who_took_the_task_is_that_tasks(
    method: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Executor(1, forward_logs=True, start_method=method) as one:
        one.submit(log_it, "first").result(PATIENCE)
        until(lambda: at_rest(one))
        before = offers_taken(one)
        monkeypatch.setattr(WakeUp, "ring", lambda _: None)  # so that the record is what wakes it
        future = one.submit(log_it, "second")
        assert future.result(PATIENCE) == "second"
        monkeypatch.undo()
        until(lambda: any("second" in record.message for record in caplog.records))
        assert offers_taken(one) == before + 1
    [record] = [record for record in caplog.records if record.message == "second"]
    assert record.mpms_task == future._task


def log_it(word: str) -> str:
    logging.getLogger("tasks").warning(word)
    threading.Event().wait(0.1)
    return word


@pytest.mark.parametrize("result", [(RETURNED, pickle.dumps(5)), (PLAIN, 5)], ids=["pickled", "plain"])
def test_who_asks_to_cancel_hears_at_once_that_somebody_has_the_result(result: tuple[int, Any]) -> None:
    """And not only when he gives up waiting for the answer."""
    engine: Any = Executor(1)._engine
    given = list[object]()
    task = TaskId(1)
    engine._records[task] = record_of(b"", None, (), {}, Future(engine))
    answer = engine._answers.ask(task)
    engine.expect(task, lambda unopened: not given.append(unopened.load()))
    engine._settling.settled([(task, result)], 0)
    assert given == [5]
    assert not engine._settling._expected
    assert not answer.wait(0.001)
    assert answer._known.is_set()
    assert task not in engine._records
    assert not engine._settling._results


def test_a_handler_of_a_signal_in_the_middle_of_submit_may_wait_for_a_result(method: Any, stage: Stage) -> None:
    with Executor(2, threads=1, start_method=method) as one:
        future = one.submit(waiting, stage, 1)
        engine: Any = one._engine
        until(lambda: at_rest(one))  # the other worker has nothing to do
        with engine._lock:  # as `submit` has it
            stage.open()
            assert future.result(PATIENCE) == 1


@pytest.mark.parametrize("sent", [False, True])
def test_an_exception_while_it_is_sent_leaves_it_accepted_or_not_at_all(
    method: Any, monkeypatch: pytest.MonkeyPatch, sent: bool
) -> None:
    ask = Asked(processes=1, threads=1, start_method=method)
    with ask.pool as pool:
        assert ask(1) == 1
        until(lambda: at_rest(pool))
        take = Offer.take

        def struck(offer: Offer, *task: Any) -> bool:
            if sent:
                take(offer, *task)
            raise KeyboardInterrupt

        monkeypatch.setattr(Offer, "take", struck)
        with pytest.raises(KeyboardInterrupt):
            pool.put(2)
        monkeypatch.undo()
        assert pool.total_count == 1 + sent
        if sent:
            assert ask.answer() == 2
        assert ask(3) == 3
        assert not pool.running_tasks
        assert pool.total_count == pool.finish_count == pool.stats().submitted == 2 + sent


def test_who_submits_may_find_that_there_is_no_offer_any_more() -> None:
    """A handler of a signal has come between, and let go of the lock."""
    engine: Any = Executor(1)._engine
    assert not engine._sends(TaskId(1), b"", None)
