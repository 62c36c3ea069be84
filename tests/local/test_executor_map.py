"""``Executor.map``: as that of Python 3.14, and as the builtin one."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import itertools
import operator
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from mpms import Executor, RemoteTraceback, TaskTimeout, WorkerCrashed
from mpms.faces.bulk import Bulk

from .helpers import HAS_GIL, PATIENCE, Stopwatch, die, is_freed, meet, meeting, note, noted, until
from .stage import Stage

CHUNKSIZES: list[Any] = [1, 3, 1000, "auto"]


@pytest.fixture
def executor(method: Any) -> Iterator[Executor]:
    with Executor(2, threads=2, start_method=method) as one:
        yield one


@pytest.fixture
def single(method: Any) -> Iterator[Executor]:
    """One process, one thread."""
    with Executor(1, start_method=method) as one:
        yield one


def nothing() -> None: ...


def square(number: int) -> int:
    return number * number


# As the builtin map


@pytest.mark.parametrize("chunksize", CHUNKSIZES)
@pytest.mark.parametrize("buffersize", [None, 1, 7, 5000])
def test_results_come_in_the_order_of_the_items(executor: Executor, chunksize: Any, buffersize: int | None) -> None:
    got = executor.map(square, range(1000), chunksize=chunksize, buffersize=buffersize)
    assert [*got] == [*map(square, range(1000))]


@pytest.mark.parametrize("chunksize", CHUNKSIZES)
def test_several_iterables_are_taken_together_up_to_the_shortest(executor: Executor, chunksize: Any) -> None:
    got = executor.map(pow, range(2, 100), iter([3, 2, 1]), itertools.count(5), chunksize=chunksize, buffersize=10)
    assert [*got] == [2**3 % 5, 3**2 % 6, 4**1 % 7]
    assert [*executor.map(operator.add, ["a", "b"], "cd", chunksize=chunksize)] == ["ac", "bd"]


def test_no_items_have_no_results(executor: Executor) -> None:
    assert [*executor.map(square, [])] == []
    assert [*executor.map(square)] == []
    assert [*executor.map(pow, [1], [])] == []
    assert [*executor.map(square, iter([]), buffersize=1)] == []
    assert executor.stats().submitted == 0


def test_items_of_every_kind_are_given_as_they_are(executor: Executor) -> None:
    class Local:
        def __eq__(self, other: object) -> bool:
            return type(other).__name__ == "Local"

        __hash__ = None  # type: ignore[assignment]

    items: list[Any] = [(1, 2), [3], {"four": 5}, None, b"six", 7.5, Local(), ValueError, ..., ((),), "", {8}]
    assert [*executor.map(lambda item: item, items)] == items
    assert [*executor.map(lambda *args: args, items, items[::-1])] == [*zip(items, items[::-1], strict=True)]


class Odd(Exception):
    pass


def refuse_some(some: set[int], item: int) -> int:
    if item in some:
        raise Odd(item)
    return -item


def outcomes(values: Iterable[Any]) -> tuple[list[Any], Any]:
    """What comes up to the first error, and its type and arguments."""
    got: list[Any] = []
    try:
        for value in values:
            got.append(value)
    except Exception as error:
        return got, (type(error), error.args)
    return got, None


def test_it_is_as_the_builtin_map_for_any_items_that_raise_sometimes(executor: Executor) -> None:
    @settings(max_examples=60, deadline=None)
    @given(
        items=st.lists(st.integers(0, 40), max_size=80),
        some=st.sets(st.integers(0, 40), max_size=3),
        chunksize=st.sampled_from([1, 2, 7, 100, "auto"]),
        buffersize=st.sampled_from([None, 1, 2, 10, 1000]),
    )
    @example(items=[*range(40)], some={39}, chunksize=100, buffersize=None)
    @example(items=[1], some={1}, chunksize="auto", buffersize=1)
    def is_as_the_builtin(items: list[int], some: set[int], chunksize: Any, buffersize: int | None) -> None:
        expected = outcomes(refuse_some(some, item) for item in items)
        function = functools.partial(refuse_some, some)
        got = outcomes(executor.map(function, items, chunksize=chunksize, buffersize=buffersize))
        event(f"an error: {expected[1] is not None}")
        assert got == expected

    is_as_the_builtin()


@pytest.mark.parametrize("chunksize", CHUNKSIZES)
def test_an_error_comes_at_its_place_with_its_traceback_and_ends_the_iteration(
    executor: Executor, chunksize: Any
) -> None:
    values = executor.map(divmod, [1] * 20, [1] * 10 + [0] * 10, chunksize=chunksize)
    assert [*itertools.islice(values, 10)] == [(1, 0)] * 10
    with pytest.raises(ZeroDivisionError) as caught:
        next(values)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert [*values] == []


def raise_any(error: type[BaseException]) -> None:
    raise error("for you")


@pytest.mark.parametrize("error", [StopIteration, GeneratorExit, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("chunksize", CHUNKSIZES)
def test_special_exceptions_are_errors_of_their_item(executor: Executor, error: Any, chunksize: Any) -> None:
    values = executor.map(lambda item: raise_any(error) if item == 5 else item, range(10), chunksize=chunksize)
    assert [*itertools.islice(values, 5)] == [0, 1, 2, 3, 4]
    # A generator can't raise StopIteration: that it is in the cause of what comes is PEP 479.
    with pytest.raises(RuntimeError if error is StopIteration else error) as caught:
        next(values)
    chain = caught.value.__cause__ if error is StopIteration else caught.value
    assert isinstance(chain, error)


class Stubborn:
    def __reduce__(self) -> tuple[Any, ...]:
        raise ArithmeticError("I stay here")


class Homesick:
    """Can't be loaded elsewhere than where it was made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _at_home, (os.getpid(),)


