"""Messages on a stream: ``kind`` (1 byte), ``number`` (8), ``length`` (8), then ``length`` bytes.

A batch is the concatenation of its messages: many small ones go in one system call. A torn tail when a process has
ended is no error: what was not sent whole was not sent.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

__all__ = ["HEADER", "Decoder", "Message", "encode"]

HEADER = struct.Struct("<BQQ")

Message: TypeAlias = tuple[int, int, bytes]
"""Kind, number, payload."""

_READ = 1 << 16
_READ_MOST = 1 << 20


def encode(kind: int, number: int = 0, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, number, len(payload)) + payload


class Decoder:
    """Bytes in, in any pieces; whole messages out. One thread owns it."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._missing = 0

    @property
    def wanted(self) -> int:
        """How many bytes to read next: more while a large message is under way."""
        return min(max(self._missing, _READ), _READ_MOST)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes."""
        # Measured: with the buffer empty, as it nearly always is, parsing `data` itself saves a copy of all of it.
        kept = bool(self._buffer)
        if kept:
            self._buffer += data
        messages: list[Message] = []
        at, size = 0, HEADER.size
        with memoryview(self._buffer if kept else data) as view:
            end = len(view)
            self._missing = 0
            while end - at >= size:
                kind, number, length = HEADER.unpack_from(view, at)
                stop = at + size + length
                if stop > end:
                    self._missing = stop - end
                    break
                messages.append((kind, number, bytes(view[at + size : stop])))
                at = stop
            rest = bytes(view[at:]) if not kept and at < end else b""
        if kept:
            del self._buffer[:at]
        elif rest:
            self._buffer += rest
        return messages
