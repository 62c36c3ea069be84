"""The view of what is pending, while it changes."""

from __future__ import annotations

import pytest

from mpms.engine import Pending
from mpms.ids import TaskId


def test_whoever_goes_through_the_tasks_finds_each_though_it_is_done_meanwhile() -> None:
    records = {TaskId(number): str(number) for number in range(5)}
    tasks = Pending(records, lambda task, record: (task, record))
    seen = []
    for task, shown in tasks.items():
        records.clear()
        seen.append((task, shown))
    assert seen == [(number, (number, str(number))) for number in range(5)]


def test_it_is_a_live_view() -> None:
    records = {TaskId(1): "1"}
    tasks = Pending(records, lambda task, record: (task, record))
    assert TaskId(1) in tasks
    assert dict(tasks) == {1: (1, "1")}
    records[TaskId(2)] = "2"
    del records[TaskId(1)]
    assert TaskId(1) not in tasks
    assert len(tasks) == 1
    assert [*tasks] == [2]
    assert tasks[TaskId(2)] == (2, "2")
    with pytest.raises(KeyError):
        tasks[TaskId(1)]