def _at_home(pid: int) -> Homesick:
    if os.getpid() != pid:
        raise OSError("not in this process")
    return Homesick()


@pytest.mark.parametrize("chunksize", CHUNKSIZES)
@pytest.mark.parametrize("way", ["there, pickling", "there, unpickling", "back, pickling", "back, unpickling"])
def test_what_cannot_travel_is_the_error_of_its_item(executor: Executor, chunksize: Any, way: str) -> None:
    odd = {"pickling": Stubborn, "unpickling": Homesick}[way.split()[-1]]
    if way.startswith("there"):
        values = executor.map(type, [0, 1, odd(), 3], chunksize=chunksize)
    else:
        values = executor.map(lambda item: odd() if item == 2 else item, range(4), chunksize=chunksize)
    before = [next(values), next(values)]
    assert before == ([int, int] if way.startswith("there") else [0, 1])
    with pytest.raises(Exception, match="I stay here" if odd is Stubborn else "not in this process"):
        next(values)


# What is read, and when


def test_it_reads_all_at_once_and_does_all_though_nobody_takes_it(executor: Executor, stage: Stage) -> None:
    items = iter(range(50))
    values = executor.map(stage.note, items)
    assert next(items, None) is None
    executor.shutdown()
    assert sorted(map(int, stage.words())) == [*range(50)]
    del values


def test_what_reading_raises_is_raised_by_the_call(executor: Executor, stage: Stage) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("of the source")

    with pytest.raises(LookupError, match="of the source"):
        executor.map(stage.note, items())
    executor.shutdown()
    assert stage.words() == []


def test_with_a_buffer_what_reading_raises_comes_after_the_items_before(executor: Executor) -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise LookupError("of the source")

    values = executor.map(square, items(), buffersize=4)
    assert [*itertools.islice(values, 20)] == [*map(square, range(20))]
    with pytest.raises(LookupError, match="of the source"):
        next(values)


class Source:
    """Endless; says how far it was read, and by whom."""

    def __init__(self) -> None:
        self.read = 0
        self.threads: set[int] = set()

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> int:
        self.threads.add(threading.get_ident())
        self.read += 1
        return self.read - 1


@pytest.mark.parametrize("chunksize", CHUNKSIZES)
@pytest.mark.parametrize("buffersize", [1, 2, 10, 100])
def test_with_a_buffer_so_many_are_read_before_they_are_taken(
    executor: Executor, chunksize: Any, buffersize: int
) -> None:
    source = Source()
    values = executor.map(square, source, chunksize=chunksize, buffersize=buffersize)
    assert source.read == buffersize
    for number, value in enumerate(itertools.islice(values, 300)):
        assert value == number * number
        assert source.read <= number + 1 + buffersize
    assert source.threads == {threading.get_ident()}
    values.close()  # type: ignore[attr-defined]


