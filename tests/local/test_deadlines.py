"""Tasks that hang: at its deadline each has its outcome with the place where it hung, and costs nobody else a thing."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mpms import MPMS, TaskTimeout
from mpms.core import policy

from .helpers import (
    Stopwatch,
    announce,
    announce_and_hold_the_gil,
    at_full_strength,
    hold_the_gil,
    meet,
    meeting,
    note,
    noted,
    promised,
    results,
    with_gil,
)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at the stack of a task that was killed: on a busy machine it comes late."""
    monkeypatch.setattr(policy, "DUMP_SECONDS", 2.0)


def hang(word: object, address: str = "") -> None:
    if address:
        with announce(address, word):
            threading.Event().wait()
    threading.Event().wait()


def hang_or_meet(word: object, address: str = "") -> object:
    if word == "hangs":
        hang(word)
    return meet(address, word) if address else word


def hold_or_return(word: object, address: str = "") -> object:
    if word == "holds":
        if address:
            announce_and_hold_the_gil(address, word)
        hold_the_gil()
    return word


@pytest.mark.usefixtures("patient")
def test_at_its_deadline_a_task_has_its_outcome_with_the_stack_in_which_it_hung(any_method: str) -> None:
    with (
        meeting() as place,
        MPMS(
            hang, processes=1, threads=1, start_method=any_method, task_timeout=1.5, worker_graceful_die_timeout=0.1
        ) as pool,
    ):
        at_full_strength(pool)
        with Stopwatch() as watch:
            pool.put("it", address=place.address)
            guest = place.arrive()
            error = next(pool.iter_results())[1]
        assert 1.5 + policy.DUMP_SECONDS <= watch.seconds < policy.DUMP_SECONDS + promised(3.95)
    assert type(error) is TaskTimeout
    assert isinstance(error, TimeoutError)
    assert (error.timeout, error.pid, error.task, error.attempts) == (1.5, guest.pid, 1, ())
    assert error.arguments == f"('it', address={place.address!r})"
    assert error.worker.startswith("mpms-tests.local.test_deadlines.hang-p")
    assert "in hang" in error.stack
    assert error.stack.splitlines()[-1].endswith("in wait")
    paragraph, _, stack = str(error).partition("\n")
    assert paragraph == f"task 1 {error.arguments} ran in {error.worker} (pid {error.pid}) for more than 1.5 seconds."
    assert stack == f"Stack of the task, most recent call last:\n{error.stack}"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy), str(copy)) == (TaskTimeout, vars(error), str(error))


@with_gil
@pytest.mark.usefixtures("patient")
def test_c_code_that_holds_the_gil_is_shown_and_replaced_and_keeps_nobody(any_method: str) -> None:
    with (
        meeting() as place,
        MPMS(hold_or_return, processes=1, threads=2, start_method=any_method, worker_graceful_die_timeout=0.2) as pool,
    ):
        pool.put_with(("holds", place.address), timeout=1.5)
        place.arrive()  # from now on nothing begins beside it
        for word in range(20):
            pool.put(word)
        pool.close()
        got = results(pool)
        assert pool.stats().starts == 2
    error = got.pop("holds")
    assert type(error) is TaskTimeout
    assert error.stack.splitlines()[-1].endswith("in announce_and_hold_the_gil")
    assert got == {word: word for word in range(20)}  # also the one that was sent to its worker


def test_the_siblings_of_a_task_that_hangs_finish_within_the_grace_time(method: str) -> None:
    with (
        meeting() as place,
        MPMS(
            hang_or_meet,
            processes=1,
            threads=3,
            start_method=method,
            task_timeout=None,
            worker_graceful_die_timeout=60,  # a replacement comes up meanwhile
        ) as pool,
    ):
        for word in range(2):
            pool.put(word, place.address)
        siblings = place.arrivals(2)
        pool.put_with(("hangs",), timeout=0.2)
        meta, error = next(pool.iter_results())
        assert meta.args == ("hangs",)
        assert type(error) is TaskTimeout
        # It is out of the pool's strength already, while they are still in it.
        pool.put("next", place.address)
        elsewhere = place.arrive()
        assert elsewhere.pid != siblings[0].pid == siblings[1].pid
        for guest in (*siblings, elsewhere):
            guest.release()
        pool.close()
        assert results(pool) == {0: 0, 1: 1, "next": "next"}


