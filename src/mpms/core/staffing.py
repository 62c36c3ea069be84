"""How many workers there are: starts, failed ones and their back-off, rotation by turns, the ward."""

from __future__ import annotations

from ..ids import WorkerId
from . import policy
from .fleet import Fleet, Retiring, Serving, Starting, Worker
from .limits import Limits
from .messages import Effect, StartWorker
from .tasks import Ledger

__all__ = ["Staffing"]


class Staffing:
    """Says whom to start and who is to leave. ``needed``: whether there is, or will be, something to do for them."""

    def __init__(self, limits: Limits, ledger: Ledger, fleet: Fleet) -> None:
        self.failures = 0  # starts in a row that failed
        self._limits = limits
        self._ledger = ledger
        self._fleet = fleet
        self._setbacks = 0  # likewise, of those that aren't counted
        self._failed_at: float | None = None
        self._barren = 0  # workers in a row that came up and ended without having done anything, unasked
        self._start_at: float | None = None  # no start before this, after failed ones
        self._turn: WorkerId | None = None  # whose replacement is being brought up

    # What is learned

    def came_up(self) -> None:
        """A worker is ready."""
        self.failures = self._setbacks = 0
        if self._barren <= self._fleet.size:
            self._start_at = None

    def did_something(self) -> None:
        """A worker has finished a task."""
        self._barren = 0

    def start_failed(self, worker: Worker, now: float, *, counts: bool = True) -> None:
        """It is tried again after a pause; a failure that ``counts`` is one of those of which so many end the pool."""
        # Those that were born together fail together, and that is one failure.
        if self._failed_at is None or worker.born >= self._failed_at:
            self.failures += counts
            self._setbacks += not counts
            self._failed_at = now
            self._start_at = now + policy.start_delay(self.failures + self._setbacks)

    @property
    def is_hopeless(self) -> bool:
        return self.failures >= self._limits.max_start_failures

    def ended_barren(self, now: float) -> None:
        """A worker came up and ended without having done anything, unasked."""
        self._barren += 1
        # One, or all at once, may be killed; not again and again.
        if self._barren > self._fleet.size:
            self._start_at = now + policy.start_delay(self._barren - self._fleet.size)

    # What is to be done

    def starts(self, now: float, *, needed: bool) -> list[Effect]:
        """New workers, at once unless starts have failed."""
        if self._start_at is not None and now < self._start_at:
            return []
        wards = [False] * self._missing(needed) + [True] * self._ward_is_missing()
        deadline = now + self._limits.start_timeout
        return [StartWorker(self._fleet.new(now, deadline, self._limits.threads, ward=ward).id) for ward in wards]

    def deadlines(self, *, needed: bool) -> list[float | None]:
        """When to look again though nothing happened."""
        times: list[float | None] = []
        if self._missing(needed) or self._ward_is_missing():
            times.append(self._start_at)
        if self._turn_is_free():
            for worker in self._fleet.in_phase(Serving):
                times.append(worker.phase.due if isinstance(worker.phase, Serving) else None)
        return times

    def end_turn(self) -> Worker | None:
        """Who is to be retired since its replacement is up."""
        if self._turn is None:
            return None
        worker = self._fleet.workers.get(self._turn)
        if worker is None or not isinstance(worker.phase, Serving):
            self._turn = None
        elif self._fleet.count(Serving) > self._fleet.size:
            self._turn = None
            return worker
        return None

    def begin_turn(self, now: float) -> None:
        """Who is due has a replacement brought, and serves until it is up."""
        if self._turn_is_free():
            for worker in self._fleet.in_phase(Serving):
                match worker.phase:
                    case Serving(due) if due is not None and now >= due:
                        self._turn = worker.id
                        return
                    case _:
                        pass

    def surplus(self, now: float, *, needed: bool) -> list[Worker]:
        """Those that are too many since the pool was made smaller, and the ward when nobody is to be in this one."""
        leavers = []
        if needed:
            # Those first that have not come up yet, then those with the least to do.
            staff = [w for w in self._fleet.in_phase(Starting, Serving) if w.id != self._turn]
            staff.sort(key=lambda w: (isinstance(w.phase, Serving), len(w.sent), -w.id))
            leavers = staff[: max(0, self._fleet.count(Starting, Serving) - self._target(needed))]
        ward = self._fleet.ward
        if ward is not None and (not self._ledger.isolated or _is_worn(ward, now)):
            leavers.append(ward)
        return leavers

    def _target(self, needed: bool) -> int:
        """How many should be starting or serving. Those that aren't needed finish: nobody would use another one."""
        return self._fleet.size + (self._turn is not None) if needed else 0

    def _missing(self, needed: bool) -> int:
        if self._is_crowded():
            return 0
        return max(0, self._target(needed) - self._fleet.count(Starting, Serving))

    def _is_crowded(self) -> bool:
        """As many as there should be leave without ever having had a task: the size changes faster than they come up.

        Else each change would start new ones beside them, until the process has no descriptor left. They end by their
        deadline at the latest; who has no colleague is replaced all the same.
        """
        leavers = sum(not worker.dispatched for worker in self._fleet.in_phase(Retiring))
        return leavers >= self._fleet.size and self._fleet.count(Starting, Serving) > 0

    def _ward_is_missing(self) -> bool:
        return bool(self._ledger.suspects) and self._fleet.ward is None

    def _turn_is_free(self) -> bool:
        """At most one worker more than asked for: the next turn begins when the last rotated worker has ended."""
        return self._turn is None and not any(
            isinstance(w.phase, Retiring) and w.phase.rotation for w in self._fleet.workers.values()
        )


def _is_worn(ward: Worker, now: float) -> bool:
    """It is due, and has nothing to finish: another one takes its place without any turn."""
    match ward.phase:
        case Serving(due) if due is not None and not ward.sent:
            return now >= due
        case _:
            return False
