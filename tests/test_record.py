"""Frozen values with named fields."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from mpms.record import Record


class Point(Record):
    """Somewhere."""

    x: int
    y: int = 0


class Other(Record):
    x: int
    y: int = 0


class Nothing(Record):
    pass


class Named(Record, kw_only=True):
    size: int = 1
    name: str

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size must be at least 0")

    @property
    def twice(self) -> int:
        return 2 * self.size


def test_it_has_its_fields_by_position_or_by_name_and_defaults() -> None:
    point = Point(3)
    assert (point.x, point.y) == (3, 0)
    assert Point(1, y=2) == Point(1, 2)
    assert repr(point) == "Point(x=3, y=0)"
    assert repr(Nothing()) == "Nothing()"


@pytest.mark.parametrize(
    ("args", "named", "words"),
    [((), {}, "'x'"), ((1, 2, 3), {}, "positional"), ((1,), {"x": 2}, "'x'"), ((1,), {"z": 2}, "'z'")],
)
def test_wrong_fields_are_refused(args: tuple[Any, ...], named: dict[str, Any], words: str) -> None:
    for _ in range(2):  # the first one makes the constructor
        with pytest.raises(TypeError, match=words):
            Point(*args, **named)


def test_with_names_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        Named(1, "a")  # type: ignore[misc]
    assert Named(name="a").twice == 2
    with pytest.raises(ValueError, match="size"):
        Named(name="a", size=-1)


def test_it_equals_what_has_the_same_type_and_fields() -> None:
    assert Point(1, 2) == Point(1, 2) != Point(1, 3)
    assert Point(1, 2) != Other(1, 2)
    assert Point(1, 2) != (1, 2)
    assert {Point(1, 2): "there"}[Point(1, 2)] == "there"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point([]))  # type: ignore[arg-type]


def test_it_can_not_be_changed() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match=r"\.replace\(x=\.\.\.\)"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        del point.x
    assert point == Point(1)
    assert not hasattr(point, "__dict__")


def test_another_one_with_changes_is_checked_as_the_first() -> None:
    assert Point(1, 2).replace(y=3) == Point(1, 3)
    assert Named(name="a").replace(size=4).twice == 8
    with pytest.raises(ValueError, match="size"):
        Named(name="a").replace(size=-1)
    with pytest.raises(TypeError):
        Point(1).replace(z=1)


def test_it_matches_by_position() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
        case _:
            pytest.fail("it doesn't match")


def test_it_travels_and_is_copied() -> None:
    for one in (Point(1, 2), Named(name="n"), Nothing()):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(one, protocol)) == one
        assert copy.copy(one) == copy.deepcopy(one) == one
