"""Signals that others than the parent get: workers, their fork server, and the programs that tasks run."""

from __future__ import annotations

import os
import signal

from mpms import MPMS, WorkerCrashed

from .helpers import at_full_strength, fork_server, meet, meeting, results


def test_ctrl_c_means_nothing_to_workers_and_their_fork_server(any_method: str) -> None:
    with meeting() as place, MPMS(meet, processes=2, threads=1, start_method=any_method) as pool:
        before = at_full_strength(pool)
        pool.put(place.address, 0)
        pool.put(place.address, 1)
        guests = place.arrivals(2)
        server = fork_server(pool)
        for pid in (*before, server):
            os.kill(pid, signal.SIGINT)
        for guest in guests:
            guest.release()
        pool.put(place.address, 2)
        place.arrive().release()
        pool.close()
        assert sorted(result for _, result in pool.iter_results()) == [0, 1, 2]
        assert pool.stats().starts == 2


def test_sigterm_to_a_worker_costs_what_it_ran_and_says_so(any_method: str) -> None:
    with meeting() as place, MPMS(meet, processes=2, threads=1, start_method=any_method) as pool:
        pool.put(place.address, 0)
        pool.put(place.address, 1)
        for word in range(2, 8):
            pool.put(place.address, word)
        victim, other = place.arrivals(2)
        os.kill(victim.pid, signal.SIGTERM)
        other.release()
        for _ in range(6):
            place.arrive().release()
        pool.close()
        got = [result for _, result in pool.iter_results()]
    errors = [each for each in got if isinstance(each, WorkerCrashed)]
    assert sorted(each for each in got if not isinstance(each, WorkerCrashed)) == [
        word for word in range(8) if word != victim.word
    ]
    assert [error.exitcode for error in errors] == [-signal.SIGTERM]
    assert "SIGTERM" in str(errors[0])


def ask_for_a_signal(number: int) -> int:
    signal.raise_signal(number)  # to this thread, which isn't the one that answers it
    return number


def test_a_task_that_sends_sigint_to_its_own_process_goes_on(method: str) -> None:
    with MPMS(ask_for_a_signal, processes=1, threads=2, start_method=method) as pool:
        for _ in range(3):
            pool.put(int(signal.SIGINT))
        pool.close()
        assert [result for _, result in pool.iter_results()] == [signal.SIGINT] * 3
        assert pool.stats().starts == 1


def test_programs_that_tasks_run_answer_ctrl_c_as_always(method: str) -> None:
    """SIGINT is not ignored in a worker, or they would inherit that."""
    with MPMS(os.system, processes=1, threads=1, start_method=method) as pool:
        pool.put("kill -INT $$")
        pool.close()
        assert [os.WTERMSIG(status) for status in results(pool).values()] == [signal.SIGINT]
