"""Messages on a stream: ``kind`` (1 byte), ``number`` (8), ``length`` (8), then ``length`` bytes.

A batch is the concatenation of its messages: many small ones go in one system call. A torn tail when a process has
ended is no error: what was not sent whole was not sent.
"""

from __future__ import annotations

import struct
import sys

from ..typed import Any, TypeAlias, cast

__all__ = ["HEADER", "READ", "READ_MOST", "Decoder", "Marked", "Message", "encode", "keep_memory", "message_of"]

HEADER = struct.Struct("<BQQ")

Message: TypeAlias = tuple[int, int, Any]
"""Kind, number, payload: ``bytes``, what is as good as that for its readers, or a :class:`Marked`."""

READ = 3 << 15
"""Bytes to read at once, if there isn't more: 64 KiB come in one part."""

READ_MOST = 1 << 20
"""Bytes to read at once while much comes, which is all that may be under way. Measured, with 64 KiB there and back: by
96 KiB it took the processors a fifth more time, for each message then wakes a thread, and half of them come in two
parts. Not always: a C library that asks the system for so much memory takes longer for it than for a small message."""

_LARGE = 1 << 15  # payloads that are read in place when they don't arrive at once
_ROOM = 1 << 25  # that is made at once for one


def encode(kind: int, number: int = 0, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, number, len(payload)) + payload


class Marked:
    """A payload of bytes that are not copied for what is in front of them, which says what they are."""

    __slots__ = ("data", "mark")

    def __init__(self, mark: bytes, data: bytes) -> None:
        self.mark = mark
        self.data = data

    def __len__(self) -> int:
        return len(self.mark) + len(self.data)

    def __bytes__(self) -> bytes:
        return self.mark + self.data


def message_of(kind: int, number: int, payload: bytes | Marked) -> tuple[bytes, bytes]:
    """In two parts, so that what is large is not copied."""
    header = HEADER.pack(kind, number, len(payload))
    return (header + payload.mark, payload.data) if isinstance(payload, Marked) else (header, payload)


def keep_memory(size: int) -> None:
    """Have this process keep what it frees for what it needs next, up to twice ``size`` in a thread; for its start.

    glibc gives back the free end of its memory from 128 KiB on, so that each message of 64 KiB was read to pages that
    the kernel had just taken away and gave anew: 26 of them for a task, there and back. It changes its mind with the
    first large block that is freed, which many programs have anyway: to twice the size of that. Measured, with 64 KiB
    there and back 1.2 times as many tasks a second, with 128 KiB 1.4 times.
    """
    if "t" not in sys.abiflags:  # without a GIL Python has an allocator of its own, and this would only take it
        try:
            bytes(size)
        except MemoryError:  # it may have no more: it keeps less
            pass


class Decoder:
    """Bytes in, in any pieces; whole messages out. One thread owns it.

    While a large message is under way (:attr:`partial`), what comes next is best read into :meth:`room`, and told by
    :meth:`filled`: that saves two copies of all of it. Its payload is a ``bytearray``, that nobody else has.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.partial: bytearray | None = None
        """The payload of the large message that is under way, as far as there is room for it."""
        self._filled = self._length = self._kind = self._number = 0  # of that message

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes."""
        if self.partial is None:
            return self._parse(data)
        count = min(len(data), self._length - self._filled)
        messages: list[Message] = []
        at = 0
        while at < count:
            with self.room() as room:
                step = min(len(room), count - at)
                room[:step] = data[at : at + step]
            messages = self.filled(step)
            at += step
        return messages + self._parse(data[count:]) if count < len(data) else messages

    def room(self) -> memoryview:
        """Where to read the next bytes of :attr:`partial` to. To be released before :meth:`filled` is called."""
        assert self.partial is not None
        return memoryview(self.partial)[self._filled :]

    def filled(self, count: int) -> list[Message]:
        """So many bytes were read to :meth:`room`: the message, if that was all of it."""
        partial = self.partial
        assert partial is not None
        self._filled += count
        missing = self._length - self._filled
        if not missing:
            self.partial = None
            # To those who read it, it is as good as bytes.
            return [(self._kind, self._number, cast(bytes, partial))]
        if self._filled == len(partial):
            partial += bytes(min(missing, len(partial)))
        return []

    def _parse(self, data: bytes) -> list[Message]:
        size = HEADER.size
        if not self._buffer and len(data) >= size:
            # Measured, a lone small message: a third of the time.
            kind, number, length = HEADER.unpack_from(data)
            if length < _LARGE and len(data) == size + length:
                return [(kind, number, data[size:])]
        # Measured: with the buffer empty, as it nearly always is, parsing `data` itself saves a copy of all of it.
        kept = bool(self._buffer)
        if kept:
            self._buffer += data
        messages: list[Message] = []
        at = 0
        with memoryview(self._buffer if kept else data) as view:
            end = len(view)
            while end - at >= size:
                kind, number, length = HEADER.unpack_from(view, at)
                stop = at + size + length
                if stop > end:
                    if length >= _LARGE:
                        self._begin(kind, number, length, view[at + size :])
                        at = end
                    break
                if length >= _LARGE and not kept:
                    payload = cast(bytes, memoryview(data)[at + size : stop])  # as good as bytes, and no copy
                else:
                    payload = bytes(view[at + size : stop])
                messages.append((kind, number, payload))
                at = stop
            rest = bytes(view[at:]) if not kept and at < end else b""
        if kept:
            del self._buffer[:at]
        elif rest:
            self._buffer += rest
        return messages

    def _begin(self, kind: int, number: int, length: int, there: memoryview) -> None:
        with there:
            self._kind, self._number, self._length, self._filled = kind, number, length, len(there)
            # By steps: a worker that has lost its mind may announce more than there is memory.
            self.partial = bytearray(min(length, max(_ROOM, 2 * len(there))))
            self.partial[: len(there)] = there
