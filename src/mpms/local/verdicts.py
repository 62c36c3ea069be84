"""The machine's verdicts made into outcomes, with what is known of the workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from ..core.messages import AbandonedTask, Crash, LostCause, Timeout, Verdict, Withdrawn
from ..errors import PoolBroken, TaskCancelled
from ..ids import Seq, WorkerId
from ..outcome import Broken, Cancelled, Crashed, Failure, TimedOut
from ..typed import TypeAlias
from ..wire.failures import load_error
from . import evidence
from .evidence import Death, Who
from .link import Link

__all__ = ["Breakage", "Maker", "StartFailure", "Verdicts"]

Maker: TypeAlias = Callable[[Who], Failure]
"""Makes the outcome once the task's arguments are a text. On another thread: ``repr`` is code of the user's."""

_UNKNOWN = Death("a worker", None)


class StartFailure:
    """Why a worker could not start, as it came. To load it, or to make it a text, is for any thread but the supervisor:
    it is an exception of the user's code."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    @functools.cached_property
    def error(self) -> BaseException:
        return load_error(self._payload)

    def __str__(self) -> str:
        try:
            return f"{type(self.error).__name__}: {self.error}"
        except Exception:
            return type(self.error).__name__


class Breakage:
    """Why the pool broke. ``error`` is for any thread but the supervisor."""

    def __init__(self, pool: str, failure: StartFailure | None) -> None:
        self._pool = pool
        self._failure = failure

    @classmethod
    def by(cls, error: PoolBroken, cause: BaseException) -> Breakage:
        """One whose error is known already."""
        error.__cause__ = cause
        breakage = cls("", None)
        breakage.__dict__["error"] = error
        return breakage

    @functools.cached_property
    def error(self) -> PoolBroken:
        said = "they ended before they were ready; see the log" if self._failure is None else str(self._failure)
        error = PoolBroken(f"the pool {self._pool} can't start workers: {said}")
        error.__cause__ = None if self._failure is None else self._failure.error
        return error


class Verdicts:
    """The supervising thread owns it. ``links`` are those of the loop."""

    def __init__(self, links: Mapping[WorkerId, Link], pool: str) -> None:
        self.start_failure: StartFailure | None = None  # of the last worker that could not start
        self._links = links
        self._pool = pool
        self._deaths: dict[WorkerId, Death] = {}

    def bury(self, worker: WorkerId, death: Death) -> None:
        """Remember how it ended, until :meth:`forget`."""
        self._deaths[worker] = death

    def forget(self) -> None:
        self._deaths.clear()

    def explain(self, verdict: Verdict, seq: Seq | None) -> Maker:
        number = seq or 0
        match verdict:
            case Crash(worker):
                death = self._deaths.get(worker, _UNKNOWN)
                items = evidence.items_begun(number, death)
                return lambda who: Crashed(evidence.crashed(verdict, number, death, who), items)
            case Timeout(worker):
                hung = self._of(worker)
                items = evidence.items_begun(number, hung)
                return lambda who: TimedOut(evidence.timed_out(verdict, number, hung, who), items)
            case AbandonedTask(started):
                when = "while it ran" if started else "before it had started"
                text = f"the pool was stopped {when}: task"
                return lambda who: Cancelled(TaskCancelled(f"{text} {who}", started=started))
            case LostCause():
                breakage = self.breakage()
                return lambda _: Broken(breakage.error)
            case Withdrawn():
                return lambda who: Cancelled(TaskCancelled(f"it was cancelled before it had started: task {who}"))

    def breakage(self) -> Breakage:
        return Breakage(self._pool, self.start_failure)

    def _of(self, worker: WorkerId) -> Death:
        """As a death, of a worker that hangs and may have ended meanwhile."""
        link = self._links.get(worker)
        if link is None:
            return self._deaths.get(worker, _UNKNOWN)
        return Death(link.name, link.pid, stacks=link.stacks(), running=link.running())
