"""What tests with real processes share: where tasks wait for the test, what they have started, and who is left."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil
import pytest

from mpms import MPMS

HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Without one C code keeps no other thread waiting, and faulthandler shows the stack of one thread only: of who
crashes, and of nobody who hangs in C code that doesn't let go."""

with_gil = pytest.mark.skipif(not HAS_GIL, reason="there is no GIL that it could hold")


def is_freed(condition: Callable[[], Any]) -> Any:
    """Whether ``condition`` holds when what nobody has any more is gone: which it is at once. But without a GIL what
    one thread has made and another lets go of is freed when the first runs again, or by Python's collector."""
    return condition() if HAS_GIL else until(lambda: gc.collect() >= 0 and condition())


PATIENCE = 60.0
"""Seconds after which a test gives up waiting for something that normally takes milliseconds."""


# What a task can do


_C = ctypes.PyDLL(None)  # doesn't let go of the GIL; made here, which on a busy machine takes long in a task


def announce(address: str, word: object = None) -> socket.socket:
    """Tell the test at ``address`` that we are here; it sees us as long as the socket is open."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(None)
    sock.connect(address.replace("@", "\0"))
    sock.sendall(json.dumps([word, os.getpid()]).encode() + b"\n")
    return sock


def meet(address: str, word: object = None) -> object:
    """Tell the test at ``address`` that we are here, wait until it lets us go, and return ``word``."""
    with announce(address, word) as sock:
        sock.recv(1)
    return word


def note(path: str, word: object) -> None:
    """Append a line to the log ``path``, whole, however many write at once."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{word}\n".encode())
    finally:
        os.close(fd)


