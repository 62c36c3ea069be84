"""What crosses between processes arrives whole, or as an error that says why not."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import multiprocessing
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpms import MPMS, RemoteWorkerError

from .helpers import at_full_strength, note, noted

HERE = os.getpid()
"""The process that imported this module: with spawn and forkserver another number over there."""


def outcomes(worker: Callable[..., Any], *tasks: tuple[Any, ...], **options: Any) -> list[Any]:
    """What becomes of them, in their order."""
    with MPMS(worker, processes=1, threads=1, **options) as pool:
        for task in tasks:
            pool.put(*task)
        pool.close()
        got = {meta.taskid: result for meta, result in pool.iter_results()}
    assert len(got) == len(tasks)
    return [got[task] for task in sorted(got)]


def echo(value: Any) -> Any:
    return value


# What can't be pickled


class Refuses:
    """Its ``__reduce__`` raises ``error``."""

    def __init__(self, error: type[BaseException] = ValueError) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("I stay where I am")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


UNPICKLABLE: dict[str, Callable[[], Any]] = {
    "a lock": threading.Lock,
    "a generator": lambda: (number for number in ()),
    "a socket": socket.socket,
    "who refuses": Refuses,
    "what is too deep": lambda: nested(100_000),
}


def test_an_argument_that_cannot_be_pickled_raises_in_put_and_is_not_accepted(method: str) -> None:
    with MPMS(echo, processes=1, threads=1, start_method=method) as pool:
        for make in UNPICKLABLE.values():
            thing = make()
            for args, kwargs in (([thing], {}), ([], {"value": [thing]})):
                with pytest.raises(Exception, match=r"pickle|I stay|recursion") as caught:
                    pool.put(*args, **kwargs)
                assert not isinstance(caught.value, RemoteWorkerError)
                assert (pool.total_count, len(pool), dict(pool.running_tasks)) == (0, 0, {})
            if isinstance(thing, socket.socket):
                thing.close()
        pool.put(1)
        pool.close()
        assert [result for _, result in pool.iter_results()] == [1]
    assert (pool.total_count, pool.finish_count) == (1, 1)


def make_unpicklable(what: str) -> Any:
    return UNPICKLABLE[what]()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_result_that_cannot_be_pickled_arrives_as_an_error_that_names_it(any_method: str) -> None:
    results = outcomes(make_unpicklable, *((what,) for what in UNPICKLABLE), start_method=any_method)
    for error, word in zip(results, ("lock", "generator", "socket", "Refuses", "list"), strict=True):
        assert isinstance(error, RemoteWorkerError)
        assert error.kind == "mpms_unpickleable_result"
        assert str(error).startswith("mpms_unpickleable_result: type=")
        assert word in error.detail.split(", error=")[0]
    assert "I stay where I am" in str(results[3])


def test_a_result_whose_pickling_exits_is_an_outcome_and_no_exit(method: str) -> None:
    errors = outcomes(Refuses, (SystemExit,), (KeyboardInterrupt,), (MemoryError,), start_method=method)
    assert [type(error) for error in errors] == [RemoteWorkerError] * 3


# Exceptions


class Needs(Exception):
    """Its constructor needs more than its ``args``."""

    def __init__(self, one: int, two: int, *, three: int) -> None:
        super().__init__(f"{one} {two} {three}")


class Holds(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Remembers(Exception):
    """Pickles well, with its attributes."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


def raise_needs(number: int) -> None:
    raise Needs(number, 2, three=3)


def raise_holds(number: int) -> None:
    raise Holds(f"held {number}")


def raise_remembers(number: int) -> None:
    raise Remembers("remembered", number)


def raise_chain(number: int) -> None:
    try:
        [][number]
    except IndexError as error:
        raise RuntimeError("outer") from error


@pytest.mark.parametrize(("worker", "text"), [(raise_needs, "1 2 3"), (raise_holds, "held 1")])
def test_an_exception_that_cannot_travel_is_told_with_its_text_and_traceback(
    any_method: str, worker: Callable[[int], None], text: str
) -> None:
    (error,) = outcomes(worker, (1,), start_method=any_method)
    assert isinstance(error, RemoteWorkerError)
    assert "mpms_unpickleable_result" in str(error)
    assert text in str(error)
    assert f"in {worker.__name__}" in str(error)
    assert f"in {worker.__name__}" in str(error.__cause__)