def test_the_buffer_is_read_and_done_without_anybody_taking_it(executor: Executor, stage: Stage) -> None:
    source = Source()
    executor.map(stage.note, source, buffersize=5)
    executor.shutdown()
    assert source.read == 5
    assert sorted(map(int, stage.words())) == [*range(5)]


def test_memory_is_bounded_over_an_endless_source(single: Executor) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Item:
        def __init__(self) -> None:
            alive.add(self)

        def __reduce__(self) -> tuple[Any, ...]:
            return bytes, (1000,)

    most = 0
    for size in itertools.islice(single.map(len, iter(Item, None), buffersize=50), 2000):
        assert size == 1000
        most = max(most, len(alive))
    # Those that are read, and those of the piece that is being taken. Without a GIL also one that is read just now,
    # when those of the last piece are still to be freed: see `is_freed`.
    assert most <= 100 + (not HAS_GIL)
    gc.collect()


def test_a_result_is_held_by_nobody_but_who_takes_it(executor: Executor) -> None:
    for chunksize in CHUNKSIZES:
        for value in executor.map(lambda _: Odd(), range(20), chunksize=chunksize):
            held = weakref.ref(value)
            del value
            assert is_freed(lambda held=held: held() is None)  # type: ignore[misc]


def test_after_the_shutdown_a_buffer_is_not_filled_again(executor: Executor) -> None:
    values = executor.map(square, itertools.count(), buffersize=3)
    assert next(values) == 0
    executor.shutdown()
    assert [next(values) for _ in range(3)] == [1, 4, 9]  # one has taken the place of 0
    with pytest.raises(RuntimeError, match="closed"):
        next(values)


def test_an_executor_lives_as_long_as_an_iterator_that_still_feeds_it(method: Any) -> None:
    values = Executor(1, start_method=method).map(square, range(100), buffersize=3)
    gc.collect()
    assert [*values] == [*map(square, range(100))]
    del values
    gc.collect()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("mpms-executor")])


