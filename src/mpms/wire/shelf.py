"""Files for large payloads, that are used again while their memory is warm.

    pack ─▶ MemoryFile ─▶ sent, mapped, read ─▶ returned by its reader, forgotten by its sender ─▶ the shelf ─▶ pack

To take 16 MiB of memory from the system and to fill it takes 10 ms, and to fill it again 2.8.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence

from .files import File, MemoryFile, Payload
from .frames import Marked

__all__ = ["LEAST", "Shelf"]

LEAST = 3 << 18
"""Bytes from which on a payload goes in a file. Measured, tasks a second with ``bytes`` or an array to a worker and
back: 600 KiB are 1.5 times as fast through the ring, or the same; 1,000 KiB the same, or 0.6 times as fast."""

_FILES_MOST = 16


class Shelf:
    """Any thread packs, and any thread may forget what was packed. Up to ``most`` bytes are kept for the next ones."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pid = os.getpid()
        # Of which the reader may not be done. A list, whose methods are whole without a GIL too: a deque's copy isn't.
        self._files: list[File] = []

    def pack(self, parts: Sequence[bytes | memoryview]) -> Payload:
        """All parts: in a file if they are large and there can be one, else in one piece; but bytes behind a mark stay
        where they are, for nobody changes them."""
        size = sum(map(len, parts))
        if size >= LEAST and MemoryFile.alive < _alive_most():
            try:
                return MemoryFile(self._take(size) or File(), parts, self._keep)
            except (AttributeError, OSError):  # no memfd here; or no descriptor, no memory left
                pass
        match parts:
            case [bytes() as mark, bytes() as data]:
                return Marked(mark, data)
            case [bytes() as data]:
                return data
            case _:
                return b"".join(parts)

    def close(self) -> None:
        """Keep nothing from now on."""
        self._most = 0
        self._files.clear()

    def _take(self, size: int) -> File | None:
        """The smallest one that is large enough; else the largest, which is made larger. Of equals that which was used
        last, for it may be in a cache of the processor."""
        files = self._files.copy()
        files.reverse()
        files.sort(key=lambda file: (file.capacity < size, abs(file.capacity - size)))
        return next((file for file in files if self._is_free(file) and self._has_claimed(file)), None)

    def _has_claimed(self, file: File) -> bool:
        try:
            self._files.remove(file)
        except ValueError:  # another thread was faster
            return False
        if self._is_free(file):
            return True
        self._keep(file)  # another thread has had it since we looked: it was filled and sent again
        return False

    def _is_free(self, file: File) -> bool:
        # A child that was forked has them too, and would write to what its parent reads.
        return file.is_there() and file.is_returned() and os.getpid() == self._pid

    def _keep(self, file: File) -> None:
        self._files.append(file)
        # What was lent longest ago may never come back: its reader has died, or somebody keeps what was in it.
        while len(self._files) > _FILES_MOST or sum([file.capacity for file in self._files.copy()]) > self._most:
            try:
                self._files.pop(0)
            except IndexError:
                return


def _alive_most() -> int:
    """Of the descriptors that a process may have, payloads that wait take a sixteenth: the rest is the user's."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft // 16 if soft != resource.RLIM_INFINITY else 1 << 16
