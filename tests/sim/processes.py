"""A worker process as the parent sees it: it speaks the real wire format over simulated sockets.

It takes tasks first in, first out, writes its board before one runs, gives back what it has not taken, and ends
at any instant: see ``mpms.worker.slots``, whose rules these are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpms.ids import Seq, TaskId, WorkerId
from mpms.local import descriptors
from mpms.local.memory import anonymous_file
from mpms.wire import messages as wire
from mpms.wire.board import Board, board_size
from mpms.wire.failures import dump_error
from mpms.wire.frames import READ, Decoder, encode

from ..wire.single import single
from .habits import NEVER, Fate
from .pipes import Pipe, Socket

if TYPE_CHECKING:
    from .server import Server
    from .world import World

__all__ = ["Process"]

_SAID_AT_START = dump_error(ValueError("the initializer does not like it"))


class Process:
    def __init__(self, world: World, id: WorkerId, threads: int) -> None:
        self.world, self.id = world, id
        self.down = Pipe(world.habits.capacity)
        self.up = Pipe(world.habits.capacity)
        self.orders = Pipe(1 << 10)
        self.data = Socket(world, self.up, self.down)
        self.control = Socket(world, Pipe(0), self.orders)
        memory = anonymous_file("sim", board_size(threads))
        self.parents_board, self.board = Board(memory, threads), Board(memory, threads)
        os.close(memory)
        self.parents_stacks = descriptors.own(anonymous_file("sim-stacks"))
        self._stacks = os.dup(self.parents_stacks)
        self.pid: int | None = None
        self.server: Server | None = None
        self.exitcode: int | None = None
        self.killed = False  # by SIGKILL, whoever sent it
        self.frozen = False  # by SIGSTOP
        self.stuck = False  # in a call that can't be interrupted
        self.mute = False  # a task has closed its descriptors
        self.memory = 100
        self.ready = False
        self.doom: int | None = None  # it ends once it has written so many more bytes
        self.culprit: Seq | None = None
        self.orphaned = False  # its fork server has ended
        self.running: dict[Seq, int] = {}  # the thread that runs it
        self.hung: set[Seq] = set()
        self.begun: set[Seq] = set()
        self.said: set[Seq] = set()  # results that were written to the last byte
        self.taken = Seq(0)
        self._threads = dict.fromkeys(range(threads), 0)  # how many tasks each has run; without those that ended
        self._payloads: dict[Seq, bytes] = {}
        self._tasks: deque[tuple[Seq, bytes, bytes | None]] = deque()  # the last is the function
        self._functions: dict[int, bytes | None] = {0: None}
        self._selected = 0
        self._voids: list[tuple[int, int]] = []
        self._decoder, self._orders_decoder = Decoder(), Decoder()
        self._outbox = bytearray()
        self._unsaid: deque[tuple[int, int, int]] = deque()  # where a message ends, in all that is ever written
        self._written = 0
        self._serving = self._closing = self._ending = False
        self._planned: set[Callable[[], None]] = set()
        self._held: list[Callable[[], None]] = []  # what it does when it goes on

    @property
    def gone(self) -> bool:
        return self.exitcode is not None

    @property
    def lives(self) -> bool:
        return self.pid is not None and not self.gone

    def later(self, delay: float, act: Callable[[], None]) -> None:
        def happen() -> None:
            if self.frozen or self.mute:
                self._held.append(act)
            elif not self.gone:
                act()

        if delay != NEVER:
            self.world.after(delay, happen)

    def soon(self, act: Callable[[], None]) -> None:
        """As ``later``, but what is planned already is planned once."""
        if act not in self._planned:
            self._planned.add(act)

            def do() -> None:
                self._planned.discard(act)
                act()

            self.later(self.world.habits.latency(), do)

    # Its life

    def begin(self, server: Server, pid: int, fate: Fate) -> None:
        self.server, self.pid = server, pid
        self.world.tell("born", self.id, fate)
        habits = self.world.habits
        self.later(habits.latency(), self._retired_before_it_began)
        if fate == "ready":
            self.later(habits.startup(), self._serve)
        elif fate == "dies":
            self.later(habits.startup(), lambda: self.die(-11))
        elif fate == "fails":
            self.later(habits.startup(), self._start_failed)

    def _retired_before_it_began(self) -> None:
        if self.orders.data:
            self.world.reach("retired before it began")
            self.die(0)

    def _start_failed(self) -> None:
        self.up.put(encode(wire.START_FAILED, 0, _SAID_AT_START))
        self.die(1)

    def _serve(self) -> None:
        """The process is initialised: the main thread listens, and the threads initialise themselves."""
        self._serving = True
        self.down.on_data = self._look_soon
        self.orders.on_data = lambda: self.soon(self._obey)
        self.up.on_room = self._flush_soon
        for slot in self._threads:
            self.board.set_ident(slot, self.id * 1000 + slot)
        self.soon(self._obey)
        self.later(self.world.habits.latency(), self._initialized)

    def _initialized(self) -> None:
        self.ready = True
        if self._closing:
            self.world.reach("ready after it was retired")
        self.say(wire.READY)
        self._look_soon()
        self._end_if_done()

    def die(self, exitcode: int, culprit: Seq | None = None) -> None:
        if self.gone:
            return
        if culprit is not None:
            self.culprit = culprit
            self._write_stack("Fatal Python error: Segmentation fault\n\nCurrent thread", culprit)
        self.exitcode = exitcode
        self.world.tell("ends", self.id, exitcode)
        if self._unsaid and self._written > self._unsaid[0][0] - self._unsaid[0][2]:
            self.world.reach("torn frame at death")
        heir = self.world.habits.heir()
        if heir:
            self.world.reach("its descriptors outlive it")
        if heir != NEVER:
            self.world.after(heir, self.hang_up)
        self.let_go()
        if self.server is not None:
            self.server.is_left_by(self)

    def kill(self) -> None:
        self.killed = True
        if not self.stuck:
            self.die(-9)

    def come_back(self) -> None:
        """From the call."""
        self.stuck = False
        if self.killed:
            self.die(-9)

    def hang_up(self) -> None:
        """Nobody has the other ends of its sockets any more."""
        if not self.up.ended:
            self.data.reset = bool(self.down.data)
            self.down.deaf = self.orders.deaf = True
            self.up.end()

    def is_never_born(self) -> None:
        self.hang_up()
        self.let_go()

    def let_go(self) -> None:
        if self._stacks >= 0:
            self.board.close()
            os.close(self._stacks)
            self._stacks = -1

    # What signals and tasks do to it

    def freeze(self) -> None:
        self.frozen = True
        self.world.tell("frozen", self.id)

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self._go_on()

    def close_its_descriptors(self) -> None:
        self.mute = True
        self.world.tell("mute", self.id)
        self.hang_up()

    def dump(self) -> None:
        self.later(self.world.habits.latency(), self._dump)

    def _dump(self) -> None:
        for seq in self.running:
            self._write_stack("Thread", seq)

    def _write_stack(self, word: str, seq: Seq) -> None:
        ident = self.id * 1000 + self.running[seq]
        text = f'{word} 0x{ident:016x} (most recent call first):\n  File "task.py", line 7 in task\n\n'
        os.write(self._stacks, text.encode())

    def free(self) -> None:
        """What hangs in it ends."""
        for seq in list(self.hung):
            self.hung.discard(seq)
            self.later(0.001, lambda seq=seq: self.finish(seq))

    def _go_on(self) -> None:
        held, self._held = self._held, []
        for act in held:
            self.later(self.world.habits.latency(), act)

    # Its threads

    def _look_soon(self) -> None:
        self.soon(self._look)

    def _look(self) -> None:
        """An idle thread looks for a task; then the next one."""
        busy = set(self.running.values())
        slot = next((slot for slot in self._threads if slot not in busy), None)
        if slot is None or self._closing or not self.ready:
            return
        if not self._tasks:
            self._read()
        if self._tasks:
            self._take(slot)
        if self._tasks or self.down.data:
            self._look_soon()

    def _read(self) -> None:
        most = min(READ, len(self.down.data))
        if not most:
            if self.down.ended:
                self.die(-9)  # the parent is gone
            return
        for kind, number, payload in single(self._decoder.feed(self.down.take(self.world.habits.part(most)))):
            if kind != wire.TASK:
                self._hear_of_function(kind, number, payload)
            elif not any(low <= number <= high for low, high in self._voids):
                self._tasks.append((Seq(number), payload, self._functions[self._selected]))
            else:
                self.world.reach("void task in the socket")

    def _hear_of_function(self, kind: int, number: int, payload: bytes) -> None:
        if kind == wire.FORGET:
            assert number != self._selected, "what the next task may be of is forgotten"
            del self._functions[number]
            self.world.reach("function forgotten")
            return
        if kind == wire.FUNCTION:
            assert number not in self._functions, "a function is sent twice"
            self._functions[number] = payload
        self._selected = number
        assert number in self._functions, "a function is named that was not sent, or is forgotten"
        self.world.reach("function sent" if kind == wire.FUNCTION else "function known")

    def _take(self, slot: int) -> None:
        seq, payload, function = self._tasks.popleft()
        self.taken = seq
        self.board.begin(slot, seq, self.world.now)
        self.running[seq] = slot
        self.begun.add(seq)
        self._payloads[seq] = payload
        self.world.began(self, seq, TaskId(int.from_bytes(payload[:8], "big")), function)
        duration = self.world.habits.duration()
        if duration is not None:
            self.later(duration, lambda: self.finish(seq))

    def finish(self, seq: Seq, how: str | None = None) -> None:
        if seq in self.hung or seq not in self.running:
            return
        habits = self.world.habits
        how = how or habits.ending()
        slot = self.running.pop(seq)
        self.board.end(slot)
        kind = wire.RETURNED if how == "returned" else wire.RAISED
        self.say(kind, seq, self._payloads.pop(seq)[:8] + bytes(habits.result_size()))
        if how == "dying":
            self.world.reach("graceful die")
            del self._threads[slot]
            self._retire()
            self.say(wire.DYING)
        elif self._closing:
            del self._threads[slot]
        else:
            self._threads[slot] += 1
            if self._threads[slot] == self.world.limits.lifecycle:
                del self._threads[slot]
                self.say(wire.DUE, len(self._threads))
                if not self._threads:
                    self._retire()
        self._look_soon()
        self._end_if_done()

    # What it is told

    def _obey(self) -> None:
        if self.orders.ended:
            self.die(-9)  # the parent is gone
            return
        for kind, number, _ in self._orders_decoder.feed(self.orders.take(len(self.orders.data))):
            if kind == wire.RETIRE:
                self._retire()
            else:
                self._recall(number)

    def _retire(self) -> None:
        self._closing = True
        self._tasks.clear()
        self.say(wire.GIVEN_BACK, self.taken + 1)
        self.down.deaf = True
        busy = set(self.running.values())
        self._threads = {slot: count for slot, count in self._threads.items() if slot in busy}
        self._end_if_done()

    def _recall(self, upto: int) -> None:
        if self._tasks or self.taken < upto:
            self.world.reach("recall answered with tasks")
        self._tasks.clear()
        if self.taken + 1 <= upto:
            self._voids.append((self.taken + 1, upto))
        self.say(wire.GIVEN_BACK, self.taken + 1)

    # What it says

    def say(self, kind: int, number: int = 0, payload: bytes = b"") -> None:
        message = encode(kind, number, payload)
        if kind in (wire.RETURNED, wire.RAISED) and len(payload) <= wire.SMALL and number % 2:
            told = wire.PLAIN if kind == wire.RETURNED and number % 4 == 1 else kind
            message = encode(wire.RESULTS, 1, wire.pack_results([(number, told, payload)]))
        self._outbox += message
        end = self._unsaid[-1][0] if self._unsaid else self._written
        self._unsaid.append((end + len(message), number if kind in (wire.RETURNED, wire.RAISED) else 0, len(message)))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._outbox:
            self.soon(self._flush)

    def _flush(self) -> None:
        if self.up.deaf:
            self.die(-9)  # the parent is gone
            return
        count = self.world.habits.part(min(self.up.room, len(self._outbox)))
        if self.doom is not None:
            count = min(count, self.doom)
            self.doom -= count
        self._written += count
        while self._unsaid and self._unsaid[0][0] <= self._written:
            self.said.add(Seq(self._unsaid.popleft()[1]))
        data = bytes(self._outbox[:count])
        del self._outbox[:count]
        self.up.put(data)
        if self.doom == 0:
            self.world.reach("died while it wrote")
            self.die(-9)
        elif self.up.room:
            self._flush_soon()  # else when there is room
        else:
            self.world.reach("worker waits for room")
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self.ready and not self._threads and not self._outbox and not self._ending:
            self._ending = True
            self.later(self.world.habits.finalizer(), lambda: self.die(0))
