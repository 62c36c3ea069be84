"""Looking out for what comes within microseconds, instead of sleeping until it is there.

To sleep and to be woken takes a thread longer than a short task: a processor that has nothing to do halts, which costs
25 µs when it is needed again, half of that to who wakes it; its caches are cold then, and Python runs at a third of its
speed for a while. So who has just seen that what he waits for comes soon looks out for the next of it, for a bounded
time; any longer wait is a sleep. An idle pool sleeps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from math import inf

from ..typed import TypeVar

__all__ = ["LookOut"]

T = TypeVar("T")

_GAP = 0.00003
"""Seconds from one look to the next, each of which takes 2 µs, from which on somebody else has had this processor."""

_ENOUGH = 16
"""By so many more of those look-outs in which that happened, or in which nothing came, than others it is said that it
doesn't pay. Measured, one task at a time: it happens in 0 to 3 of 100; where another program takes one of two
processors in 3 to 18, in bursts, and up to a fifth of the supervisor's are in vain."""

_PAUSE = 0.05
"""Seconds without looking out after that. Who looks out then takes time from those that he waits for, and has had his
turn when it comes; who sleeps is given the next one when he is woken. Measured, with another program that takes one of
two processors: without pauses a task takes 1.2 to 1.7 times as long as if nobody ever looks out, with them as long. On
a single processor it would take 1.1 to 1.3 times as long all the same."""

_give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))  # not everywhere


class LookOut:
    """Threads have it by turns. ``is_alone``: whether none of the others in this process runs, so that it is somebody
    else who keeps one from the processor."""

    def __init__(self, clock: Callable[[], float], is_alone: Callable[[], bool] = lambda: True) -> None:
        self._clock = clock
        self._is_alone = is_alone
        self._against = 0
        self._from = -inf if _processors() > 1 else inf  # when it may begin

    def __call__(self, look: Callable[[], T], since: float, seconds: float) -> T | None:
        """What the first ``look`` has returned that is true, within so many seconds after ``since``."""
        if since < self._from:
            return None
        now, is_crowded, is_alone = since, False, self._is_alone()
        while not (seen := look()) and now < since + seconds:
            _give_way()
            before, now = now, self._clock()
            is_crowded |= is_alone and now - before >= _GAP
            is_alone = self._is_alone()  # before the next look, in which others may have their turns
        self._against = max(0, self._against + (1 if is_crowded or not seen else -1))
        if self._against == _ENOUGH:
            self._against = 0
            self._from = now + _PAUSE
        return seen or None


def _processors() -> int:
    """That this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