# Wrong calls


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": -1}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": 2.0}, TypeError, "buffersize must be an integer or None"),
        ({"buffersize": "foo"}, TypeError, "buffersize must be an integer or None"),
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1"),
        ({"chunksize": -1}, ValueError, "chunksize must be >= 1"),
        ({"chunksize": 1.5}, TypeError, "chunksize must be an int of at least 1 or .auto."),
        ({"chunksize": "many"}, TypeError, "chunksize must be an int of at least 1 or .auto."),
        ({"chunksize": None}, TypeError, "chunksize must be an int of at least 1 or .auto."),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_read(
    executor: Executor, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    source = Source()
    with pytest.raises(error, match=words):
        executor.map(square, source, **options)
    assert source.read == 0


def test_what_is_not_iterable_is_refused(executor: Executor) -> None:
    for options in ({}, {"buffersize": 3}):
        with pytest.raises(TypeError, match="not iterable"):
            executor.map(square, 3, **options)  # type: ignore[arg-type]


# The time that it may take


@pytest.mark.parametrize("chunksize", CHUNKSIZES)
def test_a_timeout_counts_from_the_call(executor: Executor, stage: Stage, chunksize: Any) -> None:
    got: list[Any] = []
    with Stopwatch() as watch:
        values = executor.map(
            lambda item: stage.wait() if item == 3 else item, range(6), timeout=1, chunksize=chunksize
        )
        if chunksize == 1:  # all that comes, however late the workers came up
            until(lambda: (stats := executor.stats()).done == 5 and not stats.undelivered)
        with pytest.raises(concurrent.futures.TimeoutError):
            got.extend(values)
    assert watch.seconds < PATIENCE
    assert got == [0, 1, 2][: 3 if chunksize == 1 else len(got)]
    stage.open()


def test_a_timeout_of_0_takes_what_is_there(executor: Executor, stage: Stage) -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        next(executor.map(lambda _: stage.wait(), [1], timeout=0))
    stage.open()


def test_after_a_timeout_what_has_not_started_is_cancelled(single: Executor, stage: Stage) -> None:
    values = single.map(lambda item: (stage.say_and_wait(), stage.note(item)), range(100), timeout=0.2, chunksize=1)
    stage.hear()
    with pytest.raises(concurrent.futures.TimeoutError):
        next(values)
    stage.open()
    single.shutdown()
    assert stage.words() == ["0"]


# Nobody takes the rest


def test_an_iterator_that_is_dropped_cancels_what_has_not_started(single: Executor, stage: Stage) -> None:
    values = single.map(lambda item: stage.say_and_wait() if item == 1 else stage.note(item), range(1000), chunksize=1)
    assert next(values) is None
    stage.hear()
    del values
    gc.collect()
    stage.open()
    assert single.submit(square, 3).result(PATIENCE) == 9
    single.shutdown()
    assert stage.words() == ["0"]


@pytest.mark.parametrize("buffersize", [None, 10])
def test_an_iterator_that_is_dropped_releases_its_items(executor: Executor, buffersize: int | None) -> None:
    class Item:
        def __reduce__(self) -> tuple[Any, ...]:
            return str, ("item",)

    items = [Item() for _ in range(20)]
    left = weakref.WeakSet(items)
    values = executor.map(len, items, buffersize=buffersize)
    assert next(values) == 4
    del values
    items.clear()
    gc.collect()
    assert until(lambda: is_freed(lambda: not left))


# Slow items behind quick ones


def test_slow_items_behind_quick_ones_are_run_by_all_threads(method: Any) -> None:
    """Though the quick ones have made a chunk of many, and had many noted together."""
    with meeting() as place, Executor(2, threads=2, start_method=method) as executor:

        def visit(number: int, address: str = place.address) -> int:
            if number == 0:
                time.sleep(0.5)  # that is how long it takes: nothing is waited for
            elif number > 0:
                meet(address, number)
            return number

        quick = [-1] * 100_000
        assert len([*executor.map(visit, quick)]) == len(quick)
        values = executor.map(visit, [*quick[:5_000], *range(16)])
        for guest in place.arrivals(4):
            guest.release()
        for _ in range(15 - 4):
            place.arrive().release()
        assert [*values] == [*quick[:5_000], *range(16)]


# Crashes in chunks


def values_and_errors(executor: Executor, function: Any, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    """What ``map`` goes by, beyond the first error too."""
    executor.submit(nothing).result(PATIENCE)
    bulk = Bulk(executor._engine, executor._config, function, items, chunksize=chunksize)
    return [*bulk.values(raise_errors=False)]


@pytest.mark.parametrize("chunksize", [1, 30, None])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_crash_costs_the_items_that_had_started_and_no_others(
    method: Any, tmp_path: Path, chunksize: int | None, threads: int
) -> None:
    path = str(tmp_path / "log")

    def function(item: int) -> int:
        note(path, item)
        spend(200e-6)  # quicker items are not looked at one by one: a few behind the crash count as started then
        if item == 50:
            die("SIGKILL")
        return item

    with Executor(2, threads=threads, start_method=method) as executor:
        got = values_and_errors(executor, function, range(100), chunksize)
    lost = [item for item, value in enumerate(got) if isinstance(value, WorkerCrashed)]
    assert [value for value in got if type(value) is int] == [item for item in range(100) if item not in lost]
    assert 50 in lost
    assert {got[item].signal for item in lost} == {"SIGKILL"}
    ran = [*map(int, noted(path))]
    assert len(ran) == len({*ran})  # none twice: at most once
    assert len({*lost} - {*ran}) < threads  # what a thread was about to run


def spend(seconds: float) -> None:
    """Of a processor's time, as what is computed does."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_crash_of_quick_items_costs_few_that_had_not_started(method: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "log")

    def function(item: int) -> int:
        if item == 20_000:
            note(path, item)
            die("SIGKILL")
        return item

    with Executor(1, start_method=method) as executor:
        got = values_and_errors(executor, function, range(40_000), None)
    lost = [item for item, value in enumerate(got) if isinstance(value, WorkerCrashed)]
    assert [value for value in got if type(value) is int] == [*range(lost[0]), *range(lost[-1] + 1, 40_000)]
    assert lost == [*range(lost[0], lost[-1] + 1)]
    assert lost[0] <= 20_000 <= lost[-1] < 23_000  # 40 µs of quick items, of a chunk of 10,000
    assert noted(path) == ["20000"]


@pytest.mark.parametrize("chunksize", CHUNKSIZES)
def test_with_retries_all_results_come_whatever_crashes(method: Any, tmp_path: Path, chunksize: Any) -> None:
    path = str(tmp_path / "log")

    def function(item: int) -> int:
        if item % 20 == 7:
            note(path, item)
            if noted(path).count(str(item)) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return -item

    with Executor(2, threads=2, start_method=method, retries=3) as executor:
        assert [*executor.map(function, range(100), chunksize=chunksize)] == [-item for item in range(100)]
        assert [*executor.map(function, range(100), chunksize=chunksize, buffersize=20)] == [-i for i in range(100)]


def test_with_retries_an_item_that_raises_what_is_retried_is_run_again(method: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "log")

    def function(item: int) -> int:
        note(path, item)
        if item == 3 and noted(path).count("3") < 3:
            raise Odd(item)
        return item

    with Executor(1, start_method=method, retries=2, retry_on=(Odd,)) as executor:
        assert [*executor.map(function, range(10), chunksize=10)] == [*range(10)]
    assert sorted(noted(path)) == sorted(map(str, [*range(10), 3, 3]))


@pytest.mark.parametrize("chunksize", [1, 8, None])
def test_a_task_timeout_is_that_of_one_item(
    method: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch, chunksize: int | None
) -> None:
    monkeypatch.setattr("mpms.core.policy.DUMP_SECONDS", 2.0)  # its answer may take longer on a busy machine

    def function(item: int) -> int:
        if item == 5:
            stage.wait()
        return item

    with Executor(1, start_method=method, task_timeout=1, preload=nothing) as executor:
        got = values_and_errors(executor, function, range(20), chunksize)
    timeout = got.pop(5)
    assert isinstance(timeout, TaskTimeout)
    assert "in wait" in timeout.stack
    lost = [value for value in got if isinstance(value, WorkerCrashed)]
    assert len(lost) <= (0 if chunksize == 1 else 5)  # those before it in its chunk
    assert all("result was lost" in str(error) for error in lost)
    assert got == [*range(5 - len(lost)), *lost, *range(6, 20)]


def test_many_items_that_take_less_than_the_timeout_may_take_longer_together(method: Any) -> None:
    pause = threading.Event  # waits in the worker: that is what takes time here
    with Executor(1, start_method=method, task_timeout=1, preload=nothing) as executor:
        got = [*executor.map(lambda item: pause().wait(0.02) or item, range(100), chunksize=100)]
    assert got == [*range(100)]


def test_an_item_may_fork(single: Executor, tmp_path: Path) -> None:
    path = str(tmp_path / "log")

    def fork(item: int) -> int:
        pid = os.fork()
        if not pid:
            note(path, item)
            return -1  # the child goes on as if it were the worker, and must not be
        os.waitpid(pid, 0)
        return item

    assert [*single.map(fork, range(6), chunksize=3)] == [*range(6)]
    assert sorted(noted(path)) == [*"012345"]


# Many at once


def test_maps_and_submits_side_by_side_do_not_disturb_each_other(executor: Executor) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        sums = [
            threads.submit(lambda factor=factor: sum(executor.map(lambda item: item * factor, range(500))))  # type: ignore[misc]
            for factor in range(4)
        ]
        futures = [executor.submit(square, number) for number in range(200)]
        assert [future.result(PATIENCE) for future in futures] == [*map(square, range(200))]
        assert [future.result(PATIENCE) for future in sums] == [factor * sum(range(500)) for factor in range(4)]


def test_two_iterators_may_be_taken_by_turns(executor: Executor) -> None:
    one = executor.map(square, itertools.count(), buffersize=10)
    other = executor.map(str, itertools.count(), buffersize=3)
    assert [*itertools.islice(zip(one, other, strict=False), 100)] == [(n * n, str(n)) for n in range(100)]


def test_chunks_are_made_of_quick_items_and_not_of_slow_ones(single: Executor) -> None:
    count = 20_000
    assert sum(single.map(square, range(count))) == sum(map(square, range(count)))
    chunks = single.stats().submitted
    assert chunks < count / 50
    pause = threading.Event
    [*single.map(lambda _: pause().wait(0.01), range(10))]
    assert single.stats().submitted - chunks >= 9