def test_siblings_that_take_longer_than_the_grace_time_are_told_that_they_did_nothing(method: str) -> None:
    with (
        meeting() as place,
        MPMS(hang_or_meet, processes=1, threads=2, start_method=method, worker_graceful_die_timeout=0.2) as pool,
    ):
        pool.put("sibling", place.address)
        place.arrive()
        pool.put_with(("hangs",), timeout=0.2)
        pool.close()
        got = results(pool)
    assert type(got["hangs"]) is TaskTimeout
    assert got["sibling"].blamed is False
    assert "was killed by the pool (timeout) while it ran task 1" in str(got["sibling"])


def test_a_task_may_have_a_deadline_of_its_own_longer_or_shorter(method: str) -> None:
    with (
        meeting() as place,
        MPMS(
            hang_or_meet,
            processes=2,
            threads=1,
            start_method=method,
            task_timeout=0.3,
            worker_graceful_die_timeout=0.1,
        ) as pool,
    ):
        pool.put_with(("long", place.address), timeout=600)
        guest = place.arrive()
        pool.put_with(("hangs",), timeout=0.1)
        pool.put("pool's", place.address)
        errors = {}
        for meta, result in pool.iter_results():
            errors[meta.args[0]] = result
            if len(errors) == 2:
                break
        assert {word: error.timeout for word, error in errors.items()} == {"hangs": 0.1, "pool's": 0.3}
        guest.release()
        pool.close()
        assert results(pool) == {"long": "long"}


def test_the_time_in_the_queue_does_not_count(method: str) -> None:
    with meeting() as place, MPMS(hang_or_meet, processes=1, threads=1, start_method=method, task_timeout=1.0) as pool:
        pool.put_with((0, place.address), timeout=60)
        first = place.arrive()
        for word in range(1, 30):
            pool.put(word)
        threading.Event().wait(1.3)  # longer than they may run
        first.release()
        pool.close()
        assert results(pool) == {word: word for word in range(30)}


# Raised in the task


def compute_for_ever() -> None:
    # A function of its own: Python 3.13 may raise at the jump back of a loop, which its own `try` doesn't cover.
    while True:
        sum(range(50))


def spin(word: object, log: str = "", how: str = "") -> object:
    """Run Python code for ever."""
    try:
        if how:
            compute_for_ever()
    except TimeoutError as error:
        if how == "swallows":
            return spin(word, log, "for ever")
        note(log, f"{word} cleaned up after {type(error).__mro__[1].__name__}")
        if how == "returns":
            return "late"
        raise
    return os.getpid()


