"""The status board: shared memory in which every thread of a worker says what it runs.

A slot per thread of five 8-byte words: dispatch number, start (``time.monotonic`` as a double, 0 when idle), thread
ident, tasks done, and how many items of a chunk may have started (0 for a task that is none). A word is stored in one
instruction, so a reader sees the old or the new one. The start is written before the number. Numbers stay when a task
is over: the largest one is the watermark, above which nothing had started.

Behind the board there may be a ring for each direction: see ``wire.ring``.
"""

from __future__ import annotations

import mmap
import os

from ..record import Record
from .ring import RING_SIZE, Ring

__all__ = ["RINGS_SIZE", "Board", "Slot", "board_size", "threads_of"]

RINGS_SIZE = 2 * RING_SIZE
"""Bytes behind a board for the two rings."""

_WORDS = 5


def board_size(threads: int) -> int:
    """Bytes for so many threads, in whole pages."""
    return -(-threads * _WORDS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE


def threads_of(size: int) -> int:
    """For how many threads a board has room, of a file of so many bytes."""
    return (size - RINGS_SIZE if size > RINGS_SIZE else size) // (_WORDS * 8)


class Slot(Record):
    """What one thread runs, and since when."""

    thread: int
    seq: int
    start: float
    ident: int
    items: int = 0


class Board:
    """A view of the memory behind ``fd``; it keeps the descriptor, as mmap does."""

    def __init__(self, fd: int, threads: int) -> None:
        size = board_size(threads)
        has_rings = os.fstat(fd).st_size >= size + RINGS_SIZE
        self._memory = mmap.mmap(fd, size + RINGS_SIZE if has_rings else size)
        self.down = Ring(self._memory, size) if has_rings else None  # to the worker
        self.up = Ring(self._memory, size + RING_SIZE) if has_rings else None
        self._ints = memoryview(self._memory).cast("Q")
        self._times = memoryview(self._memory).cast("d")
        self.threads = threads

    # The worker's side; each slot is written by its own thread only. Measured: 130 ns for begin, 70 ns for end.

    def begin(self, slot: int, seq: int, now: float) -> None:
        base = slot * _WORDS
        self._ints[base + 4] = 0
        self._times[base + 1] = now
        self._ints[base] = seq

    def go_on(self, slot: int, items: int, now: float) -> None:
        """Of a chunk so many items may have started from now on; the time that one takes begins again."""
        base = slot * _WORDS
        self._ints[base + 4] = items
        self._times[base + 1] = now

    def end(self, slot: int) -> None:
        base = slot * _WORDS
        self._times[base + 1] = 0.0
        self._ints[base + 3] += 1

    def set_ident(self, slot: int, ident: int) -> None:
        self._ints[slot * _WORDS + 2] = ident

    # The parent's side

    def watermark(self) -> int:
        """The highest dispatch that was started; 0: none."""
        return max(self._ints[slot * _WORDS] for slot in range(self.threads))

    def running(self) -> list[Slot]:
        """The threads that run a task."""
        slots = []
        for thread in range(self.threads):
            base = thread * _WORDS
            seq, ident = self._ints[base], self._ints[base + 2]
            start = self._times[base + 1]
            if start and seq:
                slots.append(Slot(thread, seq, start, ident, self._ints[base + 4]))
        return slots

    def done(self) -> int:
        return sum(self._ints[slot * _WORDS + 3] for slot in range(self.threads))

    def close(self) -> None:
        self._ints.release()
        self._times.release()
        for ring in (self.down, self.up):
            if ring is not None:
                ring.close()
        self._memory.close()
