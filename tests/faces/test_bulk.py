"""What ``map`` goes by, at the moments that real processes don't hit: an engine that does as the test says."""

from __future__ import annotations

import itertools
import math
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpms.config import PoolConfig
from mpms.errors import TaskCancelled
from mpms.faces.bulk import Bulk
from mpms.faces.pace import Paces
from mpms.ids import TaskId
from mpms.outcome import Cancelled, Returned
from mpms.testing import FakeClock
from mpms.wire.chunks import Each


@pytest.fixture(autouse=True)
def no_item_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long this thread is kept waiting: only what the items hold divides them."""
    monkeypatch.setattr("mpms.wire.chunks.CHUNK_SECONDS", math.inf)
    monkeypatch.setattr("mpms.faces.pace._CHUNK_SECONDS", math.inf)


class Engine:
    """Accepts, and settles when the test says so. ``meanwhile`` is called in the middle of each submit."""

    def __init__(self) -> None:
        self.tasks: dict[TaskId, tuple[Any, Any]] = {}
        self.cancelled: list[TaskId] = []
        self.meanwhile: Callable[[TaskId], None] = lambda task: None

    def submit(
        self, args: Any, kwargs: Any, options: Any, *, function: Any, each: bool, ticket: Any, wait: bool
    ) -> TaskId:
        assert each
        assert not wait
        task = TaskId(len(self.tasks) + 1)
        self.tasks[task] = args, ticket
        self.meanwhile(task)
        return task

    def cancel(self, task: TaskId, timeout: float = 0.0) -> bool:
        self.cancelled.append(task)
        return False

    def run(self, task: int, function: Callable[[Any], Any] = str) -> None:
        args, ticket = self.tasks[TaskId(task)]
        ticket.settle(Returned(travel(Each(function)(*travel(args)))))

    def run_all(self, function: Callable[[Any], Any]) -> list[list[Any]]:
        """Also those that are submitted meanwhile. The items of each."""
        done = 0
        while done < len(self.tasks):
            done += 1
            self.run(done, function)
        return [travel(args[0]) for args, _ in self.tasks.values()]

    def come_back(self, task: int, done: int) -> None:
        """Only so many of its items were run: they took too long."""
        (items, *how), ticket = self.tasks[TaskId(task)]
        ticket.settle(Returned(travel(Each(str)(travel(items)[:done], *how))))

    def give_up(self, task: int) -> None:
        self.tasks[TaskId(task)][1].settle(Cancelled(TaskCancelled("it was cancelled")))


def travel(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, 5))


def bulk_of(engine: Engine, source: Any, **options: Any) -> Bulk:
    config = PoolConfig(processes=1, threads=1)
    return Bulk(engine, config, str, source, **{"chunksize": 1, "eager": True} | options)  # type: ignore[arg-type]


def test_what_is_being_submitted_when_it_is_closed_is_cancelled_too() -> None:
    engine = Engine()
    bulk = bulk_of(engine, range(10))
    engine.meanwhile = lambda task: bulk.close() if task == 2 else None
    bulk.feed()
    assert [*engine.tasks] == [1, 2]
    assert sorted({*engine.cancelled}) == [1, 2]


def test_it_stays_closed_when_that_was_in_the_middle_of_reading() -> None:
    engine, ended = Engine(), list[Bulk]()

    def items() -> Iterator[int]:
        yield from range(2)
        bulk.close()
        yield from range(100)

    bulk = bulk_of(engine, items(), ended=ended.append)
    bulk.feed()
    assert len(engine.tasks) == 2  # the third, which was in hand, isn't sent any more
    assert sorted({*engine.cancelled}) == [1, 2]
    for task in (1, 2):
        engine.give_up(task)
    assert len(engine.tasks) == 2
    assert ended == [bulk]


def test_the_rest_of_a_chunk_that_comes_back_after_a_cancel_is_not_sent_again() -> None:
    engine = Engine()
    bulk = bulk_of(engine, range(10), chunksize=5)
    bulk.feed()
    assert len(engine.tasks) == 2
    bulk.cancel()
    engine.come_back(1, 3)
    engine.give_up(2)
    assert len(engine.tasks) == 2
    values = bulk.values()
    assert [*itertools.islice(values, 3)] == ["0", "1", "2"]
    with pytest.raises(TaskCancelled):
        next(values)


def test_chunks_get_smaller_towards_the_end_of_a_list() -> None:
    engine, paces = Engine(), Paces()
    paces.note(str, 50, 2)
    config = PoolConfig(processes=1, threads=4)
    bulk = Bulk(engine, config, str, range(100), eager=True, paces=paces)  # type: ignore[arg-type]
    bulk.feed()
    sizes = [len(args[0]) for args, _ in engine.tasks.values()]
    assert sizes == [25, 18, 14, 10, 8, 6, 4, 3, 3, 2]  # each a quarter of what is left
    engine.run_all(str)
    assert [*bulk.values()] == [str(number) for number in range(100)]


def test_of_a_list_that_was_read_nothing_is_kept() -> None:
    engine = Engine()
    items = [{number} for number in range(3)]
    alive = [weakref.ref(item) for item in items]
    bulk = bulk_of(engine, items, chunksize=2)
    bulk.feed()
    for task in (1, 2):
        engine.run(task)
    engine.tasks.clear()
    assert [*bulk.values()] == ["{0}", "{1}", "{2}"]
    del items
    assert [ref() for ref in alive] == [None] * 3
    del bulk


def test_the_rest_of_a_chunk_that_took_too_long_is_shared_among_all_threads() -> None:
    engine = Engine()
    bulk = Bulk(engine, PoolConfig(processes=2, threads=2), str, range(11), chunksize=11, eager=True)  # type: ignore[arg-type]
    bulk.feed()
    engine.come_back(1, 1)
    assert [list(travel(args[0])) for args, _ in engine.tasks.values()][1:] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]
    for task in (5, 3, 2, 4):
        engine.run(task)
    assert [*bulk.values()] == [*map(str, range(11))]


@pytest.mark.parametrize(("microseconds", "turns"), [(300, 4), (150, 2), (10, 0)])
def test_who_packs_for_long_lets_others_have_the_interpreter_in_between(
    monkeypatch: pytest.MonkeyPatch, microseconds: int, turns: int
) -> None:
    engine, clock, sleeps = Engine(), FakeClock(), list[float]()
    monkeypatch.setattr("mpms.faces.bulk.monotonic", clock)
    monkeypatch.setattr("mpms.faces.bulk.sleep", sleeps.append)
    engine.meanwhile = lambda task: clock.advance(microseconds * 1e-6)
    bulk_of(engine, range(100)).feed()
    assert len(engine.tasks) == 4
    assert len(sleeps) == turns
    assert all(0 < seconds <= 1e-5 for seconds in sleeps)


def test_it_has_ended_once_when_all_is_settled() -> None:
    engine, ended = Engine(), list[Bulk]()
    bulk = bulk_of(engine, range(3), ended=ended.append)
    bulk.feed()
    for task in (2, 3):
        engine.run(task)
        assert ended == []
    engine.run(1)
    assert ended == [bulk]
    assert [*bulk.values()] == ["0", "1", "2"]
    assert ended == [bulk]


def test_it_has_not_ended_while_the_last_items_are_in_hand() -> None:
    engine, ended, too_early = Engine(), list[Bulk](), list[Bulk]()

    class Last:
        def __reduce__(self) -> tuple[Any, ...]:
            engine.run(1)  # all that was sent is done
            too_early.extend(ended)
            return str, ("last",)

    bulk = bulk_of(engine, [1, 2, Last()], chunksize=2, ended=ended.append)
    bulk.feed()
    assert too_early == []
    engine.run(2)
    assert ended == [bulk]


def test_what_was_interrupted_on_its_way_is_not_waited_for() -> None:
    engine, ended = Engine(), list[Bulk]()

    def interrupt(task: TaskId) -> None:
        if task == 2:
            raise KeyboardInterrupt

    engine.meanwhile = interrupt
    bulk = bulk_of(engine, range(10), ended=ended.append)
    with pytest.raises(KeyboardInterrupt):
        bulk.feed()
    bulk.close()
    engine.give_up(1)
    assert ended == [bulk]


def test_what_the_source_raises_is_gone_when_nobody_has_it(uncollected: None) -> None:
    class Mine(Exception):
        pass

    seen: list[weakref.ref[Mine]] = []

    def items() -> Iterator[int]:
        yield from ()
        raise Mine

    values = bulk_of(Engine(), items(), eager=False).values()
    try:
        next(values)
    except Mine as error:
        seen.append(weakref.ref(error))
    assert [ref() for ref in seen] == [None]


def test_what_is_settled_before_submit_returns_is_taken() -> None:
    engine = Engine()
    engine.meanwhile = engine.run
    bulk = bulk_of(engine, range(20))
    bulk.feed()
    assert [*bulk.values()] == [*map(str, range(20))]
    assert engine.cancelled == []


def test_what_comes_out_of_order_is_given_in_order_or_as_it_came() -> None:
    for take, expected in (
        (lambda bulk: [*bulk.values()], ["0", "1", "2"]),
        (lambda bulk: [*bulk.pairs()], [(2, "2"), (0, "0"), (1, "1")]),
    ):
        engine = Engine()
        bulk = bulk_of(engine, range(3))
        bulk.feed()
        for task in (3, 1, 2):
            engine.run(task)
        assert take(bulk) == expected


# Sizes


def sizes(chunks: list[list[Any]]) -> list[int]:
    return [sum(map(len, chunk)) for chunk in chunks]


@pytest.mark.parametrize(("item", "function"), [(b"b", len), ("s", len), (1, bool)])
def test_a_chunk_has_a_megabyte_of_items_and_values(item: Any, function: Callable[[Any], Any]) -> None:
    engine = Engine()
    bulk_of(engine, [item if item == 1 else item * 100_000 for _ in range(200)], chunksize=None).feed()
    chunks = engine.run_all(lambda _: bytes(100_000) if item == 1 else function(item))
    assert sum(map(len, chunks)) == 200
    assert max(map(len, chunks)) == 10


def test_so_has_one_of_items_that_are_pickled_one_by_one() -> None:
    engine = Engine()
    bulk_of(engine, [([b"b" * 50_000], b"c" * 50_000)] * 200, chunksize=None).feed()
    chunks = engine.run_all(len)
    assert sum(map(len, chunks)) == 200
    assert max(map(len, chunks)) == 10


def test_chunks_of_items_that_are_larger_than_those_before_are_divided() -> None:
    engine = Engine()
    bulk_of(
        engine, [b"small"] * 10_000 + [b"b" * n for n in (*(300_000,) * 20, *(5_000_000,) * 3)], chunksize=None
    ).feed()
    chunks = engine.run_all(len)
    assert sum(map(len, chunks)) == 10_023
    assert max(map(len, chunks)) > 100
    assert all(size <= 2 << 20 or len(chunk) == 1 for size, chunk in zip(sizes(chunks), chunks, strict=True))


def test_a_chunk_of_as_many_items_as_the_user_says_is_not_divided() -> None:
    engine = Engine()
    bulk_of(engine, [b"b" * n for n in (300_000,) * 20], chunksize=20).feed()
    assert sizes(engine.run_all(len)) == [6_000_000]
