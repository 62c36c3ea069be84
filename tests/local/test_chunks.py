"""Chunks in real workers: whatever ends one tells how far it may have come; and many functions."""

from __future__ import annotations

import functools
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpms import TaskTimeout, WorkerGracefulDie
from mpms.config import PoolConfig
from mpms.local.engine import LocalEngine
from mpms.outcome import Crashed, Outcome, Raised, Returned, TimedOut
from mpms.wire import chunks
from mpms.wire.chunks import Chunk, Packed, pack

from ..contract.conftest import Recorder, Slip
from .helpers import HAS_GIL, PATIENCE, announce, die, hold_the_gil, kill, meet, meeting, note, noted

Open = Callable[..., LocalEngine]


@pytest.fixture
def open_engine(method: Any) -> Iterator[Open]:
    """Makes engines with one worker of one thread, if nothing else is asked for; they are stopped after the test."""
    engines: list[LocalEngine] = []

    def new(**options: Any) -> LocalEngine:
        config = PoolConfig(**{"processes": 1, "threads": 1, "start_method": method, "name": "chunks"} | options)
        engine = LocalEngine(None, config, Recorder())
        engine.start()
        engines.append(engine)
        return engine

    yield new
    for engine in engines:
        engine.stop(0.0)
        assert engine.wait_stopped(PATIENCE)


