"""How workers end: what is heard of it, what becomes of what they had, and what is done when nothing is heard.

    the end of its stream, a report of the fork server, an order to kill ─▶ Deaths ─▶ WorkerExited, LinkLost

Whoever should tell of a death has some time for it; then he is taken for stopped, and is killed himself.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable

from ..core.messages import Event, LinkLost, WorkerExited
from ..ids import Seq, WorkerId
from ..typed import TYPE_CHECKING
from . import evidence
from .launcher import Launcher
from .link import Link
from .memory import OomWatch, is_alive
from .verdicts import Verdicts

if TYPE_CHECKING:
    from ..core.machine import PoolMachine
    from .hosts import Host

__all__ = ["Deaths"]

_SILENCE = 1.0
"""Seconds from the end of a worker's stream to its death, which normally are microseconds apart; after that it is taken
for alive and mute, and killed."""

_DEAF = 10.0
"""Seconds for a fork server to tell of a death, before it is taken for stopped, and killed with all its workers. So it
is longer than a busy machine keeps anybody from the processor."""

_POLITE = 0.05
"""Seconds that a hung worker's main thread has to write its stacks, before that is done without the GIL: see
``wire.messages.DUMP_SIGNAL``. They are read ``policy.DUMP_SECONDS`` after the question."""


class Deaths:
    """The supervising thread owns it, and the ``links``, of which those of the dead are taken out.

    ``tell``: the core is to hear of this in the next pass. ``hear_out``: all that a worker has said is to be heard, to
    the end. ``unwatch``: its descriptor is about to be closed.
    """

    def __init__(
        self,
        machine: PoolMachine,
        links: dict[WorkerId, Link],
        launcher: Launcher,
        verdicts: Verdicts,
        host: Host,
        clock: Callable[[], float],
        name: str,
        *,
        tell: Callable[[Event], None],
        hear_out: Callable[[Link], None],
        unwatch: Callable[[Link | Launcher], None],
    ) -> None:
        self.crashes: Counter[str] = Counter()
        self._machine = machine
        self._links = links
        self._launcher = launcher
        self._verdicts = verdicts
        self._host = host
        self._clock = clock
        self._name = name
        self._tell = tell
        self._hear_out = hear_out
        self._unwatch = unwatch
        self._oom = OomWatch()
        self._kills: dict[WorkerId, str] = {}  # why the pool has killed it
        self._silent: dict[WorkerId, float] = {}  # its stream is at the end, and until when its death may follow
        self._unanswered: dict[WorkerId, float] = {}  # it is to be killed, and until when its death may be told
        self._insisted: set[WorkerId] = set()  # of these, those that we have killed ourselves
        self._orphans: dict[WorkerId, float] = {}  # its fork server was lost, and until when its stream may end
        self._asked: dict[WorkerId, tuple[int, float]] = {}  # for stacks: what it had written, and until when it may

    # Waiting

    @property
    def is_waiting(self) -> bool:
        return bool(self._silent or self._unanswered or self._asked or self._orphans)

    def next_deadline(self) -> float:
        """If there is any: see :attr:`is_waiting`."""
        deadlines = [*self._silent.values(), *self._orphans.values(), *self._unanswered.values()]
        return min(deadlines + [until for _, until in self._asked.values()])

    def check(self, now: float) -> None:
        """Do something about what should have happened by now."""
        for worker in [w for w, until in self._silent.items() if now >= until]:
            del self._silent[worker]
            self._tell(LinkLost(worker))
        for worker in [w for w, until in self._unanswered.items() if now >= until]:
            self._insist(self._links[worker], now)
        for worker in [w for w, (_, until) in self._asked.items() if now >= until]:
            before, _ = self._asked.pop(worker)
            if worker in self._links and len(self._links[worker].stacks()) == before:
                self._launcher.dump(worker)
        for worker in [w for w, until in self._orphans.items() if now >= until]:
            self.exited(self._links[worker], -signal.SIGKILL, 0)

    def _insist(self, link: Link, now: float) -> None:
        """The fork server was to kill it, and has not told of its death: it may be stopped."""
        del self._unanswered[link.worker]
        if link.worker not in self._insisted:
            if link.pid is not None and not link.lost:
                # Not reaped, or we would have heard of it: the number is still its own.
                _kill_group(link)
            self._insisted.add(link.worker)
            self._unanswered[link.worker] = now + _DEAF
        elif link.pid is not None and not link.lost and is_alive(link.pid):
            # Killed, and in a call that can't be interrupted: it runs nothing more, and nobody can tell of its end.
            self.exited(link, -signal.SIGKILL, 0)
        elif self._launcher.is_open:
            self._launcher.kill_server()  # the worker is dead, and who should have told us doesn't

    # What is to be done

    def kill(self, worker: WorkerId, why: str) -> None:
        if worker not in self._links or worker in self._orphans:
            return
        self.note_cause(worker, why)
        self._unanswered[worker] = self._clock() + _SILENCE
        if self._launcher.loading:
            self._launcher.kill_server()  # it hangs in the user's modules, and would not hear
        else:
            self._launcher.kill(worker)

    def note_cause(self, worker: WorkerId, why: str) -> None:
        """It is killed now or soon; what is known already says more."""
        self._kills.setdefault(worker, why)

    def ask_for_stacks(self, worker: WorkerId) -> None:
        if worker in self._links:
            self._asked[worker] = len(self._links[worker].stacks()), self._clock() + _POLITE
            self._launcher.ask(worker)

    def kill_all(self) -> None:
        """By ourselves: the fork server, which should have done it, may be stopped."""
        for link in self._links.values():
            _kill_group(link)

    # What is heard

    def stream_ended(self, link: Link) -> None:
        if link.trouble:
            self._host.say(logging.ERROR, "mpms %s (pid %s) can't be heard: %s", link.name, link.pid, link.trouble)
        if link.worker in self._orphans:
            self.exited(link, -signal.SIGKILL, 0)
        else:
            self._silent[link.worker] = self._clock() + _SILENCE

    def server_lost(self) -> None:
        if not self._kills:  # else it is we who ended it: see `kill`
            self._host.say(
                logging.WARNING, "mpms %s: the fork server has ended unexpectedly; its workers end with it", self._name
            )
        self._unwatch(self._launcher)
        self._launcher.close()
        until = self._clock() + _SILENCE
        for link in list(self._links.values()):
            # The kernel has killed it where that can be asked for; what it forked is in its group.
            _kill_group(link)
            # Dead when its stream ends, and not before; also one of whose birth we were not told.
            self._orphans[link.worker] = until
            if link.lost:
                self.exited(link, -signal.SIGKILL, 0)

    def exited(self, link: Link, exitcode: int, peak: int) -> None:
        """The process has ended. First what it had said is heard, to the end."""
        worker, watched = link.worker, not link.lost
        self._hear_out(link)
        link.exitcode = exitcode
        running, stacks, why = link.running(), link.stacks(), self._kills.pop(worker, "")
        there = self._machine.fleet.workers.get(worker)
        death = evidence.Death(
            link.name,
            link.pid,
            exitcode,
            stacks,
            running,
            age=None if there is None or there.born is None else self._clock() - there.born,
            done=link.done(),
            peak=peak,
            why=why,
            oom_killed=exitcode == -signal.SIGKILL and not why and self._oom.has_killed(),
        )
        self._verdicts.bury(worker, death)
        blamed = None if why else evidence.guilty(stacks, running)
        self._tell(WorkerExited(worker, Seq(link.watermark()), blamed, worker in self._orphans))
        if watched:
            self._unwatch(link)
        self._insisted.discard(worker)
        for waiting in (self._silent, self._unanswered, self._orphans):
            waiting.pop(worker, None)
        del self._links[worker]
        link.close()
        if why == "stopped":
            self._host.say(logging.DEBUG, "mpms %s (pid %s) was killed: the pool was stopped", link.name, link.pid)
        elif exitcode or why:
            self._note_crash(link, why or evidence.describe_exit(exitcode))

    def _note_crash(self, link: Link, cause: str) -> None:
        self.crashes[cause.partition(":")[0]] += 1  # a word, and not the figures of each
        self._host.say(logging.WARNING, "mpms %s (pid %s) has ended: %s", link.name, link.pid, cause)
        self._host.say(
            logging.WARNING,
            "mpms process health check: %d/%d processes alive, running_tasks=%d",
            sum(each.pid is not None for each in self._links.values()),
            self._machine.limits.processes,
            sum(len(worker.sent) for worker in self._machine.fleet.workers.values()),
        )


def _kill_group(link: Link) -> None:
    """Of a worker whose end is not known: else the number may be another one's."""
    if link.pid is not None:
        try:
            os.killpg(link.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