def noted(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []


def die(how: str) -> NoReturn:
    """End this process in one of the ways that are not orderly."""
    if how == "exit":
        os._exit(3)
    raise_signal(getattr(signal, how))
    raise AssertionError("not reached")


def raise_signal(number: int) -> None:
    """To this thread, as a bug in C code does it. Unlike ``signal.raise_signal`` it doesn't let go of the GIL: beside
    threads that run on faulthandler may crash while it reads their frames, about once in 100 times."""
    getattr(_C, "raise")(int(number))


def hold_the_gil(seconds: int = 600) -> None:
    """Hang in C code that doesn't let go of the GIL."""
    while seconds:  # a signal that happens to come to this thread ends the sleep: the rest is returned
        seconds = _C.sleep(seconds)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """As ``os.kill``; who has ended already is dead enough."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def stop(pid: int) -> None:
    """Stop the process, and return when all its threads are: with the signal sent, some run on for a while."""
    os.kill(pid, signal.SIGSTOP)
    until(
        lambda: all("T (stopped)" in file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/status")),
        every=0.001,
    )


def announce_and_hold_the_gil(address: str, word: object = None) -> None:
    """Come to the test from within one call of C code that never returns: when it sees us, the GIL is held."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # one that came to this thread would end the call
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(None)
        sock.connect(address.replace("@", "\0"))
        data = json.dumps([word, os.getpid()]).encode() + b"\n" + bytes(50_000_000)  # more than anybody will read
        _C.write(sock.fileno(), data, ctypes.c_size_t(len(data)))


# Where tasks wait for the test


class Guest:
    """A task that waits in :func:`meet`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self._sock = sock
        line = b""
        while b"\n" not in line:
            data = sock.recv(4096)
            assert data, "a task ended while it introduced itself"
            line += data
        self.word, self.pid = json.loads(line.partition(b"\n")[0])

    def release(self) -> None:
        """Let it go on; again: no effect."""
        if self._sock.fileno() >= 0:
            try:
                self._sock.sendall(b"\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has ended
            self._sock.close()

    def is_gone(self, seconds: float) -> bool:
        """Whether it, and whoever it has forked meanwhile, ends within ``seconds``."""
        self._sock.settimeout(seconds)
        try:
            return not self._sock.recv(1)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


class Meeting:
    """A socket of the test to which tasks come by :func:`meet`."""

    def __init__(self) -> None:
        self.address = f"@mpms-test-{uuid.uuid4().hex}"  # as ss shows it: no file, and it fits into an argument
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.address.replace("@", "\0"))
        self._server.listen(512)
        self._guests: list[Guest] = []

    def arrive(self, seconds: float = PATIENCE) -> Guest:
        """The next one; ``TimeoutError`` when nobody comes."""
        self._server.settimeout(seconds)
        guest = Guest(self._server.accept()[0])
        self._guests.append(guest)
        return guest

    def arrivals(self, count: int, seconds: float = PATIENCE) -> list[Guest]:
        """The next ``count``, who are then here all at the same time."""
        until = time.monotonic() + seconds
        return [self.arrive(max(0.001, until - time.monotonic())) for _ in range(count)]

    def close(self) -> None:
        self._server.close()
        for guest in self._guests:
            guest.release()


@contextmanager
def meeting() -> Iterator[Meeting]:
    place = Meeting()
    try:
        yield place
    finally:
        place.close()


# Waiting


def until(condition: Callable[[], Any], seconds: float = PATIENCE, *, every: float = 0.01) -> Any:
    """Wait for what nobody tells us about: figures of a pool. What ``condition`` returned, once it is true."""
    deadline = time.monotonic() + seconds
    look = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} seconds"
        look.wait(every)
    return value


def still_alive(pids: Sequence[int], seconds: float) -> list[int]:
    """Those of ``pids`` that have not ended after ``seconds``; sooner when all have."""
    deadline = time.monotonic() + seconds
    left: list[int] = []
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                left.append(pid)
        finally:
            os.close(fd)
    return left


def promised(seconds: float) -> float:
    """How long what is promised within ``seconds`` may take now, while others want the processors too: each waits for
    its share. `test_promises.py` holds the same promises to their seconds, alone."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])  # now; the average is of a minute
    return seconds * (1 + max(running, os.getloadavg()[0]) / len(os.sched_getaffinity(0)))


class Stopwatch:
    """``with Stopwatch() as watch: …`` and then ``watch.seconds``."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._start


# Pools


def results(pool: MPMS) -> dict[Any, Any]:
    """``{first argument: result}``; each argument comes once, or this fails."""
    got: dict[Any, Any] = {}
    for meta, result in pool.iter_results():
        assert meta.args[0] not in got, f"a second outcome for {meta.args}"
        got[meta.args[0]] = result
    return got


def pids(pool: MPMS) -> set[int]:
    """The workers that are up."""
    return {info.pid for info in pool.workers() if info.pid is not None and info.phase == "serving"}


def at_full_strength(pool: MPMS, seconds: float = PATIENCE) -> set[int]:
    """Wait for it; the workers' pids."""
    return until(lambda: len(pids(pool)) == pool.processes_count and pids(pool), seconds)


def fork_server(pool: MPMS) -> int:
    """The pid of the process that bears the workers."""
    return psutil.Process(min(at_full_strength(pool))).ppid()


# Programs that run a pool


class Program:
    """A script in an interpreter of its own, a process group of its own, and all that descends from it."""

    def __init__(self, code: str, *args: object, **environ: str) -> None:
        self._mark = f"mpms-test-{uuid.uuid4().hex}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(code), *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # SPT_NOENV: the titles of workers would else be written over their environment, and so over the mark.
            env={**os.environ, "MPMS_TEST_MARK": self._mark, "SPT_NOENV": "1", **environ},
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        self.stdout: IO[str] = self.process.stdout  # type: ignore[assignment]

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self, word: str) -> None:
        """Wait for the next line, which is to be ``word``."""
        line = self.stdout.readline().rstrip("\n")
        assert line == word, f"{line!r} and not {word!r}; {'' if line else self.process.communicate()[1]}"

    def ends(self, seconds: float) -> tuple[int, str, str]:
        """Exit code, the rest of stdout, stderr; fails if it takes longer."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def family(self) -> list[psutil.Process]:
        """The script and all that descends from it, wherever it is now."""
        return [each for each in psutil.process_iter() if self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get("MPMS_TEST_MARK") == self._mark
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def left_after(self, seconds: float) -> list[str]:
        """Who of the family still lives after ``seconds``."""
        deadline = time.monotonic() + seconds
        # A look misses who is born while it is taken; all whom it found dead bear nobody after it: so two of them.
        while family := self.family() or self.family():
            if still_alive([each.pid for each in family], deadline - time.monotonic()):
                break
        left = []
        for each in family:
            try:
                left.append(f"{each.pid} {each.status()} {each.cmdline()[:3]}")
            except psutil.Error:
                pass
        return left

    def close(self) -> None:
        for each in self.family():
            try:
                each.kill()
            except psutil.Error:
                pass
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


_PRELUDE = """
import ctypes, os, signal, sys, threading, time
from mpms import MPMS, TaskCancelled, TaskTimeout, WorkerCrashed
from tests.local.helpers import HAS_GIL, announce, announce_and_hold_the_gil, hold_the_gil, meet, note

def say(word):
    print(word, flush=True)
"""


@contextmanager
def program(code: str, *args: object, **environ: str) -> Iterator[Program]:
    """Run ``code``, after some imports and with ``say``; whatever is left of it at the end is killed."""
    running = Program(code, *args, **environ)
    try:
        yield running
    finally:
        running.close()
