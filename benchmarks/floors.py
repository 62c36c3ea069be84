"""Physical floors: what the machine does without any pool. Measured beside the pools, each in a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from . import tasks
from .figures import percentile
from .measuring import Run

__all__ = ["FLOORS", "Floor"]

_MESSAGE = struct.Struct("<BQQ")  # the header of a small task
_READ = 1 << 16


class Floor(NamedTuple):
    title: str
    measure: Callable[[Run], None]


@contextlib.contextmanager
def _fork(body: Callable[[socket.socket], None], count: int = 1) -> Iterator[list[socket.socket]]:
    """Processes that run ``body``, with a socket to each."""
    ours: list[socket.socket] = []
    pids = []
    for _ in range(count):
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                for sock in (*ours, here):
                    sock.close()
                body(there)
            finally:
                os._exit(0)
        there.close()
        ours.append(here)
        pids.append(pid)
    try:
        yield ours
    finally:
        for sock in ours:
            sock.close()
        for pid in pids:
            os.waitpid(pid, 0)


def _repeat(run: Run, once: Callable[[], None], at_least: int = 3) -> float:
    """How often per second; the first time is not counted."""
    once()
    start = time.perf_counter()
    for count in itertools.count(1):
        once()
        elapsed = time.perf_counter() - start
        if count >= at_least and elapsed >= run.seconds:
            return count / elapsed
    raise AssertionError("not reached")


def pickling(run: Run) -> None:
    """Arguments and result are pickled and unpickled, and nothing is sent."""
    dumps, loads, count = pickle.dumps, pickle.loads, 10_000

    def once() -> None:
        for number in range(count):
            loads(dumps(((number,), {}), 5))
            loads(dumps(number, 5))

    run.record(rate=count * _repeat(run, once))


def messages(run: Run) -> None:
    """One message and one write per task, read in bulk by another process."""
    count = 20_000
    size = count * _MESSAGE.size

    def read(sock: socket.socket) -> None:
        left = size
        while data := sock.recv(_READ):
            left -= len(data)
            if not left:
                sock.send(b"!")
                left = size

    with _fork(read) as (sock,):
        pack, send = _MESSAGE.pack, sock.sendall

        def once() -> None:
            for number in range(count):
                send(pack(1, number, 0))
            sock.recv(1)

        run.record(rate=count * _repeat(run, once))


def ping_pong(run: Run) -> None:
    """One byte there, one byte back, between two processes that block in read."""

    def answer(sock: socket.socket) -> None:
        while data := sock.recv(16):
            sock.send(data)

    times = []
    with _fork(answer) as (sock,):
        for _ in range(200):
            sock.send(b"!")
            sock.recv(16)
        end = time.perf_counter() + run.seconds
        while (start := time.perf_counter()) < end:
            sock.send(b"!")
            sock.recv(16)
            times.append(time.perf_counter() - start)
    run.record(p50=percentile(times, 50) * 1e6, p99=percentile(times, 99) * 1e6)


def _receive(sock: socket.socket, view: memoryview) -> bool:
    at = 0
    while at < len(view):
        count = sock.recv_into(view[at:])
        if not count:
            return False
        at += count
    return True


def echo(run: Run, size: int) -> None:
    """``size`` bytes to each of two processes, and back: a thread for each, that sends and then receives."""

    def answer(sock: socket.socket) -> None:
        view = memoryview(bytearray(size))
        while _receive(sock, view):
            sock.sendall(view)

    with _fork(answer, 2) as socks:
        rates: list[float] = []

        def ask(sock: socket.socket) -> None:
            data, view = bytes(size), memoryview(bytearray(size))

            def once() -> None:
                sock.sendall(data)
                _receive(sock, view)

            rates.append(_repeat(run, once))

        threads = [threading.Thread(target=ask, args=(sock,)) for sock in socks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run.record(rate=sum(rates))


def memcpy(run: Run, size: int) -> None:
    """Two copies in one process: the argument's and the result's."""
    source, target = memoryview(bytes(size)), memoryview(bytearray(size))
    count = max(1, (1 << 24) // size)

    def once() -> None:
        for _ in range(count):
            target[:] = source
            target[:] = source

    run.record(rate=count * _repeat(run, once))


def _in_two_processes(run: Run, work: Callable[[], object]) -> float:
    """How often per second two processes do ``work``, both together."""

    def serve(sock: socket.socket) -> None:
        while sock.recv(1):
            work()
            sock.send(b"!")

    with _fork(serve, 2) as socks:

        def once() -> None:
            for sock in socks:
                sock.send(b"!")
            for sock in socks:
                sock.recv(1)

        return 2 * _repeat(run, once)


def chunks(run: Run, items: int) -> None:
    """``list(map(f, chunk))`` in two processes, each with half of the items; nothing is sent."""
    chunk = range(items // 2)
    run.record(rate=items // 2 * _in_two_processes(run, lambda: list(map(tasks.same, chunk))))


def burning(run: Run) -> None:
    """Two processes that do nothing but the 2-ms task."""
    count = 20

    def work() -> None:
        for _ in range(count):
            tasks.burn(run.loops)

    run.record(rate=count * _in_two_processes(run, work))


def sleeping(run: Run, seconds: float, threads: int) -> None:
    """Two processes with bare threads, each of which sleeps again and again."""
    count = max(10, round(run.seconds / seconds))

    def sleep_all() -> None:
        for _ in range(count):
            time.sleep(seconds)

    def work() -> None:
        sleepers = [threading.Thread(target=sleep_all) for _ in range(threads)]
        for sleeper in sleepers:
            sleeper.start()
        for sleeper in sleepers:
            sleeper.join()

    start = time.perf_counter()
    with _fork(lambda sock: work(), 2):
        pass
    run.record(share=100 * count * seconds / (time.perf_counter() - start))


def interpreter(run: Run) -> None:
    """An interpreter that starts and says so."""
    times = []
    for _ in range(5):
        start = time.monotonic()
        program = "import time; print(time.monotonic())"
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
        times.append(float(done.stdout) - start)
    run.record(first=percentile(times, 50) * 1e3)


FLOORS: dict[str, Floor] = {
    "pickle": Floor("floor: pickle there and back, without a process", pickling),
    "messages": Floor("floor: one message and one write per task", messages),
    "ping-pong": Floor("floor: ping-pong over a socket pair", ping_pong),
    "echo-64k": Floor("floor: two processes that echo 64 KiB", partial(echo, size=1 << 16)),
    "echo-16m": Floor("floor: two processes that echo 16 MiB", partial(echo, size=1 << 24)),
    "memcpy-64k": Floor("floor: memcpy of 64 KiB, twice", partial(memcpy, size=1 << 16)),
    "memcpy-16m": Floor("floor: memcpy of 16 MiB, twice", partial(memcpy, size=1 << 24)),
    "map": Floor("floor: list(map(f, chunk)) in two processes", partial(chunks, items=200_000)),
    "cpu": Floor("floor: two bare processes", burning),
    "sleep": Floor("floor: 2 x 50 bare threads", partial(sleeping, seconds=0.005, threads=50)),
    "interpreter": Floor("floor: a bare interpreter", interpreter),
}
