"""What a worker has to say, sent in as few system calls as may be."""

from __future__ import annotations

import errno
import socket
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from ..typed import Any
from ..wire.files import MemoryFile, send_file
from ..wire.frames import Marked, encode, message_of
from ..wire.messages import BYTES, LOGS_DROPPED, PLAIN, RESULTS, RETURNED, SMALL, Result, pack_results
from ..wire.pickling import SOLE, dump
from ..wire.ring import AS_IT_IS, RINGED, Ring
from . import ends

__all__ = ["Outbox"]

LINGER = 0.001
"""Seconds from one message, sent or read, to the next while the threads go on: a result that comes sooner waits for
company. Whichever thread has one then sends all; if all are busy with long tasks, the main thread does. Measured,
20,000 sleeps of 1 ms in 2 x 4 threads: 1.2 s of a processor in the parent, 1.9 in all; with 0.2 ms 1.6 and 2.3, for
nearly each result has a message of its own then. Tasks that compute for 2 ms: a twentieth more a second than if each
waited so long, alone."""

_JOIN_MOST = 1 << 16  # below, one copy is cheaper than a longer vector
_LOGS_MOST = 1000
_VECTOR_MOST = 512  # buffers in one call; the kernel takes 1,024
_RESULTS_MOST = 250  # at a time, of which a large one is two buffers


