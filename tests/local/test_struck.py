"""Exceptions that come at any moment, as ``KeyboardInterrupt`` does: nothing hangs, and nothing is lost."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mpms import MPMS, Executor

from ..striking import while_struck
from .helpers import PATIENCE

STRIKES = 300
PAUSE = 0.001

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="there an exception may come between any two steps, and not only with a call"
)


def ends(wait: Callable[[], object]) -> bool:
    """Whether the wait does."""
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


def same(number: int) -> int:
    return number


def test_who_is_struck_in_put_leaves_a_pool_that_goes_on(method: Any) -> None:
    results, put, next_one = Counter[int](), list[int](), 0
    pool = MPMS(same, lambda meta, result: results.update([result]), processes=1, threads=2, start_method=method)
    pool.start()

    def put_next() -> None:
        nonlocal next_one
        next_one += 1
        pool.put(next_one)
        put.append(next_one)

    while_struck(STRIKES, put_next, pause=PAUSE)
    pool.put(0)
    pool.close()
    assert ends(pool.join)
    assert not set(put) - set(results), "lost"
    assert results[0] == 1
    assert max(results.values()) == 1
    assert pool.total_count == pool.finish_count == sum(results.values())
    assert not pool.running_tasks, "half accepted"


def test_who_is_struck_while_he_waits_for_a_future_leaves_a_pool_that_goes_on(method: Any) -> None:
    with Executor(1, threads=2, start_method=method) as pool:
        answers = [pool.submit(same, 5).result()]

        def ask() -> None:
            answers.append(pool.submit(same, 5).result())

        while_struck(STRIKES, ask, pause=PAUSE)
        assert set(answers) <= {5}
        assert pool.submit(same, 6).result(PATIENCE) == 6
        assert ends(pool.shutdown)


def test_who_is_struck_while_he_maps_leaves_a_pool_that_goes_on(method: Any) -> None:
    with Executor(1, threads=2, start_method=method) as pool:
        assert list(pool.map(same, range(50))) == list(range(50))
        while_struck(STRIKES, lambda: list(pool.map(same, range(50), chunksize=5)), pause=PAUSE)
        assert list(pool.map(same, range(50))) == list(range(50))
        assert ends(pool.shutdown)
