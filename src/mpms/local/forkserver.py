"""The process that bears the workers: births, deaths, orphans.

    parent ◀──── socket ────▶ fork server ──fork──▶ worker, a process group of its own

It is single-threaded, so that what it forks is clean. It is the parent of the workers and reaps them at once; it tells
the pool how each one ended. When its socket is at its end the pool is gone, and it kills all that it has. While it
loads what is the user's nobody reads the socket: then the kernel does it.

With the start method ``spawn`` it loads nothing of the user's, and each worker starts a new interpreter instead.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections import deque

from ..typed import NoReturn
from ..wire.failures import dump_error
from ..wire.frames import Decoder, encode
from ..wire.messages import (
    ASK,
    ASK_SIGNAL,
    BEAR,
    BORN,
    DUMP,
    DUMP_SIGNAL,
    EXIT,
    GONE,
    KILL,
    LOAD_FAILED,
    LOADED,
    Birth,
    Job,
    Setup,
)
from ..wire.pickling import load
from .memory import anonymous_file

__all__ = ["ForkServer", "clone", "import_worker", "main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MOST_DESCRIPTORS = 64  # in one message: 16 births


def main(fd: int, told: int, waits: int, *, forks: bool) -> NoReturn:
    """A fork server of a new interpreter: the file ``told`` says what it is to do, when ``waits`` has a byte."""
    from ..worker.setup import prepare

    server = ForkServer(socket.socket(fileno=fd))
    if forks:
        import_worker()
    if not os.read(waits, 1):
        os._exit(0)  # there is nothing to do, or nobody left to do it for
    os.close(waits)
    with open(told, "rb") as file:
        setup: Setup = pickle.load(file)
    prepare(setup)
    gc.freeze()  # else Python's collector looks at all that is loaded as soon as it is enabled, which takes 2.5 ms
    if setup.spawn:
        gc.enable()
        server.serve(setup)
    try:
        job: Job = load(setup.job)
        gc.enable()
        _preload(job)
    except BaseException as error:  # the user's modules
        server.load_failed(error)
    server.serve(setup, job)


def clone(fd: int, job: Job) -> NoReturn:
    """A fork server that is a fork of the parent: for functions that can't be pickled."""
    server = ForkServer(socket.socket(fileno=fd))
    try:
        _preload(job)
    except BaseException as error:
        server.load_failed(error)
    server.serve(None, job)


def import_worker() -> None:
    """Once for all workers, which then are of one version whatever becomes of the files in the months to come."""
    from ..worker import main

    del main


def _preload(job: Job) -> None:
    if job.preload is not None:
        job.preload()


