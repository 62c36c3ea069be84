"""Workers that die: whatever kills them, whenever, every task has one outcome, and nobody runs one twice unasked."""

from __future__ import annotations

import os
import pickle
import random
import signal
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpms import MPMS, PoolBroken, WorkerCrashed

from .helpers import (
    Stopwatch,
    at_full_strength,
    die,
    kill,
    meet,
    meeting,
    note,
    noted,
    pids,
    promised,
    results,
    still_alive,
    until,
)

WAYS = ("SIGKILL", "SIGSEGV", "SIGABRT", "exit")
EXIT_CODES = {"SIGKILL": -9, "SIGSEGV": -11, "SIGABRT": -6, "exit": 3}


def die_or_square(number: int, how: str = "") -> int:
    if how:
        die(how)
    return number * number


def meet_and_perhaps_die(word: int, address: str, how: str = "") -> object:
    if address:
        meet(address, word)
    if how:
        die(how)
    return word


def note_and_meet(word: int, log: str, address: str) -> object:
    note(log, word)
    return meet(address, word) if word < 4 else word


def noisily(word: int, log: str, dies: bool) -> int:
    note(log, word)
    if dies:
        die("exit")
    return word


def bytes_of(number: int, size: int) -> bytes:
    return bytes([number]) * size


@pytest.mark.parametrize("how", WAYS)
def test_a_task_that_ends_its_process_is_the_only_one_lost(any_method: str, how: str) -> None:
    with (
        meeting() as place,
        MPMS(meet_and_perhaps_die, processes=2, threads=1, start_method=any_method) as pool,
    ):
        for number in range(20):
            pool.put(number, "")
        until(lambda: pool.finish_count == 20)
        for number in range(20, 22):
            pool.put(number, place.address, how)
        # The others are put when both workers are in their last task: a result that is just being sent would be at
        # risk, too.
        guests = place.arrivals(2)
        for number in range(22, 40):
            pool.put(number, "")
        for guest in guests:
            guest.release()
        pool.close()
        got = results(pool)
    lost = {number: got.pop(number) for number in (20, 21)}
    assert got == {number: number for number in range(40) if number not in (20, 21)}
    for error in lost.values():
        assert isinstance(error, WorkerCrashed)
        assert error.exitcode == EXIT_CODES[how]
        assert error.attempts == ()
        assert (how if how != "exit" else "os._exit(3)") in str(error)


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGABRT", "exit"])
def test_who_did_it_is_blamed_with_its_stack_and_its_siblings_are_not(any_method: str, how: str) -> None:
    with (
        meeting() as place,
        MPMS(meet_and_perhaps_die, processes=1, threads=3, start_method=any_method) as pool,
    ):
        for word, way in enumerate(["", how, ""]):
            pool.put(word, place.address, way)
        guests = {guest.word: guest for guest in place.arrivals(3)}
        guests[1].release()
        pool.close()
        got = results(pool)
    assert [got[word].blamed for word in range(3)] == [False, True, False]
    assert "meet_and_perhaps_die" in got[1].stack
    assert "in die" in got[1].stack
    assert "in meet\n" not in got[1].stack
    assert got[1].stack.index("meet_and_perhaps_die") < got[1].stack.index("in die")  # most recent call last
    assert "This task did it" in str(got[1])
    assert got[1].stack in str(got[1])
    assert "This task did not do it" in str(got[0])
    assert {error.exitcode for error in got.values()} == {EXIT_CODES[how]}
    assert {error.pid for error in got.values()} == {guests[0].pid}


def test_a_kill_from_outside_blames_nobody(method: str) -> None:
    with meeting() as place, MPMS(meet, processes=1, threads=2, start_method=method) as pool:
        pool.put(place.address, 0)
        pool.put(place.address, 1)
        os.kill(place.arrivals(2)[0].pid, signal.SIGKILL)
        pool.close()
        errors = [error for _, error in pool.iter_results()]
    assert [(type(error), error.blamed, error.exitcode) for error in errors] == [(WorkerCrashed, None, -9)] * 2
    assert "not known" in str(errors[0])


