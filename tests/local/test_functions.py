"""Every kind of function may be a worker; and what of its arguments and results is easy to get wrong."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

import pytest

from mpms import MPMS, RemoteWorkerError


class Adder:
    """An object that can be called, and has methods."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, number: int) -> int:
        return self.number + number

    def add(self, number: int) -> int:
        return self.number + number

    @classmethod
    def of_class(cls, number: int) -> int:
        return cls(100).add(number)

    @staticmethod
    def static(number: int) -> int:
        return 1000 + number


def nested(offset: int) -> Any:
    def inner(number: int) -> int:
        return offset + number

    return inner


def factorial_of() -> Any:
    def factorial(number: int) -> int:
        return 1 if number < 2 else number * factorial(number - 1)

    return factorial


@functools.lru_cache
def cached(number: int) -> int:
    return number + 20


# What each of them makes of 4.
FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "builtin": (abs, 4),
    "lambda": (lambda number: number + 5, 9),
    "closure": (nested(10), 14),
    "recursive closure": (factorial_of(), 24),
    "partial": (functools.partial(pow, 2), 16),
    "object": (Adder(7), 11),
    "bound method": (Adder(8).add, 12),
    "class method": (Adder.of_class, 104),
    "static method": (Adder.static, 1004),
    "class": (complex, 4 + 0j),
    "cached": (cached, 24),
    "cached closure": (functools.lru_cache(maxsize=3)(nested(3)), 7),
}


def only_result(pool: MPMS, *args: Any) -> Any:
    with pool:
        pool.put(*args)
        return next(pool.iter_results())[1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_kind_of_function_is_a_worker(name: str, any_method: str) -> None:
    function, expected = FUNCTIONS[name]
    assert only_result(MPMS(function, processes=1, threads=1, start_method=any_method), 4) == expected


def test_a_function_may_close_over_much(any_method: str) -> None:
    data = bytes(50_000_000)
    pool = MPMS(lambda: len(data), processes=1, threads=1, start_method=any_method)
    assert only_result(pool) == 50_000_000


def test_function_and_hooks_share_what_they_close_over(any_method: str) -> None:
    shared: list[int] = []
    pool = MPMS(
        lambda: (shared, os.getpid()),
        processes=1,
        threads=1,
        process_initializer=lambda: shared.append(os.getpid()),
        start_method=any_method,
    )
    there, pid = only_result(pool)
    assert there == [pid]
    assert shared == []


def test_arguments_are_sent_as_they_are_at_put_and_given_back_themselves(method: str) -> None:
    with MPMS(sum, processes=1, threads=1, start_method=method) as pool:
        numbers = [1, 2]
        pool.put(numbers)
        numbers.append(3)
        meta, result = next(pool.iter_results())
    assert result == 3
    assert meta.args[0] is numbers


def test_the_word_main_in_an_argument_is_no_trouble(method: str) -> None:
    words = ["__main__", b"__main__", {"__main__": "cloudpickle"}]
    assert only_result(MPMS(lambda value: value, processes=1, threads=1, start_method=method), words) == words


def test_attributes_of_an_exception_travel_with_it(method: str) -> None:
    def task() -> None:
        error = OSError(2, "No such file", "name")
        error.mine = "attribute"  # type: ignore[attr-defined]
        raise error

    error = only_result(MPMS(task, processes=1, threads=1, start_method=method))
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename, error.mine) == (2, "name", "attribute")  # type: ignore[attr-defined]


def test_the_error_for_what_does_not_pickle_names_type_reason_and_value(method: str) -> None:
    error = only_result(MPMS(threading.Lock, processes=1, threads=1, start_method=method))
    assert isinstance(error, RemoteWorkerError)
    assert error.kind == "mpms_unpickleable_result"
    assert "type=lock" in error.detail
    assert "cannot pickle" in error.detail
    assert "<unlocked _thread.lock object" in error.detail


def test_that_error_is_short_however_large_the_value(method: str) -> None:
    pool = MPMS(lambda: ["x" * 1_000_000, threading.Lock()], processes=1, threads=1, start_method=method)
    error = only_result(pool)
    assert isinstance(error, RemoteWorkerError)
    assert len(str(error)) < 30_000


def test_that_error_arrives_for_what_can_not_even_be_shown(method: str) -> None:
    class NoRepr:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __repr__(self) -> str:
            raise RuntimeError

    error = only_result(MPMS(NoRepr, processes=1, threads=1, start_method=method))
    assert isinstance(error, RemoteWorkerError)
    assert "<no repr: RuntimeError>" in error.detail
