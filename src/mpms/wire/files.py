"""Large payloads, in files of memory that go from process to process by their descriptors.

    parts ─▶ MemoryFile ── its descriptor, beside a short message ──▶ mapped ─▶ returned

So they are copied once, where they are made, and never through a socket, which takes a copy on each side. What is
mapped is the receiver's own: nobody else sees what it writes there, and the file stays as it is until he says, in its
first page, that he looks at it no more. Where there is no ``memfd``, or no descriptor is left for one, payloads go
through the socket.
"""

from __future__ import annotations

import array
import errno
import fcntl
import functools
import os
import resource
import socket
import struct
import sys
import weakref
from collections.abc import Callable, Sequence

from ..record import Record
from ..typed import Any, TypeAlias, cast
from .frames import HEADER, Marked
from .lifting import lift

__all__ = ["FILED", "SIZE", "File", "MemoryFile", "Payload", "map_file", "send_file"]

FILED = 0x40
"""Set in the kind of a message whose payload is the size of the file that comes beside it."""

_PAGE = resource.getpagesize()
_LENT, _RETURNED = b"\0", b"\1"  # the first byte of a file

SIZE = struct.Struct("<Q")
"""The payload of such a message."""

_VECTOR_MOST = 256


class File:
    """A file of memory: a page whose first byte says whether its reader is done with it, and then what is in it."""

    __slots__ = ("__weakref__", "_address", "_identity", "_mapped", "capacity", "fd")

    def __init__(self) -> None:
        """Raises ``OSError`` when there is no descriptor, ``AttributeError`` where there are no such files."""
        self._address = self._mapped = 0
        self.fd = lift(os.memfd_create("mpms-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        self._identity = self._identify()
        self.capacity = 0
        """Bytes for which it has memory."""
        # To look at what was cut off would end the process that does.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def _identify(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    def is_there(self) -> bool:
        """Or else a task has closed all descriptors that it found, and the number may be that of a file of its own."""
        try:
            return self._identify() == self._identity
        except OSError:
            return False

    def fill(self, parts: Sequence[bytes | memoryview], size: int) -> None:
        """Raises ``OSError`` when there is no memory."""
        if self.capacity:
            os.pwrite(self.fd, _LENT, 0)
        # Measured, 16 MiB to memory that it has: 2.8 ms, and 4.6 by a system call. To where it has none yet that is a
        # signal in place of an error when the machine has none either.
        if size <= self.capacity and self._is_mapped():
            at = _PAGE
            for part in parts:
                self._copy(part, at)
                at += len(part)
            return
        _write_all(self.fd, parts, _PAGE)
        self.capacity = max(self.capacity, size)

    def _is_mapped(self) -> bool:
        """As much of it as it has memory for."""
        length = _PAGE + self.capacity
        if self._mapped < length:
            self._unmap()
            address = _system().mmap(None, length, _READ_WRITE, _SHARED, self.fd, 0)
            if address == _FAILED:
                return False
            self._address, self._mapped = address, length
        return True

    def _unmap(self) -> None:
        if self._mapped:
            _system().munmap(self._address, self._mapped)
            self._mapped = 0

    def _copy(self, part: bytes | memoryview, at: int) -> None:
        """Without the GIL."""
        system = _system()
        if isinstance(part, bytes):
            system.memmove(self._address + at, part, len(part))
        elif part.readonly or not part.nbytes:
            _write_all(self.fd, [part], at)
        else:
            system.memmove(self._address + at, (system.byte * part.nbytes).from_buffer(part), part.nbytes)

    def is_returned(self) -> bool:
        return os.pread(self.fd, 1, 0) == _RETURNED

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():  # what is needed here may be gone, and the system takes all back
            return
        self._unmap()
        if hasattr(self, "_identity") and self.is_there():
            os.close(self.fd)


class MemoryFile:
    """A payload in ``file``, which goes to ``keep`` with the last reference to this if it may be used again."""

    __slots__ = ("__weakref__", "_file", "_keep", "sent", "size")

    alive = 0  # a hint, by which descriptors are spared: threads may lose a count

    def __init__(self, file: File, parts: Sequence[bytes | memoryview], keep: Callable[[File], None]) -> None:
        """Raises ``OSError`` when there is no memory."""
        self.size = sum(map(len, parts))
        self.sent = 0
        """How often. There is one place in which a reader says that he is done with it: with two of them, as after a
        crash, nobody knows."""
        self._keep = keep
        file.fill(parts, self.size)
        self._file = file
        MemoryFile.alive += 1

    def __len__(self) -> int:
        return self.size

    @property
    def fd(self) -> int:
        return self._file.fd

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing() or not hasattr(self, "_file"):  # as above
            return
        MemoryFile.alive -= 1
        if self.sent <= 1 and self._file.is_there():
            if not self.sent:
                os.pwrite(self.fd, _RETURNED, 0)
            self._keep(self._file)

    def message(self, kind: int, number: int) -> bytes:
        """What the descriptor is sent with."""
        return HEADER.pack(kind | FILED, number, SIZE.size) + SIZE.pack(self.size)

    def inline(self, kind: int, number: int) -> list[bytes]:
        """The same for a receiver that can't be sent a descriptor."""
        return [HEADER.pack(kind, number, self.size), cast(bytes, _read_all(self.fd, self.size))]


Payload: TypeAlias = bytes | Marked | MemoryFile


def send_file(sock: socket.socket, message: bytes, file: MemoryFile) -> int:
    """How many bytes of the message were sent; the descriptor goes with the first. As ``send``; also raises ``OSError``
    with ``ETOOMANYREFS`` when too many descriptors are under way."""
    count = sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fd]))])
    file.sent += 1
    return count


