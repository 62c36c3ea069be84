"""Slots in this process, with the parent's side of their socket in the test's hands."""

from __future__ import annotations

import pickle
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from mpms.wire.board import Board, board_size
from mpms.wire.frames import Decoder, Message, encode
from mpms.wire.messages import READY, RETURNED, TASK, TASKS, Job, pack_tasks
from mpms.wire.pickling import dump_call
from mpms.worker.outbox import Outbox
from mpms.worker.slots import Slots

from ..wire.single import single

__all__ = ["PATIENCE", "Held", "NewStage", "Stage", "Watched", "values"]

PATIENCE = 60.0


class Stage:
    """Slots with the parent's side of their socket."""

    def __init__(self, function: Callable[..., Any] | None, *, threads: int = 1, **job: Any) -> None:
        self.received: list[Message] = []
        self.woken = threading.Event()
        theirs, self._ours = socket.socketpair()
        self._theirs = theirs
        with tempfile.TemporaryFile() as file:
            file.truncate(board_size(threads))
            self.board = Board(file.fileno(), threads)
        self._decoder = Decoder()
        self._read = 0
        outbox = Outbox(theirs, lambda: None)
        self._before = set(threading.enumerate())
        self.slots = Slots(
            Job(function=function, threads=threads, **job),
            theirs,
            self.board,
            outbox,
            "stage",
            self.woken.set,
        )
        self.slots.start()
        self.threads = sorted(
            (t for t in set(threading.enumerate()) - self._before if t.name.startswith("stage#t")),
            key=lambda thread: thread.name,
        )

    def send(self, *seqs: int, args: tuple[Any, ...] | None = None) -> None:
        """One task for each, in one write; its argument is its number."""
        payloads = [dump_call((seq,) if args is None else args, {}) for seq in seqs]
        if len(seqs) > 1 and list(seqs) == list(range(seqs[0], seqs[0] + len(seqs))):
            self.send_raw(encode(TASKS, seqs[0], pack_tasks(payloads)))
        else:
            self.send_raw(b"".join(encode(TASK, *task) for task in zip(seqs, payloads, strict=True)))

    def send_raw(self, data: bytes) -> None:
        self._ours.sendall(data)

    def next(self) -> Message:
        """The next message from the worker; waits."""
        while self._read == len(self.received):
            assert select.select([self._ours], [], [], PATIENCE)[0], f"nothing came after {self.received}"
            data = self._ours.recv(1 << 16)
            assert data, "the stream has ended"
            self.received += single(self._decoder.feed(data))
        self._read += 1
        return self.received[self._read - 1]

    def collect(self, kind: int, count: int = 1) -> list[Message]:
        """All messages until so many of this kind have come."""
        got = []
        while count:
            got.append(self.next())
            count -= got[-1][0] == kind
        return got

    def ready(self) -> Stage:
        assert self.next()[:2] == (READY, 0)
        return self

    def at_rest(self) -> Stage:
        """When every thread waits for a task."""
        until = time.monotonic() + PATIENCE
        while len(self.slots._idle) < len(self.threads):
            assert time.monotonic() < until
            time.sleep(0.001)
        return self

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def close(self) -> None:
        self.slots.retire()
        self.join()
        self._theirs.close()
        self._ours.close()
        self.board.close()


class Held:
    """A function whose calls wait until the test lets them go; it also remembers what it was called with."""

    def __init__(self, *free: int) -> None:
        self.began: list[int] = []
        self._free = {number: threading.Event() for number in range(100)}
        for number in free:
            self.let_go(number)
        self._changed = threading.Condition()

    def __call__(self, number: int) -> int:
        with self._changed:
            self.began.append(number)
            self._changed.notify_all()
        assert self._free[number].wait(PATIENCE)
        return number

    def let_go(self, *numbers: int) -> None:
        for number in numbers:
            self._free[number].set()

    def wait_for(self, *numbers: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(numbers) <= set(self.began), PATIENCE)


class Watched:
    """A lock that tells when somebody is about to wait for it."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._tell = tell

    def acquire(self, blocking: bool = True) -> bool:
        if self._lock.acquire(False):
            return True
        if blocking:
            self._tell()
            assert self._lock.acquire(timeout=PATIENCE)
        return blocking

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


NewStage = Callable[..., Stage]


def values(messages: list[Message]) -> dict[int, Any]:
    return {seq: pickle.loads(payload) for kind, seq, payload in messages if kind == RETURNED}
