"""What is tried again, how often and when; and that the last error knows of those before it."""

from __future__ import annotations

import os
import pickle
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mpms import MPMS, TaskTimeout, WorkerCrashed
from mpms.core import policy
from mpms.core.limits import Limits

from .helpers import HAS_GIL, PATIENCE, die, hold_the_gil, meet, meeting, note, noted, promised, results


class Flaky(Exception):
    """Of a server that is busy, say."""


def fail_in_turn(word: int, log: str, *ways: str) -> str:
    """Each time in the next of the ways, and then no more."""
    note(log, f"{word} {time.monotonic()}")
    at = sum(line.startswith(f"{word} ") for line in noted(log)) - 1
    way = ways[at] if at < len(ways) else ""
    if way == "flaky":
        raise Flaky(f"attempt {at + 1}")
    if way == "value":
        raise ValueError(f"attempt {at + 1}")
    if way == "hang":
        hold_the_gil()
    if way:
        die(way)
    return f"attempt {at + 1}"


def starts(log: str, word: int) -> list[float]:
    return [float(line.split()[1]) for line in noted(log) if line.startswith(f"{word} ")]


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


def is_flaky(error: BaseException) -> bool:
    return isinstance(error, Flaky)


@pytest.mark.parametrize("retry_on", [(Flaky,), is_flaky, lambda error: isinstance(error, Flaky)])
def test_errors_that_are_named_or_that_a_function_says_yes_to_are_retried(
    any_method: str, log: str, retry_on: Any
) -> None:
    with MPMS(fail_in_turn, processes=1, threads=2, start_method=any_method, retries=2, retry_on=retry_on) as pool:
        pool.put(1, log, "flaky", "flaky")
        pool.put(2, log, "flaky", "flaky", "flaky")
        pool.put(3, log, "value")
        pool.put(4, log, "flaky", "value")
        pool.close()
        got = results(pool)
        stats = pool.stats()
    assert got[1] == "attempt 3"
    assert (type(got[2]), str(got[2])) == (Flaky, "attempt 3")
    assert [(type(each), str(each)) for each in got[2].attempts] == [(Flaky, "attempt 1"), (Flaky, "attempt 2")]
    assert all("in fail_in_turn" in str(each.__cause__) for each in (*got[2].attempts, got[2]))
    assert (type(got[3]), str(got[3])) == (ValueError, "attempt 1")
    assert not hasattr(got[3], "attempts")
    assert (type(got[4]), str(got[4])) == (ValueError, "attempt 2")
    assert [type(each) for each in got[4].attempts] == [Flaky]
    assert [len(starts(log, word)) for word in (1, 2, 3, 4)] == [3, 3, 1, 2]
    assert (stats.retried, stats.done, stats.failed, stats.starts) == (5, 1, 3, 1)


def test_what_is_not_named_is_not_retried_crashes_included(method: str, log: str) -> None:
    with MPMS(fail_in_turn, processes=1, threads=1, start_method=method, retries=3, retry_on=(Flaky,)) as pool:
        pool.put(1, log, "exit")
        pool.put(2, log, "flaky")
        pool.close()
        got = results(pool)
    assert type(got[1]) is WorkerCrashed
    assert got[1].attempts == ()
    assert got[2] == "attempt 2"
    assert len(starts(log, 1)) == 1


def test_timeouts_may_be_retried_and_crashes_not(method: str, log: str) -> None:
    with MPMS(
        fail_in_turn,
        processes=1,
        threads=1,
        start_method=method,
        retries=1,
        retry_on=(TaskTimeout,),
        task_timeout=2.0,  # time enough for what does not hang
        worker_graceful_die_timeout=0.1,
    ) as pool:
        pool.put(1, log, "hang")
        pool.put_with((2, log, "exit"), timeout=PATIENCE)
        pool.close()
        got = results(pool)
    assert got[1] == "attempt 2"
    assert type(got[2]) is WorkerCrashed


def test_a_class_above_covers_those_below(method: str, log: str) -> None:
    """``TaskTimeout`` is a ``TimeoutError``, and everything is an ``Exception``."""
    with MPMS(
        fail_in_turn,
        processes=1,
        threads=1,
        start_method=method,
        retries=9,
        retry_on=(Exception,),
        task_timeout=2.0,  # time enough for what does not hang
        worker_graceful_die_timeout=0.1,
    ) as pool:
        pool.put(1, log, "flaky", "exit", "hang", "value", "SIGKILL")
        pool.close()
        assert results(pool) == {1: "attempt 6"}


def test_the_last_error_has_all_the_earlier_ones_of_whatever_kind(
    method: str, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "DUMP_SECONDS", 2.0)  # a busy machine may take longer to write the stacks
    with MPMS(
        fail_in_turn,
        processes=1,
        threads=1,
        start_method=method,
        retries=4,
        retry_on=(WorkerCrashed, TaskTimeout, Flaky),
        task_timeout=2.0,  # time enough for what does not hang
        worker_graceful_die_timeout=0.1,
    ) as pool:
        pool.put(1, log, "exit", "flaky", "hang", "SIGSEGV", "SIGKILL")
        pool.close()
        error = results(pool)[1]
    kinds = [WorkerCrashed, Flaky, TaskTimeout, WorkerCrashed]
    assert [type(each) for each in error.attempts] == kinds
    assert (type(error), error.signal) == (WorkerCrashed, "SIGKILL")
    assert error.attempts[0].exit_call.endswith("in die")
    assert ("in hold_the_gil" in error.attempts[2].stack) is HAS_GIL
    assert error.attempts[3].signal == "SIGSEGV"
    assert "It was attempt 5." in str(error)
    assert "attempt" not in str(error.attempts[0])
    assert "It was attempt 4." in str(error.attempts[3])
    assert [type(each) for each in pickle.loads(pickle.dumps(error)).attempts] == kinds


