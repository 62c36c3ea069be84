"""Payloads of middling size, by memory that both processes have: a ring of it for each direction.

    put ─▶ ring ── where it is, in a batch on the socket, in place of the payload ──▶ get: copied out, and free again

Bytes behind a mark come as they went, so that who loads them has no more to copy.

A socket copies twice as well, into pages that the kernel takes and gives back each time. Where there is no room, since
nobody has read for a while, or no memory, the payload goes by the socket.

Measured beside that, tasks a second with ``bytes`` to a worker and back: 32 KiB 1.5, 64 KiB 1.9, 128 KiB 1.7, 256 KiB
1.6, 600 KiB 1.5 times as many, for half to two thirds of the processor time.
"""

from __future__ import annotations

import mmap
import sys

from ..typed import Any, TypeAlias, cast
from .frames import Marked

__all__ = ["AS_IT_IS", "LEAST", "RINGED", "RING_SIZE", "Place", "Ring"]

RINGED = 0x80
"""Set in the kind of a batch of which some payloads are in the ring."""

Place: TypeAlias = list[Any]
"""Where a payload is in the ring: how much was put before it, its size, and its mark; ``None``: it is pickled. No
payload of a batch is a list but these."""

AS_IT_IS = b""
"""The mark of bytes that are the value itself."""

LEAST = 1 << 13
"""Bytes from which on a payload goes by the ring. Measured beside the socket, tasks a second with ``bytes`` to a worker
and back: 8 KiB 1.2, 16 KiB 1.4 times as many."""

_ROOM = 1 << 22
"""Bytes of a ring. Measured, with 64 KiB to a worker and back, and three quarters of it sent in advance (see
``PREFETCH_BYTES`` of the core's policy): with half of it, or twice as much, 0.9 times as many tasks a second."""

RING_SIZE = mmap.PAGESIZE + _ROOM
"""What a ring takes of a file: a page, that begins with how much was read, and the room."""

_STEP = 1 << 18  # bytes of memory that are taken at a time: it takes the system 0.2 ms
_ALIGNED = 64

_POPULATE = 23 if sys.platform == "linux" else None
"""``MADV_POPULATE_WRITE``, from Linux 5.14 on."""


class Ring:
    """One side only writes, and the other only reads; each in one thread at a time. ``start`` is where it begins in
    ``memory``."""

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        self._memory = memory
        self._start = start + mmap.PAGESIZE
        with memoryview(memory) as whole:
            self._read = whole[start : start + 8].cast("Q")  # by the reader, of all that was ever put
            self._room = whole[self._start : self._start + _ROOM]
        self._put = 0  # all that was ever put, with what was skipped
        self._skipped = 0  # up to here nothing waits to be read, whatever the reader has said so far
        self._populated = 0  # bytes of the room that have memory; -1: there is none to be had

    def put(self, payload: bytes | Marked, mark: bytes | None = None) -> Place | None:
        """Where it is from now on; ``None``: there is no room for it, or it is better sent otherwise."""
        if type(payload) is Marked:
            mark, payload = payload.mark, payload.data
        size = len(payload)
        at = self._place_for(size) if size >= LEAST else None
        if at is None:
            return None
        place = at % _ROOM
        self._room[place : place + size] = payload  # type: ignore[assignment]
        self._put = at + size + -size % _ALIGNED
        return [at, size, mark]

    def _place_for(self, size: int) -> int | None:
        read, at = max(self._read[0], self._skipped), self._put
        place = at % _ROOM
        if read == at and place:
            # Empty: from its beginning, which is in a cache of the processor, and has memory.
            self._put = self._skipped = read = at = at + _ROOM - place
            place = 0
        if place + size > _ROOM:
            at += _ROOM - place  # in one piece
            place = 0
        if at + size > read + _ROOM:
            return None
        return at if place + size <= self._populated or self._has_memory(place + size) else None

    def _has_memory(self, size: int) -> bool:
        """So much from the beginning of the room. To write where the system has none left ends the process."""
        while 0 <= self._populated < size:
            try:
                if _POPULATE is None:
                    raise OSError
                self._memory.madvise(_POPULATE, self._start + self._populated, _STEP)
            except OSError:
                self._populated = -1
            else:
                self._populated += _STEP
        return self._populated >= 0

    def get(self, place: Place) -> bytes | Marked:
        """What was put there. Raises anything if it can't be."""
        at, size, mark = place
        begin = at % _ROOM
        end = begin + size
        if not begin <= end <= _ROOM:
            raise ValueError("it would end beyond the ring")
        payload: bytes | Marked
        if mark is None:
            payload = cast(bytes, bytearray(self._room[begin:end]))  # as good as bytes, and an array can have it
        elif type(mark) is bytes:
            payload = bytes(self._room[begin:end])
            if mark:
                payload = Marked(mark, payload)
        else:
            raise ValueError(f"{type(mark).__name__} is no mark")
        self._read[0] = at + size + -size % _ALIGNED
        return payload

    def close(self) -> None:
        self._read.release()
        self._room.release()
