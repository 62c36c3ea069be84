"""A chunk gives what a loop over its items would give, and says beforehand how far it may have come."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mpms import RemoteWorkerError, WorkerGracefulDie
from mpms.testing import FakeClock
from mpms.wire import chunks
from mpms.wire.chunks import Chunk, Place, here, pack
from mpms.wire.failures import load_error
from mpms.wire.pickling import dump_function, load


def travel(value: Any) -> Any:
    return load(pickle.dumps(value, 5))


class Each(chunks.Each):
    """What it returns has come from a worker."""

    def __call__(self, *args: Any) -> Chunk:
        chunk = travel(super().__call__(*args))
        assert isinstance(chunk, Chunk)
        return chunk


class Noted(Place):
    """Remembers what it was told."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.notes: list[int] = []
        self.times: list[float] = []
        self.count: int | None = None
        self._most = most

    @property
    def most(self) -> int | None:
        return self._most

    def go_on(self, items: int, now: float) -> None:
        self.notes.append(items)
        self.times.append(now)

    def asks_for_retry(self, error: BaseException) -> bool:
        return isinstance(error, ConnectionError)

    def is_the_last(self, error: BaseException) -> bool:
        return isinstance(error, WorkerGracefulDie)

    def ran(self, items: int) -> None:
        assert self.count is None
        self.count = items


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted = Noted()
    monkeypatch.setattr(here, "place", noted)
    return noted


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """It stands still unless a test moves it: on a busy machine a chunk would come back early."""
    fake = FakeClock()
    monkeypatch.setattr(chunks, "monotonic", fake)
    return fake


def run(function: Callable[..., Any], items: Sequence[Any], *, star: bool = False) -> Chunk:
    """As it is run in a worker: packed, on its way there and back."""
    packed, problems, _ = pack(items, star=star, exact=False)
    assert not problems
    each = load(dump_function(Each(function))) if function.__module__ == __name__ else Each(function)
    chunk = travel(each(*travel(packed)))
    assert isinstance(chunk, Chunk)
    return chunk


Outcome = tuple[str, Any]


def outcomes(chunk: Chunk) -> list[Outcome]:
    """Of each item that was run: its value, or its error as a text."""
    values, errors = chunk.load()
    return [("raised", repr(errors[at][0])) if at in errors else ("returned", value) for at, value in enumerate(values)]


# What the items get


