"""One worker's sockets, seen from the parent. Never blocks; the supervising thread owns it."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice

from ..ids import Seq, TaskId, WorkerId
from ..record import Record
from ..typed import Any, TypeAlias
from ..wire.board import RINGS_SIZE, Board, Slot, board_size
from ..wire.files import MemoryFile, send_file
from ..wire.frames import Message, encode, message_of
from ..wire.messages import FORGET, FUNCTION, SELECT, SMALL, TASK, TASKS, Plain, pack_task, pack_tasks
from ..wire.receiver import Receiver
from ..wire.ring import RINGED, Place
from . import descriptors, evidence
from .functions import Shipped
from .memory import anonymous_file
from .records import ARGUMENTS

__all__ = ["Link", "Offer", "Parcel", "open_link"]

Parcel: TypeAlias = tuple[Any, ...]
"""What is to be sent of a task: its pickled arguments, ``None`` if they are plain; the function that it brings along;
and, after three that are nothing to this, plain arguments: see ``local.records``."""

_JOIN_MOST = 1 << 16  # below, one copy is cheaper than a longer vector
_VECTOR_MOST = 256
_BUFFER = 1 << 20
"""Bytes that may be under way in either direction. Measured, 64 KiB there and back: 6,500 tasks a second with the
system's own 208 KiB, for three of them fill it; 9,000 with 512 KiB, 11,300 with this, 9,800 with twice as much."""

_NAME_MOST = 200
"""Bytes of the name of a memory file, for which Linux has 249; something is added to it."""

_MOMENT = 0.0001  # seconds; a system call that doesn't block takes a tenth

_FUNCTIONS_MOST = 256  # that a worker keeps
_READS = 4  # in a row from one worker, so that one with much to say doesn't keep others waiting


class _Filed(Record):
    """A task whose payload is in a file."""

    seq: int
    file: MemoryFile


class Offer:
    """One task, as the dispatch ``seq``, may be sent to a worker that has nothing to do, by who submits it: while the
    supervisor sleeps, and with a lock that it doesn't have then.

    Who has that lock may be interrupted by a handler of a signal that lets go of it, and takes another offer, or waits
    for the end of the pool. So taking it is one step of the interpreter's.
    """

    __slots__ = ("_flags", "_over", "_send", "_sent", "function", "seq", "worker")

    def __init__(self, worker: WorkerId, seq: Seq, function: Shipped | None, send: Callable[[bytes, int], int]) -> None:
        self.worker = worker
        self.seq = seq
        self.function = function  # of which the task is to be
        self._send = send
        self._flags = iter((0,))  # of the one send; none when it is taken, or closed
        self._sent: list[tuple[TaskId, bytes, int]] = []  # what was sent, and how much of it
        self._over = False  # nothing was sent by it, nor will be

    def take(self, task: TaskId, payload: bytes | Plain) -> bool:
        """Whether the task was sent. Doesn't block."""
        frame = encode(TASK, self.seq, pack_task(payload))
        try:
            self._sent.extend(zip((task,), (frame,), map(self._send, (frame,), self._flags), strict=False))
        except OSError:
            pass  # it was stopped and can take no more, or has ended: that is for the supervisor
        finally:
            self._over = not self._sent
        return self.has_sent(task)

    def has_sent(self, task: TaskId) -> bool:
        return bool(self._sent) and self._sent[0][0] == task

    def close(self) -> tuple[TaskId, bytes] | None:
        """Take it back; or else the task that was sent, and what is left of it."""
        if next(self._flags, None) is not None:
            self._over = True
        while not (self._sent or self._over):
            time.sleep(_MOMENT)  # it is just being sent, without the GIL; hardly ever, for who does that has the lock
        if not self._sent:
            return None
        task, frame, sent = self._sent[0]
        return task, frame[sent:]