class Outbox:
    """Any thread adds; whoever gets the write lock without waiting sends all that is there."""

    def __init__(self, sock: socket.socket, wake_main: Callable[[], None], ring: Ring | None = None) -> None:
        self._sock = sock  # not its number: a file of the user's may have that by now, and would take what is written
        self._ring = ring
        self._wake_main = wake_main
        self._results: deque[Result] = deque()
        self._parts: deque[bytes] = deque()  # sent after the results
        self._logs: deque[bytes] = deque()  # sent after the rest; bounded
        self._dropped = 0
        self._sent_at = 0.0  # when something was sent last, or heard; written by any thread, and only a hint
        self._tended = False  # the main thread knows that there is something
        self._writing = threading.Lock()  # guards the writing side of the descriptor

    def add_result(self, seq: int, kind: int, payload: Any) -> None:
        self._results.append((seq, kind, payload))

    def add(self, message: bytes) -> None:
        self._parts.append(message)

    def add_log(self, message: bytes) -> None:
        """As :meth:`add`, for what may be lost: of a flood the oldest are dropped, and counted."""
        while len(self._logs) >= _LOGS_MOST:
            try:
                self._logs.popleft()
            except IndexError:
                break  # they were sent just now
            self._dropped += 1
        self._logs.append(message)

    def heard(self) -> None:
        """Tasks have come: the first result of several waits for company, too. Measured, 64 KiB there and back, 50 at a
        time: half as many messages, and a twentieth more tasks a second."""
        if not self._results:  # they wait long enough
            self._sent_at = monotonic()

    def flush(self) -> float:
        """Send all, or leave it to who is sending: he looks again when he is done. Returns the time."""
        while (self._results or self._parts or self._logs) and self._writing.acquire(False):
            try:
                self._send()
            finally:
                self._writing.release()
        return monotonic()

    def finish(self) -> None:
        """Send all, after whoever is sending: for the end, that must not cut him short."""
        with self._writing:
            while self._results or self._parts:
                self._send()
            for _ in range(_LOGS_MOST // _VECTOR_MOST + 1):  # and no more: who logs without end would hold up the end
                self._send()

    def flush_if_due(self) -> float:
        """Send if nothing was sent for long enough; else have the main thread do it, soon. Returns the time."""
        now = monotonic()
        if now - self._sent_at >= LINGER:
            return self.flush()
        if not self._tended:
            self._tended = True
            self._wake_main()
        return now

    def tend(self) -> float | None:
        """Send what is due; for the main thread. Seconds until the next call, ``None``: not before a wake-up."""
        if not self._results:
            self._tended = False
            # Added just now, by a thread that still saw it tended?
            return LINGER if self._results else None
        if monotonic() - self._sent_at >= LINGER:
            self.flush()
        return LINGER

    def _send(self) -> None:
        parts, files = self._take_results()
        if not (parts or files):
            parts = self._take_parts() or self._take_logs()
        self._sent_at = monotonic()
        try:
            self._write(parts)
            for filed in files:
                self._send_file(*filed)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                ends.parent_gone()
            ends.die(ends.LOST_DESCRIPTORS, f"the worker can't write to its socket any more: {error}")
        except Exception as error:  # nobody can say how much of it was sent
            ends.die(ends.INTERNAL, f"the worker can't send its results: {type(error).__name__}: {error}")

    def _write(self, parts: list[bytes]) -> None:
        if sum(map(len, parts)) > _JOIN_MOST:
            _send_all(self._sock, [memoryview(part) for part in parts])
        elif parts:
            data = b"".join(parts)
            sent = self._sock.send(data)
            if sent < len(data):
                _send_all(self._sock, [memoryview(data)[sent:]])

    def _send_file(self, seq: int, kind: int, file: MemoryFile) -> None:
        message = file.message(kind, seq)
        try:
            sent = send_file(self._sock, message, file)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            self._write(file.inline(kind, seq))
        else:
            self._write([message[sent:]])

    def _take_results(self) -> tuple[list[bytes], list[tuple[int, int, MemoryFile]]]:
        results = self._results
        taken = [results.popleft() for _ in range(min(len(results), _RESULTS_MOST))]
        try:
            batch = [result for result in taken if result[1] == PLAIN or len(result[2]) <= SMALL]
            files = list[tuple[int, int, MemoryFile]]()
            large: list[bytes] = []
            kind = RESULTS
            if len(batch) < len(taken):
                kind = self._add_large(taken, batch, large, files)
            if len(batch) == 1 and kind == RESULTS:
                seq, kind, payload = batch[0]
                parts = [encode(RETURNED, seq, dump(payload)) if kind == PLAIN else encode(kind, seq, payload)]
            else:
                parts = [encode(kind, len(batch), pack_results(batch))] if batch else []
            parts += large
        except BaseException:  # there was no memory: whoever sends next tries again
            results.extendleft(reversed(taken))
            raise
        return parts, files

    def _add_large(
        self, taken: list[Result], batch: list[Result], parts: list[bytes], files: list[tuple[int, int, MemoryFile]]
    ) -> int:
        """Those of ``taken`` that go by the ring to ``batch``, and the others where they belong. The kind of the
        batch."""
        kind_of_batch = RESULTS
        for seq, kind, payload in taken:
            if kind == PLAIN or len(payload) <= SMALL:
                continue
            if isinstance(payload, MemoryFile):
                files.append((seq, kind, payload))
                continue
            place = None if self._ring is None else self._ring.put(payload, AS_IT_IS if kind == BYTES else None)
            if place is not None:
                batch.append((seq, kind, place))
                kind_of_batch = RESULTS | RINGED
            elif kind == BYTES:
                parts += message_of(RETURNED, seq, Marked(SOLE, payload))
            else:
                parts += message_of(kind, seq, payload)
        return kind_of_batch

    def _take_parts(self) -> list[bytes]:
        return [self._parts.popleft() for _ in range(min(len(self._parts), _VECTOR_MOST))]

    def _take_logs(self) -> list[bytes]:
        parts: list[bytes] = []
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            parts.append(encode(LOGS_DROPPED, dropped))
        while self._logs and len(parts) < _VECTOR_MOST:
            parts.append(self._logs.popleft())
        return parts


def _send_all(sock: socket.socket, views: list[memoryview]) -> None:
    while views:
        sent = sock.sendmsg(views)
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if views:
            views[0] = views[0][sent:]