class Point:
    """A value that isn't plain."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Point({self.x})"


def double(x: Any) -> Any:
    return Point(x.x * 2) if isinstance(x, Point) else x * 2


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 1000])
def test_every_item_has_its_value_in_its_place(count: int) -> None:
    assert run(double, range(count)).values == [2 * n for n in range(count)]


def test_values_of_plain_types_travel_together_and_others_one_by_one() -> None:
    assert not run(double, [1, 2.5, "a", b"b", True, 1j]).one_by_one
    mixed = run(double, [1, Point(2), [3]])
    assert mixed.one_by_one
    assert outcomes(mixed) == [("returned", 2), ("returned", Point(4)), ("returned", [3, 3])]


class Subclass(int):
    def __reduce__(self) -> tuple[Any, ...]:
        raise ValueError("a subclass may do anything")


def test_a_subclass_of_a_plain_type_is_none() -> None:
    packed, problems, _ = pack([1, Subclass(2), 3], star=False, exact=False)
    assert packed[1]
    assert list(problems) == [1]


def test_arguments_are_spread_with_star() -> None:
    assert outcomes(run(divmod, [(7, 2), (9, 4)], star=True)) == [("returned", (3, 1)), ("returned", (2, 1))]
    assert outcomes(run(isinstance, [(Point(1), Point), (1, Point)], star=True)) == [
        ("returned", True),
        ("returned", False),
    ]


def test_arguments_of_plain_types_travel_together() -> None:
    calls = [(1, 2.5), ("a", None)]
    packed, problems, _ = pack(calls, star=True, exact=False)
    assert (travel(packed), problems) == ((calls, False, True, False), {})
    assert pack([*calls, ([], 3)], star=True, exact=True)[0][1:] == (True, True, True)


def test_calls_without_arguments_are_calls_too() -> None:
    assert outcomes(run(dict, [(), ()], star=True)) == [("returned", {}), ("returned", {})]


def test_items_do_not_share_what_they_change() -> None:
    shared = [0]

    def append(items: list[int]) -> int:
        items.append(1)
        return len(items)

    assert run(append, [shared, shared, shared]).values == [2, 2, 2]


def test_an_exception_that_is_returned_stays_a_value() -> None:
    [(kind, value)] = outcomes(run(lambda _: ValueError("a value"), [1]))
    assert (kind, repr(value)) == ("returned", "ValueError('a value')")


def test_how_long_it_took_is_told(clock: FakeClock) -> None:
    chunk = Each(clock.advance)([2.0**-10, 2.0**-9], False, False, False)
    assert chunk.seconds == 3 * 2.0**-10


# What the items raise


def test_an_error_is_that_of_its_own_item_and_the_others_are_run() -> None:
    def invert(x: int) -> float:
        return 1 / x

    chunk = run(invert, [1, 0, 2, 0])
    assert chunk.values == [1.0, None, 0.5, None]
    assert list(chunk.errors) == [1, 3]
    error = load_error(chunk.errors[1][0])
    assert isinstance(error, ZeroDivisionError)
    assert "in invert" in str(error.__cause__)  # the traceback from over there


@pytest.mark.parametrize("bad", [0, 1, 5, 62, 63, 64, 99])
def test_it_does_not_matter_where_the_error_is(bad: int) -> None:
    def picky(x: int) -> int:
        if x == bad:
            raise LookupError(x)
        return x

    chunk = run(picky, range(100))
    assert chunk.values == [None if n == bad else n for n in range(100)]
    assert list(chunk.errors) == [bad]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError(), BaseException(1)]
)
def test_whatever_is_raised_is_an_outcome(error: BaseException) -> None:
    def leave(x: int) -> int:
        if x == 1:
            raise error
        return x

    assert outcomes(run(leave, [0, 1, 2])) == [("returned", 0), ("raised", repr(error)), ("returned", 2)]


@pytest.mark.parametrize("bad", [[0], [4], [9], [0, 9], [3, 4, 5], list(range(10))])
@pytest.mark.parametrize("plain", [False, True])
def test_an_item_that_raises_stop_iteration_does_not_stop_the_others(bad: list[int], plain: bool) -> None:
    def stop(x: Any) -> Any:
        if x in bad or x in [[n] for n in bad]:
            next(iter(()))
        return x

    got = outcomes(run(stop, list(range(10)) if plain else [[n] for n in range(10)]))
    assert [kind for kind, _ in got] == ["raised" if n in bad else "returned" for n in range(10)]
    assert {text for kind, text in got if kind == "raised"} == {"StopIteration()"}


def test_an_error_that_asks_for_another_attempt_says_so(place: Noted) -> None:
    def fail(error: str) -> None:
        raise {"lost": ConnectionResetError, "bad": ValueError}[error]()

    chunk = run(fail, ["lost", "bad"])
    assert {at: asks for at, (_, asks) in chunk.errors.items()} == {0: True, 1: False}


def test_after_the_last_error_no_more_items_are_run(place: Noted) -> None:
    def until(x: int) -> int:
        if x == 3:
            raise WorkerGracefulDie("enough")
        return x

    chunk = run(until, range(10))
    assert chunk.values == [0, 1, 2, None]
    assert list(chunk.errors) == [3]
    assert place.count == 4


# What does not travel


def unpickle_fails(*args: Any) -> Any:
    raise ValueError("it does not like it here")


class NeverArrives:
    def __reduce__(self) -> tuple[Any, ...]:
        return unpickle_fails, ()


class NeverLeaves:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or RuntimeError("it stays at home")

    def __reduce__(self) -> tuple[Any, ...]:
        raise self.error

    def __repr__(self) -> str:
        return "what stays at home"


def test_items_that_cannot_be_pickled_are_left_out_each_with_its_reason() -> None:
    lock = threading.Lock()
    (items, one_by_one, star, _), problems, _ = pack([1, lock, 3, NeverLeaves()], star=False, exact=False)
    assert one_by_one
    assert not star
    assert [load(item) for item in items] == [1, 3]
    assert list(problems) == [1, 3]
    assert isinstance(problems[1], TypeError)
    assert str(problems[3]) == "it stays at home"


def test_one_argument_that_cannot_be_pickled_costs_its_own_call_only() -> None:
    (items, one_by_one, star, _), problems, _ = pack([(1, 2), (3, NeverLeaves())], star=True, exact=False)
    assert (one_by_one, star) == (True, True)
    assert [load(item) for item in items] == [(1, 2)]
    assert list(problems) == [1]


def test_an_item_that_does_not_unpickle_is_its_own_error() -> None:
    got = outcomes(run(repr, [Point(1), NeverArrives(), Point(3)]))
    assert got == [
        ("returned", "Point(1)"),
        ("raised", "ValueError('it does not like it here')"),
        ("returned", "Point(3)"),
    ]


@pytest.mark.parametrize("problem", [RuntimeError("no"), KeyboardInterrupt("no"), SystemExit("no")])
def test_a_value_that_cannot_be_pickled_is_its_own_error(problem: BaseException) -> None:
    def bad(x: int) -> Any:
        return NeverLeaves(problem) if x == 1 else Point(x)

    chunk = Each(bad)([0, 1, 2], False, False, False)
    assert outcomes(chunk)[0] == ("returned", Point(0))
    assert outcomes(chunk)[2] == ("returned", Point(2))
    error = load_error(chunk.errors[1][0])
    assert isinstance(error, RemoteWorkerError)
    assert error.kind == "mpms_unpickleable_result"
    assert "what stays at home" in error.detail
    assert chunk.errors[1][1] is False


def test_a_value_that_cannot_be_unpickled_keeps_no_other_from_it() -> None:
    def good_or_bad(x: int) -> Any:
        if x == 3:
            raise KeyError(x)
        return NeverArrives() if x == 1 else Point(x)

    values, errors = run(good_or_bad, [0, 1, 2, 3]).load()
    assert values == [Point(0), None, Point(2), None]
    assert list(errors) == [1, 3]
    assert isinstance(errors[1][0], RemoteWorkerError)
    assert "ValueError: it does not like it here" in str(errors[1][0])
    assert repr(errors[3][0]) == "KeyError(3)"


def test_values_beside_errors_travel_one_by_one_too() -> None:
    def fail_at_one(x: int) -> Any:
        if x == 1:
            raise KeyError("one")
        return Point(x)

    got = outcomes(run(fail_at_one, [0, 1, 2]))
    assert got == [("returned", Point(0)), ("raised", "KeyError('one')"), ("returned", Point(2))]


# What is noted beforehand


SLOW, FAST, FASTEST = 2.0**-10, 2.0**-20, 2.0**-23  # 1 ms, 1 µs and 0.1 µs, so that sums are exact


def lasting(clock: FakeClock, seconds: Callable[[int], float]) -> Callable[[int], int]:
    def take_time(x: int) -> int:
        clock.advance(seconds(x))
        return x

    return take_time


def test_each_slow_item_has_a_note_of_its_own_before_it_starts(place: Noted, clock: FakeClock) -> None:
    seen: list[int] = []
    started = clock()

    def work(x: int) -> None:
        seen.append(place.notes[-1])
        clock.advance(SLOW)

    Each(work)(list(range(20)), False, False, False)
    assert seen == list(range(1, 21))
    assert place.notes == list(range(1, 21))
    assert place.times == [started + n * SLOW for n in range(20)]  # the time of each begins with it


def test_fast_items_share_notes(place: Noted, clock: FakeClock) -> None:
    Each(lasting(clock, lambda _: FASTEST))(list(range(10_000)), False, False, False)
    assert place.notes[-1] == 10_000
    assert len(place.notes) < 200


def test_each_item_has_a_note_where_that_is_asked_for_however_fast_it_is(place: Noted, clock: FakeClock) -> None:
    Each(lasting(clock, lambda _: FASTEST))(list(range(1_000)), False, False, True)
    assert place.notes == list(range(1, 1_001))


def test_what_is_noted_is_bounded_in_time(place: Noted, clock: FakeClock) -> None:
    """Items of the same length: those of one note take well under a millisecond in all."""
    Each(lasting(clock, lambda _: FAST))(list(range(5_000)), False, False, False)
    steps = [after - before for before, after in zip(place.times, place.times[1:], strict=False)]
    assert max(steps) < 1e-4


def test_when_items_become_slow_only_those_of_one_note_share_it(place: Noted, clock: FakeClock) -> None:
    Each(lasting(clock, lambda n: FAST if n < 500 else SLOW))(list(range(540)), False, False, False)
    shared = next(note for note in place.notes if note > 500)
    assert [note for note in place.notes if note >= shared] == list(range(shared, 541))


def test_when_items_become_fast_they_share_notes_again(place: Noted, clock: FakeClock) -> None:
    Each(lasting(clock, lambda n: SLOW if n < 10 else FASTEST))(list(range(5_000)), False, False, False)
    assert place.notes[:11] == list(range(1, 12))
    assert len(place.notes) < 200


def test_no_more_is_noted_than_there_is(place: Noted) -> None:
    Each(abs)([1, 2, 3], False, False, False)
    assert max(place.notes) == 3
    place.notes.clear()
    place.count = None
    Each(abs)([], False, False, False)
    assert place.notes == []
    assert place.count == 0


def test_an_error_does_not_undo_what_was_noted(place: Noted, clock: FakeClock) -> None:
    def fail(x: int) -> None:
        clock.advance(SLOW)
        raise ValueError(x)

    Each(fail)([1, 2, 3], False, False, False)
    assert place.notes == [1, 2, 3]


# Which items are run


@pytest.mark.parametrize(("most", "ran"), [(1, 1), (2, 2), (7, 7), (10, 10), (11, 10), (None, 10)])
def test_a_thread_runs_no_more_items_than_it_may(monkeypatch: pytest.MonkeyPatch, most: int | None, ran: int) -> None:
    place = Noted(most)
    monkeypatch.setattr(here, "place", place)
    began: list[int] = []
    chunk = Each(began.append)(list(range(10)), False, False, False)
    assert began == list(range(ran))
    assert len(chunk.values) == ran
    assert place.count == ran
    assert max(place.notes) == ran


def test_items_that_fail_count_for_what_a_thread_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "place", Noted(3))
    chunk = Each(int)(["1", "x", "2", "y"], False, False, False)
    assert chunk.values == [1, None, 2]
    assert list(chunk.errors) == [1]


def test_a_chunk_of_slow_items_comes_back_as_far_as_it_got(place: Noted, clock: FakeClock) -> None:
    began: list[int] = []

    def work(x: int) -> int:
        began.append(x)
        clock.advance(0.02)
        return x

    chunk = Each(work)(list(range(100)), False, False, False)
    assert chunk.values == began == [0, 1, 2]
    assert place.count == 3
    assert place.notes == [1, 2, 3]  # of those that were not started nothing is noted


@pytest.mark.parametrize("exact", [False, True])
def test_an_item_that_takes_long_is_run_and_the_rest_comes_back(place: Noted, clock: FakeClock, exact: bool) -> None:
    def work(x: int) -> int:
        clock.advance(3600.0)
        raise ValueError(x)

    chunk = Each(work)([1, 2, 3], False, False, exact)
    assert (chunk.values, list(chunk.errors), place.count) == ([None], [0], 1)


def test_a_thread_that_had_no_processor_before_the_first_item_runs_it_all_the_same(
    place: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.count(1000.0)
    monkeypatch.setattr(chunks, "monotonic", lambda: next(times))
    assert Each(abs)([-1, -2], False, False, False).values == [1]


def test_it_runs_where_nobody_counts_too() -> None:
    assert Each(abs)([-1, 2], False, False, False).values == [1, 2]


def test_a_child_that_an_item_forks_runs_no_further_items(place: Noted, clock: FakeClock) -> None:
    """In this process: what the child sees is that the items are gone, and that it is one."""
    began: list[int] = []

    def fork(x: int) -> None:
        began.append(x)
        if x == 4:
            place.items.clear()
            place.forked = True

    Each(fork)(list(range(100)), False, False, False)
    assert place.notes == [1, 3, 7]
    assert began == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("items", [list(range(20)), range(20)], ids=["list", "range"])
def test_what_is_taken_away_from_a_step_is_not_begun_in_it(place: Noted, items: list[int] | range) -> None:
    """By another thread, in the midst of an item. As there is time left, it is in the next step."""
    began: list[int] = []

    def work(x: int) -> int:
        began.append(x)
        if x in (4, 8):
            place.items.clear()
        return x

    chunk = Each(work)(items, False, False, False)
    assert chunk.values == began == [*range(20)]
    assert chunk.errors == {}
    assert place.notes == [1, 3, 7, 13, 20]  # of steps of 1, 2, 4, 8 the third and the fourth were cut


def test_an_item_that_stops_an_iteration_when_the_rest_is_taken_away_is_not_begun_again(place: Noted) -> None:
    began: list[int] = []

    def work(x: int) -> int:
        began.append(x)
        if x == 4:
            place.items.clear()
            raise StopIteration
        return x

    chunk = Each(work)(list(range(10)), False, False, False)
    assert began == [*range(10)]
    assert chunk.values == [0, 1, 2, 3, None, 5, 6, 7, 8, 9]
    assert list(chunk.errors) == [4]


def test_what_a_child_raises_is_for_nobody_in_the_chunk(place: Noted) -> None:
    def leave(x: int) -> None:
        place.items.clear()
        place.forked = True
        raise SystemExit(5)

    with pytest.raises(SystemExit, match="5"):
        Each(leave)(list(range(3)), False, False, False)


def test_a_function_for_chunks_travels_as_the_function_does() -> None:
    base = 10
    each = load(dump_function(Each(lambda x: x + base)))
    assert travel(each([1, 2], False, False, False)).values == [11, 12]
    assert travel(load(dump_function(Each(double)))([1], False, False, False)).values == [2]


# Interrupts


class Struck(BaseException):
    """Raised by somebody else, at any moment."""


class Interrupted(Noted):
    """As if it were struck at these moments, which are counted: before the items of a note, and after them."""

    def __init__(self, *moments: int) -> None:
        super().__init__()
        self.moment = -1  # the first time it leaves is before all items
        self.inside = self.entered_twice = False
        self._moments = moments

    def enter(self, now: float) -> None:
        self.entered_twice = self.entered_twice or self.inside
        self.inside = True
        self._pass()

    def leave(self) -> None:
        if self.inside or self.moment < 0:
            self._pass()
            self.inside = False

    def _pass(self) -> None:
        self.moment += 1
        if self.moment and self.moment - 1 in self._moments:
            raise Struck

    def told(self, error: BaseException) -> BaseException:
        return TimeoutError("too long") if isinstance(error, Struck) else error


@pytest.mark.parametrize("moments", [[0], [1], [2], [3], [5], [6], [1, 4], [0, 2, 4], [1, 3, 5, 7]])
@pytest.mark.parametrize("exact", [False, True])
def test_an_interrupt_between_items_costs_none_and_each_value_is_in_its_place(
    monkeypatch: pytest.MonkeyPatch, moments: list[int], exact: bool
) -> None:
    place = Interrupted(*moments)
    monkeypatch.setattr(here, "place", place)
    began: list[int] = []

    def work(x: int) -> int:
        assert place.inside
        began.append(x)
        return x

    chunk = Each(work)(list(range(20)), False, False, exact)
    assert place.moment > max(moments)
    assert not place.inside
    assert not place.entered_twice
    assert outcomes(chunk) == [("returned", n) for n in range(20)]
    assert began == list(range(20))


@pytest.mark.parametrize("bad", [0, 1, 4, 19])
@pytest.mark.parametrize("star", [False, True])
def test_an_interrupt_in_an_item_is_its_error_as_the_user_is_to_see_it(
    monkeypatch: pytest.MonkeyPatch, bad: int, star: bool
) -> None:
    monkeypatch.setattr(here, "place", Interrupted())

    def work(x: int) -> int:
        if x == bad:
            raise Struck
        return x

    got = outcomes(Each(work)([(n,) for n in range(20)] if star else list(range(20)), False, star, False))
    assert got.pop(bad) == ("raised", "TimeoutError('too long')")
    assert got == [("returned", n) for n in range(20) if n != bad]


def test_an_interrupt_after_an_error_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a single task: it had taken too long before it could be left."""
    monkeypatch.setattr(here, "place", Interrupted(1))

    def work(x: int) -> int:
        if x == 0:
            raise ValueError(x)
        return x

    assert outcomes(Each(work)([0, 1, 2], False, False, True)) == [
        ("raised", "TimeoutError('too long')"),
        ("returned", 1),
        ("returned", 2),
    ]