def map_file(fd: int, size: int) -> memoryview:
    """Memory of one's own with what is in the file, that ends with the last view of it; then the file is returned."""
    # Else the first look beyond its end would end this process.
    if os.fstat(fd).st_size < _PAGE + size:
        raise OSError(errno.EINVAL, "a file is shorter than was said")
    system = _system()
    address = system.mmap(None, size, _READ_WRITE, _PRIVATE, fd, _PAGE)
    if address == _FAILED:  # as there are too many mappings
        data = _read_all(fd, size)
        os.pwrite(fd, _RETURNED, 0)
        return memoryview(data)
    memory = (system.byte * size).from_address(address)
    loan = _Loan(address, size, system.mmap(None, _PAGE, _READ_WRITE, _SHARED, fd, 0))
    _loans.add(loan)
    weakref.finalize(memory, loan.end).atexit = False  # it may have users until the very end
    return memoryview(memory).cast("B")


class _Loan:
    """A file that is mapped. Its sender uses it again when it is told that nobody looks at it any more."""

    __slots__ = ("_address", "_page", "_size", "is_inherited")

    def __init__(self, address: int, size: int, page: int) -> None:
        self._address = address
        self._size = size
        self._page = page
        self.is_inherited = False  # a child has it too

    def end(self) -> None:
        system = _system()
        system.munmap(self._address, self._size)
        if self._page != _FAILED:
            if not self.is_inherited:
                system.byte.from_address(self._page).value = _RETURNED[0]
            system.munmap(self._page, _PAGE)
        _loans.discard(self)


_loans: set[_Loan] = set()


def _keep_for_children() -> None:
    """Before a fork: a child sees what is mapped here, and may do so for longer than this process."""
    for loan in _loans.copy():  # whole without a GIL too, as iteration isn't
        loan.is_inherited = True


os.register_at_fork(before=_keep_for_children)


_READ_WRITE, _SHARED, _PRIVATE, _FAILED = 3, 1, 2, 2 ** (8 * struct.calcsize("P")) - 1


class _System(Record):
    mmap: Callable[..., int]
    munmap: Callable[..., int]
    memmove: Callable[..., object]
    byte: Any


@functools.cache
def _system() -> _System:
    """Not ``mmap.mmap``, which keeps a descriptor for each mapping."""
    import ctypes  # here: it takes 2 ms of the time to the first result

    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return _System(libc.mmap, libc.munmap, ctypes.memmove, ctypes.c_ubyte)


def _read_all(fd: int, size: int) -> bytearray:
    data = bytearray(size)
    at = 0
    with memoryview(data) as view:
        while at < size:
            count = os.preadv(fd, [view[at:]], _PAGE + at)
            if not count:  # a sender that has lost its mind has cut it off
                raise OSError(errno.EINVAL, "a file is shorter than was said")
            at += count
    return data


def _write_all(fd: int, parts: Sequence[bytes | memoryview], at: int) -> None:
    views = [memoryview(part) for part in parts]
    views = [view.cast("B") if view.nbytes else view for view in views]
    while views:
        written = os.pwritev(fd, views[:_VECTOR_MOST], at)
        at += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
