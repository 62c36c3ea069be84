"""Who did it: of eight tasks that run in a worker when it crashes the right one is blamed, with all that is known."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from mpms import MPMS, WorkerCrashed

from .helpers import HAS_GIL, meet, meeting, raise_signal, results

ROUNDS = 200
THREADS = 8

_all_are_here = threading.Barrier(THREADS)  # each worker is a fork of a process that has never used it


def crash(how: str) -> NoReturn:
    """As bugs in native code do it; what can't be made that easily on any machine is a signal to this thread, with the
    GIL held: see `test_who_crashes_without_the_gil_is_blamed_or_nobody_is`."""
    if how == "SIGSEGV":
        ctypes.string_at(0)
    elif how == "SIGSEGV without the GIL":
        ctypes.CDLL(None).strlen(ctypes.c_void_p(8))
    elif how == "SIGABRT":
        os.abort()
    elif how == "exit":
        os._exit(3)
    elif how == "SIGBUS":
        with tempfile.TemporaryFile() as file:
            file.truncate(mmap.PAGESIZE)
            memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
            file.truncate(0)
            memory[0]
    else:
        raise_signal(getattr(signal, how))
    raise AssertionError("not reached")


def among_others(word: int, guilty: bool, how: str) -> None:
    _all_are_here.wait()
    if guilty:
        crash(how)
    if word % THREADS == 0:
        while True:  # in Python code
            sum(range(100))
    if word % 2:
        threading.Event().wait()  # for a lock
    here, _there = socket.socketpair()
    here.recv(1)  # in the kernel


def blame(rounds: int, ways: Sequence[str], method: str) -> tuple[dict[int, WorkerCrashed], set[int]]:
    """The errors of so many rounds of eight, and who was guilty."""
    rng = random.Random(5)
    guilty = {number * THREADS + rng.randrange(THREADS) for number in range(rounds)}
    options: dict[str, Any] = {"processes": 1, "threads": THREADS, "task_queue_maxsize": rounds * THREADS}
    with MPMS(among_others, start_method=method, **options) as pool:
        for word in range(rounds * THREADS):
            pool.put(word, word in guilty, ways[word % len(ways)])
        pool.close()
        got = results(pool)
        assert pool.stats().starts == rounds
    # The eight of a round were in the same process, and no other was in it.
    processes = [{got[number * THREADS + at].pid for at in range(THREADS)} for number in range(rounds)]
    assert all(len(each) == 1 for each in processes)
    assert len(set.union(*processes)) == rounds
    return got, guilty


def test_of_eight_tasks_in_flight_the_one_that_crashes_is_blamed_two_hundred_times(method: str) -> None:
    got, guilty = blame(ROUNDS, ["SIGSEGV", "SIGABRT", "SIGSEGV", "SIGFPE", "exit"], method)
    assert {word: error.blamed for word, error in got.items()} == {word: word in guilty for word in got}
    assert all("in crash" in got[word].stack for word in guilty)
    assert {got[word].signal for word in guilty} == {"SIGSEGV", "SIGABRT", "SIGFPE", None}


def test_who_crashes_without_the_gil_is_blamed_or_nobody_is(method: str) -> None:
    """faulthandler then reads the frames of threads that run on, and may crash at that itself, before it has come to
    the one that did it: about once in 500 times here. Nobody is blamed in its place."""
    got, guilty = blame(60, ["SIGSEGV without the GIL"], method)
    wrong = [word for word, error in got.items() if error.blamed not in (None, word in guilty)]
    assert wrong == []
    assert sum(got[word].blamed is True for word in guilty) >= 50


def test_with_retries_the_innocent_pay_nothing_for_many_crashes_beside_them(method: str) -> None:
    """Seven times another task ends its worker under it, and it has one retry: it gets its result."""
    with (
        meeting() as place,
        MPMS(meet_or_crash, processes=1, threads=2, start_method=method, retries=1) as pool,
    ):
        pool.put("innocent", place.address)
        innocent = place.arrive()
        for number in range(7):
            pool.put(number, place.address, "SIGSEGV")
            beside = place.arrive()
            assert (beside.word, beside.pid) == (number, innocent.pid)
            beside.release()
            again = {guest.word: guest for guest in place.arrivals(2)}
            innocent, alone = again["innocent"], again[number]
            assert alone.pid != innocent.pid
            alone.release()
        innocent.release()
        pool.close()
        got = results(pool)
    assert got.pop("innocent") == "innocent"
    assert [[each.blamed for each in (*got[number].attempts, got[number])] for number in range(7)] == [[True] * 2] * 7


def meet_or_crash(word: object, address: str, how: str = "", note: str = "") -> object:
    meet(address, word)
    if how:
        crash(how)
    return word


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGSEGV without the GIL", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"])
def test_a_crash_in_native_code_says_all_that_is_known(any_method: str, how: str) -> None:
    name = how.split()[0]
    with meeting() as place, MPMS(meet_or_crash, processes=1, threads=2, start_method=any_method) as pool:
        for word in range(3):
            pool.put(word, place.address)
        for _ in range(3):
            place.arrive().release()
        got = {meta.args[0]: result for meta, result in (next(pool.iter_results()) for _ in range(3))}
        assert got == {word: word for word in range(3)}
        pool.put("sibling", place.address, note="x" * 1000)
        pool.put("guilty", place.address, how, note="n")
        guests = {guest.word: guest for guest in place.arrivals(2)}
        before = time.monotonic()
        guests["guilty"].release()
        pool.close()
        errors = results(pool)
    error, sibling = errors["guilty"], errors["sibling"]
    assert type(error) is type(sibling) is WorkerCrashed
    assert (error.blamed, sibling.blamed) == (True, False)
    assert error.exitcode == sibling.exitcode == -getattr(signal, name)
    assert error.signal == sibling.signal == name
    assert error.pid == sibling.pid == guests["guilty"].pid
    assert error.worker.startswith("mpms-tests.local.test_blame.meet_or_crash-p")
    assert {error.task, sibling.task} == {4, 5}
    assert error.arguments == f"('guilty', {place.address!r}, {how!r}, note='n')"
    assert len(sibling.arguments) < 300
    assert (error.exit_call, error.oom_killed, error.attempts) == ("", False, ())
    assert error.done == sibling.done == 3
    assert 0 < error.age < 60 + time.monotonic() - before
    assert 5e6 < error.peak_memory < 1e9
    assert "in meet_or_crash" in error.stack
    assert "in crash" in error.stack
    assert ("in meet_or_crash" in sibling.stack) is HAS_GIL
    paragraph, _, stack = str(error).partition("\n")
    assert stack == f"Stack of the task, most recent call last:\n{error.stack}"
    for words in (
        f"{error.worker} (pid {error.pid}) was killed by {name} while it ran task {error.task} ('guilty', ",
        "This task did it.",
        "s old, had done 3 tasks, had held ",
        "MB at the most.",
        "It crashed in native code",
    ):
        assert words in paragraph
    assert "This task did not do it." in str(sibling)
    assert "With retries=1 it would have been run again." in str(sibling)
    for each in (error, sibling):
        copy = pickle.loads(pickle.dumps(each))
        assert (type(copy), vars(copy), str(copy), copy.signal) == (WorkerCrashed, vars(each), str(each), name)


def leave_deep_down(word: int) -> None:
    def helper() -> None:
        os._exit(7)

    helper()


def test_an_exit_says_which_line_called_it(any_method: str) -> None:
    with MPMS(leave_deep_down, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(1)
        pool.close()
        error = results(pool)[1]
    line = leave_deep_down.__code__.co_firstlineno + 2
    assert error.exit_call == f"{__file__}:{line} in helper"
    assert (error.exitcode, error.signal, error.blamed) == (7, None, True)
    assert f"was ended by os._exit(7) at {__file__}:{line} in helper while it ran task 1 (1)." in str(error)
    assert error.stack.splitlines()[-1] == f'  File "{__file__}", line {line} in helper'
    assert pickle.loads(pickle.dumps(error)).exit_call == error.exit_call


def crash_in_a_thread_of_its_own(word: int, address: str) -> None:
    thread = threading.Thread(target=crash, args=("SIGSEGV",))
    meet(address, word)
    if word == 0:
        thread.start()
    threading.Event().wait()


def test_a_crash_in_a_thread_that_a_task_has_started_blames_nobody_who_may_be_innocent(method: str) -> None:
    with (
        meeting() as place,
        MPMS(crash_in_a_thread_of_its_own, processes=1, threads=2, start_method=method) as pool,
    ):
        for word in range(2):
            pool.put(word, place.address)
        for guest in sorted(place.arrivals(2), key=lambda each: -each.word):
            guest.release()
        pool.close()
        got = results(pool)
    assert [got[word].blamed for word in range(2)] == [None, None]
    assert all("Which of the tasks in it did it is not known." in str(error) for error in got.values())


def killed_from_outside(word: int, address: str) -> None:
    meet(address, word)


def test_a_kill_from_outside_says_who_did_not_do_it(method: str) -> None:
    with meeting() as place, MPMS(killed_from_outside, processes=1, threads=1, start_method=method) as pool:
        pool.put(1, place.address)
        os.kill(place.arrive().pid, signal.SIGKILL)
        pool.close()
        error = results(pool)[1]
    assert (error.signal, error.stack, error.oom_killed) == ("SIGKILL", "", False)
    assert "The pool did not send it: somebody did, or the kernel" in str(error)


class Unspeakable:
    def __repr__(self) -> str:
        raise SystemExit


def crash_with(word: int, argument: object) -> None:
    crash("SIGSEGV")


def test_arguments_that_have_no_repr_cost_no_error(method: str) -> None:
    with MPMS(crash_with, processes=1, threads=1, start_method=method) as pool:
        pool.put(1, Unspeakable())
        pool.close()
        error = results(pool)[1]
    assert (error.arguments, error.blamed) == ("(<no repr: SystemExit>)", True)
