"""The future of one task, without an engine: its condition is made for who waits, and is missed by nobody."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from mpms.errors import RemoteWorkerError, TaskCancelled
from mpms.faces import futures
from mpms.faces.futures import Future
from mpms.ids import TaskId
from mpms.outcome import Cancelled, Outcome, Raised, Returned


def new() -> Future[int]:
    return Future(None)


def has_condition(future: Future[int]) -> bool:
    return future._made is not None


def test_it_has_all_that_the_one_of_concurrent_futures_has() -> None:
    future = new()
    for name, value in vars(concurrent.futures.Future()).items():
        assert name == "_condition" or getattr(future, name) in (value, ())
    assert isinstance(future._condition, threading.Condition)
    assert future._waiters == future._done_callbacks == []


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


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_callbacks_are_called_once_and_in_their_order_whenever_the_condition_is_made(count: int, before: int) -> None:
    future, called = new(), list[int]()

    def call(number: int, done: concurrent.futures.Future[int]) -> None:
        called.append(number)
        concurrent.futures.wait([done])  # which makes it, at the latest

    for number in range(count):
        if number == before:
            concurrent.futures.wait([future], timeout=0)
        future.add_done_callback(partial(call, number))
    future.settle(Returned(1))
    assert called == [*range(count)]


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


def test_who_waits_when_it_was_settled_a_moment_ago_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    future, new_lock = new(), threading.Lock

    def settle_first() -> threading.Lock:
        if not future.done():
            future.settle(Returned(5))
        return new_lock()

    monkeypatch.setattr(futures.threading, "Lock", settle_first)
    assert future.result(timeout=30) == 5
    assert not future._gates[0].acquire(timeout=0)  # nobody has let it pass: it has seen that by itself


def test_a_callback_that_is_added_while_it_is_settled_is_called_once() -> None:
    future, seen = new(), list[int]()
    meanwhile = Meanwhile(lambda: future.settle(Returned(5)))

    class Callbacks(tuple[Any, ...]):
        def __add__(self, callbacks: Any) -> Any:
            meanwhile.happens()
            return super().__add__(callbacks)

    future._done_callbacks = Callbacks()
    future.add_done_callback(lambda done: None)
    future.add_done_callback(lambda done: seen.append(done.result()))
    assert meanwhile.ends()
    assert seen == [5]


def test_a_handler_of_a_signal_may_use_futures_in_between() -> None:
    future, other, seen = new(), new(), list[int]()

    class Interrupted(tuple[Any, ...]):
        def __add__(self, callbacks: Any) -> Any:
            other.add_done_callback(lambda done: seen.append(done.result()))
            other.settle(Returned(1))
            return super().__add__(callbacks)

    future._done_callbacks = Interrupted()
    future.add_done_callback(lambda done: None)
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


# Who waits, and opens what has come himself


class Waited:
    """An engine that has one task, for which somebody waits or doesn't."""

    def __init__(self) -> None:
        self.take: Callable[[Any], bool] | None = None
        self.waited = threading.Event()

    def expect(self, task: int, take: Callable[[Any], bool] | None) -> None:
        assert task == 1
        self.take = take
        if take is not None:
            self.waited.set()


class Result:
    """As it came. ``load`` is what the user's classes do."""

    def __init__(self, load: Callable[[], object]) -> None:
        self.load = load
        self.loads = 0

    def open(self) -> Outcome:
        self.loads += 1
        try:
            return Returned(self.load())
        except BaseException as error:
            return Raised(RemoteWorkerError("mpms_unpickleable_result", str(error)))


class Waiter:
    """Another thread, that asks a future for its result."""

    def __init__(self, future: Future[Any]) -> None:
        self.got: list[object] = []
        self._future = future
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.got.append(self._future.result(30))
        except BaseException as error:
            self.got.append(error)

    def ends(self) -> object:
        self._thread.join(30)
        assert len(self.got) == 1
        return self.got[0]


def waited(engine: Waited) -> Future[Any]:
    future: Future[Any] = Future(engine)  # type: ignore[arg-type]
    future._task = TaskId(1)
    return future


def test_who_waits_takes_the_result_and_needs_no_condition() -> None:
    engine = Waited()
    future = waited(engine)
    waiter = Waiter(future)
    assert engine.waited.wait(30)
    assert engine.take is not None
    assert engine.take(Result(lambda: 5))
    assert waiter.ends() == 5
    assert engine.take is None
    assert future.done()
    assert future.exception() is None
    assert not has_condition(future)


