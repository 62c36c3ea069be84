"""What is promised in seconds, measured while no other test wants the processors. Elsewhere it is `promised`."""

from __future__ import annotations

import os
import signal

import pytest

from mpms import MPMS

from .helpers import (
    Stopwatch,
    announce_and_hold_the_gil,
    at_full_strength,
    meet,
    meeting,
    pids,
    program,
    stop,
    until,
)
from .test_orphans import POOL

pytestmark = pytest.mark.alone


def test_nobody_is_left_a_second_after_the_parent_was_killed(any_method: str) -> None:
    """Not even who holds the GIL, what it has forked, and the program that it runs."""
    tasks = ["forks,runs a program,holds the GIL", "waits"]
    apart = POOL.replace("threads=2", "threads=1")  # else the one who waits may have no GIL to say that it is here
    with meeting() as place, program(apart, any_method, place.address, *tasks) as script:
        script.says("started")
        place.arrivals(4)
        os.kill(script.pid, signal.SIGKILL)
        assert script.left_after(1.0) == []


def test_a_shutdown_returns_within_half_a_second_after_its_time(any_method: str) -> None:
    with (
        meeting() as place,
        MPMS(announce_and_hold_the_gil, processes=2, threads=1, start_method=any_method) as pool,
    ):
        for _ in range(5):
            pool.put(place.address)
        place.arrivals(2)
        with Stopwatch() as watch:
            assert pool.graceful_shutdown(0.2) is False
        assert watch.seconds < 0.2 + 0.5
        pool.join()  # it returns in time though somebody may not be seen to have ended
        assert len(pool.unfinished()) == 5


def test_a_shutdown_with_a_stopped_worker_returns_as_soon(any_method: str) -> None:
    with meeting() as place, MPMS(meet, processes=2, threads=1, start_method=any_method) as pool:
        for word in range(5):
            pool.put(place.address, word)
        stop(place.arrivals(2)[0].pid)
        with Stopwatch() as watch:
            assert pool.graceful_shutdown(0.2) is False
        assert watch.seconds < 0.2 + 0.5


def test_a_killed_worker_is_replaced_before_any_regular_check_could_see_it(any_method: str) -> None:
    """A fork takes 5 ms, and a new interpreter with the modules of this test 500 ms."""
    with MPMS(meet, processes=3, threads=1, start_method=any_method) as pool:
        victim = min(at_full_strength(pool))
        with Stopwatch() as watch:
            os.kill(victim, signal.SIGKILL)
            until(lambda: victim not in pids(pool) and at_full_strength(pool), every=0.002)
        assert watch.seconds < (5 if any_method == "spawn" else 0.5)
