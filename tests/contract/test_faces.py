"""What both faces promise, over every engine and start method: a call has one outcome, and it is the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from mpms import (
    MPMS,
    Executor,
    Future,
    PoolBroken,
    RemoteTraceback,
    RemoteWorkerError,
    WorkerCrashed,
    WorkerGracefulDie,
)
from mpms.ids import TaskId

from ..local.conftest import ASKED
from . import tasks
from .conftest import PATIENCE, Make, NewEngines

Call: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]

Run: TypeAlias = Callable[..., list[Any]]
"""``run(function, calls, **options)``: what comes of each call, in their order; in place of a value, the exception."""


def call(*args: Any, **kwargs: Any) -> Call:
    return args, kwargs


def by_mpms(make: Make, function: Callable[..., Any], calls: Sequence[Call], options: dict[str, Any]) -> list[Any]:
    got: dict[TaskId | int | None, Any] = {}
    refused: dict[int, Exception] = {}
    pool = MPMS(function, lambda meta, result: got.update({meta.taskid: result}), **options, **make.for_mpms())
    accepted = []
    for number, (args, kwargs) in enumerate(calls):
        try:
            pool.put(*args, **kwargs)
            accepted.append(number)
        except Exception as error:  # it can't be pickled
            refused[number] = error
    try:
        pool.join()
    except PoolBroken:
        pass  # which all outcomes are then
    assert sorted(got) == [*range(1, len(accepted) + 1)]
    outcomes = {number: got[task] for task, number in enumerate(accepted, start=1)}
    return [refused.get(number, outcomes.get(number)) for number in range(len(calls))]


def by_submit(make: Make, function: Callable[..., Any], calls: Sequence[Call], options: dict[str, Any]) -> list[Any]:
    with Executor(**_for_executor(options), **make.for_mpms()) as executor:
        futures = [_outcome(executor.submit, function, *args, **kwargs) for args, kwargs in calls]
        return [_outcome(it.result, PATIENCE) if isinstance(it, Future) else it for it in futures]


def by_map(make: Make, function: Callable[..., Any], calls: Sequence[Call], options: dict[str, Any]) -> list[Any]:
    """One map for each: an error ends one."""
    with Executor(**_for_executor(options), **make.for_mpms()) as executor:
        maps = [executor.map(_apply, [function], [args], [kwargs]) for args, kwargs in calls]
        return [_outcome(next, mapped) for mapped in maps]


def _for_executor(options: dict[str, Any]) -> dict[str, Any]:
    names = {"processes": "max_workers", "process_initializer": "initializer", "process_initargs": "initargs"}
    return {names.get(name, name): value for name, value in options.items()}


def _apply(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return function(*args, **kwargs)


def _outcome(get: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return get(*args, **kwargs)
    except BaseException as error:
        return error


@pytest.fixture(params=["inline", *ASKED])
def make(request: pytest.FixtureRequest, nothing_is_left: None) -> Iterator[Make]:
    """Not every start method in every run, as engines have: faces know nothing of them."""
    made = NewEngines(request.param)
    yield made
    made.stop()


@pytest.fixture(params=[by_mpms, by_submit, by_map])
def run(request: pytest.FixtureRequest, make: Make) -> Run:
    def run(function: Callable[..., Any], calls: Sequence[Call], **options: Any) -> list[Any]:
        return request.param(make, function, calls, {"processes": 1, "threads": 2} | options)

    return run


def test_every_call_has_its_outcome(run: Run) -> None:
    assert run(tasks.add, [call(number, b=1) for number in range(200)], processes=2) == [*range(1, 201)]


def test_no_call_has_none(run: Run) -> None:
    assert run(tasks.add, []) == []


def test_a_call_does_not_change_the_arguments_of_its_caller(run: Run) -> None:
    numbers = [1, 2]
    assert run(tasks.spoil, [call(numbers)]) == [[1, 2, 0]]
    assert numbers == [1, 2]


def test_lambdas_and_closures_travel_both_ways(run: Run) -> None:
    number = 41
    [back] = run(lambda f: lambda: f() + 1, [call(lambda: number)])
    assert back() == 42


def test_an_exception_has_the_remote_traceback_as_its_cause(run: Run) -> None:
    [error] = run(tasks.fail_deep, [call(7)])
    assert repr(error) == "LookupError('nothing at', 7)"
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in inner" in str(error.__cause__)


def test_an_exception_as_a_value_has_no_cause(run: Run) -> None:
    [value] = run(tasks.exception_as_value, [call("fine")])
    assert repr(value) == "ValueError('fine')"
    assert value.__cause__ is None


def test_exits_and_interrupts_are_outcomes_as_any_other(run: Run) -> None:
    calls = [call(tasks.raise_exit, (), {}), call(tasks.raise_interrupt, (), {}), call(tasks.add, (1, 2), {})]
    exited, interrupted, fine = run(_apply, calls)
    assert (type(exited), exited.code, type(interrupted), fine) == (SystemExit, 3, KeyboardInterrupt, 3)


def test_a_graceful_die_is_the_outcome_of_its_call_only(run: Run) -> None:
    outcomes = run(tasks.die_gracefully, [call(number) for number in range(10)])
    assert isinstance(outcomes.pop(3), WorkerGracefulDie)
    assert outcomes == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("argument", "error"), [(tasks.Stubborn(), ArithmeticError), (threading.Lock(), TypeError)])
def test_an_argument_that_cannot_be_pickled_is_the_error_of_its_call_only(
    run: Run, argument: object, error: type[Exception]
) -> None:
    first, second, third = run(tasks.give, [call(1), call(argument), call(value=3)])
    assert (first, type(second), third) == (1, error, 3)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (tasks.return_stubborn, "type=Stubborn, error=ArithmeticError: I stay here"),
        (tasks.return_homesick, "could not be unpickled: OSError: not in this process"),
        (tasks.raise_stubborn, "type=StubbornError, error=ArithmeticError: I stay here"),
        (tasks.raise_two_words, "type=TwoWords, error=TypeError"),
    ],
)
def test_what_cannot_travel_back_arrives_as_an_error_that_says_so(
    run: Run, function: Callable[..., Any], words: str
) -> None:
    first, second = run(function, [call(), call()])
    for error in (first, second):
        assert isinstance(error, RemoteWorkerError)
        assert words in error.detail


def test_an_initializer_that_fails_is_the_outcome_of_all(run: Run) -> None:
    options = {"process_initializer": tasks.refuse, "process_initargs": ("no licence",), "max_start_failures": 2}
    outcomes = run(tasks.give, [call(number) for number in range(3)], **options)
    assert [type(error) for error in outcomes] == [PoolBroken] * 3
    assert {repr(error.__cause__) for error in outcomes} == {"ValueError('no licence')"}


def test_initializers_and_finalizers_run_around_the_calls(run: Run, make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    hooks = {
        "process_initializer": tasks.note,
        "process_initargs": (path, "first"),
        "process_finalizer": tasks.note,
        "process_finargs": (path, "last"),
    }
    run(tasks.note, [call(path, "call")] * 5, **hooks)
    assert Path(path).read_text().split() == ["first", *["call"] * 5, "last"]


def test_a_crash_is_the_outcome_of_its_call_only(run: Run, make: Make) -> None:
    if not make.can("kill"):
        pytest.skip("a crash is that of this process")
    error, *others = run(tasks.crash_at_zero, [call(number) for number in range(6)], threads=1)
    assert isinstance(error, WorkerCrashed)
    assert (error.blamed, error.exitcode) == (True, 3)
    assert others == [1, 2, 3, 4, 5]


def test_what_crashed_is_run_again_with_retries(run: Run, make: Make, tmp_path: Path) -> None:
    if not make.can("kill"):
        assert run(tasks.add, [call(1)], retries=3) == [1]  # they have no occasion
        return
    path = str(tmp_path / "notes")
    assert run(tasks.crash_once, [call(path, number) for number in range(2)], retries=3) == [0, 1]