def test_python_code_gets_the_timeout_raised_and_its_process_lives_on(any_method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with MPMS(spin, processes=1, threads=2, start_method=any_method, task_timeout=0.2, timeout_raises=True) as pool:
        pool.put("first")
        pid = next(pool.iter_results())[1]
        pool.put("spins", log, "spins")
        pool.put("returns", log, "returns")
        got = {meta.args[0]: result for meta, result in (next(pool.iter_results()) for _ in range(2))}
        for word in range(20):
            pool.put(word)
        pool.close()
        assert set(results(pool).values()) == {pid}
        assert pool.stats().starts == 1
        assert pool.stats().crashes == {}
    error = got["spins"]
    assert type(error) is TaskTimeout
    assert error.timeout == 0.2
    assert error.pid == pid
    assert "in spin" in error.stack
    assert got["returns"] == "late"
    assert sorted(noted(log)) == [f"{word} cleaned up after TaskTimeout" for word in ("returns", "spins")]


@pytest.mark.usefixtures("patient")
def test_who_swallows_the_timeout_and_goes_on_ends_the_hard_way(method: str, tmp_path: Path) -> None:
    with MPMS(
        spin,
        processes=1,
        threads=1,
        start_method=method,
        task_timeout=0.2,
        timeout_raises=True,
        worker_graceful_die_timeout=0.1,
    ) as pool:
        at_full_strength(pool)
        with Stopwatch() as watch:
            pool.put("it", str(tmp_path / "log"), "swallows")
            pool.put_with(("next",), timeout=60)
            pool.close()
            got = results(pool)
        assert pool.stats().starts == 2
    assert type(got["it"]) is TaskTimeout
    assert "in spin" in got["it"].stack
    assert isinstance(got["next"], int)
    soft = 0.2 + policy.SOFT_SECONDS
    assert soft + policy.DUMP_SECONDS <= watch.seconds < policy.DUMP_SECONDS + promised(5.75)


@with_gil
@pytest.mark.usefixtures("patient")
def test_c_code_does_not_hear_the_soft_way_and_ends_the_hard_way(method: str) -> None:
    with MPMS(
        hold_or_return,
        processes=1,
        threads=1,
        start_method=method,
        task_timeout=0.2,
        timeout_raises=True,
        worker_graceful_die_timeout=0.1,
    ) as pool:
        pool.put("holds")
        pool.put_with((1,), timeout=60)
        pool.close()
        got = results(pool)
    assert type(got["holds"]) is TaskTimeout
    assert got["holds"].stack.splitlines()[-1].endswith("in hold_the_gil")
    assert got[1] == 1


def end_at(word: int, seconds: float) -> tuple[int, int]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return word, threading.get_ident()


def test_tasks_that_end_right_at_their_deadline_leave_no_exception_to_others(method: str) -> None:
    """Hundreds of them, ending around the moment at which they are struck: each has its own outcome, and no thread and
    no process is lost."""
    rng = random.Random(3)
    limit, most = 0.02, 0.002
    with MPMS(end_at, processes=1, threads=2, start_method=method, task_timeout=limit, timeout_raises=True) as pool:
        for word in range(0, 600, 2):
            pool.put(word, limit + rng.uniform(-most, most))
            pool.put_with((word + 1, 0.0), timeout=60)  # beside and after them, what must never be struck
        pool.close()
        got: dict[int, Any] = results(pool)
        # That it gets no processor for two of these short limits in a row is no crash, and harms no task.
        assert set(pool.stats().crashes) <= {"unresponsive"}
        starts = pool.stats().starts
    assert len(got) == 600
    assert all(got[word][0] == word for word in range(1, 600, 2))
    kinds = [type(got[word]) for word in range(0, 600, 2)]
    assert set(kinds) == {tuple, TaskTimeout}  # else it was no race
    assert kinds.count(TaskTimeout) > 10
    assert kinds.count(tuple) > 10
    assert all(got[word][0] == word for word in range(0, 600, 2) if type(got[word]) is tuple)
    if starts == 1:
        assert len({got[word][1] for word in range(500, 600) if type(got[word]) is tuple}) == 2  # to the end


def stop_or_return(word: object) -> object:
    if word == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()  # this thread may run on for a moment
    return word


def test_a_stopped_worker_times_out_without_a_stack(method: str) -> None:
    with MPMS(stop_or_return, processes=1, threads=1, start_method=method, worker_graceful_die_timeout=0.2) as pool:
        pool.put_with(("stops",), timeout=0.4)
        pool.put("next")
        pool.close()
        got = results(pool)
    error = got["stops"]
    assert (type(error), error.stack) == (TaskTimeout, "")
    assert "\n" not in str(error)
    assert got["next"] == "next"


@pytest.mark.parametrize("raises", [False, True])
def test_an_idle_pool_with_a_deadline_uses_no_processor(method: str, raises: bool) -> None:
    with MPMS(
        hold_or_return, processes=1, threads=2, start_method=method, task_timeout=0.6, timeout_raises=raises
    ) as pool:
        pool.put(1)
        assert next(pool.iter_results())[1] == 1
        before = len(pool.story())
        threading.Event().wait(2)
        assert len(pool.story()) - before <= 2
