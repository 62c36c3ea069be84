"""``map``, ``map_unordered`` and ``put_many`` of ``MPMS``."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpms import MPMS, PoolBroken, TaskCancelled, WorkerCrashed
from mpms.testing import InlineEngine

from ..local.helpers import until
from ..local.stage import Stage


def double(number: int) -> int:
    return number * 2


def invert(number: int) -> float:
    return 1 / number


def die_at(number: int, bad: int) -> int:
    if number == bad:
        os._exit(3)
    return number


def hold(stage: Stage, number: int) -> int:
    stage.say_and_wait(number)
    return number


def fail() -> None:
    raise OSError("no disk")


@pytest.fixture
def pool() -> Iterator[MPMS]:
    """For what isn't about processes."""
    with MPMS(double, processes=2, threads=2, engine=InlineEngine) as pool:
        yield pool


@pytest.fixture
def workers(method: str) -> Iterator[MPMS]:
    with MPMS(double, processes=2, threads=2, start_method=method) as pool:  # type: ignore[arg-type]
        yield pool


# What comes out


def test_map_gives_the_results_in_the_order_of_the_items(workers: MPMS) -> None:
    assert list(workers.map(None, range(5000))) == [2 * number for number in range(5000)]
    assert list(workers.map(str, [1, 2, 3])) == ["1", "2", "3"]
    assert list(workers.map(lambda number: number + 1, iter([1, 2, 3]), chunksize=2)) == [2, 3, 4]
    assert list(workers.map(None, [])) == []


def test_items_may_be_tuples_of_arguments(pool: MPMS) -> None:
    assert list(pool.map(pow, [(2, 3), (3, 2)], star=True)) == [8, 9]
    assert list(pool.map(None, [(1,), (2,)], star=True)) == [2, 4]
    assert list(pool.map(len, [(1, 2), ()])) == [2, 0]
    assert dict(pool.map_unordered(pow, [(2, 3), (3, 2)], star=True)) == {(2, 3): 8, (3, 2): 9}


def test_map_unordered_gives_each_item_with_its_result(workers: MPMS) -> None:
    assert dict(workers.map_unordered(None, range(5000))) == {number: 2 * number for number in range(5000)}


def test_map_unordered_does_not_wait_for_what_takes_longer(workers: MPMS, stage: Stage) -> None:
    pairs = workers.map_unordered(lambda number: hold(stage, number) if number == 0 else number, range(4), chunksize=1)
    others = dict(itertools.islice(pairs, 3))
    assert others == {1: 1, 2: 2, 3: 3}
    stage.open()
    assert list(pairs) == [(0, 0)]


def test_an_error_is_raised_at_its_place_and_ends_map(pool: MPMS) -> None:
    values = pool.map(invert, [2, 1, 0, 4])
    assert [next(values), next(values)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError) as raised:
        next(values)
    assert "in invert" in str(raised.value.__cause__)
    assert list(values) == []


def test_errors_are_yielded_by_map_where_they_are_not_to_be_raised(pool: MPMS) -> None:
    one, error, two = pool.map(invert, [1, 0, 2], raise_errors=False)
    assert (one, two) == (1.0, 0.5)
    assert isinstance(error, ZeroDivisionError)


def test_map_unordered_yields_errors_with_their_items_and_goes_on(pool: MPMS) -> None:
    results = dict(pool.map_unordered(invert, [1, 0, 2]))
    assert isinstance(results.pop(0), ZeroDivisionError)
    assert results == {1: 1.0, 2: 0.5}
    with pytest.raises(ZeroDivisionError):
        list(pool.map_unordered(invert, [1, 0, 2], raise_errors=True))


def test_an_item_that_cannot_be_pickled_has_that_as_its_outcome(pool: MPMS) -> None:
    lock = threading.Lock()
    one, error, two = pool.map(type, ["a", lock, "b"], raise_errors=False)
    assert (one, two) == (str, str)
    assert isinstance(error, TypeError)


def test_a_crash_costs_the_item_that_did_it(workers: MPMS) -> None:
    results = dict(workers.map_unordered(lambda number: die_at(number, 7), range(10), chunksize=1))
    error = results.pop(7)
    assert isinstance(error, WorkerCrashed)
    assert error.blamed
    assert {n: r for n, r in results.items() if not isinstance(r, WorkerCrashed)}.items() <= {
        (n, n) for n in range(10)
    }  # the one beside it may be lost


