"""The parent's side of the fork server: asks for workers, hears of births and deaths. Never blocks, but to end it."""

from __future__ import annotations

import array
import errno
import multiprocessing
import multiprocessing.process
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeAlias

from ..ids import StartMethod, WorkerId
from ..record import Record
from ..wire.frames import Decoder, encode
from ..wire.messages import ASK, BEAR, BORN, DUMP, EXIT, GONE, KILL, LOAD_FAILED, LOADED, Birth, Job, Setup
from ..wire.pickling import number_classes
from . import descriptors
from .link import Link, open_link
from .memory import anonymous_file

__all__ = ["Born", "Gone", "Interpreter", "Launcher", "LoadFailed", "Report", "ServerLost", "Shipment"]


class Born(Record):
    worker: WorkerId
    pid: int


class Gone(Record):
    """The process has ended and is reaped. ``peak`` is the most memory that it had, in bytes."""

    worker: WorkerId
    exitcode: int
    peak: int


class LoadFailed(Record):
    """The function or what it needs can't be loaded in a fresh process, or ``preload`` failed: see ``dump_error``."""

    error: bytes


class ServerLost(Record):
    """The fork server has ended, and is to be opened again. Its workers end with it."""


Report: TypeAlias = Born | Gone | LoadFailed | ServerLost


class Shipment(Record):
    """A job, ready to be sent: pickled, with the descriptors that go with it; as it is for ``fork``."""

    method: StartMethod
    job: Job
    pickled: bytes = b""
    inherited: tuple[int, ...] = ()


class Launcher:
    def __init__(self, shipment: Shipment) -> None:
        self._shipment = shipment
        self._server: _Server | None = None
        self._decoder = Decoder()
        self._loaded = False
        self._out: deque[tuple[bytes, list[int]]] = deque()  # messages and the descriptors that go with them

    @property
    def is_open(self) -> bool:
        return self._server is not None

    def open(self, early: Interpreter | None = None) -> None:
        """Start the fork server, or take one that is coming up; its reports are read as it does."""
        self._decoder, self._loaded = Decoder(), False
        shipment = self._shipment
        if early is not None and (shipment.method == "fork" or shipment.inherited):
            early.end()  # it is none of those; or it can't be given any more what it has to inherit
            early = None
        if shipment.method == "fork":
            self._server = _Clone(shipment.job)
        else:
            early = early or Interpreter(shipment.method, shipment.inherited)
            try:
                early.tell(shipment)
            except BaseException:
                early.end()
                raise
            self._server = early
        self._server.socket.setblocking(False)

    def fileno(self) -> int:
        assert self._server is not None
        return self._server.socket.fileno()

    @property
    def pid(self) -> int | None:
        return None if self._server is None else self._server.pid

    @property
    def wants_write(self) -> bool:
        return self._loaded and bool(self._out)

    def start(self, worker: WorkerId, name: str) -> Link:
        """Ask for a worker. It is born when the server has loaded the job."""
        link, theirs = open_link(worker, name, self._shipment.job.threads)
        birth = Birth(name=name, environ=_environment(), directory=_directory())
        for fd in theirs:
            descriptors.own(fd)
        self._out.append((encode(BEAR, worker, pickle.dumps(birth, 5)), theirs))
        self.flush()
        return link

    def kill(self, worker: WorkerId) -> None:
        """Kill the worker with its group."""
        self._out.append((encode(KILL, worker), []))
        self.flush()

    def ask(self, worker: WorkerId) -> None:
        """Have the worker's main thread write where its threads are."""
        self._out.append((encode(ASK, worker), []))
        self.flush()

    def dump(self, worker: WorkerId) -> None:
        """Have them written though its main thread doesn't answer."""
        self._out.append((encode(DUMP, worker), []))
        self.flush()

    @property
    def loading(self) -> bool:
        """Whether the server is still busy with the user's modules and ``preload``."""
        return not self._loaded

    def kill_server(self) -> None:
        """For a server that hangs in what it loads: :class:`ServerLost` follows."""
        if self._server is not None:
            self._server.kill()

    def flush(self) -> None:
        while self.wants_write:
            data, fds = self._out[0]
            assert self._server is not None
            try:
                if fds:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sent = self._server.socket.sendmsg([data], rights)
                else:
                    sent = self._server.socket.send(data)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                return  # it is lost: seen when reading
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                return  # too many descriptors are under way: when some have arrived
            for fd in fds:
                descriptors.close(fd)
            if sent < len(data):
                self._out[0] = data[sent:], []
            else:
                self._out.popleft()

    def read(self) -> list[Report]:
        """What the server has to report."""
        assert self._server is not None
        reports: list[Report] = []
        while True:
            try:
                data = self._server.socket.recv(self._decoder.wanted)
            except BlockingIOError:
                return reports
            except ConnectionResetError:
                data = b""
            if not data:
                reports.append(ServerLost())
                return reports
            for kind, number, payload in self._decoder.feed(data):
                if kind == BORN:
                    reports.append(Born(WorkerId(number), EXIT.unpack(payload)[0]))
                elif kind == GONE:
                    reports.append(Gone(WorkerId(number), *EXIT.unpack(payload)))
                elif kind == LOADED:
                    self._loaded = True
                    self.flush()
                elif kind == LOAD_FAILED:
                    reports.append(LoadFailed(payload))

    def close(self) -> None:
        """End the server, and with it whatever workers are left; returns when it is reaped, within a second."""
        for _, fds in self._out:
            for fd in fds:
                descriptors.close(fd)
        self._out.clear()
        self._loaded = False  # what is to be sent waits for the next server
        if self._server is not None:
            self._server.end()
            self._server = None