def test_an_exception_arrives_as_itself_with_the_place_in_its_cause(any_method: str) -> None:
    (error,) = outcomes(raise_remembers, (7,), start_method=any_method)
    assert (type(error), error.args, error.code) == (Remembers, ("remembered",), 7)
    line = raise_remembers.__code__.co_firstlineno + 1
    assert f'test_pickling.py", line {line}, in raise_remembers' in str(error.__cause__)
    assert 'raise Remembers("remembered", number)' in str(error.__cause__)


def test_the_cause_of_an_exception_is_in_the_remote_traceback(method: str) -> None:
    (error,) = outcomes(raise_chain, (0,), start_method=method)
    assert isinstance(error, RuntimeError)
    text = str(error.__cause__)
    assert text.index("IndexError") < text.index("direct cause") < text.index("RuntimeError: outer")


def raise_it(error: BaseException) -> None:
    raise error


def test_an_exit_or_an_interrupt_in_a_task_is_its_outcome_and_ends_nothing(method: str) -> None:
    errors = [
        *(SystemExit(3), SystemExit("bye"), KeyboardInterrupt(), GeneratorExit(), StopIteration(5)),
        *(MemoryError(), asyncio.CancelledError("c")),
    ]
    with MPMS(raise_it, processes=1, threads=2, start_method=method) as pool:
        for error in errors:
            pool.put(error)
        pool.close()
        got = {meta.taskid: result for meta, result in pool.iter_results()}
        assert pool.stats().starts == 1
    assert [(type(got[task]), got[task].args) for task in sorted(got)] == [
        (type(error), error.args) for error in errors
    ]


# What is loaded at one side only


class LoadsOnlyThere:
    """Can't be unpickled in the process ``pid``."""

    def __init__(self, pid: int, how: type[BaseException] = ValueError) -> None:
        self.pid = pid
        self.how = how

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() == state["pid"]:
            raise state["how"]("not here")
        self.__dict__.update(state)


class ErrorThatLoadsOnlyThere(Exception):
    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        if os.getpid() == pid:
            raise ValueError("not here")


def raise_there(pid: int) -> None:
    raise ErrorThatLoadsOnlyThere(pid)


HOWS = (ValueError, SystemExit, KeyboardInterrupt)


def test_a_value_that_fails_to_unpickle_in_the_parent_is_an_error_and_stops_nothing(method: str) -> None:
    *errors, last = outcomes(LoadsOnlyThere, *((HERE, how) for how in HOWS), (0,), start_method=method)
    for error, how in zip(errors, HOWS, strict=True):
        assert isinstance(error, RemoteWorkerError)
        assert f"mpms_unpickleable_result: it could not be unpickled: {how.__name__}: not here" in str(error)
    assert isinstance(last, LoadsOnlyThere)


def test_an_exception_that_fails_to_unpickle_in_the_parent_is_an_error_and_stops_nothing(
    any_method: str,
) -> None:
    got = outcomes(raise_there, (HERE,), (0,), start_method=any_method)
    assert isinstance(got[0], RemoteWorkerError)
    assert "ValueError: not here" in str(got[0])
    assert isinstance(got[1], ErrorThatLoadsOnlyThere)


class LoadsOnlyHere:
    """As an argument: raises ``how`` in a worker."""

    def __init__(self, how: type[BaseException]) -> None:
        self.how = how

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["how"]("not in a worker")


def test_an_argument_that_fails_to_unpickle_in_the_worker_is_the_outcome_of_its_task(method: str) -> None:
    *errors, last = outcomes(echo, *((LoadsOnlyHere(how),) for how in HOWS), (1,), start_method=method)
    for error, how in zip(errors, HOWS, strict=True):
        assert (type(error), error.args) == (how, ("not in a worker",))
        assert "in __setstate__" in str(error.__cause__)
    assert last == 1


# Values stay values


def values() -> list[Any]:
    return [
        None,
        NotImplemented,
        ...,
        StopIteration,
        KeyError,
        int,
        StopIteration(1),
        KeyError("k"),
        (),
        b"",
        0,
    ]


def value_of(index: int) -> Any:
    return values()[index]


def test_a_value_stays_a_value_even_if_it_is_an_exception(any_method: str) -> None:
    got = outcomes(value_of, *((index,) for index in range(len(values()))), start_method=any_method)
    assert [(type(value), repr(value)) for value in got] == [(type(value), repr(value)) for value in values()]
    assert [value.__cause__ for value in got if isinstance(value, BaseException)] == [None, None]