def test_what_the_iterable_raises_comes_after_the_results_of_the_items_before_it(pool: MPMS) -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("no more")

    values = pool.map(None, source())
    assert [next(values), next(values)] == [2, 4]
    with pytest.raises(LookupError, match="no more"):
        next(values)


# How much is read, and when


class Counted:
    """An endless iterable that knows how far it was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.read = number + 1
            yield number


@pytest.mark.parametrize("bulk", [MPMS.map, MPMS.map_unordered], ids=["map", "map_unordered"])
def test_an_endless_iterable_is_read_no_further_than_the_buffer(pool: MPMS, bulk: Callable[..., Any]) -> None:
    source = Counted()
    results = bulk(pool, None, source, buffersize=12)
    assert source.read == 0, "nothing is read before the first next"
    for taken in range(1, 300):
        next(results)
        assert source.read <= taken + 12
    results.close()


def test_an_endless_iterable_is_read_a_few_chunks_ahead_by_default(pool: MPMS) -> None:
    source = Counted()
    results = pool.map(None, source, chunksize=10)
    for taken in range(1, 300):
        next(results)
        assert source.read <= taken + 10 * (2 * 4 + 2 + 1)
    results.close()  # type: ignore[attr-defined]


def test_an_endless_iterable_of_large_items_is_read_some_megabytes_ahead(method: str) -> None:
    source = Counted()
    with MPMS(len, processes=2, threads=2, start_method=method) as pool:  # type: ignore[arg-type]
        results = pool.map(None, map(b"%100000d".__mod__, source))
        for taken in range(1, 3000):
            assert next(results) == 100_000
            assert (source.read - taken) * 100_000 <= 30e6
        results.close()  # type: ignore[attr-defined]


def test_a_slow_iterable_keeps_results_waiting_for_one_item_at_the_most(method: str) -> None:
    taken = list[int]()

    def source() -> Iterator[int]:
        yield 0
        until(lambda: (stats := pool.stats()).done == 1 and not stats.undelivered)
        threading.Event().wait(0.05)  # it is slow, so that one who waits is noticed
        yield 1
        assert taken == [0], "a result is there, and the next item is asked for"
        yield 2

    with MPMS(double, processes=1, threads=1, start_method=method) as pool:  # type: ignore[arg-type]
        for value in pool.map(None, source()):
            taken.append(value)
    assert taken == [0, 2, 4]


# What it has to do with the rest of the pool


def test_map_starts_the_pool_and_map_of_a_closed_one_raises() -> None:
    pool = MPMS(double, processes=1, engine=InlineEngine)
    values = pool.map(None, [1, 2])
    with pytest.raises(RuntimeError, match="only once"):
        pool.start()
    assert list(values) == [2, 4]
    pool.close()
    for call in (lambda: pool.map(None, [1]), lambda: pool.map_unordered(None, [1]), lambda: pool.put_many([1])):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    pool.join()


def test_map_of_a_pool_that_is_broken_says_so() -> None:
    pool = MPMS(double, processes=1, process_initializer=fail, engine=InlineEngine)
    with pytest.raises(PoolBroken, match="no disk"):
        list(pool.map(None, itertools.count()))
    with pytest.raises(PoolBroken, match="no disk"):
        pool.map(None, [1])
    with pytest.raises(PoolBroken):
        pool.join()


def test_results_of_map_go_to_nobody_else(method: str) -> None:
    collected = []
    with MPMS(
        double,
        lambda meta, result: collected.append(result),
        processes=1,
        threads=1,
        start_method=method,  # type: ignore[arg-type]
    ) as pool:
        pool.put(1)
        assert list(pool.map(None, [10, 20])) == [20, 40]
        assert pool.total_count == 1
    assert collected == [2]
    assert (pool.total_count, pool.finish_count, len(pool), pool.unfinished()) == (1, 1, 0, [])


def test_iter_results_does_not_have_what_map_has(pool: MPMS) -> None:
    pool.put(1)
    assert list(pool.map(None, [10, 20])) == [20, 40]
    pool.close()
    assert [result for _, result in pool.iter_results()] == [2]


def test_map_sends_its_items_though_put_would_wait(method: str, stage: Stage) -> None:
    with MPMS(lambda number: hold(stage, number), processes=1, threads=1, start_method=method) as pool:  # type: ignore[arg-type]
        pool.put(0)
        stage.hear()
        pool.put_many(range(1, 1 + pool.task_queue_maxsize))
        values = list[int]()
        mapper = threading.Thread(target=lambda: values.extend(pool.map(double, range(50))))
        mapper.start()
        until(lambda: pool.stats().submitted > pool.total_count)
        stage.open()
        mapper.join()
    assert values == [double(number) for number in range(50)]


def test_a_map_that_is_closed_cancels_what_has_not_started(method: str, stage: Stage) -> None:
    with MPMS(double, processes=1, threads=1, start_method=method) as pool:  # type: ignore[arg-type]
        pairs = pool.map_unordered(lambda number: hold(stage, number) if number else number, range(4), chunksize=1)
        assert next(pairs) == (0, 0)
        assert stage.hear() == ["1"]
        pairs.close()  # type: ignore[attr-defined]
        stage.open()
    stats = pool.stats()
    assert (stats.done, stats.failed) == (2, stats.submitted - 2)


def test_a_map_in_a_pool_that_is_stopped_ends_with_the_error_of_its_items(method: str, stage: Stage) -> None:
    pool = MPMS(double, processes=1, threads=1, start_method=method)  # type: ignore[arg-type]
    values = pool.map(lambda number: hold(stage, number), itertools.count(), chunksize=1)
    stopper = threading.Thread(target=lambda: (stage.hear(), pool.graceful_shutdown(0.0)))
    stopper.start()
    with pytest.raises(TaskCancelled):
        next(values)
    stopper.join()
    pool.join()  # the stop waits for half a second only
    assert pool.unfinished() == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunksize": 0}, "chunksize must be at least 1, not 0"),
        ({"chunksize": True}, "chunksize must be an int of at least 1, not True"),
        ({"chunksize": "big"}, "chunksize must be an int of at least 1 or \"auto\", not 'big'"),
        ({"buffersize": 0}, "buffersize must be at least 1, not 0"),
        ({"buffersize": 1.5}, "buffersize must be an int of at least 1, not 1.5"),
    ],
)
def test_an_option_that_is_none_is_refused_at_the_call(options: dict[str, Any], error: str) -> None:
    pool = MPMS(double, engine=InlineEngine)
    for bulk in (pool.map, pool.map_unordered):
        with pytest.raises((TypeError, ValueError)) as raised:
            bulk(None, [1], **options)  # type: ignore[call-overload]
        assert str(raised.value) == error
        with pytest.raises(TypeError, match="fn must be a callable"):
            bulk("double", [1])  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="not iterable"):
            bulk(None, 1)  # type: ignore[call-overload]


# put_many


def test_put_many_makes_each_item_a_task_of_its_own(pool: MPMS) -> None:
    assert pool.put_many(iter([1, 2, 3])) == 3
    assert pool.put_many([(4,), [5]], star=True) == 2
    assert pool.put_many([]) == 0
    pool.close()
    assert {meta.args: result for meta, result in pool.iter_results()} == {(n,): 2 * n for n in range(1, 6)}
    assert (pool.total_count, pool.finish_count) == (5, 5)


def test_put_many_raises_at_what_cannot_be_pickled_with_those_before_it_accepted(pool: MPMS) -> None:
    source = iter([1, 2, threading.Lock(), 3])
    with pytest.raises(TypeError):
        pool.put_many(source)
    assert next(source) == 3
    assert pool.total_count == 2
    pool.close()
    assert sorted(result for _, result in pool.iter_results(raise_errors=True)) == [2, 4]


def test_put_many_blocks_as_put_does(method: str, stage: Stage) -> None:
    with MPMS(lambda number: hold(stage, number), processes=1, threads=1, start_method=method) as pool:  # type: ignore[arg-type]
        source = Counted()
        putter = threading.Thread(target=lambda: pool.put_many(itertools.islice(source, 200)))
        putter.start()
        stage.hear()
        most = pool.task_queue_maxsize + 1 + 2  # what runs, and what is on its way
        until(lambda: pool.total_count >= pool.task_queue_maxsize)
        assert source.read <= most
        stage.open()
        putter.join()
    assert pool.total_count == 200


# How many


def test_len_is_exact_in_the_collector(method: str) -> None:
    """Results come in batches; a crawler closes its pool when none is under way."""
    go, seen = threading.Event(), list[tuple[int, int, int]]()

    def collect(meta: Any, result: int) -> None:
        go.wait()
        seen.append((len(pool), pool.total_count, pool.finish_count))

    with MPMS(double, collect, processes=1, threads=1, start_method=method) as pool:  # type: ignore[arg-type]
        pool.put_many(range(30))
        go.set()
    assert seen == [(29 - number, 30, number + 1) for number in range(30)]
