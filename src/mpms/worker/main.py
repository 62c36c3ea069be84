"""The life of a worker process: set up, initialise, run tasks, finalise, end.

The main thread runs no task. It serves the control socket and a pipe by which the threads wake it, so that control
works while all threads are busy.
"""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import multiprocessing.process
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from types import FrameType

from ..typed import Any, NoReturn
from ..wire.board import Board
from ..wire.chunks import here
from ..wire.failures import dump_error
from ..wire.frames import Decoder, encode, keep_memory
from ..wire.lifting import lift
from ..wire.messages import (
    ASK_SIGNAL,
    DUMP_SIGNAL,
    INTERRUPT,
    LIMIT,
    RECALL,
    RETIRE,
    STACKS_BEGIN,
    STACKS_END,
    START_FAILED,
    Birth,
    Job,
)
from ..wire.pickling import load
from . import ends, hooks, native
from .logs import forward_logs
from .outbox import Outbox
from .slots import Slots
from .titles import set_process_title

__all__ = ["Descriptors", "run"]

_KEPT = 1 << 22  # bytes: of what is freed twice as much is kept in each thread

_STACKS_MOST = 1 << 20
"""Bytes of answers that are kept, for those who have asked and not read yet. One is some 10 KiB."""

_RECENT_FIRST = "(most recent call first):"

Descriptors = tuple[int, int, int, int]
"""Data socket, control socket, board, stacks."""


def run(job: Job, birth: Birth, descriptors: Descriptors) -> NoReturn:
    """Be a worker until the end of this process. Must run in the main thread, with no other thread alive."""
    data, control, board, stacks = descriptors
    _set_up_process(birth)
    keep_memory(_KEPT)
    memory = Board(board, job.threads)
    os.close(board)
    data, control, stacks = lift(data), lift(control), lift(stacks)
    wake_read, wake_write = map(lift, os.pipe())
    os.set_blocking(wake_write, False)
    # A signal that comes just before the main thread waits would else be answered when it wakes for something else.
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _keep_evidence(stacks)

    def wake() -> None:
        try:
            os.write(wake_write, b"\0")
        except BlockingIOError:
            pass  # it is awake
        except OSError as error:
            if error.errno == errno.EBADF:
                ends.die(ends.LOST_DESCRIPTORS, "the worker's own pipe was closed by a task")
            raise

    sock = socket.socket(fileno=data)
    sock.setblocking(True)  # whatever ``preload`` has told socket.setdefaulttimeout
    outbox = Outbox(sock, wake, memory.up)
    _leave_to_forked_children(sock, (control, stacks, wake_read, wake_write))
    if job.log_levels is not None:
        forward_logs(outbox, job.log_levels)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if poll.poll(0):
        ends.real_exit(0)  # retired, or the parent is gone: before anything was begun
    poll.register(wake_read, select.POLLIN)
    if job.native_threads is not None:
        native.limit_threads(job.native_threads)
    try:
        hooks.initialize(job.process_initializer)
    except BaseException as error:  # user code, SystemExit included
        _start_failed(outbox, error)
    slots = Slots(job, sock, memory, outbox, birth.name, wake)
    try:
        slots.start()
    except BaseException as error:  # no more threads allowed
        _start_failed(outbox, error)
    _serve(poll, control, wake_read, slots, outbox)
    hooks.finalize(job.process_finalizer, birth.name)
    outbox.finish()
    _leave()


def _serve(poll: select.poll, control: int, wake_read: int, slots: Slots, outbox: Outbox) -> None:
    """Until all threads have ended: do what the parent asks for, and send what threads left behind."""
    decoder = Decoder()
    wait: float | None = None
    while not slots.ended:
        for fd, what in poll.poll(None if wait is None else wait * 1000):
            if what & select.POLLNVAL:
                ends.die(ends.LOST_DESCRIPTORS, "the worker's descriptors were closed by a task")
            if fd == wake_read:
                os.read(wake_read, 4096)
                continue
            data = os.read(control, 4096)
            if not data:
                ends.parent_gone()
            for kind, number, payload in decoder.feed(data):
                if kind == RETIRE:
                    slots.retire()
                elif kind == RECALL:
                    slots.recall(number)
                elif kind == INTERRUPT:
                    slots.interrupt(number, LIMIT.unpack(payload)[0])
        waits = [seconds for seconds in (outbox.tend(), slots.tend()) if seconds is not None]
        wait = min(waits, default=None)


def _start_failed(outbox: Outbox, error: BaseException) -> NoReturn:
    outbox.add(encode(START_FAILED, 0, dump_error(error)))
    outbox.finish()
    ends.real_exit(ends.START_FAILED)


