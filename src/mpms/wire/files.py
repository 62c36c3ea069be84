"""Large payloads, in files of memory that go from process to process by their descriptors.

    parts ─▶ MemoryFile ── its descriptor, beside a short message ──▶ mapped

So they are copied once, where they are made, and never through a socket, which takes a copy on each side. What is
mapped is the receiver's own: nobody else sees what it writes there. Where there is no ``memfd``, or no descriptor is
left for one, payloads go through the socket.
"""

from __future__ import annotations

import array
import errno
import functools
import os
import pickle
import resource
import socket
import struct
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias, cast

from ..record import Record
from .frames import HEADER, Decoder, Message

__all__ = ["FILED", "MemoryFile", "Payload", "Receiver", "pack", "send_file"]

FILED = 0x40
"""Set in the kind of a message whose payload is the size of the file that comes beside it."""

_LEAST = 1 << 19
"""Bytes from which on a payload goes in a file. Measured, tasks a second with ``bytes`` or an array to a worker and
back: 300 kB are 1.2 and 1.05 times as fast through the socket, 500 kB 1.08 (an array), 700 kB the same; 1 MiB takes all
processors 2.3 ms in a file instead of 3.5, 16 MiB 41 instead of 61, and an array of 16 MiB 17 instead of 27."""

_SIZE = struct.Struct("<Q")
_ROOM = socket.CMSG_SPACE(array.array("i").itemsize)  # for one: the kernel doesn't join what two messages have beside
_VECTOR_MOST = 256
_TRUNCATED = int(socket.MSG_CTRUNC)  # as it is, an enum, each look takes 0.9 µs


class MemoryFile:
    """A payload in a file. The descriptor is closed with the last reference to this."""

    __slots__ = ("__weakref__", "fd", "size")

    alive = 0  # a hint, by which descriptors are spared: threads may lose a count

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        """Raises ``OSError`` when there is no descriptor or no memory."""
        self.size = sum(map(len, parts))
        self.fd = os.memfd_create("mpms-payload", os.MFD_CLOEXEC)
        MemoryFile.alive += 1
        _write_all(self.fd, [memoryview(part) for part in parts])

    def __len__(self) -> int:
        return self.size

    def __del__(self) -> None:
        fd = getattr(self, "fd", None)
        if fd is not None:
            MemoryFile.alive -= 1
            try:
                os.close(fd)
            except OSError:
                pass  # a task has closed all descriptors that it found

    def message(self, kind: int, number: int) -> bytes:
        """What the descriptor is sent with."""
        return HEADER.pack(kind | FILED, number, _SIZE.size) + _SIZE.pack(self.size)

    def inline(self, kind: int, number: int) -> list[bytes]:
        """The same for a receiver that can't be sent a descriptor."""
        return [HEADER.pack(kind, number, self.size), bytes(_map(self.fd, self.size))]


Payload: TypeAlias = bytes | MemoryFile


def pack(parts: Sequence[bytes | memoryview]) -> Payload:
    """All parts, in a file if they are large and there can be one."""
    if sum(map(len, parts)) >= _LEAST and MemoryFile.alive < _most():
        try:
            return MemoryFile(parts)
        except (AttributeError, OSError):  # no memfd here; or no descriptor, no memory left
            pass
    return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)


def _most() -> int:
    """Of the descriptors that a process may have, payloads that wait take a sixteenth: the rest is the user's."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft // 16 if soft != resource.RLIM_INFINITY else 1 << 16


def send_file(sock: socket.socket, message: bytes, file: MemoryFile) -> int:
    """How many bytes of the message were sent; the descriptor goes with the first. As ``send``; also raises ``OSError``
    with ``ETOOMANYREFS`` when too many descriptors are under way."""
    return sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fd]))])


class Receiver:
    """Reads messages, those of files too: the payload is then what is mapped, for its readers as good as ``bytes``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder()
        self._files: deque[int] = deque()  # descriptors that have come, and their messages not
        self.broken: OSError | None = None
        """Why nothing that follows can be understood: a file did not come, or isn't what was said."""

    def read(self) -> tuple[list[Message], bool | None]:
        """What has come; and whether there may be more right now, ``None``: never again. Raises as ``recv`` does. After
        each, look at :attr:`broken`."""
        decoder = self._decoder
        wanted = decoder.wanted
        if decoder.partial is not None:
            with decoder.room() as room:
                wanted = len(room)
                count, beside, flags, _ = self._sock.recvmsg_into([room], _ROOM)
            messages = decoder.filled(count)
        else:
            data, beside, flags, _ = self._sock.recvmsg(wanted, _ROOM)
            count = len(data)
            messages = decoder.feed(data)
        if beside:
            self._keep(beside)
        if flags & _TRUNCATED:
            self.broken = OSError(errno.EMFILE, "a file was sent, and there is no descriptor left for it")
        if self._files or self.broken:
            messages = list(self._opened(messages))
        return messages, None if not count else count == wanted or bool(beside)

    def _keep(self, beside: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._files.extend(numbers)

    def _opened(self, messages: list[Message]) -> Iterator[Message]:
        """Up to the first whose file can't be had."""
        for kind, number, payload in messages:
            if not kind & FILED:
                yield kind, number, payload
                continue
            try:
                fd = self._files.popleft()
                try:
                    mapped = _map(fd, _SIZE.unpack(payload)[0])
                finally:
                    os.close(fd)
            except (IndexError, OSError, struct.error) as error:  # the sender may have lost its mind
                self.broken = self.broken or OSError(errno.EBADMSG, f"a file can't be opened: {error}")
                return
            except MemoryError:
                # This process may have no more than it has. It is what becomes of that one task, when it is loaded.
                mapped = memoryview(_TOO_LARGE)
            yield kind ^ FILED, number, cast(bytes, mapped)

    def close(self) -> None:
        """Of what came and was not read. Not the socket."""
        while self._files:
            os.close(self._files.popleft())


def _map(fd: int, size: int) -> memoryview:
    """Memory of one's own with what is in the file, that ends with the last view of it."""
    # Else the first look beyond its end would end this process.
    if os.fstat(fd).st_size < size:
        raise OSError(errno.EINVAL, "a file is shorter than was said")
    system = _system()
    address = system.mmap(None, size, _READ_WRITE, _PRIVATE, fd, 0)
    if address == _FAILED:  # as there are too many mappings
        return memoryview(bytearray(os.pread(fd, size, 0)))
    memory = (system.byte * size).from_address(address)
    weakref.finalize(memory, system.munmap, address, size).atexit = False  # it may have users until the very end
    return memoryview(memory).cast("B")


class _TooLarge:
    def __reduce__(self) -> tuple[Callable[[], NoReturn], tuple[()]]:
        return _too_large, ()


def _too_large() -> NoReturn:
    raise MemoryError("there is no memory for the payload of this task")


_TOO_LARGE = pickle.dumps(_TooLarge(), 5)  # now: then there is no memory for it either


_READ_WRITE, _PRIVATE, _FAILED = 3, 2, 2 ** (8 * struct.calcsize("P")) - 1


class _System(Record):
    mmap: Callable[..., int]
    munmap: Callable[..., int]
    byte: Any


@functools.cache
def _system() -> _System:
    """Not ``mmap.mmap``, which keeps a descriptor for each mapping."""
    import ctypes  # here: it takes 2 ms of the time to the first result

    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return _System(libc.mmap, libc.munmap, ctypes.c_ubyte)


def _write_all(fd: int, views: list[memoryview]) -> None:
    views = [view.cast("B") if view.nbytes else view for view in views]
    while views:
        written = os.writev(fd, views[:_VECTOR_MOST])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
