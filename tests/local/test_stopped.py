"""Workers that are stopped with SIGSTOP: alive, and deaf to everything but SIGKILL."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

from mpms import MPMS, TaskTimeout

from .helpers import (
    Stopwatch,
    at_full_strength,
    fork_server,
    meet,
    meeting,
    note,
    noted,
    promised,
    results,
    still_alive,
    stop,
)


def note_and_perhaps_meet(word: int, log: str, address: str = "") -> int:
    note(log, word)
    if address:
        meet(address, word)
    return word


def test_what_runs_in_a_stopped_worker_times_out_and_the_others_go_on(any_method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with (
        meeting() as place,
        MPMS(
            note_and_perhaps_meet,
            processes=2,
            threads=2,
            start_method=any_method,
            task_timeout=1.0,
            worker_graceful_die_timeout=0.5,
        ) as pool,
    ):
        at_full_strength(pool)  # the first two don't wait for the second worker while their time runs
        for word in range(4):
            pool.put(word, log, place.address)
        guests = place.arrivals(4)
        stopped = guests[0].pid
        stop(stopped)
        with Stopwatch() as watch:
            for guest in guests:
                if guest.pid != stopped:
                    guest.release()
            for word in range(4, 30):
                pool.put(word, log)
            pool.close()
            got = results(pool)
        assert still_alive([stopped], promised(1)) == []
    lost = {guest.word for guest in guests if guest.pid == stopped}
    assert len(lost) == 2
    assert all(isinstance(got[word], TaskTimeout) for word in lost)
    assert "more than 1 seconds" in str(got[min(lost)])
    assert {word: got[word] for word in range(30) if word not in lost} == {
        word: word for word in range(30) if word not in lost
    }
    assert Counter(noted(log)) == Counter(map(str, range(30)))  # also what had been sent to the stopped one
    assert watch.seconds < promised(5)


def test_tasks_sent_to_a_worker_that_is_stopped_before_it_reads_them_run_elsewhere(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(note_and_perhaps_meet, processes=2, threads=2, start_method=method, task_timeout=0.5) as pool:
        stopped = min(at_full_strength(pool))
        stop(stopped)
        with Stopwatch() as watch:
            for word in range(30):
                pool.put(word, log)
            pool.close()
            assert results(pool) == {word: word for word in range(30)}
    assert Counter(noted(log)) == Counter(map(str, range(30)))
    assert watch.seconds < promised(5)


def test_a_stopped_worker_that_goes_on_in_time_loses_nothing(method: str) -> None:
    with meeting() as place, MPMS(meet, processes=1, threads=2, start_method=method, task_timeout=60) as pool:
        pool.put(place.address, 1)
        guest = place.arrive()
        stop(guest.pid)
        pool.put(place.address, 2)
        guest.release()
        os.kill(guest.pid, signal.SIGCONT)
        other = place.arrive()
        assert other.pid == guest.pid
        other.release()
        pool.close()
        assert sorted(result for _, result in pool.iter_results()) == [1, 2]


def test_with_retries_the_tasks_of_a_stopped_worker_have_their_results(method: str) -> None:
    with (
        meeting() as place,
        MPMS(
            meet,
            processes=2,
            threads=1,
            start_method=method,
            task_timeout=0.5,
            worker_graceful_die_timeout=0,
            retries=1,
        ) as pool,
    ):
        pool.put(place.address, "again")
        guest = place.arrive()
        stop(guest.pid)
        other = place.arrive()
        assert other.pid != guest.pid
        other.release()
        pool.close()
        assert [result for _, result in pool.iter_results()] == ["again"]


def test_a_stopped_worker_does_not_delay_a_shutdown(any_method: str) -> None:
    with meeting() as place, MPMS(meet, processes=2, threads=1, start_method=any_method) as pool:
        for word in range(5):
            pool.put(place.address, word)
        guests = place.arrivals(2)
        for guest in guests:
            stop(guest.pid)
        with Stopwatch() as watch:
            assert not pool.graceful_shutdown(0.2)
        assert watch.seconds < promised(0.7)
        pool.join()
        assert len(pool.unfinished()) == 5
        assert still_alive([guest.pid for guest in guests], promised(1)) == []


def test_an_idle_stopped_worker_delays_join_no_longer_than_start_timeout(method: str) -> None:
    pool = MPMS(meet, processes=2, threads=1, start_method=method, start_timeout=1.0)
    pool.start()
    stop(min(at_full_strength(pool)))
    with Stopwatch() as watch:
        pool.join()
    assert watch.seconds < promised(4)


def test_a_stopped_fork_server_does_not_delay_a_shutdown(any_method: str) -> None:
    with meeting() as place, MPMS(meet, processes=2, threads=1, start_method=any_method) as pool:
        pool.put(place.address, 1)
        guest = place.arrive()
        stop(fork_server(pool))
        with Stopwatch() as watch:
            assert not pool.graceful_shutdown(0.2)
        assert watch.seconds < promised(0.8)
        pool.join()
        assert len(pool.unfinished()) == 1
        assert still_alive([guest.pid], promised(1)) == []