def test_such_values_are_arguments_too(method: str) -> None:
    got = outcomes(echo, *((value,) for value in values()), start_method=method)
    assert list(map(repr, got)) == list(map(repr, values()))


# Large


def test_arguments_and_results_of_two_hundred_megabytes_arrive_whole(method: str) -> None:
    block = os.urandom(1 << 20)
    large = block * 200
    (value,) = outcomes(echo, (large,), start_method=method)
    assert value == large


# What may be a worker


class Adder:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, other: int) -> int:
        return self.number + other

    def add(self, other: int) -> int:
        return self.number + other

    @classmethod
    def double(cls, other: int) -> int:
        return 2 * other

    @staticmethod
    def same(other: int) -> int:
        return other


def adder_of(number: int) -> Callable[[int], int]:
    return lambda other: number + other


CALLABLES: dict[str, tuple[Callable[[int], Any], int]] = {
    "a partial": (functools.partial(pow, 2), 4),
    "a partial of a closure": (functools.partial(lambda a, b: a - b, b=1), 1),
    "an object": (Adder(40), 42),
    "a bound method": (Adder(40).add, 42),
    "a class method": (Adder.double, 4),
    "a static method": (Adder.same, 2),
    "a closure": (adder_of(40), 42),
    "a class": (str, "2"),
    "a builtin": (abs, 2),
    "a method of a builtin": ([0, 1, 4].index, ValueError),
    "a cached function": (functools.lru_cache(adder_of(1)), 3),
}


@pytest.mark.parametrize("what", ["a partial", "an object", "a bound method", "a cached function"])
def test_anything_that_can_be_called_is_a_worker(method: str, what: str) -> None:
    worker, expected = CALLABLES[what]
    assert outcomes(worker, (2,), start_method=method) == [expected]


def test_whatever_a_function_calls_travels_with_it(any_method: str) -> None:
    callables = {what: function for what, (function, _) in CALLABLES.items()}
    got = outcomes(lambda what: callables[what](2), *((what,) for what in callables), start_method=any_method)
    for value, (_, expected) in zip(got, CALLABLES.values(), strict=True):
        assert value == expected or type(value) is expected


def test_a_function_that_closes_over_a_thread_local_has_an_empty_one(any_method: str) -> None:
    mine = threading.local()
    mine.count = 100

    def count(_: int) -> int:
        mine.count = getattr(mine, "count", 0) + 1
        return mine.count

    assert outcomes(count, (0,), (0,), (0,), start_method=any_method) == [1, 2, 3]


class Outlet:
    """Puts what it gets into a queue, under a lock."""

    def __init__(self, queue: Any, lock: Any) -> None:
        self.queue = queue
        self.lock = lock

    def put(self, word: int) -> int:
        with self.lock:
            self.queue.put(word)
        return word


@pytest.fixture
def collected() -> Iterator[None]:
    """What the test has dropped is gone after it: the system's semaphores live as long as their objects."""
    yield
    gc.collect()


