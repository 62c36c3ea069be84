"""The story, read by one thread while another one adds to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from mpms.core.messages import Closed
from mpms.core.story import Story


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