# As a plain loop


class Errand:
    """One item: what comes of it, and how long it takes."""

    def __init__(self, what: Any, steps: int) -> None:
        self.what = what
        self.seconds = steps * 2.0**-20


ERRORS: list[type[BaseException]] = [ValueError, StopIteration, KeyboardInterrupt, SystemExit, ConnectionError]
errands = st.builds(
    Errand,
    st.one_of(
        st.integers(),
        st.text(max_size=3),
        st.none(),
        st.lists(st.integers(), max_size=2),
        st.sampled_from([*ERRORS, NeverLeaves, WorkerGracefulDie]),
    ),
    st.sampled_from([0, 0, 0, 1, 1, 20, 60, 1_000, 60_000]),  # microseconds, nearly
)
# Long stretches of the same, so that steps grow and shrink.
stretches = st.lists(st.tuples(errands, st.integers(1, 60)), max_size=8).map(
    lambda parts: [errand for errand, times in parts for _ in range(times)]
)


@pytest.fixture(scope="module")
def before() -> Iterator[Place]:
    place = here.place
    yield place
    here.place = place


@given(stretches, st.one_of(st.none(), st.integers(1, 200)), st.booleans(), st.booleans(), st.booleans())
def test_it_agrees_with_a_loop(
    before: Place, todo: list[Errand], most: int | None, plain: bool, star: bool, exact: bool
) -> None:
    clock = FakeClock()
    begun = clock()
    here.place = place = Noted(most)

    def do(at: int, *rest: Any) -> Any:
        assert place.notes[-1] > at, "it had not been noted"
        assert not exact or place.notes[-1] == at + 1
        assert not at or place.times[-1] <= begun + 0.05, "it should have come back"
        assert began == list(range(at)), "out of order, or twice"
        began.append(at)
        errand = todo[at]
        clock.advance(errand.seconds)
        if isinstance(errand.what, type):
            if issubclass(errand.what, BaseException):
                raise errand.what
            return errand.what()
        return errand.what

    def expected() -> Iterator[Outcome]:
        for errand in todo[:most]:
            if errand.what is NeverLeaves:
                yield "raised", "RemoteWorkerError"
            elif isinstance(errand.what, type):
                yield "raised", errand.what.__name__
                if errand.what is WorkerGracefulDie:
                    return
            else:
                yield "returned", errand.what

    began: list[int] = []
    items: list[Any] = (
        [(at, *(() if plain else ([at],))) for at in range(len(todo))] if star else list(range(len(todo)))
    )
    packed, problems, _ = pack(items, star=star, exact=exact)
    assert not problems
    real, chunks.monotonic = chunks.monotonic, clock
    try:
        chunk = Each(do)(*travel(packed))
    finally:
        chunks.monotonic = real
    got = [(kind, what.partition("(")[0] if kind == "raised" else what) for kind, what in outcomes(chunk)]
    in_time = list(expected())
    assert got == in_time[: len(got)]
    assert len(got) == len(in_time) or clock() > begun + 0.05
    assert began == list(range(len(got)))
    assert place.count == len(got)
    assert not got or place.notes[-1] >= len(got)
    if len(place.notes) < len(got):
        event("items share notes")
    if chunk.errors:
        event("errors")
    if chunk.one_by_one:
        event("one by one")
    if len(got) < len(in_time):
        event("came back early")