@contextmanager
def shared() -> Iterator[tuple[Any, Any]]:
    """A queue and a lock, of the spawn context."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    try:
        yield queue, context.Lock()
    finally:
        queue.close()
        queue.join_thread()
        queue._reader.close()  # those two are closed when it is collected, otherwise
        queue._writer.close()


@pytest.mark.usefixtures("collected")
def test_a_queue_and_a_lock_of_the_spawn_context_are_shared_with_the_workers(any_method: str) -> None:
    with (
        shared() as (queue, lock),
        MPMS(Outlet(queue, lock).put, processes=2, threads=2, start_method=any_method) as pool,
    ):
        with lock:
            pool.put(0)
            assert queue.empty()
        for word in range(1, 10):
            pool.put(word)
        assert sorted(queue.get(timeout=30) for _ in range(10)) == list(range(10))
        pool.close()
        assert sorted(result for _, result in pool.iter_results()) == list(range(10))


@pytest.mark.usefixtures("collected")
def test_they_may_be_arguments_of_an_initializer(method: str) -> None:
    with (
        shared() as (queue, lock),
        MPMS(
            echo,
            processes=1,
            threads=1,
            start_method=method,
            process_initializer=Outlet.put,
            process_initargs=(Outlet(queue, lock), 7),
        ) as pool,
    ):
        pool.put(1)
        assert queue.get(timeout=30) == 7
        pool.close()
        assert [result for _, result in pool.iter_results()] == [1]


@pytest.mark.usefixtures("collected")
def test_as_an_argument_of_a_task_a_lock_is_refused_in_put(method: str) -> None:
    with (
        shared() as (_, lock),
        MPMS(echo, processes=1, threads=1, start_method=method) as pool,
    ):
        with pytest.raises(RuntimeError, match="inheritance"):
            pool.put(lock)
        assert len(pool) == 0


# Logs


def log_at_all_levels(name: str) -> int:
    logger = logging.getLogger(name)
    logger.debug("debugged %s", name)
    logger.info("informed %s", name)
    logger.warning("warned %s", threading.Lock())  # what can't be pickled becomes text there
    try:
        raise KeyError(name)
    except KeyError:
        logger.exception("failed")
    return os.getpid()


def test_with_forward_logs_records_reach_the_loggers_of_the_parent(
    any_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (pid,) = outcomes(log_at_all_levels, ("app.part",), start_method=any_method, forward_logs=True)
    records = [record for record in caplog.records if record.name == "app.part"]
    assert [record.levelname for record in records] == ["INFO", "WARNING", "ERROR"]
    assert {record.process for record in records} == {pid}
    assert {record.funcName for record in records} == {"log_at_all_levels"}
    assert records[0].getMessage() == "informed app.part"
    assert records[1].getMessage().startswith("warned <unlocked _thread.lock")
    assert "KeyError: 'app.part'" in records[2].getMessage()


def test_each_logger_of_the_parent_has_its_own_level(any_method: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.DEBUG, "app.loud")
    caplog.set_level(logging.ERROR, "app.quiet")
    caplog.handler.setLevel(logging.NOTSET)
    outcomes(
        log_at_all_levels,
        ("app.loud.part",),
        ("app.quiet",),
        ("app",),
        start_method=any_method,
        forward_logs=True,
    )
    levels = [(record.name, record.levelname[0]) for record in caplog.records]
    assert sorted(levels) == [
        *[("app", "E"), ("app", "W")],
        *[("app.loud.part", letter) for letter in "DEIW"],
        ("app.quiet", "E"),
    ]


def test_a_level_that_was_raised_since_the_start_counts(method: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with MPMS(log_at_all_levels, processes=1, threads=1, start_method=method, forward_logs=True) as pool:
        at_full_strength(pool)
        caplog.set_level(logging.ERROR, "app.part")
        caplog.handler.setLevel(logging.NOTSET)
        pool.put("app.part")
    assert [record.levelname for record in caplog.records if record.name == "app.part"] == ["ERROR"]


class ToFile(logging.Handler):
    """Whoever handles a record leaves a line, whichever process it is."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        note(self.path, f"{os.getpid()} {record.levelname}")


def test_each_record_is_handled_once_and_here_whatever_handlers_a_worker_has_inherited(
    any_method: str, tmp_path: Path
) -> None:
    logger, handler = logging.getLogger("app.own"), ToFile(str(tmp_path / "log"))
    logger.addHandler(handler)
    try:
        outcomes(log_at_all_levels, ("app.own.part",), start_method=any_method, forward_logs=True)
    finally:
        logger.removeHandler(handler)
    assert noted(tmp_path / "log") == [f"{os.getpid()} WARNING", f"{os.getpid()} ERROR"]


def test_without_it_none_do(method: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    outcomes(log_at_all_levels, ("app.part",), start_method=method)
    assert [record for record in caplog.records if record.name == "app.part"] == []


def test_all_records_are_there_when_the_pool_has_ended(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """On a thread of their own, so before or after the result of the task that logged them."""
    caplog.set_level(logging.INFO)
    with MPMS(log_at_all_levels, processes=1, threads=1, start_method=method, forward_logs=True) as pool:
        for _ in range(3):
            pool.put("app.part")
    assert len([record for record in caplog.records if record.name == "app.part"]) == 9


# A pool itself


def test_a_pool_is_no_argument(method: str) -> None:
    with MPMS(echo, processes=1, threads=1, start_method=method) as pool:
        with pytest.raises((TypeError, pickle.PicklingError), match="pickle"):
            pool.put(pool)
        assert len(pool) == 0
