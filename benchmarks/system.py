"""What all pools look like to a scenario: a few methods.

``put`` takes one task; ``done`` is called with the value or the exception of every task, in any thread. ``stream``
takes many tasks that are known from the start, ``feed`` tasks that come as earlier ones are done: they differ where a
system has a better way for the former. Systems are imported when they are opened, by nobody else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from .measuring import Unavailable

__all__ = ["Done", "Futures", "Shape", "System"]

Done: TypeAlias = Callable[[Any], None]

QUEUE = 10_000
"""Tasks that may wait in mpms, of both versions: as the others, whose queues have no end, it isn't to stop the caller.
"""


@dataclass(frozen=True)
class Shape:
    """How large a pool is to be."""

    processes: int = 2
    threads: int = 4
    spread: bool = False
    """A system without threads gets as many processes as the others have threads in all."""
    rotate: int | None = None
    """Tasks that a thread, or a process without threads, runs before it is replaced."""
    queue: int = QUEUE

    @property
    def single(self) -> int:
        """Processes of a system without threads."""
        return self.processes * self.threads if self.spread else self.processes


class System:
    name: ClassVar[str]
    title: ClassVar[str]
    module: ClassVar[str]
    """Not installed, if this can't be imported."""
    imports: ClassVar[str]
    """What a program begins with."""
    first: ClassVar[str]
    """A program to its first result, where ``tell()`` is called, and its orderly end. It has the function ``same``."""
    kind: ClassVar[Literal["ours", "peer", "threads"]] = "peer"
    distribution: ClassVar[str | None] = None
    environment: ClassVar[Literal["bench", "2.6"]] = "bench"
    has_threads: ClassVar[bool] = False
    has_futures: ClassVar[bool] = False
    can_rotate: ClassVar[bool] = False
    has_put: ClassVar[bool] = True
    """It takes single tasks."""
    call: Callable[[Any], Any] | None = None
    """One task, waited for, where there is a shorter way than ``put`` and ``done``."""

    def __init__(self, function: Callable[[Any], Any], done: Done, shape: Shape) -> None:
        self.function, self.done, self.shape = function, done, shape
        self.slots = shape.processes * shape.threads if self.has_threads else shape.single
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def put(self, argument: Any) -> None:
        raise NotImplementedError

    def stream(self, arguments: Iterable[Any]) -> None:
        put = self.put
        for argument in arguments:
            put(argument)

    def feed(self, arguments: Iterable[Any]) -> None:
        put = self.put
        for argument in arguments:
            put(argument)

    def map(self, items: Sequence[Any]) -> list[Any]:
        raise Unavailable("it has no map")

    def join(self) -> None:
        """Nothing more comes; return when the workers have ended."""
        raise NotImplementedError

    def chunk(self, items: Sequence[Any]) -> int:
        """As multiprocessing.Pool does it: four chunks for each worker, so that none idles at the end."""
        return math.ceil(len(items) / (self.slots * 4))


class Futures(System):
    """Whatever looks like an executor of ``concurrent.futures``."""

    has_futures = True

    def put(self, argument: Any) -> None:
        self.pool.submit(self.function, argument).add_done_callback(self._told)

    def _told(self, future: Future[Any]) -> None:
        error = future.exception()
        self.done(future.result() if error is None else error)

    def call(self, argument: Any) -> Any:
        return self.pool.submit(self.function, argument).result()

    def map(self, items: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(self.function, items, chunksize=self.chunk(items)))

    def join(self) -> None:
        self.pool.shutdown(wait=True)

    pool: Any
