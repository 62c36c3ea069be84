"""Outcomes on their way out: to who waits for one, and all others to the delivery thread, when a pass is over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from ..core.messages import AbandonedTask, LostCause, Verdict, Withdrawn
from ..engine import Unopened
from ..ids import TaskId
from ..typed import Any
from ..wire.messages import PLAIN, SMALL, VALUES
from .answers import Answers
from .delivery import Delivery, Results
from .records import Record, shown, ticket_of
from .verdicts import Maker

__all__ = ["Settling"]

_UNDELIVERED_LEAST = 1000
"""How many results may wait for a slow collector at the least, before ``submit`` waits for it."""

_UNDELIVERED_BYTES = 1 << 28
"""And how many bytes of large ones, at the most."""


class Settling:
    """See :class:`mpms.local.hosts.Outcomes`, which the supervising thread calls; figures are read by any thread.

    ``bound``: so many tasks may be pending; ``None``: whoever takes the outcomes takes them at once.
    """

    def __init__(
        self, records: dict[TaskId, Record], delivery: Delivery, answers: Answers, *, bound: int | None
    ) -> None:
        self._records = records
        self._delivery = delivery
        self._answers = answers
        self._bound = sys.maxsize if bound is None else max(_UNDELIVERED_LEAST, bound)
        self._bytes_bound = sys.maxsize if bound is None else _UNDELIVERED_BYTES
        self.done = 0
        """Tasks that were settled with a value."""
        self.failed_count = 0
        """And without one."""
        self._delivered = 0
        self._given = 0  # to one who has waited for it
        self._bytes = 0  # of large results, that have come
        self._results: list[Results] = []  # of this pass; as are these:
        self._failures: list[tuple[TaskId, Maker]] = []
        self._expected: dict[TaskId, Callable[[Unopened], bool]] = {}  # who waits for it
        self._tried: set[TaskId] = set()  # of what is not settled: there are errors of earlier attempts
        self._unfinished: dict[TaskId, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}

    @property
    def taken(self) -> int:
        """How many have reached somebody. To be read before what was settled, which it is never more than then."""
        return self._delivered + self._given

    def is_late(self) -> bool:
        """Whether too much waits for a slow collector."""
        return (
            self.done + self.failed_count - self._delivered - self._given >= self._bound
            or self._bytes - self._delivery.bytes >= self._bytes_bound
        )

    def unfinished(self) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        return [self._unfinished[task] for task in sorted(self._unfinished)]

    def expect(self, task: TaskId, take: Callable[[Unopened], bool] | None) -> None:
        """See :meth:`mpms.engine.Engine.expect`. From any thread."""
        if take is not None:
            self._expected[task] = take
        else:
            self._expected.pop(task, None)

    def delivered(self, count: int) -> None:
        """On the delivery thread."""
        self._delivered += count

    # The supervisor's

    def settled(self, results: Results, raised: int) -> None:
        self.failed_count += raised
        self.done += len(results) - raised
        if self._answers:
            self.kept([task for task, _ in results])
        if self._expected or self._tried:
            results = [result for result in results if not self._gives(*result)]
        self._bytes += sum([len(data) for _, (kind, data) in results if kind != PLAIN and len(data) > SMALL])
        if results:
            self._results.append(results)

    def _gives(self, task: TaskId, result: tuple[int, Any]) -> bool:
        """Whether somebody who waits for it has got it."""
        tried = task in self._tried
        self._tried.discard(task)
        take = self._expected.pop(task, None)
        kind, payload = result
        if take is None or tried or kind not in VALUES:
            return False
        record = self._records.pop(task, None)
        if record is None:
            return False
        self._given += 1
        if take(self._delivery.unopened(kind, payload)):
            return True
        self._given -= 1
        self._records[task] = record
        return False

    def kept(self, tasks: Sequence[TaskId]) -> None:
        for task in tasks:
            self._answers.give(task, cancelled=False)

    def failed(self, task: TaskId, verdict: Verdict, make: Maker) -> None:
        self.failed_count += 1
        self._tried.discard(task)
        if isinstance(verdict, AbandonedTask | LostCause):
            self.abandon(task)
        self._failures.append((task, make))
        if self._answers:
            self._answers.give(task, cancelled=isinstance(verdict, Withdrawn))

    def retried(self, task: TaskId, make: Maker) -> None:
        self._tried.add(task)
        self._delivery.put_attempt(task, make)

    def retried_after(self, task: TaskId, kind: int, payload: bytes) -> None:
        self._tried.add(task)
        self._delivery.put_failed_attempt(task, kind, payload)

    def abandon(self, task: TaskId) -> None:
        record = self._records.get(task)
        if record is not None and ticket_of(record) is None:  # else delivered; or who has the ticket knows what it is
            _, args, kwargs, _ = shown(task, record)
            self._unfinished[task] = args, kwargs

    def hand_over(self) -> None:
        """Last of all: the delivery thread gets the GIL when the supervisor has nothing more to do."""
        for results in self._results:
            self._delivery.put_results(results)
        self._results.clear()
        if self._failures:
            self._delivery.put_failures(self._failures)
            self._failures = []
