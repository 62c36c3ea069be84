"""A task that kills its worker without a trace is found among hundreds of innocent ones, who all get their results."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from mpms import MPMS, WorkerCrashed

from .helpers import meet, meeting, note, noted, results, until

POISON = 217
TASKS = 501


def perhaps_kill(word: int, log: str) -> int:
    if word == POISON:
        note(log, os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()
    return word


@pytest.mark.parametrize(("processes", "threads"), [(2, 4), (1, 8), (1, 1), (4, 2)])
@pytest.mark.parametrize("retries", [1, 2])
def test_one_poisonous_task_among_five_hundred_costs_one_error_and_as_many_crashes_as_it_has_attempts(
    method: str, processes: int, threads: int, retries: int, tmp_path: Path
) -> None:
    log = str(tmp_path / "crashes")
    with MPMS(perhaps_kill, processes=processes, threads=threads, start_method=method, retries=retries) as pool:
        for word in range(TASKS):
            pool.put(word, log)
        pool.close()
        got = results(pool)
        crashes = dict(pool.stats().crashes)
    error = got.pop(POISON)
    assert got == {word: word for word in range(TASKS) if word != POISON}
    assert type(error) is WorkerCrashed
    assert (error.blamed, error.signal, error.task) == (True, "SIGKILL", POISON + 1)
    assert len(error.attempts) == retries
    assert [each.pid for each in (*error.attempts, error)] == list(map(int, noted(log)))
    assert len({each.pid for each in (*error.attempts, error)}) == retries + 1
    assert crashes == {"SIGKILL": retries + 1}
    assert "This task did it." in str(error)
    assert f"It was attempt {retries + 1}." in str(error)
    assert "This task did it." not in str(error.attempts[0]) or threads == 1


def test_several_poisonous_tasks_in_the_same_worker_are_found_one_by_one(method: str, tmp_path: Path) -> None:
    with (
        meeting() as place,
        MPMS(meet_then_perhaps_die, processes=1, threads=8, start_method=method, retries=1) as pool,
    ):
        for word in range(8):
            pool.put(word, place.address, word in (2, 5))
        guests = place.arrivals(8)
        assert len({guest.pid for guest in guests}) == 1
        next(guest for guest in guests if guest.word == 2).release()
        alone = [place.arrive()]
        for _ in range(7):  # one at a time: the next one comes when this one has gone
            with pytest.raises(TimeoutError):
                place.arrive(0.03)
            alone[-1].release()
            alone.append(place.arrive())
        alone[-1].release()
        pool.close()
        got = results(pool)
    assert {word for word, result in got.items() if isinstance(result, WorkerCrashed)} == {2, 5}
    assert all(error.blamed for error in (got[2], got[5]))
    assert sorted(str(guest.word) for guest in alone) == [str(word) for word in range(8)]


def meet_then_perhaps_die(word: int, address: str, dies: bool) -> int:
    meet(address, word)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()
    return word


def meet_or_go_on(word: object, address: str) -> object:
    return meet(address, word) if word == "suspect" else word


def test_the_rest_of_the_pool_goes_on_while_a_suspect_is_in_quarantine(method: str) -> None:
    with meeting() as place, MPMS(meet_or_go_on, processes=2, threads=2, start_method=method, retries=1) as pool:
        pool.put("suspect", place.address)
        first = place.arrive()
        os.kill(first.pid, signal.SIGKILL)
        again = place.arrive()
        assert again.pid != first.pid
        for word in range(300):
            pool.put(word, place.address)
        until(lambda: pool.finish_count == 300)
        # Two workers for the others, and one in which the suspect is alone.
        workers = {info.pid: info for info in pool.workers()}
        assert len(workers) == 3
        assert workers[again.pid].done == 0
        again.release()
        until(lambda: pool.finish_count == 301)
        # An innocent one; the worker for suspects is not kept.
        until(lambda: again.pid not in {info.pid for info in pool.workers()})
        pool.close()
        assert results(pool)["suspect"] == "suspect"


def test_without_retries_nobody_is_run_again_to_find_out(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "crashes")
    with MPMS(perhaps_kill, processes=1, threads=4, start_method=method) as pool:
        for word in range(TASKS):
            pool.put(word, log)
        pool.close()
        got = results(pool)
        assert pool.stats().retried == 0
    assert type(got[POISON]) is WorkerCrashed
    assert got[POISON].blamed is None
    assert len(noted(log)) == 1
    crashed = [word for word, result in got.items() if isinstance(result, WorkerCrashed)]
    assert len(got) == TASKS
    assert POISON in crashed
