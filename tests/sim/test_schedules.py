"""Whatever goes wrong, at any time: one outcome per task, full strength, and an end. A seed is a schedule.

``MPMS_SIM_SEED=n`` runs one, and tells its story; ``MPMS_FUZZ=1`` runs new ones for ``MPMS_FUZZ_SECONDS`` (300).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from .schedules import Schedule

_SEEDS = 500
_ONE = os.environ.get("MPMS_SIM_SEED")
_FUZZ = bool(os.environ.get("MPMS_FUZZ"))
_FUZZ_SECONDS = float(os.environ.get("MPMS_FUZZ_SECONDS") or 300)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("mpms")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def seeds() -> Iterable[int]:
    if _ONE:
        return [int(_ONE)]
    return _new_seeds() if _FUZZ else range(_SEEDS)


def _new_seeds() -> Iterator[int]:
    until = time.monotonic() + _FUZZ_SECONDS
    while time.monotonic() < until:
        yield random.getrandbits(32)


def run(seed: int) -> Schedule:
    schedule = Schedule(seed)
    try:
        schedule.run()
    except BaseException as error:
        print(*schedule.world.lines(), "", *schedule.world.machine.story.lines(), sep="\n")
        raise AssertionError(f"MPMS_SIM_SEED={seed}: {type(error).__name__}: {error}") from error
    return schedule


WANTED = {
    "SIGKILL",
    "an offer was taken",
    "broke",
    "broken pipe",
    "broken with outstanding tasks",
    "cancelled after an attempt",
    "cancelled after it was sent",
    "cancelled while it waited",
    "crash",
    "crash blamed",
    "died while it wrote",
    "fork failed",
    "fork server killed while it loads",
    "fork server lost",
    "function forgotten",
    "function known",
    "function sent",
    "grace over",
    "graceful die",
    "its descriptors outlive it",
    "kept: it had started",
    "kept: it was over",
    "late result",
    "link lost",
    "no room",
    "partial write",
    "ready after it was retired",
    "recall answered with tasks",
    "reset while reading",
    "reset while writing",
    "retired before it began",
    "rotation",
    "something came while it was looked out for",
    "start timeout",
    "stopped with running tasks",
    "task begun again",
    "timeout",
    "torn frame at death",
    "torn read",
    "unresponsive",
    "void task in the socket",
    "worker waits for room",
}


def test_every_task_has_one_outcome_and_the_pool_keeps_its_strength_and_ends() -> None:
    """And all that is to go wrong does, in one schedule or another."""
    reached: Counter[str] = Counter()
    count, begun = 0, time.monotonic()
    for seed in seeds():
        schedule = run(seed)
        reached.update(schedule.world.reached)
        count += 1
        if _ONE:
            print(*schedule.world.lines(), sep="\n")
    print(f"{count} schedules, {count / (time.monotonic() - begun) * 60:.0f} a minute; {dict(reached)}")
    if not _ONE:
        assert set(reached) >= WANTED, f"never: {WANTED - set(reached)}"


def test_a_seed_is_a_schedule() -> None:
    """The same one, to the last instant."""
    for seed in [int(_ONE)] if _ONE else range(20):
        first, second = run(seed), run(seed)
        assert first.world.story == second.world.story
        assert first.world.machine.story.lines() == second.world.machine.story.lines()
