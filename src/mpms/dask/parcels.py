"""The tasks that have no outcome, and where each of them is: ready, resting before a retry, or in a parcel with Dask.

    ready ─▶ parcel ─▶ outcome
      ▲         │ given back, or withdrawn
      └─────────┤
    resting ◀───┘ lost, and to be retried

These are the books of the courier, who decides and sends. The event loop owns them.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..config import PoolConfig
from ..ids import TaskId, TaskOptions
from ..local.records import Record
from ..typed import cast
from .hosts import Counts
from .messages import Parcel

__all__ = ["Parcels", "Sent"]

_PARCEL_BYTES = 1 << 20

_SMALL_FUNCTION = 1 << 14
"""Bytes of a function that goes with every parcel. A larger one goes when a machine asks for it."""


@dataclass(eq=False)
class Sent:
    """A parcel that is with Dask, and those of its tasks that have no outcome."""

    key: str
    tasks: set[TaskId]
    fresh: bool = True
    """Whether it may still be on its way. Later, what had not started was given back, and the rest holds threads."""


class Parcels:
    """Takes the ``options`` of tasks as they end, and notes in ``counts`` what is with Dask since when."""

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        records: Mapping[TaskId, Record],
        options: dict[TaskId, TaskOptions],
        counts: Counts,
    ) -> None:
        self.open: set[TaskId] = set()
        """All of them."""
        self.unwanted: set[TaskId] = set()
        """Those whose cancelling was asked for."""
        self.sent: dict[str, Sent] = {}
        self._name = name
        self._config = config
        self._records = records
        self._options = options
        self._counts = counts
        self._ready: list[tuple[int, TaskId]] = []  # a heap: priority, age
        self._resting: set[TaskId] = set()
        self._out: dict[TaskId, str] = {}  # what is with Dask, and under which key
        self._losses: dict[TaskId, int] = {}  # how often a task was lost with its machine
        self._known: set[int] = set()  # large functions that a machine has asked for
        self._numbers = 0

    @property
    def waiting(self) -> int:
        """How many tasks are ready or rest. From any thread."""
        return len(self._ready) + len(self._resting)

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def out(self) -> Mapping[TaskId, str]:
        return self._out

    @property
    def fresh(self) -> int:
        """How many parcels may still be on their way."""
        return sum(sent.fresh for sent in self.sent.values())

    def is_open(self, sent: Sent) -> bool:
        return self.sent.get(sent.key) is sent and bool(sent.tasks)

    def retries(self, task: TaskId) -> int:
        options = self._options.get(task)
        return self._config.retries if options is None or options.retries is None else options.retries

    def was_lost(self, task: TaskId) -> bool:
        return task in self._losses

    # Ready, and resting

    def make_ready(self, task: TaskId) -> None:
        self._resting.discard(task)
        options = self._options.get(task)
        heapq.heappush(self._ready, (-options.priority if options is not None else 0, task))

    def rest(self, task: TaskId) -> None:
        self._resting.add(task)

    def rests(self, task: TaskId) -> bool:
        return task in self._resting

    def withdraw(self, tasks: Iterable[TaskId]) -> list[TaskId]:
        """Those of ``tasks`` that were ready or rested, and no longer do."""
        waiting = ({task for _, task in self._ready} | self._resting).intersection(tasks)
        if waiting:
            self._resting -= waiting
            self._ready = [entry for entry in self._ready if entry[1] not in waiting]
            heapq.heapify(self._ready)
        return sorted(waiting)

    def withdraw_all(self) -> None:
        self._ready.clear()
        self._resting.clear()

    # With Dask

    def pack(self, most: int) -> tuple[Sent, bytes]:
        """The next tasks that are ready, at the most so many, as they are sent."""
        tasks = self._take(most)
        self._numbers += 1
        sent = Sent(f"{self._name}-{self._numbers}", set(tasks))
        functions, given = dict[int, bytes](), []
        now = time.monotonic()
        for task in tasks:
            payload, shipped, *_ = self._records[task]
            number = None
            if shipped is not None:
                number = shipped.number
                if len(shipped.data) <= _SMALL_FUNCTION or number in self._known:
                    functions[number] = shipped.data
            given.append((task, cast(bytes, payload), number, self._options_of(task)))  # no files: see ClusterEngine
            self._out[task] = sent.key
            self._counts.out_since[task] = now
        self._known.difference_update(functions)
        self.sent[sent.key] = sent
        return sent, Parcel(functions, given).dump()

    def _take(self, most: int) -> list[TaskId]:
        tasks, size = list[TaskId](), 0
        while self._ready and len(tasks) < most and size < _PARCEL_BYTES:
            _, task = heapq.heappop(self._ready)
            tasks.append(task)
            size += len(self._records[task][0])
        return tasks

    def _options_of(self, task: TaskId) -> TaskOptions | None:
        options, losses = self._options.get(task), self._losses.get(task, 0)
        if not losses:
            return options
        return (options or TaskOptions()).replace(retries=max(0, self.retries(task) - losses))

    def wants_functions(self, numbers: Iterable[int]) -> None:
        """They go with the next parcel that needs them."""
        self._known.update(numbers)

    def unpack(self, keys: Iterable[str]) -> list[TaskId]:
        """What has no outcome of these parcels, which are not with Dask any more."""
        gone = [sent for key in keys if (sent := self.sent.pop(key, None)) is not None]
        return sorted(task for sent in gone for task in sent.tasks)

    def keys_of(self, tasks: Sequence[TaskId]) -> dict[str, list[TaskId]]:
        """The parcels with these tasks, as far as they are in some."""
        keys: dict[str, list[TaskId]] = {}
        for task in tasks:
            key = self._out.get(task)
            if key is not None:
                keys.setdefault(key, []).append(task)
        return keys

    def take_out(self, task: TaskId) -> None:
        """It is not with Dask any more."""
        key = self._out.pop(task, None)
        self._counts.out_since.pop(task, None)
        sent = None if key is None else self.sent.get(key)
        if sent is not None:
            sent.tasks.discard(task)

    def lose(self, task: TaskId) -> int:
        """It was lost with its machine. How often so far."""
        losses = self._losses[task] = self._losses.get(task, 0) + 1
        return losses

    def end(self, task: TaskId) -> None:
        """It has its outcome."""
        self.take_out(task)
        self.open.discard(task)
        self.unwanted.discard(task)
        self._losses.pop(task, None)
        self._options.pop(task, None)
