"""The parent's side of the fork server: asks for workers, hears of births and deaths. Never blocks, but to end it."""

from __future__ import annotations

import array
import errno
import multiprocessing
import multiprocessing.process
import os
import pickle
import socket
import sys
from collections import deque

from ..ids import WorkerId
from ..record import Record
from ..typed import TypeAlias
from ..wire.frames import READ, Decoder, encode
from ..wire.messages import ASK, BEAR, BORN, DUMP, EXIT, GONE, KILL, LOAD_FAILED, LOADED, Birth, Setup
from . import descriptors
from .link import Link, open_link
from .servers import Clone, Interpreter, Server, interpreter_flags, working_directory
from .shipment import Shipment

__all__ = ["Born", "Gone", "Launcher", "LoadFailed", "Report", "ServerLost"]


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


class Launcher:
    def __init__(self, shipment: Shipment, early: Interpreter | None = None) -> None:
        """``early`` is one that is coming up, and is ours from now on."""
        self._shipment = shipment
        self._server: Server | None = early
        self._early = early
        self._decoder = Decoder()
        self._loaded = False
        self._out: deque[tuple[bytes, list[int]]] = deque()  # messages and the descriptors that go with them

    @property
    def is_open(self) -> bool:
        return self._server is not None

    def open(self) -> None:
        """Start the fork server; its reports are read as it comes up. If that fails, nothing of it is left."""
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._decoder, self._loaded = Decoder(), False
        shipment = self._shipment
        if self._early is not None and (shipment.method == "fork" or shipment.inherited):
            self.close()  # it is none of those; or it can't be given any more what it has to inherit
        if shipment.method == "fork":
            self._server = clone = Clone()
            clone.begin(shipment.job)
        else:
            if self._early is None:
                self._server = self._early = Interpreter(shipment.method, shipment.inherited)
                self._early.begin()
            self._early.tell(_setup(shipment))
            self._early = None
        assert self._server is not None
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
        birth = Birth(name=name, environ=_environment(), directory=working_directory())
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
                data = self._server.socket.recv(READ)
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
            self._server = self._early = None


def _environment() -> dict[str, str]:
    while True:
        try:
            return dict(os.environ)
        except KeyError:
            pass  # another thread has removed a variable meanwhile


def _setup(shipment: Shipment) -> Setup:
    directory = working_directory()
    return Setup(
        flags=interpreter_flags(),
        path=[str(path) or directory or "" for path in sys.path],
        argv=sys.argv,
        directory=directory,
        authkey=bytes(multiprocessing.process.current_process().authkey),
        spawn=shipment.method == "spawn",
        mp_method=multiprocessing.get_start_method(allow_none=True),
        native_threads=shipment.job.native_threads,
        job=shipment.pickled,
    )