def _set_up_process(birth: Birth) -> None:
    set_process_title(birth.name)
    # A handler that does nothing, not SIG_IGN: that would be inherited by the programs that tasks run.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if dict(os.environ) != birth.environ:
        os.environ.clear()
        os.environ.update(birth.environ)
    if birth.directory is not None:
        try:
            os.chdir(birth.directory)
        except OSError:
            pass  # it was removed meanwhile: tasks that need it say so
    # As multiprocessing does it in its own children, so that tasks may use all of it.
    process = multiprocessing.process.current_process()
    process.name = birth.name
    process._config.pop("daemon", None)  # type: ignore[attr-defined]
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    util = sys.modules.get("multiprocessing.util")
    if util is not None:  # else nobody has registered anything
        util._finalizer_registry.clear()
        util._run_after_forkers()
    _forget_fork_server()
    threading.current_thread().name = birth.name


def _forget_fork_server() -> None:
    """That of ``multiprocessing``, if the process that this one was forked from has one: it is no child of this one, to
    which multiprocessing, that would ask whether it lives, has no answer. A task gets one of its own."""
    module = sys.modules.get("multiprocessing.forkserver")
    if module is not None:
        server: Any = module._forkserver
        server._lock = threading.Lock()
        server._forkserver_pid = server._forkserver_address = server._forkserver_alive_fd = None


def _keep_evidence(stacks: int) -> None:
    """Have crashes and ``os._exit`` write who did it to ``stacks``, and on the parent's signals where threads are."""
    faulthandler.enable(stacks, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, stacks, all_threads=True, chain=False)

    # At its end, wherever that is: so what a thread writes while this is made shorter is whole.
    fcntl.fcntl(stacks, fcntl.F_SETFL, fcntl.fcntl(stacks, fcntl.F_GETFL) | os.O_APPEND)

    def answer(*_: object) -> None:
        if os.fstat(stacks).st_size > _STACKS_MOST:
            os.ftruncate(stacks, 0)
        os.write(stacks, STACKS_BEGIN.encode())
        if getattr(sys, "_is_gil_enabled", lambda: True)():
            faulthandler.dump_traceback(stacks, all_threads=True)
        else:  # it would show this thread alone
            for ident, frame in sys._current_frames().items():
                os.write(stacks, f"Thread 0x{ident:016x} {_RECENT_FIRST}\n{_frames(frame)}\n".encode(errors="replace"))
        os.write(stacks, STACKS_END.encode())

    signal.signal(ASK_SIGNAL, answer)

    def _exit(status: int) -> NoReturn:
        # Not by traceback, which reads source files: other threads would run many tasks meanwhile.
        text = f"os._exit({status})\n\nCurrent thread 0x{threading.get_ident():016x} {_RECENT_FIRST}\n"
        try:
            os.write(stacks, (text + _frames(sys._getframe().f_back)).encode(errors="replace"))
        finally:
            ends.real_exit(status)

    os._exit = _exit


def _frames(frame: FrameType | None) -> str:
    """As faulthandler writes them."""
    lines = list[str]()
    while frame is not None:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}\n')
        frame = frame.f_back
    return "".join(lines)


def _leave_to_forked_children(sock: socket.socket, descriptors: tuple[int, ...]) -> None:
    """A child that a task forks is nobody's worker: it must not hold our descriptors, nor end as one of our threads."""

    def after_fork() -> None:
        ends.forked = here.place.forked = True
        here.place.items.clear()  # what is left of a chunk is the parent's to run
        os._exit = ends.real_exit
        faulthandler.disable()
        faulthandler.unregister(DUMP_SIGNAL)
        signal.signal(ASK_SIGNAL, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for fd in (sock.detach(), *descriptors):
            try:
                os.close(fd)
            except OSError:
                pass

    ends.forked = False  # of a pool in a task: such a worker is a fork of that task's, and a worker all the same
    os.register_at_fork(after_in_child=after_fork)


def _leave() -> NoReturn:
    """As the children of multiprocessing end: its own finalizers, then the standard streams; no atexit handlers.

    Those were registered in the process that this one was forked from, and are for that one to run.
    """
    util = sys.modules.get("multiprocessing.util")
    try:
        if util is not None:
            util._exit_function()
    except BaseException:  # queues and managers of the user's
        traceback.print_exc()
    ends.flush_streams()
    ends.real_exit(0)


def main(spec: int, descriptors: Descriptors) -> NoReturn:
    """A spawned worker: all that it is told is in the file ``spec``. Its imports come after the path is in place."""
    from . import setup

    with open(spec, "rb") as file:
        told, birth = pickle.load(file)
    setup.prepare(told)
    try:
        job: Job = load(told.job)
        if job.preload is not None:
            job.preload()
    except BaseException as error:  # the user's modules
        _start_failed(Outbox(socket.socket(fileno=descriptors[0]), lambda: None), error)
    run(job, birth, descriptors)
