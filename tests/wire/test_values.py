"""Values go together if nobody can tell it from what arrives."""

from __future__ import annotations

import enum
import pickle
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mpms.wire import pickling
from mpms.wire import values as values_module
from mpms.wire.values import together

numbers = st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()
plain = numbers | st.text() | st.binary() | st.complex_numbers(allow_nan=False)
parts = st.lists(plain, max_size=4)
flat = st.sampled_from([plain, parts, parts.map(tuple), st.dictionaries(plain, plain, max_size=4)])


def arrived(values: Sequence[Any]) -> Any:
    """As it is in a message; ``None`` if they don't go together."""
    found = together(values)
    return None if found is None else pickling.load(pickling.dump((found[0],)))[0]


@pytest.fixture(params=[200, 1], ids=["as it is", "as if they were many"], autouse=True, scope="module")
def many(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpms.wire.values._FEW", request.param)
        yield


def exact(value: Any) -> object:
    """Equal if and only if the types are, too: True is no 1."""
    if isinstance(value, dict):
        return dict, [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [exact(part) for part in value]
    if isinstance(value, frozenset):
        return frozenset, sorted(repr(exact(part)) for part in value)
    return type(value), repr(value)


@given(st.lists(numbers, max_size=100))
def test_numbers_arrive_as_they_were(values: list[Any]) -> None:
    assert exact(arrived(values)) == exact(values)


@given(st.data())
def test_what_is_of_one_kind_arrives_as_it_was(data: st.DataObject) -> None:
    values = data.draw(st.lists(data.draw(flat), max_size=20))
    event(f"{type(values[0]).__name__}s" if values else "nothing")
    assert exact(arrived(values)) == exact(values)


@given(st.lists(numbers | plain | parts | parts.map(tuple), min_size=1, max_size=20))
def test_what_is_mixed_arrives_as_it_was_or_goes_one_by_one(values: list[Any]) -> None:
    got = arrived(values)
    event("together" if got is not None else "one by one")
    assert got is None or exact(got) == exact(values)
    if not any(isinstance(value, list | tuple) for value in values):
        assert got is not None
    elif len({type(value) for value in values}) > 1:
        assert got is None or not any(isinstance(value, list) for value in values)


atoms = numbers | st.text(max_size=10) | st.complex_numbers(allow_nan=False)
nested = st.recursive(
    atoms, lambda part: st.lists(part, max_size=3).map(tuple) | st.frozensets(part, max_size=3), max_leaves=10
)


@given(st.lists(nested, min_size=1, max_size=10))
def test_what_can_not_be_changed_arrives_as_it_was_however_deep(values: list[Any]) -> None:
    got = arrived(values)
    event("together" if got is not None else "one by one")
    assert got is None or exact(got) == exact(values)
    ends = {type(values[0]), type(values[-1])}
    is_small = len(pickle.dumps(values, 5)) <= 200 * len(values)
    if ends <= {int, tuple, type(None)} and is_small and values_module._FEW == 1:
        assert got is not None


def test_what_is_too_deep_goes_one_by_one() -> None:
    deep: tuple[Any, ...] = ()
    for _ in range(100_000):
        deep = (deep,)
    assert arrived([(), deep, ()]) is None
    while deep:
        (deep,) = deep  # for to let go of it at once takes as deep a stack in some versions


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    pass


class Mine:
    def __reduce__(self) -> tuple[Any, ...]:
        raise AssertionError("this is no place for code of the user's")

    def __hash__(self) -> int:
        raise AssertionError("neither for this")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("nor this")


Pair = namedtuple("Pair", "x y")
OTHERS = [
    Colour.RED,
    Text("t"),
    Mine(),
    Pair(1, 2),
    OrderedDict(a=1),
    bytearray(b"b"),
    {1},
    frozenset([Colour.RED]),
    int,
    len,
    ...,
    [[]],
    [Mine()],
    (([],),),
    (1, {}),
    (bytearray(),),
    ({1},),
    (Colour.RED,),
    (pickle.PickleBuffer(bytearray(b"b")),),
    (pickle.PickleBuffer(memoryview(b"not in one piece")[::2]),),
    {"a": []},
    {"a": Mine()},
    {(): 1},
    [Text()],
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: type(other).__name__)
@pytest.mark.parametrize("beside", [1, None, "text", 2.5, [1], (1,), {"a": 1}], ids=repr)
def test_anything_else_keeps_all_from_it(other: Any, beside: Any) -> None:
    new = type(beside) if isinstance(beside, list | dict) else lambda same: same
    for before in (0, 1, 50):
        for after in (0, 1, 50):
            assert arrived([*(new(beside) for _ in range(before)), other, *(new(beside) for _ in range(after))]) is None


@pytest.mark.parametrize("shared", [[1], {"a": 1}, []], ids=repr)
def test_what_is_there_twice_would_be_one_when_it_arrives(shared: Any) -> None:
    assert arrived([shared, type(shared)(shared)]) == [shared, shared]
    assert arrived([shared, type(shared)(), shared]) is None


def test_tuples_can_not_be_changed_so_they_may_be_there_twice() -> None:
    pair = 1, "one"
    assert arrived([pair, pair]) == [pair, pair]


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_long_ones_go_one_by_one(kind: type) -> None:
    long = dict.fromkeys(range(1000)) if kind is dict else kind(range(1000))
    assert arrived([long]) is None
    assert arrived([long, *(kind() for _ in range(1000))]) is not None  # they aren't on average


def test_a_range_goes_as_it_is_whatever_its_length() -> None:
    endless = range(3, 10**15, 7)
    assert arrived(endless) == endless
    assert len(pickling.dump((together(endless),))) < 200


def test_large_ones_go_beside_the_rest_and_are_not_copied() -> None:
    values = list(range(100_000))
    found = together(values)
    assert found is not None
    buffers = list[pickle.PickleBuffer]()
    assert len(pickle.dumps(found[0], 5, buffer_callback=buffers.append)) < 200
    assert [buffer.raw().nbytes for buffer in buffers] == [found[1]]
    assert arrived(values) == values


def test_very_large_ones_are_not_kept_as_they_are_sent() -> None:
    values = [bytes(n) for n in (10_000,) * 500]
    found = together(values)
    assert found is not None
    assert found[0] is values
    assert found[1] >= 5_000_000
    assert arrived(values) == values


@pytest.mark.parametrize("count", [1, 50, 500, 50_000])
def test_texts_that_look_like_what_goes_by_value_do_no_harm(count: int) -> None:
    values = ["__main__", "c__main__\nf\n"] * count
    assert arrived(values) == values


def test_the_size_is_about_that_of_what_is_sent() -> None:
    for values in ([1] * 1000, ["x" * 100] * 1000, [f"{n:0100}" for n in range(1000)], range(1000)):
        found = together(values)
        assert found is not None
        assert found[1] >= len(pickle.dumps(found[0], 5)) - 100
    assert together([])


def test_it_is_shown_as_the_values_are() -> None:
    found = together(list(range(1000)))
    assert found is not None
    assert repr(found[0]) == "[0, 1, 2, 3, 4, 5, ...]"
