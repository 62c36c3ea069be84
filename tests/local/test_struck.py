"""Exceptions that come at any moment, as ``KeyboardInterrupt`` does: nothing hangs, and nothing is lost."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpms import MPMS, Executor

from .helpers import PATIENCE

STRIKES = 300

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="there an exception may come between any two steps, and not only with a call"
)


class Struck(BaseException):
    pass


@pytest.fixture(autouse=True)
def brisk() -> Iterator[None]:
    """Threads change places soon, for that is when one is struck."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def while_struck(call: Callable[[], object], done: Callable[[], object]) -> int:
    """How often an exception has come while a thread did nothing but ``call``, and then ``done``."""
    struck, begun, seen = 0, threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        nonlocal struck
        for _ in range(STRIKES):
            try:
                begun.release()
                while True:
                    call()
                    done()
            except Struck:
                struck += 1
            seen.release()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    pauses = random.Random(1)
    for _ in range(STRIKES):
        assert begun.acquire(timeout=PATIENCE)
        time.sleep(pauses.random() * 0.001)
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Struck))
        assert seen.acquire(timeout=PATIENCE), "it waits for ever"
    thread.join(PATIENCE)
    return struck


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

    assert while_struck(put_next, lambda: put.append(next_one)) == STRIKES
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

        assert while_struck(ask, lambda: None) == STRIKES
        assert set(answers) <= {5}
        assert pool.submit(same, 6).result(PATIENCE) == 6
        assert ends(pool.shutdown)


def test_who_is_struck_while_he_maps_leaves_a_pool_that_goes_on(method: Any) -> None:
    with Executor(1, threads=2, start_method=method) as pool:
        assert list(pool.map(same, range(50))) == list(range(50))
        assert while_struck(lambda: list(pool.map(same, range(50), chunksize=5)), lambda: None) == STRIKES
        assert list(pool.map(same, range(50))) == list(range(50))
        assert ends(pool.shutdown)
