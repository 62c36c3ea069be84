"""The size of chunks: what is learned, and what the next map begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest

from mpms.faces.pace import Pace, Paces

MANY = range(1_000_000)


def pace_of(
    paces: Paces, function: Callable[..., Any] | None = str, source: Iterable[Any] = MANY, most: int | None = None
) -> Pace:
    return Pace(paces, function, source, 8, most)


@pytest.fixture
def paces() -> Paces:
    """Of a pool that has mapped quick functions."""
    known = Paces()
    for function in (None, quick):
        learn(pace_of(known, function), 1e-6)
    return known


def quick() -> None:
    pass


def learn(pace: Pace, seconds: float, size: float = 8) -> None:
    for _ in range(10):
        pace.learn(seconds, size)


def test_the_first_chunk_is_one_item_and_the_next_ones_are_no_more_than_16_times_as_many() -> None:
    pace = pace_of(Paces())
    assert pace.size(0) == 1
    pace.learn(1e-9, 8)
    assert pace.size(0) == 16
    pace.learn(1e-9, 8)
    assert pace.size(0) == 256


def test_a_chunk_takes_10_ms_or_a_megabyte() -> None:
    pace = pace_of(Paces())
    learn(pace, 9e-6)
    assert pace.size(0) == 1111
    learn(pace, 1e-9, 1 << 18)
    assert pace.size(0) == 4
    learn(pace, 10.0)
    assert pace.size(0) == 1


def test_a_map_of_the_function_of_the_last_one_begins_as_that_ended(paces: Paces) -> None:
    assert pace_of(paces, quick).size(0) == 10_000
    assert pace_of(paces, str).size(0) == 1
    learn(pace_of(paces, None), 9e-6)
    assert pace_of(paces, None).size(0) == 1111
    assert pace_of(paces, quick).size(0) == 1  # it is not the last one any more


def test_nothing_is_kept_of_a_function_that_nobody_has(paces: Paces) -> None:
    def function() -> None:
        pass

    learn(pace_of(paces, function), 1e-6)
    assert pace_of(paces, function).size(0) == 10_000
    del function
    learn(pace_of(paces, partial(quick)), 1e-6)
    assert pace_of(paces, partial(quick)).size(0) == 1


@pytest.mark.parametrize(
    "source",
    [
        iter(MANY),
        (item for item in MANY),
        *([item] * 100_000 for item in ("x" * 5000, ("x" * 5000,), (0,) * 1000, [[]], {"a": []}, {0: "x" * 5000})),
    ],
)
def test_of_what_is_not_at_hand_or_may_be_large_one_item_is_tried_first(paces: Paces, source: Iterable[Any]) -> None:
    assert pace_of(paces, quick, source).size(0) == 1


@pytest.mark.parametrize("item", [0, "a", b"a", None, (1, "a"), [], [1, 2], {"a": 1, 2: None}])
@pytest.mark.parametrize("kind", [list, tuple])
def test_small_items_that_are_at_hand_go_at_once(paces: Paces, item: Any, kind: type) -> None:
    assert pace_of(paces, quick, kind([item] * 100_000)).size(0) == 10_000


def test_the_last_chunks_of_what_is_at_hand_are_fair_shares_of_the_rest(paces: Paces) -> None:
    pace = pace_of(paces, quick, range(100_000))  # for 8 threads, items of 1 µs
    assert [pace.size(read) for read in (0, 20_000, 40_000, 80_000)] == [10_000, 10_000, 7500, 2500]
    assert [pace.size(read) for read in (95_000, 99_999, 100_000)] == [2000] * 3  # which take 2 ms


def test_what_takes_long_is_shared_out_to_the_last_item(paces: Paces) -> None:
    pace = pace_of(paces, quick, range(24))
    learn(pace, 0.0025)
    assert [pace.size(read) for read in (0, 8, 16, 23, 24)] == [3, 2, 1, 1, 1]


def test_of_few_items_that_take_2_ms_none_waits_for_another_while_a_thread_has_none(paces: Paces) -> None:
    pace = pace_of(paces, quick, range(8))
    learn(pace, 0.002)
    assert [pace.size(read) for read in range(8)] == [1] * 8
    assert pace_of(paces, quick, []).size(0) == 1


def test_nobody_knows_how_much_is_left_of_an_iterator(paces: Paces) -> None:
    pace = pace_of(paces, quick, iter(range(10)))
    learn(pace, 1e-6)
    assert pace.size(9) == 10_000


def test_no_chunk_is_larger_than_a_given_bound(paces: Paces) -> None:
    assert pace_of(paces, quick, most=10).size(0) == 10


def test_after_a_crash_it_begins_anew(paces: Paces) -> None:
    pace = pace_of(paces, quick)
    pace.restart()
    assert pace.size(0) == 1
