"""Who the supervisor's loop works for. All is called on its thread, and returns at once."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.messages import Event, Verdict
from ..ids import Seq, TaskId
from ..typed import Protocol
from .link import Offer, Parcel
from .verdicts import Breakage, Maker

__all__ = ["Host", "Outcomes"]


class Host(Protocol):
    """Has the tasks, and takes what isn't an outcome."""

    def take_orders(self) -> list[Event]:
        """What callers have asked for since the last time, in their order."""
        ...

    def has_orders(self, *, tasks: bool) -> bool:
        """Whether there are some; ``tasks``: new tasks are some, too."""
        ...

    def offer(self, offer: Offer) -> None:
        """While this thread sleeps, who submits a task may take it, and wakes it then."""
        ...

    def withdraw(self) -> None:
        """Nobody takes it any more; who was about to, finds it closed."""
        ...

    def parcels(self, dispatches: Sequence[tuple[Seq, TaskId]]) -> list[tuple[int, Parcel]]: ...

    def logged(self, worker: str, task: TaskId | None, payload: bytes) -> None: ...

    def note_broken(self, breakage: Breakage) -> None: ...

    def say(self, level: int, message: str, *args: object) -> None:
        """Log it, elsewhere: handlers are code of the user's."""
        ...

    def decided(self) -> None:
        """It is known what this pass does: there may be room for more tasks."""
        ...

    def passed(self) -> None:
        """A pass is over."""
        ...


class Outcomes(Protocol):
    """Where outcomes go."""

    def settled(self, results: list[tuple[TaskId, tuple[int, bytes]]], raised: int) -> None:
        """Results as they came: the kind and the payload. ``raised`` of them are errors."""
        ...

    def failed(self, task: TaskId, verdict: Verdict, make: Maker) -> None: ...

    def kept(self, tasks: Sequence[TaskId]) -> None:
        """They were to be cancelled, and it is too late for that."""
        ...

    def retried(self, task: TaskId, make: Maker) -> None:
        """An attempt has failed; what ``make`` makes is why."""
        ...

    def retried_after(self, task: TaskId, kind: int, payload: bytes) -> None:
        """An attempt has failed; its result is why."""
        ...
