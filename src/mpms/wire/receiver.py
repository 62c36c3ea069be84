"""Messages as they come from a socket, wherever their payloads are: behind them, in a file beside them, in a ring."""

from __future__ import annotations

import array
import errno
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..typed import Any, NoReturn, cast
from .files import FILED, SIZE, map_file
from .frames import READ, READ_MOST, Decoder, Message
from .messages import BYTES, RESULTS, RETURNED, TASKS, unpack_results, unpack_tasks
from .ring import RINGED, Ring

__all__ = ["Receiver"]

_ROOM = socket.CMSG_SPACE(array.array("i").itemsize)  # for one: the kernel doesn't join what two messages have beside
_TRUNCATED = int(socket.MSG_CTRUNC)  # as it is, an enum, each look takes 0.9 µs


class Receiver:
    """Reads messages, those of files too: the payload is then what is mapped, for its readers as good as ``bytes``;
    and those whose payload is in ``ring``."""

    def __init__(self, sock: socket.socket, ring: Ring | None = None) -> None:
        self._sock = sock
        self._ring = ring
        self._decoder = Decoder()
        self._wanted = READ  # the more, the more came last time
        self._files: deque[int] = deque()  # descriptors that have come, and their messages not
        self.broken: OSError | None = None
        """Why nothing that follows can be understood: a file did not come, or isn't what was said."""

    def read(self) -> tuple[list[Message], bool | None]:
        """What has come; and whether there may be more right now, ``None``: never again. Raises as ``recv`` does. After
        each, look at :attr:`broken`."""
        decoder = self._decoder
        wanted = self._wanted
        if decoder.partial is not None:
            with decoder.room() as room:
                wanted = len(room)
                count, beside, flags, _ = self._sock.recvmsg_into([room], _ROOM)
            messages = decoder.filled(count)
        else:
            data, beside, flags, _ = self._sock.recvmsg(wanted, _ROOM)
            count = len(data)
            self._wanted = READ_MOST if count >= READ else READ
            messages = decoder.feed(data)
        if beside:
            self._keep(beside)
        if flags & _TRUNCATED:
            self.broken = OSError(errno.EMFILE, "a file was sent, and there is no descriptor left for it")
        for message in messages:
            if message[0] >= FILED:
                messages = list(self._opened(messages))
                break
        return messages, None if not count else count == wanted or bool(beside)

    def _keep(self, beside: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._files.extend(numbers)

    def _opened(self, messages: list[Message]) -> Iterator[Message]:
        """Up to the first whose payload can't be had."""
        for kind, number, payload in messages:
            if kind >= FILED:
                try:
                    payload = self._of_ring(kind, payload) if kind & RINGED else self._of_file(payload)
                except MemoryError:
                    # This process may have no more than it has. It is what becomes of that one task, when it is loaded.
                    payload = memoryview(_TOO_LARGE)
                except Exception as error:  # the sender may have lost its mind
                    self.broken = self.broken or OSError(errno.EBADMSG, f"a payload can't be had: {error}")
                    return
            yield kind & (FILED - 1), number, payload

    def _of_file(self, size: bytes) -> bytes:
        fd = self._files.popleft()
        try:
            return cast(bytes, map_file(fd, SIZE.unpack(size)[0]))
        finally:
            os.close(fd)

    def _of_ring(self, kind: int, data: bytes) -> Any:
        """A batch, unpacked, with what is in the ring in its place."""
        if self._ring is None:
            raise ValueError("there is no ring")
        seqs: tuple[int, ...] = ()
        kinds: tuple[int, ...] = ()
        payloads: Sequence[Any]
        if kind == TASKS | RINGED:
            payloads = unpack_tasks(data)
        elif kind == RESULTS | RINGED:
            seqs, kinds, payloads = unpack_results(data)
        else:
            raise ValueError(f"{kind} is no batch")
        get = self._ring.get
        found: list[Any] = []
        for payload in payloads:
            if type(payload) is list:
                try:
                    payload = get(payload)
                except MemoryError:  # as above
                    payload = memoryview(_TOO_LARGE)
                    if kinds and kinds[len(found)] == BYTES:
                        kinds = *kinds[: len(found)], RETURNED, *kinds[len(found) + 1 :]
            found.append(payload)
        return (seqs, kinds, found) if kinds else found

    def close(self) -> None:
        """Of what came and was not read. Not the socket."""
        while self._files:
            os.close(self._files.popleft())


class _TooLarge:
    def __reduce__(self) -> tuple[Callable[[], NoReturn], tuple[()]]:
        return _too_large, ()


def _too_large() -> NoReturn:
    raise MemoryError("there is no memory for the payload of this task")


_TOO_LARGE = pickle.dumps(_TooLarge(), 5)  # now: then there is no memory for it either
