"""The fork server as the parent sees it: it speaks the real wire format, bears simulated processes and reaps them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpms.ids import WorkerId
from mpms.wire import messages as wire
from mpms.wire.failures import dump_error
from mpms.wire.frames import Decoder, encode

from .pipes import Pipe, Socket
from .processes import Process

if TYPE_CHECKING:
    from .world import World

__all__ = ["Server"]

_SAID_AT_LOAD = dump_error(ImportError("no module of this name"))


class Server:
    """See ``servers.Server``: ``socket``, ``pid``, ``kill`` and ``end`` are what the launcher knows of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pid = 0
        self._down, self._up = Pipe(world.habits.capacity), Pipe(1 << 20)
        self.socket = Socket(world, self._up, self._down)
        self.alive = True
        self.frozen = False
        self._loaded = False
        self._children: dict[int, Process] = {}
        self._decoder = Decoder()
        self._reports: deque[bytes] = deque()
        self._fate = world.habits.load_fate()
        self._later(self._load, world.habits.load())

    def _later(self, act: Callable[[], None], delay: float | None = None) -> None:
        def happen() -> None:
            if self.alive and self.frozen:
                self.world.after(0.01, happen)
            elif self.alive:
                act()

        self.world.after(self.world.habits.latency() if delay is None else delay, happen)

    def _load(self) -> None:
        self.world.tell("fork server loads", self._fate)
        if self._fate == "ready":
            self._loaded = True
            self._report(encode(wire.LOADED))
            self._down.on_data = lambda: self._later(self._read)
            self._down.on_data()
        elif self._fate == "fails":
            self._report(encode(wire.LOAD_FAILED, 0, _SAID_AT_LOAD))
        elif self._fate == "dies":
            self.dies()

    def _report(self, message: bytes) -> None:
        """In their order, whenever it comes to it."""
        self._reports.append(message)
        self._later(lambda: self._up.put(self._reports.popleft()))

    def _read(self) -> None:
        for kind, number, _ in self._decoder.feed(self._down.take(len(self._down.data))):
            if kind == wire.BEAR:
                self._bear(self.world.processes[WorkerId(number)])
            elif number in self._children:
                child = self._children[number]
                child.kill() if kind == wire.KILL else child.dump()

    def _bear(self, process: Process) -> None:
        fate = self.world.habits.fate()
        if fate == "unborn":
            self.world.reach("fork failed")
            process.is_never_born()
            self._report(encode(wire.GONE, process.id, wire.EXIT.pack(os.EX_OSERR, 0)))
            return
        pid = self.world.new_pid()
        self._children[process.id] = process
        process.begin(self, pid, fate)
        self._report(encode(wire.BORN, process.id, wire.EXIT.pack(pid, 0)))

    def is_left_by(self, process: Process) -> None:
        """A child has ended: it is reaped and reported."""

        def reap() -> None:
            del self._children[process.id]
            self._report(encode(wire.GONE, process.id, wire.EXIT.pack(process.exitcode, 5_000_000)))

        if self.alive:
            self._later(reap)

    def dies(self) -> None:
        """By SIGKILL. The kernel kills its children, a moment later."""
        if not self.alive:
            return
        self.alive = False
        self.world.tell("fork server ends")
        self._down.deaf = True
        self._up.end()
        for process in self._children.values():
            process.orphaned = not process.gone
            self.world.after(self.world.habits.latency(), process.kill)
        self.world.unborn_hang_up()

    def kill(self) -> None:
        self.world.reach("fork server killed while it loads")
        self.dies()

    def end(self) -> None:
        """As the real one: it is waited for."""
        if self.alive:
            self.alive = False
            for process in self._children.values():
                process.kill()
        self.world.blink()
        self.socket.detach()
        self.world.unborn_hang_up()
