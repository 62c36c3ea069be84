"""Sockets and a selector without a kernel: what they do and how they fail is as with real ones, when is the world's."""

from __future__ import annotations

import itertools
import select
import selectors
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mpms.local.wakeup import WakeUp

if TYPE_CHECKING:
    from .world import World

__all__ = ["Pause", "Pipe", "Selector", "Socket"]

_numbers = itertools.count(1_000_000)  # more than this process has descriptors: closing one by mistake does no harm

_FEW = 40

_LOOK = 2e-6
"""Seconds that it takes to see that there is nothing."""

_MOST_STEPS_AT_ONCE = 60
"""So many passes of the loop, with nothing that happened in the world and nothing waited for, are a busy loop."""


def _nobody() -> None: ...


class Pipe:
    """Bytes on their way in one direction, at most ``capacity`` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.ended = False  # nobody writes any more
        self.deaf = False  # nobody reads any more
        self.on_data: Callable[[], None] = _nobody
        self.on_room: Callable[[], None] = _nobody

    @property
    def room(self) -> int:
        return max(0, self.capacity - len(self.data))

    def put(self, data: bytes) -> None:
        self.data += data
        self.on_data()

    def take(self, count: int) -> bytes:
        data = bytes(self.data[:count])
        del self.data[:count]
        self.on_room()
        return data

    def end(self) -> None:
        self.ended = True
        self.on_data()


class Socket:
    """The parent's end. Reads and writes go through in part, as the world's habits say."""

    def __init__(self, world: World, incoming: Pipe, outgoing: Pipe) -> None:
        self.world = world
        self.incoming = incoming
        self.outgoing = outgoing
        self.reset = False  # the other side was closed with something in it that it had not read
        self.number = next(_numbers)
        world.sockets[self.number] = self

    def fileno(self) -> int:
        return self.number

    @property
    def readable(self) -> bool:
        return bool(self.incoming.data) or self.incoming.ended or self.reset

    @property
    def writable(self) -> bool:
        return self.outgoing.room >= _FEW or self.outgoing.deaf or self.reset

    def sendmsg(self, buffers: Sequence[bytes | memoryview], rights: object = ()) -> int:
        data = b"".join(buffers)
        return self._send(data, self.world.habits.part(min(len(data), self.outgoing.room)))

    def send(self, data: bytes, flags: int = 0) -> int:
        """A few bytes go whole or not at all, as with the kernel."""
        if len(data) <= _FEW:
            return self._send(data, len(data) if self.outgoing.room >= len(data) else 0)
        return self.sendmsg([data])

    def _send(self, data: bytes, count: int) -> int:
        self._touch()
        if self.reset:
            self.reset = False  # an error is told once
            self.world.reach("reset while writing")
            raise ConnectionResetError
        if self.outgoing.deaf:
            self.world.reach("broken pipe")
            raise BrokenPipeError
        if not count:
            self.world.reach("no room")
            raise BlockingIOError
        if count < len(data):
            self.world.reach("partial write")
        self.world.changes += 1
        self.outgoing.put(data[:count])
        return count

    def recv(self, most: int, flags: int = 0) -> bytes:
        self._touch()
        data = self.incoming.data
        if data and flags & socket.MSG_PEEK:
            return bytes(data[:most])
        if data:
            count = self.world.habits.part(min(most, len(data)))
            if count < min(most, len(data)):
                self.world.reach("torn read")
            self.world.changes += 1
            return self.incoming.take(count)
        if self.reset:
            self.reset = False
            self.world.reach("reset while reading")
            raise ConnectionResetError
        if self.incoming.ended:
            return b""
        raise BlockingIOError

    def recvmsg(self, most: int, room: int = 0) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        return self.recv(most), [], 0, None

    def recvmsg_into(
        self, rooms: Sequence[memoryview], room: int = 0
    ) -> tuple[int, list[tuple[int, int, bytes]], int, None]:
        data = self.recv(len(rooms[0]))
        rooms[0][: len(data)] = data
        return len(data), [], 0, None

    def detach(self) -> int:
        number, self.number = self.number, -1
        del self.world.sockets[number]
        self.incoming.deaf = True
        self.outgoing.end()
        return number

    def _touch(self) -> None:
        if self.number < 0:
            raise OSError(9, "Bad file descriptor")
        self.world.blink()


class Pause(Exception):
    """Nothing happens before the horizon of the world; without one: ever."""


class Selector:
    """Time passes here, and here only is there waiting."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.keys: dict[int, selectors.SelectorKey] = {}
        self._last = (0, 0)  # changes of the world, and passes since then

    def register(self, source: Any, events: int, data: Any = None) -> None:
        number = source.fileno()
        assert number >= 0, f"{source} is closed"
        assert number not in self.keys, f"{source} is registered twice"
        self.keys[number] = selectors.SelectorKey(source, number, events, data)

    def modify(self, source: Any, events: int, data: Any = None) -> None:
        self.keys[source.fileno()] = selectors.SelectorKey(source, source.fileno(), events, data)

    def unregister(self, source: Any) -> None:
        del self.keys[source.fileno()]

    def close(self) -> None:
        self.keys.clear()

    def select(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        world = self.world
        self._watch_for_busy_loop()
        if timeout == 0:
            world.now += _LOOK
        world.blink()
        until = None if timeout is None else world.now + timeout
        while True:
            ready = self._ready()
            if ready:
                if timeout == 0 and world.loop._taken:
                    world.reach("something came while it was looked out for")
                return world.habits.order(ready)
            due = world.next_event()
            horizon = world.horizon
            if due is not None and (until is None or due <= until) and (horizon is None or due <= horizon):
                world.happen()
            elif until is not None and (horizon is None or until <= horizon or timeout == 0):
                world.changes += until > world.now
                world.now = max(world.now, until) + world.habits.oversleep()
                return self._ready()
            else:
                if horizon is not None:
                    world.changes += 1
                    world.now = max(world.now, horizon)
                raise Pause

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = []
        for number, key in self.keys.items():
            mask = 0
            if isinstance(key.fileobj, WakeUp):
                if select.select([number], [], [], 0)[0]:
                    mask = selectors.EVENT_READ
            else:
                sock = self.world.sockets.get(number)
                assert sock is not None, f"{key.data} is closed, and still registered"
                mask |= selectors.EVENT_READ if sock.readable else 0
                mask |= selectors.EVENT_WRITE if sock.writable else 0
            if mask & key.events:
                ready.append((key, mask & key.events))
        return ready

    def _watch_for_busy_loop(self) -> None:
        changes, steps = self._last
        if self.world.changes != changes:
            self._last = (self.world.changes, 0)
        else:
            assert steps < _MOST_STEPS_AT_ONCE, "the loop is busy, and nothing happens"
            self._last = (changes, steps + 1)
