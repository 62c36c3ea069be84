"""No exception from outside leaves a lock locked, whenever it comes."""

from __future__ import annotations

import ast
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpms.locks import Condition, Lock, taken

SOURCE = Path(__file__).parents[1] / "src" / "mpms"
PATIENCE = 60.0
STRIKES = 400


class Struck(Exception):
    pass


@pytest.fixture(autouse=True)
def brisk() -> Iterator[None]:
    """Threads change places soon, for that is when one is struck."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def leaks(use: Callable[[], None], is_locked: Callable[[], bool], free: Callable[[], None]) -> int:
    """How often it was left locked by exceptions that came while a thread did nothing but take it and let go of it."""
    found = 0
    using, seen = threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        nonlocal found
        for _ in range(STRIKES):
            try:
                using.release()
                while True:
                    use()
            except Struck:
                pass
            if is_locked():
                found += 1
                free()
            seen.release()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(STRIKES):
        assert using.acquire(timeout=PATIENCE)
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Struck))
        assert seen.acquire(timeout=PATIENCE)
    thread.join(PATIENCE)
    return found


@pytest.mark.parametrize("make", [Lock, Condition])
def test_who_is_struck_lets_go_of_it(make: Callable[[], threading.Condition]) -> None:
    lock = make()

    def use() -> None:
        with lock:
            pass

    assert leaks(use, lock._is_owned, lock.release) == 0  # type: ignore[attr-defined]


def test_who_is_struck_lets_go_of_what_was_taken_without_waiting() -> None:
    lock = threading.Lock()

    def use() -> None:
        for _ in taken(lock):
            try:
                continue
            finally:
                lock.release()

    assert leaks(use, lock.locked, lock.release) == 0


def test_those_of_threading_are_left_locked() -> None:
    """Or else the tests above can't fail."""
    condition = threading.Condition()

    def use() -> None:
        with condition:
            pass

    assert leaks(use, condition._is_owned, condition.release) > 0  # type: ignore[attr-defined]


def test_what_is_taken_is_not_taken_again() -> None:
    lock = threading.Lock()
    assert [lock.locked() for _ in taken(lock)] == [True]
    assert list(taken(lock)) == []


def test_a_lock_and_a_condition_are_reentrant_and_keep_others_out() -> None:
    lock = Lock()
    condition = Condition(lock)
    others: list[bool] = []
    with condition, lock, condition:
        other = threading.Thread(target=lambda: others.append(lock.acquire(blocking=False)))
        other.start()
        other.join()
    assert others == [False]
    other = threading.Thread(target=lambda: others.append(lock.acquire(blocking=False)))
    other.start()
    other.join()
    assert others == [False, True]


def test_who_waits_for_a_condition_is_woken() -> None:
    condition, told, heard = Condition(), list[int](), list[bool]()

    def wait() -> None:
        with condition:
            heard.append(condition.wait_for(lambda: told, PATIENCE) == [1])

    thread = threading.Thread(target=wait)
    thread.start()
    with condition:
        told.append(1)
        condition.notify_all()
    thread.join(PATIENCE)
    assert heard == [True]


def test_no_condition_of_threading_is_made_where_code_of_the_user_may_be_interrupted() -> None:
    """Nor a lock that is reentrant: those are for threads that the user's code has, and handlers of its signals."""
    found = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="threading"), attr="Condition" | "RLock")):
                    found.append(f"{file.relative_to(SOURCE)}: {ast.unparse(node)}")
    # The second is taken by the pool's own threads only.
    assert found == ["local/reports.py: threading.Condition(threading.Lock())"]