class Closed(Exception):
    """Takes no attributes beside its own, and says so in its own way."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "attempts":
            raise TypeError(name)
        super().__setattr__(name, value)


def raise_closed(word: int) -> None:
    raise Closed(word)


def test_an_error_that_takes_no_attributes_arrives_without_them(method: str) -> None:
    with MPMS(raise_closed, processes=1, threads=1, start_method=method, retries=1, retry_on=(Closed,)) as pool:
        for word in range(2):
            pool.put(word)
        pool.close()
        got = results(pool)
    assert [type(got[word]) for word in range(2)] == [Closed, Closed]
    assert not hasattr(got[0], "attempts")


def test_a_predicate_that_fails_is_a_no(method: str, log: str, caplog: pytest.LogCaptureFixture) -> None:
    with MPMS(
        fail_in_turn,
        processes=1,
        threads=1,
        start_method=method,
        retries=2,
        retry_on=lambda error: 1 // 0,
        forward_logs=True,  # a fork has the handlers of pytest, which keep what it logs to themselves
    ) as pool:
        pool.put(1, log, "flaky")
        pool.put(2, log, "")
        pool.close()
        got = results(pool)
    assert (type(got[1]), got[2]) == (Flaky, "attempt 1")
    assert len(starts(log, 1)) == 1
    assert "retry_on failed for Flaky; it is not retried" in caplog.text


def test_a_task_may_have_retries_of_its_own_more_or_fewer(method: str, log: str) -> None:
    with MPMS(fail_in_turn, processes=1, threads=1, start_method=method, retries=1) as pool:
        pool.put_with((1, log, "exit", "exit", "exit"), retries=3)
        pool.put_with((2, log, "exit"), retries=0)
        pool.put(3, log, "exit", "exit")
        pool.close()
        got = results(pool)
    assert got[1] == "attempt 4"
    assert type(got[2]) is type(got[3]) is WorkerCrashed
    assert [len(got[word].attempts) for word in (2, 3)] == [0, 1]


def test_a_task_has_retries_of_its_own_in_a_pool_without(method: str, log: str) -> None:
    with MPMS(fail_in_turn, processes=1, threads=1, start_method=method) as pool:
        pool.put_with((1, log, "exit"), retries=1)
        pool.put(2, log, "exit")
        pool.close()
        got = results(pool)
    assert (got[1], type(got[2])) == ("attempt 2", WorkerCrashed)


def test_each_retry_waits_twice_as_long_jittered_by_half(method: str, log: str) -> None:
    backoff, retries, count = 0.2, 3, 6
    with MPMS(
        fail_in_turn,
        processes=1,
        threads=count,
        start_method=method,
        retries=retries,
        retry_backoff=backoff,
        retry_on=(Flaky,),
    ) as pool:
        for word in range(count):
            pool.put(word, log, *["flaky"] * retries)
        pool.close()
        assert set(results(pool).values()) == {f"attempt {retries + 1}"}
    limits = Limits(processes=1, threads=count, retry_backoff=backoff)
    waits = [[later - earlier for earlier, later in pairwise(starts(log, word))] for word in range(count)]
    for number in range(retries):
        full = backoff * 2**number
        # Tasks count from 1, as attempts do.
        dues = [policy.backoff(limits, word + 1, number + 1) for word in range(count)]
        assert all(0.5 * full <= due < full for due in dues)
        late = [wait[number] - due for wait, due in zip(waits, dues, strict=True)]
        assert 0 <= min(late) < promised(0.15), (number, late)
    assert any(wait < backoff * 2**number for each in waits for number, wait in enumerate(each))  # jitter shortens it


def meet_and_perhaps_leave(word: object, address: str, leaves: bool = False) -> object:
    meet(address, word)
    if leaves:
        os._exit(1)
    return word


def test_a_sibling_that_did_nothing_has_all_its_attempts_left(method: str) -> None:
    """It is lost twice with others, then it crashes itself, once more than it may: the two don't count."""
    with (
        meeting() as place,
        MPMS(meet_and_perhaps_leave, processes=1, threads=2, start_method=method, retries=1) as pool,
    ):
        pool.put_with(("sibling", place.address, True), retries=1)
        place.arrive()
        for word in range(2):
            pool.put_with((word, place.address, True), retries=0)
            place.arrive().release()
            sibling = place.arrive()
        sibling.release()  # its own first attempt
        place.arrive().release()
        pool.close()
        got = results(pool)
    assert [got[word].blamed for word in range(2)] == [True, True]
    error = got["sibling"]
    assert [each.blamed for each in (*error.attempts, error)] == [True, True]
