"""Where each task without an outcome is."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("distributed", reason="Dask is not installed")

from mpms.config import PoolConfig
from mpms.dask.hosts import Counts
from mpms.dask.messages import Parcel, parcel_from
from mpms.dask.parcels import Parcels
from mpms.ids import TaskId, TaskOptions
from mpms.local.functions import Shipped
from mpms.local.records import Record, record_of


class Books:
    """With so many tasks, all of them ready. The arguments of each are its number, as bytes."""

    def __init__(self, tasks: int, shipped: Shipped | None = None, **options: TaskOptions) -> None:
        self.options = {TaskId(int(name[1:])): own for name, own in options.items()}
        self.records: dict[TaskId, Record] = {}
        self.counts = Counts()
        config = PoolConfig(processes=1, threads=1, retries=3)
        self.parcels = Parcels("pool", config, self.records, self.options, self.counts)
        for number in range(1, tasks + 1):
            self.accept(number, b"%d" % number, shipped)

    def accept(self, number: int, payload: bytes, shipped: Shipped | None = None) -> None:
        task = TaskId(number)
        self.records[task] = record_of(payload, shipped, (), {}, None)
        self.parcels.open.add(task)
        self.parcels.make_ready(task)

    def pack(self, most: int = 1000) -> tuple[str, Parcel]:
        sent, data = self.parcels.pack(most)
        return sent.key, parcel_from(data)


def tasks_of(parcel: Parcel) -> list[Any]:
    return [task for task, *_ in parcel.tasks]


def test_tasks_of_a_higher_priority_go_first_and_among_equals_the_older_one() -> None:
    books = Books(4, t3=TaskOptions(priority=1), t1=TaskOptions(priority=-1))
    assert [tasks_of(books.pack(1)[1]) for _ in range(4)] == [[3], [2], [4], [1]]


def test_a_parcel_ends_with_the_task_that_fills_a_mebibyte() -> None:
    books = Books(0)
    for number in range(1, 5):
        books.accept(number, bytes(600_000))
    assert tasks_of(books.pack()[1]) == [1, 2]
    assert books.parcels.ready == 2


def test_what_is_unpacked_has_no_outcome_and_can_go_again() -> None:
    books = Books(3)
    key, _ = books.pack()
    assert dict(books.parcels.out) == {1: key, 2: key, 3: key}
    books.parcels.end(TaskId(2))
    assert list(books.counts.out_since) == [1, 3]
    assert books.parcels.unpack([key, "another"]) == [1, 3]
    assert books.parcels.unpack([key]) == []
    for task in (TaskId(1), TaskId(3)):
        books.parcels.take_out(task)
        books.parcels.make_ready(task)
    again, parcel = books.pack()
    assert again != key
    assert tasks_of(parcel) == [1, 3]


def test_a_parcel_is_open_as_long_as_a_task_in_it_has_no_outcome() -> None:
    books = Books(2)
    sent, _ = books.parcels.pack(2)
    books.parcels.end(TaskId(1))
    assert books.parcels.is_open(sent)
    books.parcels.end(TaskId(2))
    assert not books.parcels.is_open(sent)
    books.accept(3, b"")
    other, _ = books.parcels.pack(1)
    books.parcels.unpack([other.key])
    assert not books.parcels.is_open(other)  # it isn't with Dask any more


def test_only_what_waits_is_withdrawn() -> None:
    books = Books(5)
    books.pack(2)
    books.parcels.take_out(TaskId(2))
    books.parcels.rest(TaskId(2))
    assert books.parcels.waiting == 4
    assert books.parcels.withdraw([TaskId(number) for number in (1, 2, 4)]) == [2, 4]
    assert not books.parcels.rests(TaskId(2))
    assert books.parcels.waiting == 2
    assert tasks_of(books.pack()[1]) == [3, 5]


def test_who_is_ready_again_rests_no_longer() -> None:
    books = Books(1)
    books.pack()
    books.parcels.take_out(TaskId(1))
    books.parcels.rest(TaskId(1))
    books.parcels.make_ready(TaskId(1))
    assert not books.parcels.rests(TaskId(1))
    assert books.parcels.waiting == 1


def test_what_was_lost_goes_with_the_retries_that_are_left() -> None:
    books = Books(2, t2=TaskOptions(timeout=5.0, retries=1, priority=-7))
    for task in (TaskId(1), TaskId(2)):
        assert not books.parcels.was_lost(task)
        assert (books.parcels.lose(task), books.parcels.lose(task)) == (1, 2)
    _, parcel = books.pack()
    assert [own for *_, own in parcel.tasks] == [
        TaskOptions(retries=1),
        TaskOptions(timeout=5.0, retries=0, priority=-7),
    ]
    assert [books.parcels.retries(TaskId(number)) for number in (1, 2)] == [3, 1]


def test_a_small_function_goes_with_every_parcel_and_a_large_one_once_when_a_machine_asks() -> None:
    small, large = Shipped(bytes(100)), Shipped(bytes(1 << 15))
    books = Books(2, small)
    assert [dict(books.pack(1)[1].functions) for _ in range(2)] == [{small.number: small.data}] * 2
    for number in (3, 4, 5):
        books.accept(number, b"", large)
    assert books.pack(1)[1].functions == {}
    books.parcels.wants_functions([large.number])
    assert books.pack(1)[1].functions == {large.number: large.data}
    assert books.pack(1)[1].functions == {}


def test_nothing_is_kept_of_a_task_that_has_ended() -> None:
    books = Books(1, t1=TaskOptions(priority=1))
    key, _ = books.pack()
    books.parcels.unwanted.add(TaskId(1))
    books.parcels.lose(TaskId(1))
    books.parcels.end(TaskId(1))
    parcels = books.parcels
    assert not any([parcels.open, parcels.unwanted, parcels.out, books.options, books.counts.out_since])
    assert not parcels.was_lost(TaskId(1))
    assert parcels.sent[key].tasks == set()  # the parcel ends when its machine says so
