"""Outcomes on their way to the delivery thread, which gets them when a step is over; and how many there were."""

from __future__ import annotations

from collections.abc import Mapping

from ..ids import TaskId
from ..local.delivery import Delivery
from ..local.records import Record, shown, ticket_of
from ..local.verdicts import Maker
from ..outcome import Broken, Cancelled, Outcome, Raised, Returned
from ..typed import Any
from ..wire.messages import RAISED, RETURNED
from . import telling
from .hosts import Counts, Host
from .messages import Sealed
from .parcels import Parcels

__all__ = ["Settling"]


class Settling:
    """``stop_after``: the number of failed tasks, or their percentage, from which on they are enough. The event loop
    owns it."""

    def __init__(
        self,
        host: Host,
        parcels: Parcels,
        records: Mapping[TaskId, Record],
        delivery: Delivery,
        counts: Counts,
        stop_after: tuple[int | None, float | None],
    ) -> None:
        self.are_enough = False
        """So many tasks have failed that the pool is to stop."""
        self.unfinished: dict[TaskId, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
        self._host = host
        self._parcels = parcels
        self._records = records
        self._delivery = delivery
        self._counts = counts
        self._stop_number, self._stop_percent = stop_after
        self._failures: list[tuple[TaskId, Maker]] = []  # of this step
        self._results: list[tuple[TaskId, tuple[int, bytes]]] = []

    def settle(self, task: TaskId, outcome: Outcome, machine: str = "") -> None:
        """Nothing, if it is settled already. ``machine``: where it ended."""
        if task not in self._parcels.open:
            return
        if isinstance(outcome, Returned):
            self._results.append((task, (RETURNED, outcome.value)))
        elif isinstance(outcome, Raised) and isinstance(outcome.error, Sealed) and not outcome.error.attempts:
            self._results.append((task, (RAISED, outcome.error.data)))
        else:
            self._failures.append((task, lambda who: telling.opened(outcome, who, machine)))
            if isinstance(outcome, Cancelled | Broken) and task not in self._parcels.unwanted:
                self._abandon(task)
        self._end(task, outcome)

    def lost(self, task: TaskId, make: Maker) -> None:
        """With its machine, and it is not retried."""
        self._failures.append((task, make))
        self._end(task, None)

    def hand_over(self) -> None:
        if self._results:
            self._delivery.put_results(self._results)
            self._results = []
        if self._failures:
            self._delivery.put_failures(self._failures)
            self._failures = []

    def _end(self, task: TaskId, outcome: Outcome | None) -> None:
        self._parcels.end(task)
        self._host.answered(task, cancelled=isinstance(outcome, Cancelled) and not outcome.error.started)
        if isinstance(outcome, Returned):
            self._counts.done += 1
        else:
            self._counts.failed += 1
            self.are_enough = self.are_enough or self._fails_too_often()

    def _fails_too_often(self) -> bool:
        """See the option ``stop_on``."""
        failed, ended = self._counts.failed, self._counts.done + self._counts.failed
        if self._stop_number is not None and failed >= self._stop_number:
            return True
        return self._stop_percent is not None and failed >= 3 and failed * 100 >= self._stop_percent * ended

    def _abandon(self, task: TaskId) -> None:
        record = self._records[task]
        if ticket_of(record) is None:  # else whoever has it knows what it is about
            _, args, kwargs, _ = shown(task, record)
            self.unfinished[task] = args, kwargs