def test_every_thread_that_waits_is_let_through_and_gets_the_same() -> None:
    engine = Waited()
    future = waited(engine)
    waiters = [Waiter(future) for _ in range(5)]
    while len(future._gates) < 5:
        pass
    take = engine.take
    assert take is not None
    assert take(Result(list))
    got = [waiter.ends() for waiter in waiters]
    assert got == [[]] * 5
    assert len({id(one) for one in [*got, future.result()]}) == 1


@pytest.mark.parametrize("how", ["it is settled", "it fails", "it is cancelled", "by hand"])
def test_who_waits_is_let_through_however_it_ends(how: str) -> None:
    engine = Waited()
    future = waited(engine)
    waiter = Waiter(future)
    assert engine.waited.wait(30)
    match how:
        case "it is settled":
            future.settle(Returned(1))
        case "it fails":
            future.settle(Raised(KeyError(1)))
        case "it is cancelled":
            future.settle(Cancelled(TaskCancelled("no")))
        case _:
            future.set_result(1)
    got = waiter.ends()
    assert got == 1 or isinstance(got, KeyError | concurrent.futures.CancelledError)


def test_a_result_is_not_taken_when_a_callback_or_a_condition_is_to_hear_of_it() -> None:
    with_callback, with_condition = waited(Waited()), waited(Waited())
    with_callback.add_done_callback(lambda _: None)
    concurrent.futures.wait([with_condition], timeout=0)
    assert not with_callback._take(Result(lambda: 1))
    assert not with_condition._take(Result(lambda: 1))
    assert not with_callback.done()


def test_a_result_is_taken_once() -> None:
    future = waited(Waited())
    assert future._take(Result(lambda: 1))
    assert not future._take(Result(lambda: 2))
    assert future.result() == 1


def test_asyncio_gets_a_result_that_was_taken_and_that_nobody_has_opened() -> None:
    future = waited(Waited())
    assert future._get_snapshot() == (False, False, None, None)
    assert future._take(Result(lambda: 1))
    assert future._get_snapshot() == (True, False, 1, None)  # so it asks from Python 3.15 on
    other = waited(Waited())
    assert other._take(Result(lambda: 2))

    async def wait() -> object:
        return await asyncio.wrap_future(other)

    assert asyncio.run(wait()) == 2


def test_a_result_is_not_taken_while_somebody_has_the_lock() -> None:
    future, taken, over = waited(Waited()), threading.Event(), threading.Event()

    def hold() -> None:
        with futures._without_condition:
            taken.set()
            over.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(30)
    try:
        assert not future._take(Result(lambda: 1))
    finally:
        over.set()
        holder.join()


def test_who_has_given_up_waiting_is_forgotten() -> None:
    engine = Waited()
    future = waited(engine)
    for _ in range(3):
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(timeout=0.001)
    assert engine.take is None
    assert not future._gates


def test_what_can_not_be_unpickled_is_an_error_and_stays_one() -> None:
    def load() -> object:
        raise ZeroDivisionError("mine")

    future = waited(Waited())
    assert future._take(Result(load))
    for _ in range(2):
        with pytest.raises(RemoteWorkerError, match="mpms_unpickleable_result"):
            future.result()
    assert isinstance(future.exception(), RemoteWorkerError)


def test_what_a_handler_of_a_signal_raises_while_a_result_is_unpickled_is_not_the_results() -> None:
    class Alarm(Exception):
        pass

    loads = list[int]()

    def load() -> object:
        loads.append(1)
        if len(loads) == 1:
            raise Alarm  # as a handler of SIGALRM in between
        return 7

    future = waited(Waited())
    assert future._take(Result(load))
    with pytest.raises(Alarm):
        future.result()
    assert future.result() == 7
    assert len(loads) == 2


def test_a_callback_that_comes_after_an_unopened_result_sees_it() -> None:
    future, seen = waited(Waited()), list[object]()
    assert future._take(Result(lambda: 3))
    future.add_done_callback(lambda done: seen.append(done.result()))
    assert seen == [3]
    assert future in concurrent.futures.wait([future]).done


def test_an_unopened_result_is_shown_as_what_it_is() -> None:
    future = waited(Waited())
    assert future._take(Result(lambda: 3))
    assert "finished returned int" in repr(future)
