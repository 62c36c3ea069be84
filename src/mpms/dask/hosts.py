"""Who the courier works for, what he orders of it, and the figures that he reads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..ids import TaskId, TaskOptions
from ..typed import Protocol, TypeAlias
from .messages import Figures

__all__ = ["Cancel", "Close", "Counts", "Host", "Order", "Stop"]


@dataclass(frozen=True, slots=True)
class Cancel:
    """``None``: all."""

    task: TaskId | None


@dataclass(frozen=True, slots=True)
class Close:
    pass


@dataclass(frozen=True, slots=True)
class Stop:
    deadline: float


Order: TypeAlias = Cancel | Close | Stop


class Host(Protocol):
    """What the courier needs of the engine, all of it callable on the event loop."""

    inbox: deque[TaskId | Order]
    options: dict[TaskId, TaskOptions]

    def awake(self) -> None:
        """The inbox is about to be emptied."""

    def refuse(self) -> None:
        """Accept no more."""

    def notify(self) -> None:
        """Something that may be waited for has changed."""

    def answered(self, task: TaskId, *, cancelled: bool) -> None:
        """Whether the task was cancelled, for who asked."""

    def ended(self) -> None:
        """All is handed to the delivery thread, and the cluster is left."""


@dataclass(eq=False)
class Counts:
    """Figures; only the event loop writes them."""

    done: int = 0
    failed: int = 0
    retried: int = 0
    lost_machines: int = 0
    out_since: dict[TaskId, float] = field(default_factory=dict)  # what is with Dask, oldest first
    machines: dict[str, int] = field(default_factory=dict)  # address → threads of Dask
    figures: dict[str, Figures] = field(default_factory=dict)  # of each machine, as it said last
