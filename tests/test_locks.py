"""No exception from outside leaves a lock locked, whenever it comes."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpms.locks import Condition, Lock, taken

from .striking import PATIENCE, Struck, while_struck

SOURCE = Path(__file__).parents[1] / "src" / "mpms"
STRIKES = 400


def leaks(use: Callable[[], None], is_locked: Callable[[], bool], free: Callable[[], None]) -> int:
    """How often it was left locked by exceptions that came while a thread did nothing but take it and let go of it."""
    found = 0

    def look() -> None:
        nonlocal found
        if is_locked():
            found += 1
            free()

    while_struck(STRIKES, use, then=look)
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


def test_who_is_struck_right_after_a_wait_has_let_go_of_the_lock_has_it_again() -> None:
    """Or else the end of the ``with`` would raise in place of what he was struck by."""
    condition: Any = Condition()
    let_go = condition._release_save

    def struck() -> None:
        let_go()
        raise Struck

    condition._release_save = struck
    with pytest.raises(Struck), condition:
        condition.wait(PATIENCE)
    assert not condition._is_owned()


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


def test_no_other_lock_is_taken_where_an_exception_may_come_from_outside() -> None:
    """By threads that the user's code has, also in handlers of signals."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="threading"), attr="Condition" | "RLock")):
                    found.append(f"{file.relative_to(SOURCE)}: {ast.unparse(node)}")
                case ast.Call(func=ast.Attribute(attr="acquire"), args=[ast.Constant(False)]):
                    found.append(f"{file.relative_to(SOURCE)}: {ast.unparse(node)}")
                case ast.Call(func=ast.Attribute(attr="acquire"), keywords=[ast.keyword(arg="blocking")]):
                    found.append(f"{file.relative_to(SOURCE)}: {ast.unparse(node)}")
    # Those are taken by the pool's own threads only; or by a worker's that is in no task, or keeps exceptions out.
    assert found == [
        "faces/futures.py: _without_condition.acquire(blocking=False)",
        "local/reports.py: threading.Condition(threading.Lock())",
        "worker/outbox.py: self._writing.acquire(False)",
    ]
