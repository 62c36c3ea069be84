"""The other end of a launcher: a process that is the fork server, in a fresh interpreter or as a clone of this one.

Imports little: the interpreter is to come up while the rest of the pool is imported.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import starmap

from ..ids import StartMethod
from ..wire.messages import Job, Setup
from . import descriptors
from .memory import anonymous_file

__all__ = ["Clone", "Interpreter", "Server", "interpreter_flags", "working_directory"]


class Server:
    """A process at the other end of ``socket``."""

    def __init__(self, ours: socket.socket, pid: int) -> None:
        self.socket = ours
        self.pid = pid

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # the user's program has reaped it, and it may be somebody else's number by now

    def _end_group(self) -> None:
        """What ``preload`` has started. Not by SIGKILL: see ``ForkServer._orphaned``, which does it if it can."""
        try:
            os.killpg(self.pid, signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            pass  # it hasn't come to make its group; or macOS, of a group of zombies

    def reap(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Hang up: it kills its workers and ends. If it doesn't, stopped or hanging in what it loads, kill it."""
        self.socket.setblocking(True)
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has ended
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        while poll.poll(500):
            try:
                if not self.socket.recv(1 << 16):
                    break
            except ConnectionResetError:
                break
        else:
            self.kill()
        self._end_group()  # before it is reaped: its number is nobody else's yet
        descriptors.close(self.socket.detach())
        self.reap()


class Interpreter(Server):
    """A fresh one, that comes up and waits to be told what for: it needs not wait until the job is pickled.

    To be ended though :meth:`begin` was cut short, by Ctrl-C.
    """

    def __init__(self, method: StartMethod, inherited: Sequence[int] = ()) -> None:
        self._method = method
        self._inherited = inherited
        self._problems: list[BaseException] = []
        self._turns = [True]  # for the first of the two who come: the thread when it has begun it, and who ends it

    def begin(self) -> None:
        """Handlers of signals come to the main thread, so from there in another one: who is struck in ``Popen`` leaves
        a process of which nobody knows. Measured: 0.1 to 0.2 ms."""
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=self._begin, name="mpms-start")
            thread.start()
            thread.join()
        else:
            self._begin()
        for problem in self._problems:
            raise problem

    def _begin(self) -> None:
        try:
            self._open()
        except BaseException as problem:
            self._problems.append(problem)
        else:
            self.end()

    def _open(self) -> None:
        import subprocess  # a clone needs none

        with ExitStack() as kept, ExitStack() as given:
            # By a file rather than the socket: a large closure doesn't fit into that before somebody reads.
            told = descriptors.own(anonymous_file("mpms-setup"))
            kept.callback(descriptors.close, told)
            waits, go = os.pipe()
            given.callback(os.close, waits)
            kept.callback(descriptors.close, descriptors.own(go))
            ours, theirs = _socketpair()
            given.enter_context(theirs)
            kept.callback(lambda: descriptors.close(ours.detach()))
            code = (
                # Nothing that is imported becomes garbage: to look for it takes a tenth of the time.
                f"import gc, sys; gc.disable(); sys.path[:] = {list(map(str, sys.path))!r}; "
                f"from mpms.local.forkserver import main; "
                f"main({theirs.fileno()}, {told}, {waits}, forks={self._method != 'spawn'})"
            )
            self._process = subprocess.Popen(
                [_executable(), *interpreter_flags(), "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), told, waits, *self._inherited],
                cwd=None if working_directory() else "/",  # Python 3.13.0 can't even import socket in one that is gone
                start_new_session=True,  # Ctrl-C on the terminal is the parent's to answer
            )
            kept.pop_all()
        self._untold: tuple[int, int] | None = told, go
        super().__init__(ours, self._process.pid)

    def tell(self, setup: Setup) -> None:
        assert self._untold is not None
        told, go = self._untold
        with open(told, "wb", closefd=False) as file:
            pickle.dump(setup, file, 5)
        os.lseek(told, 0, os.SEEK_SET)  # of the one that it has, too
        try:
            os.write(go, b"\0")
        except BrokenPipeError:
            pass  # it has ended: that is heard of by its socket
        self._hush()

    def _hush(self) -> None:
        """If it has been told nothing by now it ends."""
        if self._untold is not None:
            for fd in self._untold:
                descriptors.close(fd)
            self._untold = None

    def end(self) -> None:
        try:
            self._turns.pop()
        except IndexError:
            self._hush()
            super().end()

    def reap(self) -> None:
        self._process.wait()


class Clone(Server):
    """A fork of this process, made once: it is single-threaded, so that what it forks is clean.

    To be ended though :meth:`begin` was cut short, by Ctrl-C.
    """

    def __init__(self) -> None:
        ours, self._theirs = _socketpair()
        self._pids: list[int] = []  # its number, when it is there
        super().__init__(ours, 0)

    def begin(self, job: Job) -> None:
        from ..wire.pickling import number_classes
        from .forkserver import import_worker

        # Before the fork: in the child an import may find a lock held by a thread that isn't there.
        import_worker()
        number_classes()
        with warnings.catch_warnings():
            # Python 3.12 warns of forking with threads. This fork takes no lock but those that Python itself makes new.
            warnings.simplefilter("ignore", DeprecationWarning)
            with self._theirs:
                _fork(self._pids, lambda: _be_clone(self._theirs, job))
        self.pid = self._pids[0]

    def end(self) -> None:
        self._theirs.close()
        if self._pids:
            self.pid = self._pids[0]
            super().end()
        else:
            descriptors.close(self.socket.detach())

    def reap(self) -> None:
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the user's program waits for any child


def _socketpair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    descriptors.own(ours.fileno())
    return ours, theirs


def _fork(pids: list[int], child: Callable[[], object]) -> None:
    """Append the number of the child, which does nothing else: a handler of a signal may raise in either."""
    parent = os.getpid()
    try:
        pids.extend(starmap(os.fork, ((),)))  # one step of the interpreter's: who is struck in it knows the number
        if not pids[0]:
            child()
    finally:
        if os.getpid() != parent:
            os._exit(70)  # never back into the user's program


def _be_clone(theirs: socket.socket, job: Job) -> None:
    from .forkserver import clone

    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    clone(theirs.detach(), job)


def working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _executable() -> str:
    """As ``multiprocessing.set_executable`` has it; nobody has called it where this is not loaded."""
    spawn = sys.modules.get("multiprocessing.spawn")
    return sys.executable if spawn is None else os.fsdecode(spawn.get_executable())


def interpreter_flags() -> list[str]:
    """The options with which this interpreter runs, for another one that is to be like it."""
    import subprocess

    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]