@pytest.fixture
def open_whole(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Workers that take their time for a chunk: on a busy machine it may come back before what the test is about."""
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", PATIENCE)  # which a fork inherits
    return functools.partial(open_engine, start_method="fork")


def packed(items: Any, *, star: bool = False, exact: bool = False) -> Packed:
    chunk, problems, _ = pack(list(items), star=star, exact=exact)
    assert not problems
    return chunk


def run(engine: LocalEngine, function: Callable[..., Any], items: Any, *, exact: bool = False) -> Outcome:
    """What becomes of a chunk."""
    slip = Slip()
    engine.submit(packed(items, exact=exact), {}, function=function, each=True, ticket=slip)
    return slip.outcome()


def chunk_of(outcome: Outcome) -> Chunk:
    assert isinstance(outcome, Returned)
    assert isinstance(outcome.value, Chunk)
    return outcome.value


# Crashes

HOW = ["exit", "SIGSEGV", "SIGKILL"]


def notes_then_dies(log: Path, culprit: int, how: str, seconds: float = 0.0) -> Callable[[int], int]:
    def work(number: int) -> int:
        note(str(log), number)
        if number == culprit:
            die(how)
        if seconds:
            time.sleep(seconds)  # that is how long it takes: nothing is waited for
        return number

    return work


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("culprit", [0, 1, 2, 40, 399])
def test_no_item_that_had_started_is_missing_from_those_of_a_crash(
    open_whole: Open, tmp_path: Path, how: str, culprit: int
) -> None:
    log = tmp_path / "log"
    outcome = run(open_whole(), notes_then_dies(log, culprit, how), range(400))
    assert isinstance(outcome, Crashed)
    assert noted(log) == [str(number) for number in range(culprit + 1)]
    assert outcome.items is not None
    assert culprit < outcome.items <= 400
    if how != "SIGKILL":  # nobody sees who sends that
        assert outcome.error.blamed is True
        assert "in work" in outcome.error.stack


@pytest.mark.parametrize("how", HOW)
def test_of_slow_items_none_but_those_that_had_started_count(open_whole: Open, tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    outcome = run(open_whole(), notes_then_dies(log, 30, how, seconds=0.001), range(100))
    assert isinstance(outcome, Crashed)
    assert (outcome.items, len(noted(log))) == (31, 31)


@pytest.mark.parametrize("how", HOW)
def test_where_each_is_noted_the_culprit_is_the_last_one_however_fast_they_are(
    open_whole: Open, tmp_path: Path, how: str
) -> None:
    log = tmp_path / "log"
    outcome = run(open_whole(), notes_then_dies(log, 300, how), range(400), exact=True)
    assert isinstance(outcome, Crashed)
    assert (outcome.items, len(noted(log))) == (301, 301)


def test_a_worker_that_is_killed_at_any_moment_had_started_no_more_than_it_says(
    open_engine: Open, tmp_path: Path
) -> None:
    engine, chance = open_engine(), random.Random(1)
    crashes = 0
    for trial in range(15):
        log = tmp_path / f"log{trial}"
        with meeting() as place:

            def work(number: int, log: str = str(log), address: str = place.address) -> None:
                note(log, number)
                if number == 20:
                    announce(address).close()

            slip = Slip()
            engine.submit(packed(range(20_000)), {}, function=work, each=True, ticket=slip)
            guest = place.arrive()
            threading.Event().wait(chance.uniform(0, 0.02))  # any moment will do
            kill(guest.pid)
            outcome = slip.outcome()
        started = noted(log)
        *others, last = map(str, range(len(started)))
        assert started[:-1] == others
        assert last.startswith(started[-1])  # a kill cuts a write short where that goes over the end of a page
        if isinstance(outcome, Crashed):
            crashes += 1
            assert outcome.items is None or len(started) <= outcome.items
        else:
            assert len(chunk_of(outcome).values) == len(started)
    assert crashes


def test_a_chunk_whose_worker_dies_before_an_item_is_begun_has_none(open_engine: Open) -> None:
    engine = open_engine()

    class Deadly:
        def __reduce__(self) -> tuple[Any, ...]:
            return die, ("SIGKILL",)

        def __call__(self, number: int) -> int:
            return number

    outcome = run(engine, Deadly(), [1, 2, 3])
    assert isinstance(outcome, Crashed)
    assert outcome.items == 0


def test_a_task_that_is_no_chunk_has_no_items_when_it_crashes(open_engine: Open) -> None:
    slip = Slip()
    open_engine().submit(("SIGKILL",), {}, function=die, ticket=slip)
    outcome = slip.outcome()
    assert isinstance(outcome, Crashed)
    assert not outcome.items


# Time


def wait_for_ever() -> None:
    threading.Event().wait()


def hangs_at(culprit: int, log: Path, hang: Callable[[], object]) -> Callable[[int], int]:
    def work(number: int) -> int:
        note(str(log), number)
        if number == culprit:
            hang()
        return number

    return work


@pytest.mark.parametrize("holds_the_gil", [False, True])
def test_a_timeout_names_the_item_that_hung(
    open_whole: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds_the_gil: bool
) -> None:
    monkeypatch.setattr("mpms.core.policy.DUMP_SECONDS", 2.0)  # a busy machine may take longer to write the stacks
    log = tmp_path / "log"
    engine = open_whole(task_timeout=0.5, grace=0.1)
    hang = hold_the_gil if holds_the_gil else wait_for_ever
    outcome = run(engine, hangs_at(30, log, hang), range(100), exact=True)
    assert isinstance(outcome, TimedOut)
    assert (outcome.items, len(noted(log))) == (31, 31)
    assert outcome.error.timeout == 0.5
    assert ("in work" in outcome.error.stack) is (HAS_GIL or not holds_the_gil)
    assert "mpms/wire/chunks.py" not in outcome.error.stack


def test_the_time_of_an_item_begins_with_it_and_not_with_its_chunk(open_whole: Open) -> None:
    engine = open_whole(task_timeout=1.5)
    begun = time.monotonic()
    outcome = run(engine, time.sleep, [0.25] * 8, exact=True)  # that is how long they take
    assert chunk_of(outcome).values == [None] * 8
    assert time.monotonic() - begun > 2.0


def test_an_item_that_is_interrupted_is_over_time_and_its_worker_goes_on(open_whole: Open) -> None:
    engine = open_whole(task_timeout=0.3, timeout_raises=True)

    def work(number: int) -> int:
        end = time.monotonic() + PATIENCE
        while number == 2 and time.monotonic() < end:
            pass
        return os.getpid()

    values, errors = chunk_of(run(engine, work, range(5), exact=True)).load()
    [pid] = {*values} - {None}
    assert values == [pid, pid, None, pid, pid]
    assert list(errors) == [2]
    assert isinstance(errors[2][0], TaskTimeout)
    assert "in work" in errors[2][0].stack
    assert chunk_of(run(engine, work, [0])).values == [pid]


# Forks and ends


def test_a_child_that_an_item_forks_runs_none_of_the_others(open_whole: Open, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def work(number: int) -> int:
        child = 0
        if number == 5:
            child = os.fork()
            if not child:
                return -1  # the child goes on as if it were the item
            assert os.waitpid(child, 0) == (child, 0)
        note(str(log), f"{number} {os.getpid()}")
        return number

    assert chunk_of(run(open_whole(), work, range(50))).values == list(range(50))
    lines = [line.split() for line in noted(log)]
    assert [int(number) for number, _ in lines] == list(range(50))
    assert len({pid for _, pid in lines}) == 1


def test_a_child_that_raises_in_an_item_ends_alone(open_whole: Open) -> None:
    def work(number: int) -> Any:
        if number == 1:
            child = os.fork()
            if not child:
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the process ends with it)
                raise ValueError("in the child")
            return os.waitpid(child, 0)[1]
        return number

    assert chunk_of(run(open_whole(), work, [0, 1, 2])).values == [0, 1 << 8, 2]


def test_an_item_that_asks_for_it_has_its_worker_replaced_and_the_rest_is_not_run(
    open_whole: Open, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def work(number: int) -> int:
        note(str(log), number)
        if number == 3:
            raise WorkerGracefulDie("replace me")
        return os.getpid()

    engine = open_whole(die_exceptions=(WorkerGracefulDie,))
    values, errors = chunk_of(run(engine, work, range(9), exact=True)).load()
    assert noted(log) == ["0", "1", "2", "3"]
    assert values[3:] == [None]
    assert repr(errors[3][0]) == "WorkerGracefulDie('replace me')"
    assert chunk_of(run(engine, work, [0])).values[0] not in values


# Many functions


def test_more_functions_than_a_worker_keeps_are_each_their_own(open_engine: Open) -> None:
    engine = open_engine(processes=2)
    chance = random.Random(5)

    def adder(base: int) -> Callable[[int], int]:
        return lambda number: base + number

    functions = [adder(1000 * base) for base in range(600)]
    order = [*range(600), *(chance.randrange(600) for _ in range(1500))]
    slips = [Slip() for _ in order]
    for slip, at in zip(slips, order, strict=True):
        engine.submit((at,), {}, function=functions[at], ticket=slip)
    assert [slip.outcome() for slip in slips] == [Returned(1001 * at) for at in order]


def test_functions_are_known_to_workers_that_come_later(open_engine: Open) -> None:
    engine = open_engine(lifecycle=3)
    slips = [Slip() for _ in range(60)]
    functions: list[Callable[[int], int]] = [lambda number: number + 1, lambda number: number + 2, abs]
    for number, slip in enumerate(slips):
        engine.submit((number,), {}, function=functions[number % 3], ticket=slip)
    expected = [Returned(number + (1, 2, 0)[number % 3]) for number in range(60)]
    assert [slip.outcome() for slip in slips] == expected
    assert engine.stats().starts > 10


def test_a_function_travels_once_to_each_worker(open_engine: Open, tmp_path: Path) -> None:
    log = tmp_path / "log"

    class Loud:
        def __reduce__(self) -> tuple[Any, ...]:
            return load_loudly, (str(log),)

    loud = Loud()
    engine = open_engine()

    def function(number: int, _loud: Any = loud) -> int:
        return number

    slips = [Slip() for _ in range(100)]
    for number, slip in enumerate(slips):
        engine.submit((number,), {}, function=function, ticket=slip)
    assert [slip.outcome() for slip in slips] == [Returned(number) for number in range(100)]
    assert noted(log) == ["loaded"]


def load_loudly(log: str) -> None:
    note(log, "loaded")


def test_a_python_function_is_sent_as_it_was_at_its_first_use(open_engine: Open) -> None:
    engine = open_engine()
    base = 0

    def function(number: int) -> int:
        return base + number

    outcomes = []
    for base in (0, 100):  # noqa: B007  (it is what the function looks at)
        slip = Slip()
        engine.submit((1,), {}, function=function, ticket=slip)
        outcomes.append(slip.outcome())
    assert outcomes == [Returned(1), Returned(1)]


def test_a_function_that_nobody_has_any_more_serves_the_tasks_that_brought_it(open_engine: Open) -> None:
    engine, slip = open_engine(), Slip()
    with meeting() as place:
        engine.submit((place.address,), {}, function=meet)
        place.arrive()
        engine.submit((20,), {}, function=lambda number: number + 1, ticket=slip)
    assert slip.outcome() == Returned(21)


def test_a_function_whose_load_raises_is_the_error_of_its_tasks_and_the_worker_lives(open_engine: Open) -> None:
    engine = open_engine()
    outcome = run(engine, Absent(), [1, 2])
    assert isinstance(outcome, Raised)
    assert repr(outcome.error) == "ImportError('it is not installed here')"
    assert chunk_of(run(engine, abs, [-1])).values == [1]
    assert engine.stats().starts == 1


def not_installed() -> None:
    raise ImportError("it is not installed here")


class Absent:
    def __reduce__(self) -> tuple[Any, ...]:
        return not_installed, ()

    def __call__(self, number: int) -> int:
        return number
