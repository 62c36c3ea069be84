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

from ..typed import TypeVar

__all__ = ["give_way", "has_company", "look_out"]

T = TypeVar("T")

give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))
"""Let somebody else have the processor, if there is one who waits for it."""


def look_out(look: Callable[[], T], until: float, clock: Callable[[], float]) -> T:
    """What the first ``look`` has returned that is true, or else the last one, at that time by the clock."""
    while not (seen := look()) and clock() < until:
        give_way()
    return seen


def has_company() -> bool:
    """Whether this process may use more processors than one: else who looks out keeps all the others waiting."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return (len(affinity(0)) if affinity is not None else os.cpu_count() or 1) > 1