def abort_by_a_signal_to_the_process(word: int, log: str) -> None:
    # It comes when the thread waits: of those that run on, faulthandler reads frames while they change, and by that 1
    # of 300 such processes ended by SIGSEGV.
    note(log, word)
    subprocess.run(["sh", "-c", f"sleep 0.1; kill -ABRT {os.getpid()}"], check=True)
    threading.Event().wait()


def test_a_signal_that_the_main_thread_gets_blames_nobody_until_the_task_is_alone(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(abort_by_a_signal_to_the_process, processes=1, threads=2, start_method=method, retries=2) as pool:
        pool.put(1, log)
        pool.close()
        error = results(pool)[1]
    assert (type(error), error.exitcode, len(error.attempts)) == (WorkerCrashed, -6, 2)
    # Not by what faulthandler wrote, but from its second attempt on it was alone.
    assert [each.blamed for each in (*error.attempts, error)] == [None, True, True]
    assert noted(log) == ["1"] * 3


def test_a_crash_pickles_with_all_that_it_says(method: str) -> None:
    with MPMS(die_or_square, processes=1, threads=1, start_method=method) as pool:
        pool.put(7, "SIGSEGV")
        pool.close()
        error = results(pool)[7]
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is WorkerCrashed
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__
    assert copy.blamed is True
    assert copy.worker.startswith("mpms-")
    assert "7" in str(copy)  # the arguments of the task are named


def test_what_had_not_started_when_its_worker_died_runs_elsewhere_exactly_once(any_method: str, tmp_path: Path) -> None:
    """The log of starts proves it: who was waiting in the worker is there once, and so is who was running."""
    log = str(tmp_path / "starts")
    with meeting() as place, MPMS(note_and_meet, processes=2, threads=2, start_method=any_method) as pool:
        for word in range(40):
            pool.put(word, log, place.address)
        guests = place.arrivals(4)
        killed = guests[0].pid
        os.kill(killed, signal.SIGKILL)
        for guest in guests:
            if guest.pid != killed:
                guest.release()
        pool.close()
        got = results(pool)
    lost = {word for word, result in got.items() if isinstance(result, WorkerCrashed)}
    assert lost == {guest.word for guest in guests if guest.pid == killed}
    assert {word: result for word, result in got.items() if word not in lost} == {
        word: word for word in range(40) if word not in lost
    }
    assert Counter(noted(log)) == Counter(str(word) for word in range(40))


def test_tasks_are_prefetched_and_those_that_were_prefetched_survive(method: str, tmp_path: Path) -> None:
    """Quick tasks are sent in advance; thirty of them end their worker with others waiting in it.

    Lost with it is what ran beside it, and results that waited for company for less than a millisecond.
    """
    log = str(tmp_path / "starts")
    with MPMS(noisily, processes=2, threads=2, start_method=method) as pool:
        for word in range(3000):
            pool.put(word, log, word % 100 == 99)
        pool.close()
        got = results(pool)
    assert len(got) == 3000
    crashed = {word for word, result in got.items() if isinstance(result, WorkerCrashed)}
    assert crashed >= set(range(99, 3000, 100))
    blamed = Counter(got[word].pid for word in crashed if got[word].blamed)
    assert set(blamed) == {got[word].pid for word in crashed}
    assert set(blamed.values()) == {1}
    assert all(word % 100 == 99 for word in crashed if got[word].blamed)
    starts = Counter(noted(log))
    assert set(starts.values()) == {1}
    assert {str(word) for word in range(3000) if word not in crashed} <= set(starts)


def test_random_kills_lose_nothing_and_run_nothing_twice(any_method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    rng = random.Random(20)
    count = 2000 if any_method == "spawn" else 6000  # the next spawned worker takes ten times as long to come up
    with MPMS(noisily, processes=2, threads=4, start_method=any_method) as pool:
        workers = at_full_strength(pool)
        over = threading.Event()

        def kill_now_and_then() -> None:
            while not over.wait(rng.uniform(0.01, 0.06)):
                for pid in list(pids(pool))[:1]:
                    kill(pid)

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        for word in range(count):
            pool.put(word, log, False)
        pool.close()
        try:
            got = results(pool)
        finally:
            over.set()
            killer.join()
        stats = pool.stats()
    crashed = {word for word, result in got.items() if isinstance(result, WorkerCrashed)}
    assert {word: got[word] for word in got if word not in crashed} == {
        word: word for word in range(count) if word not in crashed
    }
    starts = Counter(noted(log))
    assert max(starts.values()) == 1
    assert {str(word) for word in range(count) if word not in crashed} <= set(starts)
    assert (stats.submitted, stats.done + stats.failed, stats.failed) == (count, count, len(crashed))
    assert workers


# Large results


class Slowly:
    """A result that tells the test that it is being pickled, and is big enough not to fit into any socket."""

    def __init__(self, address: str, size: int) -> None:
        self.address = address
        self.size = size

    def __reduce__(self) -> tuple[Any, ...]:
        meet(self.address, "pickling")
        return bytes, (bytes(self.size),)


def big_and_slow(word: int, address: str, size: int) -> object:
    return Slowly(address, size) if size else word


def write_half_and_die(word: int, size: int) -> bytes:
    if word == 0:
        _die_in_the_middle_of_a_write()
    return bytes(size)


def _die_in_the_middle_of_a_write() -> None:
    """From now on this process writes at most a megabyte of anything large, and then is killed."""
    from mpms.worker import outbox

    real = os.pwritev

    def some_of(views: list[memoryview]) -> list[memoryview]:
        return [memoryview(views[0])[:1_000_000]] if len(views) == 1 else [views[0]]

    def pwritev(fd: int, views: list[memoryview], at: int) -> int:  # into a file of memory
        real(fd, some_of(views), at)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    def send_all(sock: socket.socket, views: list[memoryview]) -> None:  # where there is none
        sock.sendmsg(some_of(views))
        os.kill(os.getpid(), signal.SIGKILL)

    os.pwritev = pwritev  # type: ignore[assignment]
    outbox._send_all = send_all


def test_a_worker_killed_half_way_through_a_large_result_loses_that_one(any_method: str) -> None:
    size = 24_000_000
    with MPMS(write_half_and_die, processes=1, threads=1, start_method=any_method) as pool:
        for word in range(3):
            pool.put(word, size)
        pool.close()
        got = results(pool)
    assert isinstance(got.pop(0), WorkerCrashed)
    assert {word: len(result) for word, result in got.items()} == {1: size, 2: size}


def test_a_worker_killed_while_it_pickles_a_result_loses_that_one(method: str) -> None:
    with meeting() as place, MPMS(big_and_slow, processes=1, threads=2, start_method=method) as pool:
        pool.put(0, place.address, 20_000_000)
        pool.put(1, place.address, 0)
        guest = place.arrive()
        until(lambda: pool.finish_count == 1)
        os.kill(guest.pid, signal.SIGKILL)
        pool.close()
        got = results(pool)
    assert isinstance(got[0], WorkerCrashed)
    assert got[1] == 1


def test_random_kills_among_large_results_tear_none(method: str) -> None:
    """Whatever arrives is whole; the rest is a crash."""
    rng = random.Random(7)
    size = 20_000_000
    with MPMS(bytes_of, processes=2, threads=2, start_method=method) as pool:
        for number in range(30):
            pool.put(number, size)
        pool.close()
        over = threading.Event()

        def kill_now_and_then() -> None:
            while not over.wait(rng.uniform(0.02, 0.1)):
                for pid in list(pids(pool))[:1]:
                    kill(pid)

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        try:
            got = {
                number: result if isinstance(result, Exception) else (len(result), result[0], result[-1])
                for number, result in results(pool).items()
            }
        finally:
            over.set()
            killer.join()
    assert len(got) == 30
    for number, result in got.items():
        assert isinstance(result, WorkerCrashed) or result == (size, number, number)


def test_results_of_hundreds_of_megabytes_arrive(any_method: str) -> None:
    size = 210_000_000
    with MPMS(bytes_of, processes=1, threads=2, start_method=any_method) as pool:
        pool.put(1, size)
        pool.put(2, 10)
        pool.close()
        got = results(pool)
    assert (len(got[1]), got[1][0], got[1][-1]) == (size, 1, 1)
    assert got[2] == bytes([2]) * 10


# Arguments that kill


class Deadly:
    """Kills whoever unpickles it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return die, (self.how,)


class DeadlyState:
    def __init__(self, how: str) -> None:
        self.how = how

    def __setstate__(self, state: dict[str, Any]) -> None:
        die(state["how"])


def ignore(word: int, argument: object = None) -> int:
    return word


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", [Deadly, DeadlyState])
def test_an_argument_that_kills_who_unpickles_it_costs_one_task(
    method: str, kind: type[Deadly | DeadlyState], how: str
) -> None:
    with MPMS(ignore, processes=2, threads=1, start_method=method) as pool:
        for word in range(20):
            pool.put(word, kind(how) if word == 0 else None)
        pool.close()
        got = results(pool)
    error = got.pop(0)
    assert isinstance(error, WorkerCrashed)
    assert error.blamed is (None if how == "SIGKILL" else True)
    assert got == {word: word for word in range(1, 20)}


# Initializers


def die_at_first(log: str, how: str, times: int) -> None:
    note(log, os.getpid())
    if len(noted(log)) <= times:
        die(how)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("where", ["process_initializer", "thread_initializer"])
def test_a_worker_that_dies_in_its_initializer_is_replaced_and_costs_no_task(
    method: str, where: str, how: str, tmp_path: Path
) -> None:
    log = str(tmp_path / "starts")
    arguments: dict[str, Any] = {where: die_at_first, where.replace("ializer", "args"): (log, how, 2)}
    with MPMS(ignore, processes=1, threads=1, start_method=method, **arguments) as pool:
        for word in range(10):
            pool.put(word)
        pool.close()
        assert results(pool) == {word: word for word in range(10)}
    assert len(noted(log)) == 3


@pytest.mark.parametrize("how", ["SIGKILL", "exit"])
def test_workers_that_always_die_in_their_initializer_break_the_pool(any_method: str, how: str) -> None:
    with Stopwatch() as watch:
        pool = MPMS(
            ignore,
            processes=2,
            threads=2,
            start_method=any_method,
            process_initializer=die,
            process_initargs=(how,),
            max_start_failures=3,
        )
        pool.put(1)
        pool.put(2)
        pool.close()
        outcomes: list[Any] = []
        with pytest.raises(PoolBroken):
            outcomes.extend(type(result) for _, result in pool.iter_results())
        with pytest.raises(PoolBroken):
            pool.join()
    assert outcomes == [PoolBroken, PoolBroken]
    assert watch.seconds < promised(10)


# Replaced at once


@pytest.mark.parametrize("when", ["busy", "idle"])
def test_a_killed_worker_is_replaced_at_once(any_method: str, when: str) -> None:
    with meeting() as place, MPMS(meet, processes=3, threads=1, start_method=any_method) as pool:
        before = at_full_strength(pool)
        if when == "busy":
            for word in range(3):
                pool.put(place.address, word)
            place.arrivals(3)
        victim = min(before)
        with Stopwatch() as watch:
            os.kill(victim, signal.SIGKILL)
            now = until(lambda: victim not in pids(pool) and at_full_strength(pool), every=0.002)
        assert len(now - before) == 1
        # A fork takes 5 ms, and a new interpreter with the modules of this test 500 ms, on a machine with nothing
        # else to do. What is ruled out is a check every few seconds.
        assert watch.seconds < promised(5 if any_method == "spawn" else 1.5)
        assert pool.stats().starts == 4
        pool.graceful_shutdown(0)


def test_all_workers_killed_at_once_are_all_replaced(any_method: str) -> None:
    with meeting() as place, MPMS(meet, processes=3, threads=2, start_method=any_method) as pool:
        for round in range(3):
            for pid in at_full_strength(pool):
                os.kill(pid, signal.SIGKILL)
            for word in range(6):
                pool.put(place.address, (round, word))
            guests = place.arrivals(6)  # at the same time: that is full strength
            assert len({guest.pid for guest in guests}) == 3
            for guest in guests:
                guest.release()
            until(lambda done=6 * (round + 1): pool.finish_count == done)  # results on their way are at risk
        pool.close()
        assert sorted(result for _, result in pool.iter_results()) == [(r, w) for r in range(3) for w in range(6)]


def test_an_idle_worker_that_was_killed_costs_no_task(any_method: str) -> None:
    with MPMS(die_or_square, processes=2, threads=2, start_method=any_method) as pool:
        for pid in at_full_strength(pool):
            os.kill(pid, signal.SIGKILL)
        for number in range(50):
            pool.put(number)
        pool.close()
        assert results(pool) == {number: number * number for number in range(50)}


def test_a_dead_worker_is_reaped_while_the_pool_goes_on(any_method: str) -> None:
    with MPMS(die_or_square, processes=2, threads=1, start_method=any_method) as pool:
        first = at_full_strength(pool)
        server = psutil.Process(min(first)).ppid()
        for number in range(10):
            pool.put(number, "SIGKILL")
        until(lambda: pool.stats().failed == 10)
        assert still_alive(sorted(first), promised(5)) == []
        at_full_strength(pool)
        assert pool.stats().zombies == 0
        statuses = {child.status() for child in psutil.Process(server).children()}
        assert psutil.STATUS_ZOMBIE not in statuses
        assert len(psutil.Process(server).children()) == 2
        pool.close()
        assert len(results(pool)) == 10


# Retries


def die_until(word: int, log: str, times: int, how: str) -> int:
    note(log, word)
    if noted(log).count(str(word)) <= times:
        die(how)
    return word


@pytest.mark.parametrize("how", WAYS)
def test_with_retries_a_task_is_run_again_as_often_as_that_and_no_more(method: str, how: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(die_until, processes=2, threads=1, start_method=method, retries=2) as pool:
        pool.put(1, log, 2, how)
        pool.put(2, log, 99, how)
        pool.put(3, log, 0, how)
        pool.close()
        got = results(pool)
        assert pool.stats().retried == 4
    assert (got[1], got[3]) == (1, 3)
    assert isinstance(got[2], WorkerCrashed)
    assert [(type(each), each.exitcode) for each in got[2].attempts] == [(WorkerCrashed, EXIT_CODES[how])] * 2
    assert "attempt 3" in str(got[2])
    assert Counter(noted(log)) == {"1": 3, "2": 3, "3": 1}


def test_retries_give_the_innocent_sibling_its_result_and_count_no_attempt(method: str) -> None:
    """Who is blamed pays: the sibling is run again for nothing, even when all retries are used up."""
    with (
        meeting() as place,
        MPMS(meet_and_perhaps_die, processes=1, threads=2, start_method=method, retries=1) as pool,
    ):
        pool.put(0, place.address)
        pool.put(1, place.address, "SIGSEGV")
        for _ in range(2):
            guests = {guest.word: guest for guest in place.arrivals(2)}
            guests[1].release()  # the second time it is alone in its worker
        guests[0].release()
        pool.close()
        got = results(pool)
        assert pool.stats().starts == 3
    assert got[0] == 0
    assert isinstance(got[1], WorkerCrashed)
    assert [each.blamed for each in (*got[1].attempts, got[1])] == [True, True]
