"""The story, read by one thread while another one adds to it."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator
from typing import Any

from mpms.core.messages import Closed, Dispatch, ResultsArrived, Settle, TasksSubmitted
from mpms.core.story import Story
from mpms.ids import Seq, TaskId, WorkerId


class Changing(deque[Any]):
    """Somebody adds to it while it is looked through for the first time."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        self.looks += 1
        for one in super().__iter__():
            yield one
            if self.looks == 1:
                self.append((2.0, [], []))


def test_it_is_told_while_it_goes_on() -> None:
    story = Story()
    story._steps = Changing()
    story.add(1.0, [Closed()], [])
    assert story.lines() == ["1.000000 Closed()", "2.000000 time"]


def test_of_long_batches_it_keeps_the_beginning() -> None:
    """For 200 steps of a busy pool are 100,000 tasks."""
    numbers = range(1, 1001)
    pairs = [(TaskId(n), Seq(n)) for n in numbers]
    story = Story()
    story.add(1.0, [TasksSubmitted([TaskId(n) for n in numbers])], [])
    story.add(2.0, [ResultsArrived(WorkerId(1), [Seq(n) for n in numbers], 1)], [Settle(pairs)])
    story.add(3.0, [], [Dispatch(WorkerId(1), [(seq, task) for task, seq in pairs])])
    assert len(pickle.dumps(story._steps)) < 5_000
    submitted, settled, sent = story.lines()
    assert submitted.startswith("1.000000 TasksSubmitted(tasks=[1, 2, 3, ")
    assert submitted.endswith("and so on, 1000 in all")
    assert settled.startswith("2.000000 ResultsArrived(worker=1, seqs=[1, 2, ")
    assert "-> Settle(tasks=[(1, 1), (2, 2), " in settled
    assert "-> Dispatch(worker=1, tasks=[(1, 1), (2, 2), " in sent


def test_short_ones_are_told_whole() -> None:
    story = Story()
    story.add(1.0, [TasksSubmitted([TaskId(n) for n in range(1, 21)])], [])
    [line] = story.lines()
    assert line == f"1.000000 TasksSubmitted(tasks={[*range(1, 21)]}, options={{}})"