class Link:
    """``data`` and ``control`` are the parent's ends; ``board`` and ``stacks`` are shared memory.

    A stopped worker fills its socket, and then the rest waits here: see :attr:`wants_write`.
    """

    def __init__(
        self,
        worker: WorkerId,
        name: str,
        data: socket.socket,
        control: socket.socket,
        board: Board,
        stacks: int,
    ) -> None:
        self.worker = worker
        self.name = name
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.lost = False  # end of file, or a broken pipe
        self.trouble = ""  # for which it was given up, if it was not the end
        self.base_memory = 0  # when it was ready
        self._data = data
        self._control = control
        self._board = board
        self._stacks = stacks
        self._ring = board.down
        self._is_ringed = False  # some payloads of the batch that is being made are in the ring
        self._receiver = Receiver(data, board.up)
        self.weight = 0
        """Bytes of a payload, on the average, of the tasks that were sent last; 0 if they are small, or in files."""
        self._out: deque[memoryview | _Filed] = deque()
        self._function: Shipped | None = None  # that of the last task that was sent; None: the job's own
        self._functions: OrderedDict[int, None] = OrderedDict()  # that the worker has, those used lately last

    def fileno(self) -> int:
        return self._data.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._out) and not self.lost

    def send_tasks(self, tasks: Sequence[tuple[int, Parcel]]) -> None:
        """Send, or keep what doesn't fit for :meth:`flush`. The numbers follow one another."""
        parts: list[bytes] = []
        small: list[bytes | Plain | Place] = []
        weight = 0
        ring = self._ring
        for seq, parcel in tasks:
            payload = parcel[0]
            if payload is None:
                payload = parcel[ARGUMENTS:]
            if parcel[1] is not self._function:
                self._pack(small, seq, parts)
                self._select(parcel[1], parts)
            size = len(payload)
            if size <= SMALL:
                small.append(payload)
            elif ring is not None and not isinstance(payload, MemoryFile) and (place := ring.put(payload)) is not None:
                weight += size
                small.append(place)
                self._is_ringed = True
            else:
                self._pack(small, seq, parts)
                if isinstance(payload, MemoryFile):
                    self._queue(parts)
                    self._out.append(_Filed(seq, payload))
                else:
                    weight += size
                    parts += message_of(TASK, seq, payload)
        self.weight = weight // len(tasks)
        if small:
            self._pack(small, tasks[-1][0] + 1, parts)
        self._queue(parts)
        self.flush()

    def offer(self, seq: Seq) -> Offer | None:
        """To be taken before anything else is sent."""
        return None if self._out or self.lost else Offer(self.worker, seq, self._function, self._data.send)

    def taken(self, offer: Offer) -> TaskId | None:
        """Close it; the task that was sent."""
        sent = offer.close()
        if sent is None:
            return None
        task, rest = sent
        if rest:
            self._out.append(memoryview(rest))
        return task

    def _queue(self, parts: list[bytes]) -> None:
        if len(parts) == 1 or sum(map(len, parts)) > _JOIN_MOST:
            self._out.extend(map(memoryview, parts))
        elif parts:
            self._out.append(memoryview(b"".join(parts)))
        parts.clear()

    def _pack(self, payloads: list[bytes | Plain | Place], following: int, parts: list[bytes]) -> None:
        """Those of the dispatches right before ``following``."""
        if self._is_ringed:
            self._is_ringed = False
            parts.append(encode(TASKS | RINGED, following - len(payloads), pack_tasks(payloads)))
        elif len(payloads) == 1:
            parts.append(encode(TASK, following - 1, pack_task(payloads[0])))
        elif payloads:
            parts.append(encode(TASKS, following - len(payloads), pack_tasks(payloads)))
        payloads.clear()

    def _select(self, function: Shipped | None, parts: list[bytes]) -> None:
        """Have the tasks that follow be of this function, which is sent with the first of them."""
        self._function = function
        if function is None:
            parts.append(encode(SELECT, 0))
            return
        known = self._functions
        if function.number in known:
            known.move_to_end(function.number)
            parts.append(encode(SELECT, function.number))
            return
        known[function.number] = None
        parts.append(encode(FUNCTION, function.number, function.data))
        if len(known) > _FUNCTIONS_MOST:
            parts.append(encode(FORGET, known.popitem(last=False)[0]))

    def flush(self) -> None:
        out = self._out
        while out and not self.lost:
            first = out[0]
            try:
                if isinstance(first, _Filed):
                    self._flush_file(first)
                    continue
                views = [first]
                for view in islice(out, 1, _VECTOR_MOST):
                    if isinstance(view, _Filed):
                        break
                    views.append(view)
                sent = self._data.sendmsg(views)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                # It reads no more: it retires, or has ended. What it has said is still to be read.
                out.clear()
                return
            for view in views:
                if sent < len(view):
                    out[0] = view[sent:]
                    break
                sent -= len(view)
                out.popleft()

    def _flush_file(self, filed: _Filed) -> None:
        """The first of what is to be sent."""
        message = filed.file.message(TASK, filed.seq)
        try:
            sent = send_file(self._data, message, filed.file)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            self._out.popleft()
            self._out.extendleft(map(memoryview, reversed(filed.file.inline(TASK, filed.seq))))
            return
        self._out.popleft()
        if sent < len(message):
            self._out.appendleft(memoryview(message)[sent:])

    def control(self, kind: int, number: int = 0, payload: bytes = b"") -> None:
        try:
            self._control.send(encode(kind, number, payload))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass  # it has ended; or was stopped, and has more than enough to read when it goes on

    def read(self, most: int = _READS) -> list[Message]:
        """What has arrived; sets :attr:`lost` at the end of the stream."""
        messages: list[Message] = []
        for _ in range(most):
            try:
                more, goes_on = self._receiver.read()
            except BlockingIOError:
                break
            except ConnectionResetError:  # it had not read all that was sent to it
                self.lost = True
                break
            messages += more
            if self._receiver.broken is not None:
                self.trouble, self.lost = str(self._receiver.broken), True
                break
            if not goes_on:
                self.lost = goes_on is None
                break
        return messages

    def drain(self) -> list[Message]:
        """After the process has ended: all that it had said, to the end. A torn tail is no error."""
        messages: list[Message] = []
        while not self.lost:
            before = len(messages)
            messages += self.read()
            if len(messages) == before and not self._readable():
                break  # not at the end, and nothing there: something that it forked holds the other side
        return messages

    def _readable(self) -> bool:
        try:
            return bool(self._data.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def running(self) -> list[Slot]:
        return self._board.running()

    def done(self) -> int:
        """Tasks that it has run, as its board counts them."""
        return self._board.done()

    def watermark(self) -> int:
        return self._board.watermark()

    def stacks(self) -> str:
        """What faulthandler has written so far."""
        return evidence.read_stacks(self._stacks)

    def close(self) -> None:
        """Close all; the board must not be read from another thread any more."""
        self._receiver.close()
        for sock in (self._data, self._control):
            descriptors.close(sock.detach())
        descriptors.close(self._stacks)
        self._board.close()


def open_link(worker: WorkerId, name: str, threads: int) -> tuple[Link, list[int]]:
    """A link, and the descriptors of the worker's side; the caller closes those once they are sent."""
    file_name = _file_name(name)
    with ExitStack() as opened:  # what is closed again when there is no descriptor or memory left for the rest
        data, data_theirs = map(opened.enter_context, socket.socketpair())
        control, control_theirs = map(opened.enter_context, socket.socketpair())
        for sock in (data, data_theirs):
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            except OSError:
                pass  # macOS refuses what Linux reduces to what is allowed
        data.setblocking(False)
        control.setblocking(False)
        for sock in (data_theirs, control_theirs):
            sock.setblocking(True)  # whatever socket.setdefaulttimeout says
        board = _memory(file_name, threads)
        opened.callback(os.close, board)
        stacks = anonymous_file(f"{file_name}-stacks")
        opened.callback(os.close, stacks)
        stacks_theirs = os.dup(stacks)
        opened.callback(os.close, stacks_theirs)
        link = Link(worker, name, data, control, Board(board, threads), stacks)
        opened.pop_all()
    for fd in (data.fileno(), control.fileno(), stacks):
        descriptors.own(fd)
    return link, [data_theirs.detach(), control_theirs.detach(), board, stacks_theirs]


def _memory(name: str, threads: int) -> int:
    """The file of the board, and of the rings if files may be so large (``ulimit -f``)."""
    try:
        return anonymous_file(name, board_size(threads) + RINGS_SIZE)
    except OSError:
        return anonymous_file(name, board_size(threads))


def _file_name(name: str) -> str:
    """As much of a worker's name as fits into that of a file; from its end, too, which says who of the pool it is."""
    data = name.encode("utf-8", "replace")
    return name if len(data) <= _NAME_MOST else (data[: _NAME_MOST - 40] + data[-40:]).decode(errors="ignore")