class ForkServer:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(True)  # whatever socket.setdefaulttimeout says
        # Whoever else held it, run or forked by the user's modules: the pool would not see that we have ended.
        self._sock.set_inheritable(False)
        os.register_at_fork(after_in_child=self._sock.close)
        self._decoder = Decoder()
        self._descriptors: deque[int] = deque()
        self._workers: dict[int, int] = {}  # pid → worker
        self._pids: dict[int, int] = {}
        self._lifelines: dict[int, int] = {}  # pid → the end of a pipe that nobody else has: see _tie_group
        self._setup: Setup | None = None
        self._job: Job | None = None
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what workers leave behind comes here, and is reaped
        self._end_with_parent(True)

    def _end_with_parent(self, wanted: bool) -> None:
        """Whether the kernel kills us and what we run as soon as the other side of the socket hangs up, or says a word.

        It says none before it has heard ``LOADED``. Tried: it works while C code holds the GIL, too.
        """
        flags = fcntl.fcntl(self._sock, fcntl.F_GETFL)
        if not wanted:
            fcntl.fcntl(self._sock, fcntl.F_SETFL, flags & ~os.O_ASYNC)
        elif hasattr(fcntl, "F_SETSIG"):  # Linux; elsewhere it isn't known before the load is over
            fcntl.fcntl(self._sock, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(self._sock, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(self._sock, fcntl.F_SETFL, flags | os.O_ASYNC)
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            if poll.poll(0):
                os._exit(0)  # it is gone already

    def load_failed(self, error: BaseException) -> NoReturn:
        self._sock.sendall(encode(LOAD_FAILED, 0, dump_error(error)))
        while self._sock.recv(1 << 16):  # it has read it when it hangs up
            pass
        os._exit(1)

    def serve(self, setup: Setup | None, job: Job | None = None) -> NoReturn:
        self._setup, self._job = setup, job
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        # What is here now the collector doesn't look at again, in the workers neither: their memory stays shared.
        if job is not None and job.preload is not None:
            gc.collect()
        gc.freeze()
        # After the user's modules, which may set handlers of their own; and whatever the thread that started us blocks.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._private = (wake_read, wake_write)
        self._end_with_parent(False)
        self._sock.sendall(encode(LOADED))
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == wake_read:
                    try:
                        os.read(wake_read, 4096)
                    except BlockingIOError:
                        pass
                    self._reap()
                else:
                    self._read()

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, 1 << 16, _MOST_DESCRIPTORS)
        except ConnectionResetError:
            data, descriptors = b"", []
        if not data:
            self._orphaned()
        self._descriptors.extend(descriptors)
        for kind, worker, payload in self._decoder.feed(data):
            if kind == BEAR:
                self._bear(worker, pickle.loads(payload))
            elif kind == KILL and worker in self._pids:
                _kill_group(self._pids[worker])
            elif kind in (ASK, DUMP) and worker in self._pids:
                os.kill(self._pids[worker], ASK_SIGNAL if kind == ASK else DUMP_SIGNAL)

    def _bear(self, worker: int, birth: Birth) -> None:
        descriptors = tuple(self._descriptors.popleft() for _ in range(4))
        server = os.getpid()
        try:
            lifeline, ours = os.pipe()
            try:
                pid = os.fork()
            except OSError:
                os.close(lifeline)
                os.close(ours)
                raise
        except OSError as error:  # no more processes or files allowed: as one that couldn't start
            os.write(2, f"mpms fork server {server}: fork failed: {error}\n".encode())
            for fd in descriptors:
                os.close(fd)
            self._tell(GONE, worker, os.EX_TEMPFAIL)
            return
        if not pid:
            try:
                os.close(ours)
                self._become_worker(server, birth, descriptors, lifeline)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)  # never back into the loop
        try:
            os.setpgid(pid, pid)  # by both, whoever comes first
        except (PermissionError, ProcessLookupError):
            pass
        for fd in (lifeline, *descriptors):
            os.close(fd)
        self._lifelines[pid] = ours
        self._workers[pid] = worker
        self._pids[worker] = pid
        self._tell(BORN, worker, pid)

    def _become_worker(self, server: int, birth: Birth, descriptors: tuple[int, ...], lifeline: int) -> NoReturn:
        os.setpgid(0, 0)
        for fd in self._lifelines.values():
            os.close(fd)
        _tie_group(lifeline)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(0)  # it ended before we asked to be told
        signal.set_wakeup_fd(-1)
        self._sock.close()
        for fd in self._private:
            os.close(fd)
        if self._job is None:
            assert self._setup is not None
            os.set_inheritable(lifeline, True)
            self._exec_worker(self._setup, birth, descriptors)
        data, control, board, stacks = descriptors
        from ..worker.main import run

        run(self._job, birth, (data, control, board, stacks))

    def _exec_worker(self, setup: Setup, birth: Birth, descriptors: tuple[int, ...]) -> NoReturn:
        spec = anonymous_file("mpms-spec")
        os.write(spec, pickle.dumps((setup, birth), 5))
        os.lseek(spec, 0, os.SEEK_SET)
        for fd in (spec, *descriptors):
            os.set_inheritable(fd, True)
        for number in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        code = (
            f"import sys; sys.path[:] = {setup.path!r}; "
            f"from mpms.worker.main import main; main({spec}, {descriptors!r})"
        )
        os.execv(sys.executable, [sys.executable, *setup.flags, "-c", code])

    def _reap(self) -> None:
        """Everything that has ended."""
        while True:
            try:
                if hasattr(os, "waitid"):
                    # Its group is killed before its leader is reaped, so no number is used twice.
                    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if ended is None:
                        return
                    if ended.si_pid in self._workers:
                        _kill_group(ended.si_pid)
                    pid, status, usage = os.wait4(ended.si_pid, 0)
                else:  # macOS before Python 3.13: right after, for want of WNOWAIT
                    pid, status, usage = os.wait4(-1, os.WNOHANG)
                    if not pid:
                        return
                    if pid in self._workers:
                        _kill_group(pid)
            except ChildProcessError:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                del self._pids[worker]
                os.close(self._lifelines.pop(pid))
                peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                self._tell(GONE, worker, os.waitstatus_to_exitcode(status), peak)

    def _tell(self, kind: int, worker: int, number: int, more: int = 0) -> None:
        try:
            self._sock.sendall(encode(kind, worker, EXIT.pack(number, more)))
        except (BrokenPipeError, ConnectionResetError):
            self._orphaned()

    def _orphaned(self) -> NoReturn:
        for pid in self._workers:
            _kill_group(pid)
        # What `preload` has started, and ourselves. Not SIGKILL: multiprocessing's resource tracker ignores this one,
        # cleans up, and ends.
        os.killpg(os.getpgrp(), signal.SIGTERM)
        os._exit(0)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # macOS says EPERM for a group of zombies


def _tie_group(lifeline: int) -> None:
    """Have the kernel kill our group, what tasks have forked or run included, when the fork server was killed.

    It closes its files, and so the other end of this pipe, before it tells its children: then we are still here, and so
    is the pipe. Where the parent lives it does the same; this is for the two of them killed together.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


_PRCTL = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
"""Looked up once, and before a fork: the loader has a lock that a fork may find held."""


def _prctl(option: int, value: int) -> None:
    """Where there is one: elsewhere the end of file on the socket alone tells that somebody is gone."""
    if _PRCTL is not None:
        _PRCTL(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