class _Server:
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


class Interpreter(_Server):
    """A fresh one, that comes up and waits to be told what for: it needs not wait until the job is pickled."""

    def __init__(self, method: StartMethod, inherited: Sequence[int] = ()) -> None:
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
                f"main({theirs.fileno()}, {told}, {waits}, forks={method != 'spawn'})"
            )
            self._process = subprocess.Popen(
                [_executable(), *_interpreter_flags(), "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), told, waits, *inherited],
                cwd=None if _directory() else "/",  # Python 3.13.0 can't even import socket in one that is gone
                start_new_session=True,  # Ctrl-C on the terminal is the parent's to answer
            )
            kept.pop_all()
        self._untold: tuple[int, int] | None = told, go
        super().__init__(ours, self._process.pid)

    def tell(self, shipment: Shipment) -> None:
        assert self._untold is not None
        told, go = self._untold
        with open(told, "wb", closefd=False) as file:
            pickle.dump(_setup(shipment), file, 5)
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
        self._hush()
        super().end()

    def reap(self) -> None:
        self._process.wait()


class _Clone(_Server):
    """A fork of this process, made once: it is single-threaded, so that what it forks is clean."""

    def __init__(self, job: Job) -> None:
        from .forkserver import import_worker

        # Before the fork: in the child an import may find a lock held by a thread that isn't there.
        import_worker()
        number_classes()
        with warnings.catch_warnings():
            # Python 3.12 warns of forking with threads. This fork takes no lock but those that Python itself makes new.
            warnings.simplefilter("ignore", DeprecationWarning)
            with ExitStack() as kept:
                ours, theirs = _socketpair()
                kept.enter_context(theirs)
                kept.callback(lambda: descriptors.close(ours.detach()))
                pid = os.fork()
                kept.pop_all()
        if not pid:
            try:
                _be_clone(theirs, job)
            finally:
                os._exit(70)  # never back into the user's program
        theirs.close()
        super().__init__(ours, pid)

    def reap(self) -> None:
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the user's program waits for any child


def _socketpair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    descriptors.own(ours.fileno())
    return ours, theirs


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


def _environment() -> dict[str, str]:
    while True:
        try:
            return dict(os.environ)
        except KeyError:
            pass  # another thread has removed a variable meanwhile


def _directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _executable() -> str:
    """As ``multiprocessing.set_executable`` has it; nobody has called it where this is not loaded."""
    spawn = sys.modules.get("multiprocessing.spawn")
    return sys.executable if spawn is None else os.fsdecode(spawn.get_executable())


def _interpreter_flags() -> list[str]:
    """The options with which this interpreter runs, for another one that is to be like it."""
    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]


def _setup(shipment: Shipment) -> Setup:
    directory = _directory()
    return Setup(
        flags=_interpreter_flags(),
        path=[str(path) or directory or "" for path in sys.path],
        argv=sys.argv,
        directory=directory,
        authkey=bytes(multiprocessing.process.current_process().authkey),
        spawn=shipment.method == "spawn",
        mp_method=multiprocessing.get_start_method(allow_none=True),
        native_threads=shipment.job.native_threads,
        job=shipment.pickled,
    )
