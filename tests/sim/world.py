"""The world around the real loop, machine, links and launcher: time, processes and callers are simulated.

Everything is decided by the habits, so that the same habits make the same world.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from mpms.core.fleet import Retiring, Serving, Starting
from mpms.core.limits import Limits
from mpms.core.machine import PoolMachine
from mpms.core.messages import Withdrawn
from mpms.ids import Seq, TaskId, WorkerId
from mpms.local import deaths, descriptors, launcher, link, memory_watch
from mpms.local.launcher import Launcher
from mpms.local.link import Link
from mpms.local.loop import Loop
from mpms.local.memory_watch import MemoryLimits
from mpms.local.shipment import Shipment
from mpms.local.wakeup import WakeUp
from mpms.wire import lookout
from mpms.wire.messages import Job

from .habits import Habits
from .host import Host
from .pipes import Pause, Selector, Socket
from .processes import Process
from .server import Server

__all__ = ["SimLauncher", "World"]

_FIRST_PID = 1 << 30  # more than any system has: a signal sent in earnest would meet nobody


class SimLauncher(Launcher):
    """The real one, with a simulated server at the other end."""

    def __init__(self, world: World, threads: int) -> None:
        super().__init__(Shipment("spawn", Job(function=print, threads=threads)))
        self._world = world

    def open(self) -> None:
        self._decoder, self._loaded = launcher.Decoder(), False
        self._server = self._world.open_server()  # type: ignore[assignment]


class World:
    def __init__(self, limits: Limits, habits: Habits | None = None, now: float = 1000.0) -> None:
        self.limits = limits
        self.habits = habits or Habits()
        self.now = now
        self.horizon: float | None = None
        self.changes = 0
        self.story: list[tuple[float, str, tuple[Any, ...]]] = []
        self.reached: Counter[str] = Counter()
        self.sockets: dict[int, Socket] = {}
        self.processes: dict[WorkerId, Process] = {}  # all that there ever were
        self.server: Server | None = None
        self.attempts: dict[TaskId, list[Seq]] = defaultdict(list)  # dispatches that began
        self.begun_at: dict[Seq, float] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = self._pids = 0
        self._null = os.open(os.devnull, os.O_RDONLY)
        self.wakeup = WakeUp()
        self.host = Host(self)
        self.selector = Selector(self)
        self.machine = PoolMachine(limits)
        self.launcher = SimLauncher(self, limits.threads)
        with self.installed():
            self.launcher.open()
            self.loop = Loop(
                self.machine,
                {},
                self.launcher,
                self.selector,  # type: ignore[arg-type]
                self.wakeup,
                self.host,
                self.host,
                lambda: self.now,
                name="sim",
                memory=MemoryLimits(soft=1000 if limits.watch_memory else None),
            )

    # Time

    def after(self, delay: float, act: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._agenda, (self.now + delay, self._planned, act))

    def next_event(self) -> float | None:
        return self._agenda[0][0] if self._agenda else None

    def happen(self) -> None:
        """The next thing happens."""
        due, _, act = heapq.heappop(self._agenda)
        self.now = max(self.now, due)
        self.changes += 1
        act()

    def blink(self) -> None:
        """The loop works, and meanwhile the world goes on."""
        self.now += self.habits.blink()
        while self._agenda and self._agenda[0][0] <= self.now:
            self.happen()

    def passes(self, seconds: float) -> None:
        """Time, in which the loop gets no turn."""
        until = self.now + seconds
        while self._agenda and self._agenda[0][0] <= until:
            self.happen()
        self.now = until

    # The loop

    def step(self) -> None:
        with self.installed():
            self.loop.step()

    def run(self, seconds: float | None = None, until: Callable[[], bool] = lambda: False) -> bool:
        """Until the loop has stopped, nothing more happens, ``seconds`` are over, or ``until``; whether it was that."""
        self.horizon = None if seconds is None else self.now + seconds
        with self.installed():
            try:
                while not until():
                    if self.loop.stopped and not self.host.has_orders():
                        return False
                    self.loop.step()
            except Pause:
                self.wakeup.awake()
                return until()
            finally:
                self.horizon = None
        return True

    def end(self) -> None:
        """As the engine does it."""
        with self.installed():
            self.loop.close()
        self.wakeup.close()
        self.host.deliver()
        self.passes(1.0)
        os.close(self._null)
        for process in self.processes.values():
            process.let_go()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """What the modules ask of the system, they ask of this world."""
        before = launcher.open_link, launcher.os, deaths.os, deaths.is_alive, memory_watch.resident_memory
        numbers = link.SMALL, link._FUNCTIONS_MOST, lookout._processors
        launcher.open_link = self._open_link
        launcher.os = SimpleNamespace(environ={})  # type: ignore[assignment]
        deaths.os = SimpleNamespace(killpg=self._killpg)  # type: ignore[assignment]
        deaths.is_alive = lambda pid: (process := self._of(pid)) is not None and not process.gone
        memory_watch.resident_memory = self._resident_memory
        link.SMALL, link._FUNCTIONS_MOST = self.habits.small, self.habits.functions
        lookout._processors = lambda: 2
        try:
            yield
        finally:
            launcher.open_link, launcher.os, deaths.os, deaths.is_alive, memory_watch.resident_memory = before  # type: ignore[assignment]
            link.SMALL, link._FUNCTIONS_MOST, lookout._processors = numbers

    # What the loop and the launcher ask for

    def open_server(self) -> Server:
        self.server = Server(self)
        return self.server

    def _open_link(self, worker: WorkerId, name: str, threads: int) -> tuple[Link, list[int]]:
        process = self.processes[worker] = Process(self, worker, threads)
        link = Link(
            worker,
            name,
            process.data,  # type: ignore[arg-type]
            process.control,  # type: ignore[arg-type]
            process.parents_board,
            process.parents_stacks,
        )
        return link, [os.dup(self._null) for _ in range(4)]

    def _killpg(self, pid: int, signal: int) -> None:
        process = self._of(pid)
        if process is None or process.gone:
            raise ProcessLookupError
        process.kill()

    def _resident_memory(self, pid: int) -> int | None:
        process = self._of(pid)
        return None if process is None or process.gone else process.memory

    def _of(self, pid: int) -> Process | None:
        return next((process for process in self.processes.values() if process.pid == pid), None)

    def new_pid(self) -> int:
        self._pids += 1
        return _FIRST_PID + self._pids

    def unborn_hang_up(self) -> None:
        """What was on the way to a fork server that has ended is closed by the kernel."""
        for process in self.processes.values():
            if process.pid is None:
                process.is_never_born()

    # What is true

    def tell(self, what: str, *details: Any) -> None:
        self.story.append((self.now, what, details))

    def reach(self, label: str) -> None:
        self.reached[label] += 1

    def began(self, process: Process, seq: Seq, task: TaskId, function: bytes | None) -> None:
        self.tell("begins", process.id, seq, task)
        own = self.host.functions[task]
        assert function == (None if own is None else own.data), f"task {task} is run with the function of another"
        assert not isinstance(self.host.verdicts.get(task), Withdrawn), f"task {task} was cancelled, and begins"
        if self.attempts[task]:
            self.reach("task begun again")
        assert self.limits.retries or not self.attempts[task], f"task {task} was begun twice"
        assert self.loop.stopped or process.id in self.loop.links, f"{process.id} was declared dead, and begins {task}"
        self.attempts[task].append(seq)
        self.begun_at[seq] = self.now

    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if process.lives]

    def check(self) -> None:
        """After every pass."""
        takers = self.machine.fleet.count(Starting, Serving)
        assert takers <= self.limits.processes + 1, f"{takers} workers"
        if any(isinstance(w.phase, Retiring) and w.phase.rotation for w in self.machine.fleet.workers.values()):
            self.reach("rotation")

    def lines(self) -> list[str]:
        return [f"{now:.6f} {what} {', '.join(map(str, details))}" for now, what, details in self.story]


def owned() -> set[int]:
    """The open descriptors of the pool in this process."""
    return set(descriptors._OWNED)
