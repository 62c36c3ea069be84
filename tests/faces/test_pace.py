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
    return Pace(paces, function, source, 2, most)


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
    assert pace.size == 1
    pace.learn(1e-9, 8)
    assert pace.size == 16
    pace.learn(1e-9, 8)
    assert pace.size == 256


def test_a_chunk_takes_4_ms_or_a_megabyte() -> None:
    pace = pace_of(Paces())
    learn(pace, 1e-5)
    assert pace.size == 400
    learn(pace, 1e-9, 1 << 18)
    assert pace.size == 4
    learn(pace, 10.0)
    assert pace.size == 1


def test_a_map_of_the_function_of_the_last_one_begins_as_that_ended(paces: Paces) -> None:
    assert pace_of(paces, quick).size == 4000
    assert pace_of(paces, str).size == 1
    learn(pace_of(paces, None), 1e-5)
    assert pace_of(paces, None).size == 400
    assert pace_of(paces, quick).size == 1  # it is not the last one any more


def test_nothing_is_kept_of_a_function_that_nobody_has(paces: Paces) -> None:
    def function() -> None:
        pass

    learn(pace_of(paces, function), 1e-6)
    assert pace_of(paces, function).size == 4000
    del function
    learn(pace_of(paces, partial(quick)), 1e-6)
    assert pace_of(paces, partial(quick)).size == 1


@pytest.mark.parametrize(
    "source",
    [
        iter(MANY),
        (item for item in MANY),
        *([item] * 100_000 for item in ("x" * 5000, ("x" * 5000,), (0,) * 1000, [[]], {"a": []}, {0: "x" * 5000})),
    ],
)
def test_of_what_is_not_at_hand_or_may_be_large_one_item_is_tried_first(paces: Paces, source: Iterable[Any]) -> None:
    assert pace_of(paces, quick, source).size == 1


@pytest.mark.parametrize("item", [0, "a", b"a", None, (1, "a"), [], [1, 2], {"a": 1, 2: None}])
@pytest.mark.parametrize("kind", [list, tuple])
def test_small_items_that_are_at_hand_go_at_once(paces: Paces, item: Any, kind: type) -> None:
    assert pace_of(paces, quick, kind([item] * 100_000)).size == 4000


def test_what_is_at_hand_is_shared_out_so_that_all_processes_end_at_about_the_same_time(paces: Paces) -> None:
    assert pace_of(paces, quick, range(8000)).size == 1000
    assert pace_of(paces, quick, range(3)).size == 1
    assert pace_of(paces, quick, []).size == 1


def test_no_chunk_is_larger_than_a_given_bound(paces: Paces) -> None:
    assert pace_of(paces, quick, most=10).size == 10


def test_after_a_crash_it_begins_anew(paces: Paces) -> None:
    pace = pace_of(paces, quick)
    pace.restart()
    assert pace.size == 1
