"""Pure functions that answer one question each."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ..ids import TaskOptions
from .limits import Limits

__all__ = [
    "BURST_SECONDS",
    "DUMP_SECONDS",
    "KILL_SECONDS",
    "MAX_PREFETCH",
    "MEMORY_SECONDS",
    "MUTE_SECONDS",
    "PREFETCH_BYTES",
    "PREFETCH_SECONDS",
    "RATE_SECONDS",
    "SOFT_SECONDS",
    "STALL_SECONDS",
    "backoff",
    "due_after",
    "due_at_count",
    "jitter",
    "prefetch",
    "running_limit",
    "spread",
    "start_delay",
    "stop_due",
]

PREFETCH_SECONDS = 0.005
"""How much work a worker holds in advance: longer than the parent is ever away (a pass with thousands of results
takes 1 to 3 ms), and short enough that a task behind it hardly waits."""

MAX_PREFETCH = 2048
"""No worker holds more than this in advance, whatever its rate: it bounds what one exit sends back to the queue."""

PREFETCH_BYTES = 3 << 20
"""And no more than so much of what is copied to it, but one: this finds room in the memory that both share (4 MiB, of
which each thread's own task takes some), and may still be in a cache of the processor. Measured, 64 KiB to a worker and
back: 1.2 times as many tasks a second as with all that fits into the time above."""

STALL_SECONDS = 0.005
"""A worker with tasks waiting behind others, that finished nothing for this long, gives them back to idle ones."""

DUMP_SECONDS = 0.25
"""How long a hung worker has to write its stacks: faulthandler needs well under 1 ms for 100 threads, but the fork
server and the worker need a processor first, and on a busy machine that took more than 50 ms. A stopped one never
does."""

KILL_SECONDS = 0.3
"""After a kill at a shutdown, how long to wait for the exit before its tasks are settled without it. A process in an
uninterruptible system call may take for ever; a shutdown has half a second."""

MEMORY_SECONDS = 1.0
"""How often a worker's memory is looked at, while it works: reading it takes the kernel 10 to 50 µs."""

SOFT_SECONDS = 1.0
"""How long a task may take to end after ``TaskTimeout`` was raised in its thread, before its worker ends for it."""

MUTE_SECONDS = 1.0
"""A worker with tasks that is seen to run none for at least this long, and for longer than a task may run, was stopped.
A live one on a busy machine may be without a processor for tenths of a second."""

BURST_SECONDS = 0.05
"""With a limited rate, so much of it may be made up for at once: a timer is late by a millisecond now and then."""

RATE_SECONDS = 0.005
"""The rate of a worker is measured over windows of at least this length."""

_BACKOFF_CAP = 60.0
_START_FIRST = 0.1
_START_CAP = 5.0


def jitter(*numbers: int) -> float:
    """A number in [0, 1) that looks random, the same for the same ``numbers``: schedules reproduce.

    The mixing step of SplitMix64 (Steele, Lea, Flood, 2014).
    """
    x = 0
    for number in numbers:
        x = (x + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
    return x / 2**64


def backoff(limits: Limits, task: int, attempt: int) -> float:
    """Seconds before attempt number ``attempt + 1`` of ``task``: exponential, jittered by half, capped."""
    if not limits.retry_backoff:
        return 0.0
    full = min(_BACKOFF_CAP, limits.retry_backoff * 2.0 ** min(attempt - 1, 30))
    return full * (0.5 + 0.5 * jitter(task, attempt))


def start_delay(failures: int) -> float:
    """Seconds before the next start after ``failures`` failed ones in a row."""
    return float(min(_START_CAP, _START_FIRST * 2.0 ** min(failures - 1, 30))) if failures else 0.0


def due_after(limits: Limits, worker: int) -> float | None:
    """The age at which a worker is to be rotated, in an orderly way: 80 % to 100 % of what was asked for.

    The jitter keeps workers that were born together from rotating together.
    """
    ages = []
    if limits.lifecycle_duration is not None:
        ages.append(limits.lifecycle_duration)
    if limits.lifecycle_duration_hard is not None:
        # Begun before the hard limit, so that it is rarely met by a worker that is still in order.
        ages.append(limits.lifecycle_duration_hard * 0.9)
    return min(ages) * (0.8 + 0.2 * jitter(worker)) if ages else None


def due_at_count(limits: Limits, worker: int) -> float:
    """After how many tasks a worker is to be rotated: 70 % to 95 % of what its threads may run; ``inf``: never.

    Before all, since a replacement takes time to come up; its threads never run more than their share meanwhile.
    """
    return inf if limits.budget is None else max(1, int(limits.budget * (0.7 + 0.25 * jitter(worker))))


def running_limit(limits: Limits, options: TaskOptions) -> float | None:
    """How long a task with these options may run."""
    if options.timeout is None:
        return limits.running_limit
    return min(options.timeout, limits.lifecycle_duration_hard or options.timeout)


def stop_due(limits: Limits, failed: int, settled: int) -> bool:
    """Whether so many failures end the pool. A share needs at least three of them, as in GNU parallel's ``--halt``."""
    if limits.stop_on is not None and failed >= limits.stop_on:
        return True
    return limits.stop_on_percent is not None and failed >= 3 and failed * 100 >= limits.stop_on_percent * settled


def prefetch(rate: float, weight: int) -> int:
    """How many tasks beyond one per thread a worker holds that finishes ``rate`` of them per second, of so many bytes
    each."""
    most = min(MAX_PREFETCH, max(1, PREFETCH_BYTES // weight)) if weight else MAX_PREFETCH
    return min(most, int(rate * PREFETCH_SECONDS))


def spread(count: int, rooms: Sequence[int]) -> list[int]:
    """How many of ``count`` tasks each of those gets that have so much room (or less than none): evenly, and what is
    over to the freest; of those that are as free as each other, to the first."""
    shares = [0] * len(rooms)
    if count == 1:  # the same in a third of the time: who puts one task at a time waits for each
        most = max(rooms, default=0)
        if most > 0:
            shares[rooms.index(most)] = 1
        return shares
    # Who has little room first, so that the others can take his share.
    free = sorted([(room, -place) for place, room in enumerate(rooms) if room > 0])
    for others, (room, place) in zip(range(len(free), 0, -1), free, strict=True):
        share = min(room, count // others)
        shares[-place] = share
        count -= share
    return shares
