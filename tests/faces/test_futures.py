"""The future of one task, without an engine: its condition is made for who waits, and is missed by nobody."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from mpms.errors import TaskCancelled
from mpms.faces import futures
from mpms.faces.futures import Future
from mpms.outcome import Cancelled, Raised, Returned


def new() -> Future[int]:
    return Future(None)


def has_condition(future: Future[int]) -> bool:
    return future._made is not None


def test_it_has_all_that_the_one_of_concurrent_futures_has() -> None:
    assert vars(concurrent.futures.Future()).keys() - {"_condition"} <= vars(new()).keys()


def test_who_only_has_a_callback_needs_no_condition() -> None:
    future, called = new(), list[int]()
    future.add_done_callback(lambda done: called.append(done.result()))
    assert not future.done()
    future.settle(Returned(3))
    assert called == [3]
    assert future.done()
    assert not future.cancelled()
    assert future.result() == 3
    assert future.exception() is None
    assert not has_condition(future)
    future.add_done_callback(lambda done: called.append(done.result()))
    assert called == [3, 3]


def test_a_callback_from_before_somebody_waited_is_called() -> None:
    future, called = new(), list[str]()
    future.add_done_callback(lambda _: called.append("before"))
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0)
    assert has_condition(future)
    future.add_done_callback(lambda _: called.append("after"))
    future.settle(Returned(1))
    assert called == ["before", "after"]


def test_a_callback_that_raises_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    future, called = new(), list[int]()

    def fail(_: object) -> None:
        raise ValueError("mine")

    future.add_done_callback(fail)
    future.add_done_callback(lambda done: called.append(done.result()))
    with caplog.at_level(logging.ERROR):
        future.settle(Returned(1))
    assert called == [1]
    assert "exception calling callback" in caplog.text


@pytest.mark.parametrize("waits", [False, True], ids=["nobody waits", "somebody waits"])
def test_errors_and_cancellations(waits: bool) -> None:
    failed, cancelled = new(), new()
    if waits:
        for future in (failed, cancelled):
            with pytest.raises(concurrent.futures.TimeoutError):
                future.exception(timeout=0)
    failed.settle(Raised(KeyError("k")))
    with pytest.raises(KeyError):
        failed.result()
    cancelled.settle(Cancelled(TaskCancelled("no")))
    assert cancelled.cancelled()
    assert cancelled.done()
    with pytest.raises(concurrent.futures.CancelledError):
        cancelled.result()


def test_an_error_does_not_hold_its_future(uncollected: None) -> None:
    future = new()
    future.settle(Raised(KeyError("k")))
    left = weakref.ref(future)
    with pytest.raises(KeyError):
        future.result()
    del future
    assert left() is None


def test_waiting_for_several_sees_those_without_a_condition() -> None:
    done, open_ = new(), new()
    done.settle(Returned(1))
    assert concurrent.futures.wait([done, open_], timeout=0) == ({done}, {open_})
    open_.settle(Returned(2))
    assert set(concurrent.futures.as_completed([done, open_], timeout=0)) == {done, open_}


class Meanwhile:
    """Another thread, which is given its time in the middle of what this one does."""

    def __init__(self, does: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=does, daemon=True)

    def happens(self) -> None:
        self._thread.start()
        self._thread.join(0.1)  # it comes through, or waits for a lock that this one has

    def ends(self) -> bool:
        self._thread.join(30)
        return not self._thread.is_alive()


def test_who_begins_to_wait_while_it_is_settled_waits_no_longer() -> None:
    future, seen = new(), list[int]()
    meanwhile = Meanwhile(lambda: seen.append(future.result()))

    class Late(Returned):
        @property
        def value(self) -> int:
            meanwhile.happens()
            return 5

    future.settle(object.__new__(Late))
    assert meanwhile.ends()
    assert seen == [5]


def test_a_callback_that_is_added_while_it_is_settled_is_called_once() -> None:
    future, seen = new(), list[int]()
    meanwhile = Meanwhile(lambda: future.settle(Returned(5)))

    class Callbacks(list[Any]):
        def append(self, callback: object) -> None:
            meanwhile.happens()
            super().append(callback)

    future._done_callbacks = Callbacks()
    future.add_done_callback(lambda done: seen.append(done.result()))
    assert meanwhile.ends()
    assert seen == [5]


def test_a_handler_of_a_signal_may_use_futures_in_between() -> None:
    future, other, seen = new(), new(), list[int]()

    class Interrupted(list[Any]):
        def append(self, callback: object) -> None:
            other.add_done_callback(lambda done: seen.append(done.result()))
            other.settle(Returned(1))
            super().append(callback)

    future._done_callbacks = Interrupted()
    future.add_done_callback(lambda done: seen.append(done.result()))
    future.settle(Returned(2))
    assert seen == [1, 2]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_of_the_user_has_futures_of_its_own_though_a_thread_had_the_lock() -> None:
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with futures._without_condition:
            taken.set()
            over.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(60)
    pid = os.fork()
    if not pid:
        signal.alarm(30)  # and not for ever
        future = new()
        future.settle(Returned(7))
        os._exit(future.result())
    over.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
