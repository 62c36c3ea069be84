"""What ``map`` goes by, at the moments that real processes don't hit: an engine that does as the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mpms.config import PoolConfig
from mpms.errors import TaskCancelled
from mpms.faces.bulk import Bulk
from mpms.ids import TaskId
from mpms.outcome import Cancelled, Returned
from mpms.wire.chunks import Each


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

    def run(self, task: int) -> None:
        args, ticket = self.tasks[TaskId(task)]
        ticket.settle(Returned(Each(str)(*args)))

    def give_up(self, task: int) -> None:
        self.tasks[TaskId(task)][1].settle(Cancelled(TaskCancelled("it was cancelled")))


def bulk_of(engine: Engine, source: Any, **options: Any) -> Bulk:
    config = PoolConfig(processes=1, threads=1)
    return Bulk(engine, config, str, source, chunksize=1, **{"eager": True} | options)  # type: ignore[arg-type]


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
    count = len(engine.tasks)
    assert count == 3
    assert sorted({*engine.cancelled}) == [1, 2, 3]
    for task in (1, 2, 3):
        engine.give_up(task)
    assert len(engine.tasks) == count
    assert ended == [bulk]


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
