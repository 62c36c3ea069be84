"""The parent has no descriptors left for a while: the pool waits until there are some."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mpms import MPMS, WorkerCrashed

from .helpers import at_full_strength, fork_server, kill, meet, meeting, results, until


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Those that are open stay open; those that are closed aren't there for anything else."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def failed_starts(pool: MPMS) -> int:
    return sum("WorkerUnborn" in line for line in pool.story())


def test_a_worker_is_replaced_when_there_are_descriptors_again(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with (
        meeting() as place,
        MPMS(meet_here, processes=2, threads=1, start_method=method, max_start_failures=1) as pool,
    ):
        for word in range(2):
            pool.put(word, place.address)
        lost, other = place.arrivals(2)
        with no_descriptors():
            kill(lost.pid)
            until(lambda: failed_starts(pool) >= 2)
            pool.put(2, place.address)
            other.release()
        place.arrive().release()
        assert len(at_full_strength(pool)) == 2
        pool.close()
        got = results(pool)
    assert isinstance(got.pop(lost.word), WorkerCrashed)
    assert got == {other.word: other.word, 2: 2}
    assert "can't be started now: [Errno 24]" in caplog.text


def test_a_fork_server_is_replaced_when_there_are_descriptors_again(method: str) -> None:
    with MPMS(abs, processes=2, threads=1, start_method=method, max_start_failures=1000) as pool:
        before = at_full_strength(pool)
        server = fork_server(pool)
        with no_descriptors():
            kill(server)
            until(lambda: failed_starts(pool) >= 3)
            for word in range(-9, 0):
                pool.put(word)
        assert at_full_strength(pool).isdisjoint(before)
        pool.close()
        assert results(pool) == {word: -word for word in range(-9, 0)}


def meet_here(word: int, address: str) -> object:
    return meet(address, word)
