"""What goes without a pickle of its own."""

from __future__ import annotations

import enum
import pickle
from collections import namedtuple
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mpms.wire.messages import SMALL
from mpms.wire.plain import are_plain, is_plain


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    pass


Pair = namedtuple("Pair", "a b")

PLAIN = [None, True, False, 0, -1, 2**64 - 1, 1 - 2**64, 0.5, float("inf"), "", "é" * 500, "\ud800", b"", b"x" * 500]
OTHERS = [
    *(2**64, -(2**64), "x" * 501, b"x" * 501, 1j, bytearray(b"x"), [], (), {}),
    *(object(), int, Colour.RED, Text("x"), Pair(1, 2)),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
def test_small_values_of_plain_types_are_plain(value: Any) -> None:
    assert is_plain(value)
    assert are_plain((value,))
    assert are_plain((1, value, None))


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: repr(value)[:20])
def test_nothing_else_is(value: Any) -> None:
    """What is of a class of the user's may do anything when it is pickled; and what can change may do so before."""
    assert not is_plain(value)
    assert not are_plain((value,))
    assert not are_plain((1, value, None))


@given(st.lists(st.sampled_from(PLAIN + OTHERS), max_size=8))
def test_arguments_are_plain_when_each_of_them_is(values: list[Any]) -> None:
    expected = all(map(is_plain, values))
    event(f"plain: {expected}")
    assert are_plain(tuple(values)) == expected


def test_many_arguments_are_not_plain() -> None:
    assert are_plain((1,) * 8)
    assert not are_plain((1,) * 9)


def test_plain_arguments_are_not_much_together() -> None:
    for character in "x", "\N{SNOWMAN}", "\N{PILE OF POO}":
        texts = tuple(character * 499 + str(number) for number in range(8))
        assert are_plain(texts)
        assert len(pickle.dumps(texts, 5)) < 4 * SMALL
