"""How many tasks are with Dask, and how many go in a parcel."""

from __future__ import annotations

import time
from collections.abc import Mapping

__all__ = ["Pace"]

_AHEAD_SECONDS = 0.1
"""What is with Dask beyond what its threads can run: the tasks that end in this time. A task needs 5 to 20 ms from here
to a machine; on a busy scheduler more."""

_PARCEL_SECONDS = 0.02
"""What a parcel of many tasks is to take. Dask needs some 2 ms for one, wherever it is spent."""

_PARCEL_MOST = 1000
_PARCELS_EACH = 3  # with a machine, of parcels of many tasks


class Pace:
    """``threads`` is what the pool of one machine has. The event loop owns it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._rate = _Rate()
        self.size = 1
        """How many tasks a parcel has: one, unless they are quick."""

    def room(self, machines: Mapping[str, int], parcels: int, tasks: int) -> int:
        """How many more may go, with so many threads of Dask on each machine, and so much there already."""
        # One task goes though there is no machine: a cluster that adapts itself starts one then.
        capacity = sum(min(self._threads, threads) for threads in machines.values()) or 1
        if self.size > 1 and parcels >= _PARCELS_EACH * max(1, len(machines)):
            return 0
        ahead = self.size * _PARCELS_EACH * len(machines) if self.size > 1 else 0
        return max(capacity + int(self._rate.now() * _AHEAD_SECONDS), ahead) - tasks

    def learn(self, tasks: int, seconds: float) -> None:
        """A parcel of so many took so long."""
        self._rate.add(tasks)
        if seconds > _PARCEL_SECONDS:
            # By steps: a parcel that took long because a machine was busy for a moment says little about the next one.
            self.size = min(self.size, max(1, self.size // 4, int(tasks * _PARCEL_SECONDS / seconds)))
        elif seconds < _PARCEL_SECONDS / 2 and tasks >= self.size:
            self.size = min(self.size * 2, _PARCEL_MOST)


class _Rate:
    """How many tasks end in a second, of late."""

    _HORIZON = 1.0

    def __init__(self) -> None:
        self._rate, self._at = 0.0, time.monotonic()

    def add(self, tasks: int) -> None:
        self._rate, self._at = self.now() + tasks / self._HORIZON, time.monotonic()

    def now(self) -> float:
        passed = time.monotonic() - self._at
        return max(0.0, self._rate * (1 - passed / self._HORIZON))
