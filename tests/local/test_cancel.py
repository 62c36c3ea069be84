"""What is cancelled with real workers: before it is sent, after it was sent, and when nobody answers."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpms import TaskCancelled
from mpms.config import Hook, PoolConfig
from mpms.errors import PoolBroken
from mpms.ids import TaskId, TaskOptions
from mpms.local.engine import LocalEngine
from mpms.outcome import Broken, Cancelled, Outcome, Returned

from ..contract.conftest import Recorder, Slip
from .helpers import PATIENCE, Meeting, Stopwatch, kill, meet, meeting, note, noted, stop, until

Open = Callable[..., tuple[LocalEngine, Recorder]]


@pytest.fixture
def open_engine(method: Any) -> Iterator[Open]:
    """Makes engines with one worker of one thread, if nothing else is asked for; they are stopped after the test."""
    engines: list[LocalEngine] = []

    def new(**options: Any) -> tuple[LocalEngine, Recorder]:
        sink = Recorder()
        config = PoolConfig(**{"processes": 1, "threads": 1, "start_method": method, "name": "cancel"} | options)
        engine = LocalEngine(None, config, sink)
        engine.start()
        engines.append(engine)
        return engine, sink

    yield new
    for engine in engines:
        engine.stop(0.0)
        assert engine.wait_stopped(PATIENCE)


def finish(engine: LocalEngine) -> None:
    engine.close()
    assert engine.wait_stopped(PATIENCE)


def cancelled(outcome: Outcome) -> bool:
    return isinstance(outcome, Cancelled) and isinstance(outcome.error, TaskCancelled) and not outcome.error.started


def send_behind(engine: LocalEngine, place: Meeting, log: Path, count: int = 3) -> list[TaskId]:
    """A task that waits at ``place``, and ``count`` that note their number: all of them are with the worker."""

    def all_are_sent() -> list[TaskId] | None:
        # Fast tasks first, so that the worker is given some in advance; on a busy machine it may not seem to be fast.
        slips = [Slip() for _ in range(200)]
        for slip in slips:
            engine.submit((), {}, function=int, ticket=slip)
        for slip in slips:
            slip.outcome()
        ids = [engine.submit((place.address, "holds"), {}, function=meet)]
        ids += [engine.submit((str(log), n), {}, function=note) for n in range(count)]
        guest = place.arrive()
        if engine.stats().queued == 0:
            return ids
        guest.release()
        until(lambda: not engine.pending())
        log.unlink()
        return None

    sent: list[TaskId] = until(all_are_sent, every=0.0)
    return sent


# Sent, and not started


def test_a_task_that_was_sent_and_has_not_started_is_cancelled_and_never_starts(
    open_engine: Open, tmp_path: Path
) -> None:
    engine, sink = open_engine()
    log = tmp_path / "log"
    with meeting() as place:
        held, *behind = send_behind(engine, place, log)
        assert engine.cancel(behind[1], PATIENCE) is True
        assert engine.cancel(held, PATIENCE) is False
        place.close()
    finish(engine)
    outcomes = sink.outcomes()
    assert cancelled(outcomes[behind[1]])
    assert outcomes[held] == Returned("holds")
    assert noted(log) == ["0", "2"]
    assert engine.unfinished() == []


def test_all_are_cancelled_that_were_sent_and_have_not_started(open_engine: Open, tmp_path: Path) -> None:
    engine, sink = open_engine()
    log = tmp_path / "log"
    with meeting() as place:
        held, *behind = send_behind(engine, place, log)
        engine.cancel_all()
        until(lambda: len(engine.pending()) == 1)
        place.close()
    finish(engine)
    assert sink.outcomes()[held] == Returned("holds")
    assert all(cancelled(sink.outcomes()[task]) for task in behind)
    assert noted(log) == []


def test_what_a_dead_worker_had_not_started_is_cancelled_and_not_sent_again(open_engine: Open, tmp_path: Path) -> None:
    engine, sink = open_engine()
    log = tmp_path / "log"
    with meeting() as place:
        _, *behind = send_behind(engine, place, log)
        [pid] = [info.pid for info in engine.workers() if info.pid is not None]
        stop(pid)  # so that it can't answer
        assert engine.cancel(behind[0]) is False
        kill(pid)
        until(lambda: not engine.pending())
    finish(engine)
    assert cancelled(sink.outcomes()[behind[0]])
    assert noted(log) == ["1", "2"]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_cancelled_at_random_either_runs_or_is_cancelled(
    open_engine: Open, tmp_path: Path, seed: int
) -> None:
    engine, sink = open_engine(processes=2, threads=2)
    chance, log = random.Random(seed), str(tmp_path / "log")
    answers: dict[TaskId, bool] = {}
    for number in range(1, 1_500):
        task = engine.submit((log, number), {}, function=note)
        assert task == number
        if chance.random() < 0.3:
            victim = TaskId(max(1, number - int(chance.expovariate(0.1))))
            answers[victim] = engine.cancel(victim, chance.choice([0.0, 0.0, 0.0, PATIENCE])) or answers.get(
                victim, False
            )
    finish(engine)
    ran = [int(word) for word in noted(log)]
    outcomes = sink.outcomes()
    assert len(ran) == len(set(ran))
    assert sorted(ran) == [task for task in sorted(outcomes) if outcomes[task] == Returned(None)]
    assert all(cancelled(outcomes[task]) for task in set(outcomes) - set(ran))
    assert all(cancelled(outcomes[task]) for task, was_cancelled in answers.items() if was_cancelled)
    assert set(outcomes) - set(ran) <= set(answers)
    assert ran
    assert len(ran) < 1_499


# Many


@pytest.mark.parametrize(("count", "options"), [(10_000, None), (1_000, TaskOptions(priority=1))])
def test_thousands_of_tasks_are_cancelled_one_by_one_without_waiting_for_each(
    open_engine: Open, count: int, options: TaskOptions | None
) -> None:
    engine, sink = open_engine()
    with meeting() as place:
        held = engine.submit((place.address, "holds"), {}, function=meet)
        place.arrive()
        ids = [engine.submit((n,), {}, options, function=abs) for n in range(count)]
        with Stopwatch() as watch:
            for task in ids:
                engine.cancel(task)
            until(lambda: len(engine.pending()) == 1)
        place.close()
    finish(engine)
    assert sink.outcomes()[held] == Returned("holds")
    assert sum(map(cancelled, sink.outcomes().values())) == count
    assert watch.seconds < 5.0


# Nobody answers


def test_a_stopped_worker_is_not_waited_for_longer_than_was_asked_for(open_engine: Open, tmp_path: Path) -> None:
    engine, sink = open_engine()
    log = tmp_path / "log"
    with meeting() as place:
        held, *behind = send_behind(engine, place, log)
        [pid] = [info.pid for info in engine.workers() if info.pid is not None]
        stop(pid)
        with Stopwatch() as watch:
            assert engine.cancel(held, 0.2) is False
            assert engine.cancel(behind[0], 0.2) is False
        assert 0.4 <= watch.seconds < 5.0
        os.kill(pid, signal.SIGCONT)
        until(lambda: len(engine.pending()) == len(behind))  # it answers, though nobody waits for that any more
        place.close()
    finish(engine)
    assert sink.outcomes()[held] == Returned("holds")
    assert cancelled(sink.outcomes()[behind[0]])
    assert noted(log) == ["1", "2"]


def test_who_waits_for_an_answer_has_it_when_the_pool_is_stopped(open_engine: Open) -> None:
    engine, _ = open_engine()
    answers: list[bool] = []
    with meeting() as place:
        held = engine.submit((place.address, "holds"), {}, function=meet)
        stop(place.arrive().pid)
        waiter = threading.Thread(target=lambda: answers.append(engine.cancel(held, 2 * PATIENCE)))
        waiter.start()
        until(lambda: any("CancelRequested" in line for line in engine.story()))
        engine.stop(0.0)
        waiter.join(PATIENCE)
    assert answers == [False]


# Why workers can't start, when to find that out takes long


class Slow(Exception):
    """To load it in the process of the test is to wait at a place."""

    def __init__(self, pid: int, address: str) -> None:
        super().__init__("no licence")
        self.pid, self.address = pid, address

    def __reduce__(self) -> tuple[Any, ...]:
        return load_slowly, (self.pid, self.address)


def load_slowly(pid: int, address: str) -> Slow:
    if os.getpid() == pid:
        meet(address, "loads")
    return Slow(pid, address)


def fail_once(pid: int, address: str, path: str) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    raise Slow(pid, address)


def fail(pid: int, address: str) -> None:
    raise Slow(pid, address)


def test_tasks_are_run_while_the_error_of_an_initializer_is_being_loaded(open_engine: Open, tmp_path: Path) -> None:
    with meeting() as place:
        hook = Hook(fail_once, (os.getpid(), place.address, str(tmp_path / "failed")))
        engine, sink = open_engine(processes=2, process_initializer=hook)
        guest = place.arrive()
        assert (guest.word, guest.pid) == ("loads", os.getpid())
        for n in range(50):
            engine.submit((n,), {}, function=abs)
        held = engine.submit((place.address, "holds"), {}, function=meet)
        assert place.arrive().word == "holds"
        assert engine.cancel(held, PATIENCE) is False  # somebody answers
        until(lambda: len(sink.delivered) == 50)
        place.close()
    finish(engine)
    assert len(sink.outcomes()) == 51


def test_a_pool_breaks_and_closes_while_the_reason_is_being_loaded(open_engine: Open) -> None:
    refusals: list[BaseException] = []
    with meeting() as place:
        hook = Hook(fail, (os.getpid(), place.address))
        engine, sink = open_engine(process_initializer=hook, max_start_failures=1, max_pending=1)
        slip = Slip()
        engine.submit((1,), {}, function=abs, ticket=slip, wait=False)

        def submit_others() -> None:
            try:
                while True:  # it waits for room, or is refused
                    engine.submit((2,), {}, function=abs)
            except PoolBroken as error:
                refusals.append(error)

        submitter = threading.Thread(target=submit_others)
        submitter.start()
        place.arrive()
        until(lambda: not any(info.phase != "killed" for info in engine.workers()))
        until(lambda: any("Stopped" in line for line in engine.story()))
        with Stopwatch() as watch:
            assert engine.cancel(TaskId(1), 0.0) is False
            engine.cancel_all()
            engine.close()
            assert engine.wait_queued(PATIENCE)
        assert watch.seconds < 5.0
        assert engine.wait_stopped(0.0) is False
        assert not slip.outcomes
        place.close()
        submitter.join(PATIENCE)
        assert engine.wait_stopped(PATIENCE)
    outcome = slip.outcome()
    assert isinstance(outcome, Broken)
    assert "no licence" in str(outcome.error)
    assert len(refusals) == 1
    assert sink.ends == 1
