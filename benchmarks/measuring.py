"""What a scenario has in hand while it measures: the run, and the count of the outcomes."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .system import Shape, System

__all__ = ["LostTasks", "Run", "Tally", "Unavailable"]

STALL = 8.0
"""Seconds without any outcome after which tasks count as lost. The longest task of any scenario takes one."""


class Unavailable(Exception):
    """The system has not got what the scenario is about."""


class LostTasks(Exception):
    """Outcomes that never came."""

    def __init__(self, lost: int, total: int) -> None:
        super().__init__(lost, total)
        self.lost, self.total = lost, total

    def __str__(self) -> str:
        return f"{self.lost:,} of {self.total:,}"


@dataclass(frozen=True)
class Run:
    """One measurement in this process. What is recorded is kept, even if what follows hangs."""

    system: type[System]
    seconds: float
    """About how long to measure."""
    loops: int
    """Rounds of :func:`.tasks.burn` that took 2 ms when the benchmarks were started."""
    record: Callable[..., None]
    """``record(rate=1000.0)``"""
    patience: float = STALL

    def open(self, function: Callable[[Any], Any], done: Callable[[Any], None], shape: Shape) -> System:
        return self.system(function, done, shape)


class Tally:
    """Counts outcomes, of one batch of tasks after the other. ``done`` may be called from any thread."""

    def __init__(self, patience: float = STALL, window: int | None = None) -> None:
        self.patience = patience
        self.errors: list[BaseException] = []
        # Tokens of C: measured, those of a `Semaphore` took our own pool a twentieth of its rate, with 64 KiB.
        self._window: queue.SimpleQueue[None] | None = None
        if window:
            self._window = queue.SimpleQueue()
            for _ in range(window):
                self._window.put(None)
        self.expect(0)

    def expect(self, total: int) -> None:
        """A new batch, the last one being over."""
        self._total = total
        self._counter = itertools.count(1)  # in C: threads can't lose a count
        self._seen = 0
        self._all = threading.Event()

    def done(self, outcome: Any) -> None:
        if isinstance(outcome, BaseException):
            self.errors.append(outcome)
        if self._window is not None:
            self._window.put(None)
        self._seen = number = next(self._counter)
        if number == self._total:
            self._all.set()

    def admit(self, arguments: Iterable[Any]) -> Iterator[Any]:
        """``arguments``, never more on their way than the window is wide."""
        for argument in arguments:
            if self._window is not None:
                try:
                    self._window.get(timeout=self.patience)
                except queue.Empty:
                    raise LostTasks(self._total - self._seen, self._total) from None
            yield argument

    def wait(self) -> None:
        """Until all outcomes are here. Raises :class:`LostTasks`, or the first error among them."""
        while not self._all.wait(self.patience):
            seen = self._seen
            if not self._all.wait(self.patience) and self._seen == seen:
                raise LostTasks(self._total - seen, self._total)
        if self.errors:
            raise self.errors[0]

    def batch(self, system: System, arguments: Iterable[Any], total: int) -> float:
        """Seconds from the first of ``total`` tasks to the last outcome."""
        self.expect(total)
        start = time.perf_counter()
        if self._window is not None:
            system.feed(self.admit(arguments))
        else:
            system.stream(arguments)
        self.wait()
        return time.perf_counter() - start
