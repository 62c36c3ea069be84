"""How things go in a simulated world: how long they take, how much goes through, who fails at the start."""

from __future__ import annotations

from random import Random
from typing import Literal, TypeAlias, TypeVar

from mpms.wire.messages import SMALL

__all__ = ["Fate", "Habits", "RandomHabits"]

T = TypeVar("T")

Fate: TypeAlias = Literal["ready", "unborn", "dies", "fails", "hangs"]
"""What becomes of a start. ``unborn``: no process can be forked; ``fails``: its initializer raises."""

NEVER = float("inf")


class Habits:
    """Calm: all goes through whole and in its order, and a task runs until the test says that it ends."""

    capacity = 1 << 16
    small = SMALL
    """Up to which size tasks go together in one message."""

    functions = 2
    """How many of them a worker keeps."""

    def latency(self) -> float:
        """From a cause to its effect in another process."""
        return 0.0001

    def blink(self) -> float:
        """What a few lines of the loop take."""
        return 0.0

    def oversleep(self) -> float:
        return 0.0

    def part(self, count: int) -> int:
        """How much of ``count`` bytes goes through at once; all of them are not always there."""
        return count

    def order(self, ready: list[T]) -> list[T]:
        return ready

    def load(self) -> float:
        return 0.03

    def load_fate(self) -> Fate:
        return "ready"

    def fate(self) -> Fate:
        return "ready"

    def startup(self) -> float:
        return 0.005

    def finalizer(self) -> float:
        return 0.001

    def duration(self) -> float | None:
        """``None``: until somebody says that it ends."""
        return None

    def ending(self) -> str:
        """How a task ends: ``returned``, ``raised``, or ``dying``: it asks for the end of its process."""
        return "returned"

    def result_size(self) -> int:
        return 20

    def heir(self) -> float:
        """For how long something that a dead worker has forked holds its descriptors."""
        return 0.0


class RandomHabits(Habits):
    """Drawn for one world from ``random``. Once ``fair`` is set nothing fails any more, and nothing hangs."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.fair = False
        self._latency = random.choice([0.0, 0.00002, 0.00002, 0.001, 0.02])
        # Not slow and narrow: it would be the same story with more steps.
        self.capacity = random.choice([2000, 1 << 16] if self._latency > 0.0001 else [64, 300, 2000, 1 << 16])
        self.small = random.choice([0, SMALL])
        self._whole = random.choice([0.3, 0.9, 1.0])
        self._startup = random.choice([0.001, 0.02, 0.5])
        self._duration = random.choice([0.00001, 0.0002, 0.002, 0.05, 0.5])
        self._bad_start = random.choice([0.0, 0.0, 0.05, 0.3])
        self._bad_load = random.choice([0.0, 0.0, 0.0, 0.2])
        self._dying = random.choice([0.0, 0.0, 0.03, 0.2])
        self._big = random.choice([0.0, 0.02, 0.2])
        self._heirs = random.choice([0.0, 0.0, 0.2])
        self._quantum = random.choice([0.0, 0.0, 0.001])
        self._blink = random.choice([0.0, 0.0003])

    def _spread(self, seconds: float) -> float:
        return self.random.random() * 2 * seconds

    def latency(self) -> float:
        return self._spread(self._latency)

    def blink(self) -> float:
        return self.random.choice((0.0, 0.0, 0.00001, self._blink))

    def oversleep(self) -> float:
        return self._spread(self._quantum)

    def part(self, count: int) -> int:
        if count < 2 or self.random.random() < self._whole:
            return count
        return self.random.randint(1, count)

    def order(self, ready: list[T]) -> list[T]:
        self.random.shuffle(ready)
        return ready

    def load(self) -> float:
        return self._spread(self._startup * 3)

    def load_fate(self) -> Fate:
        if self.fair or self.random.random() >= self._bad_load:
            return "ready"
        return self.random.choice(("dies", "dies", "fails", "hangs", "hangs"))

    def fate(self) -> Fate:
        if self.fair or self.random.random() >= self._bad_start:
            return "ready"
        return self.random.choice(("unborn", "dies", "fails", "hangs"))

    def startup(self) -> float:
        return self._spread(self._startup)

    def finalizer(self) -> float:
        if not self.fair and self.random.random() < 0.05:
            return NEVER
        return self._spread(self._startup)

    def duration(self) -> float | None:
        return min(self.random.expovariate(1 / self._duration), self._duration * 6)

    def ending(self) -> str:
        chance = self.random.random()
        return "dying" if chance < self._dying else "raised" if chance < self._dying + 0.1 else "returned"

    def result_size(self) -> int:
        if self.random.random() < self._big:
            return self.random.choice((500, 8 * self.capacity))
        return self.random.randint(0, 40)

    def heir(self) -> float:
        if self.random.random() >= self._heirs:
            return 0.0
        return self.random.choice((0.0005, 0.01, 0.5, 2.0, NEVER))
