"""How each scenario measures: it opens the system, measures, joins it, and records figures by name."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from . import tasks
from .figures import median, percentile
from .measuring import LostTasks, Run, Tally, Unavailable
from .processes import cpu_seconds, pss, rss, tree
from .system import Shape, System

__all__ = [
    "arrays_16m",
    "bulk",
    "bytes_64k",
    "cpu",
    "first",
    "idle",
    "importing",
    "io",
    "join",
    "latency",
    "list_schedule",
    "million",
    "mixed",
    "rotation",
    "stream",
    "strength",
]

_REPEATS = 5  # of what is over at once, like a start
_P2T4 = Shape()
_IO = Shape(processes=2, threads=50, spread=True)


def _repeat(run: Run, once: Callable[[], float]) -> float:
    """The median of some; of fewer if one takes seconds."""
    times: list[float] = []
    end = time.monotonic() + 5 * run.seconds
    while not times or (len(times) < _REPEATS and time.monotonic() < end):
        times.append(once())
    return median(times)


# Streams


def _stream(
    run: Run,
    function: Callable[[Any], Any],
    arguments: Callable[[int], Iterable[Any]],
    *,
    window: int | None = None,
    least: int = 256,
    most: int = 1_000_000,
) -> None:
    """Tasks per second, of so many tasks that they take about the time that a measurement is to take."""
    # Who takes tasks from an iterator may want more at once than the window lets through.
    tally = Tally(run.patience, window if run.system.has_put else None)
    system = run.open(function, tally.done, _P2T4)
    count = least
    tally.batch(system, arguments(count), count)  # all workers are up, all code is loaded
    while True:
        elapsed = tally.batch(system, arguments(count), count)
        if elapsed >= run.seconds / 5 or count >= most:
            break
        count = min(most, count * 4)
    count = max(least, min(most, int(count / elapsed * run.seconds)))
    run.record(rate=count / tally.batch(system, arguments(count), count))
    system.join()


def stream(run: Run) -> None:
    if not run.system.has_put:
        raise Unavailable("it takes tasks from an iterator only: see Bulk")
    _stream(run, tasks.same, range)


def bytes_64k(run: Run) -> None:
    # Enough on their way to keep everybody busy; without an end, the queues of some would be measured in gigabytes.
    block = bytearray(1 << 16)
    # Each one new: what is twice in a batch is pickled once.
    _stream(run, tasks.same, lambda count: (bytes(block) for _ in range(count)), window=256, least=64)


def arrays_16m(run: Run) -> None:
    import numpy

    arrays: list[Any] = [numpy.full(1 << 21, i, dtype=numpy.float64) for i in range(8)]
    _stream(run, tasks.same, lambda n: itertools.islice(itertools.cycle(arrays), n), window=8, least=8, most=512)


def bulk(run: Run) -> None:
    system = run.open(tasks.same, _ignore, _P2T4)
    run.record(rate=_map_again_and_again(run, system, range(200_000)))
    run.record(pairs=_map_again_and_again(run, system, [(number, str(number)) for number in range(50_000)]))
    system.join()


def _map_again_and_again(run: Run, system: System, items: Sequence[Any]) -> float:
    """Items per second."""
    expected = list(items)
    times: list[float] = []
    end = time.perf_counter() + run.seconds
    while len(times) < 2 or (time.perf_counter() < end and len(times) < 50):
        start = time.perf_counter()
        results = system.map(items)
        times.append(time.perf_counter() - start)
        if results != expected:
            raise LostTasks(sum(a != b for a, b in itertools.zip_longest(results, expected)), len(expected))
    # The first one waited for the workers.
    return len(items) / median(times[1:])


def _ignore(_: Any) -> None:
    pass


# One task at a time


def latency(run: Run) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    system = run.open(tasks.same, answers.put, _P2T4)

    def put_and_get(argument: Any) -> Any:
        system.put(argument)
        return answers.get()

    ask = system.call or put_and_get
    for number in range(50):
        ask(number)
    times: list[float] = []
    end = time.perf_counter() + run.seconds
    while (start := time.perf_counter()) < end or len(times) < 50:
        ask(0)
        times.append(time.perf_counter() - start)
    run.record(p50=percentile(times, 50) * 1e6, p99=percentile(times, 99) * 1e6)
    system.join()


# Threads that wait


def io(run: Run) -> None:
    nap = 0.005
    tally = Tally(run.patience)
    system = run.open(tasks.nap, tally.done, _IO)
    for _ in range(2):
        tally.batch(system, [nap] * system.slots * 10, system.slots * 10)
    each = max(20, round(run.seconds / nap))
    elapsed = tally.batch(system, [nap] * system.slots * each, system.slots * each)
    run.record(share=100 * each * nap / elapsed)
    memory = pss(tree(os.getpid()))
    if memory is not None:
        run.record(pss=memory / 2**20)
    system.join()


def idle(run: Run) -> None:
    tally = Tally(run.patience)
    system = run.open(tasks.nap, tally.done, _IO)
    tally.batch(system, [0.005] * system.slots * 10, system.slots * 10)
    time.sleep(1.0)  # what still had to be done is done
    pids, looking = tree(os.getpid()), threading.get_native_id()
    before = cpu_seconds(pids, but_for=looking)
    time.sleep(3.0)
    after = cpu_seconds(pids, but_for=looking)
    if before is None or after is None:
        raise Unavailable("no /proc/PID/task/TID/schedstat here")
    run.record(cpu=1e3 * (after - before))
    system.join()


def mixed(run: Run) -> None:
    """1 % of 1 s, the rest 1 ms, always in the same mixed order."""
    naps = [1.0] * 8 + [0.001] * 792
    random.Random(1).shuffle(naps)
    tally = Tally(run.patience)
    system = run.open(tasks.nap, tally.done, _P2T4)
    tally.batch(system, [0.001] * 200, 200)
    elapsed = tally.batch(system, naps, len(naps))
    best = list_schedule(naps, system.slots)
    run.record(share=100 * best / elapsed, makespan=elapsed)
    system.join()


def list_schedule(durations: Iterable[float], slots: int) -> float:
    """How long it takes when each slot that is free takes the next task at once."""
    free = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


# Processors


def cpu(run: Run) -> None:
    tally = Tally(run.patience)
    system = run.open(tasks.burn, tally.done, _P2T4)
    tally.batch(system, [run.loops] * 64, 64)
    count = max(100, round(run.seconds * 1000))  # 2 ms each, in two processes
    run.record(rate=count / tally.batch(system, [run.loops] * count, count))
    system.join()


# Beginnings and ends

_FIRST = """
import time
from benchmarks.tasks import same
def tell():
    print("told", time.monotonic(), flush=True)
"""


def first(run: Run) -> None:
    """From the start of the interpreter; the monotonic clock is the same for all processes."""

    def once() -> float:
        start = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-c", _FIRST + run.system.first], stdout=subprocess.PIPE, text=True
        ) as program:
            assert program.stdout
            told = [line.split()[1] for line in program.stdout if line.startswith("told ")]
        if not told:
            raise _unless_missing(run)
        return float(told[0]) - start

    run.record(first=1e3 * _repeat(run, once))


def _unless_missing(run: Run) -> Exception:
    """Why a program did not get to its result."""
    try:
        exec(run.system.imports, {})
    except ImportError as error:
        return Unavailable(error.msg.partition(" (")[0])  # a path follows
    return RuntimeError("no result")


def importing(run: Run) -> None:
    """The module alone, and what a program takes from it."""
    statements = {"bare": f"import {run.system.module}", "names": run.system.imports}

    def once(statement: str) -> float:
        program = f"import time; start = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise _unless_missing(run)
        return float(done.stdout.split()[-1])

    for key, statement in statements.items():
        once(statement)  # compiled, and in the page cache
        run.record(**{key: 1e3 * _repeat(run, partial(once, statement))})


def join(run: Run) -> None:
    """From the last outcome to the end of join, of several pools."""

    def once() -> float:
        tally = Tally(run.patience)
        system = run.open(tasks.same, tally.done, _P2T4)
        tally.batch(system, range(1000), 1000)
        start = time.perf_counter()
        system.join()
        return time.perf_counter() - start

    run.record(join=1e3 * _repeat(run, once))


# Workers that end


class _Killing:
    """Kills the worker of a result, and sees when somebody new has taken its place.

    That is the first result of a process that was not seen before: with two processes, both serve again.
    """

    TIMES = 5
    PAUSE = 0.3  # seconds at full strength between two kills

    def __init__(self, run: Run) -> None:
        # Who takes tasks from an iterator takes them only as it needs them.
        self.tally = Tally(run.patience, window=64 if run.system.has_put else None)
        self.patience = run.patience
        self.seen: set[int] = set()
        self.times: list[float] = []
        self.told = 0  # outcomes that are exceptions
        self.killed_at: float | None = None
        self.next = math.inf
        self.random = random.Random(1)
        self.sent = 0
        self.came = 0

    def done(self, outcome: Any) -> None:
        now = time.monotonic()
        self.came += 1
        if isinstance(outcome, int):
            if outcome not in self.seen:
                self.seen.add(outcome)
                if self.killed_at is not None:
                    self.times.append(now - self.killed_at)
                    self.killed_at = None
                if len(self.seen) >= 2:
                    self.next = now + self.PAUSE
            elif now >= self.next:
                self.next = math.inf
                # At any instant of its next tasks: not always at this one, at which it is busy with its result.
                threading.Timer(self.random.uniform(0, 0.004), self.kill, [outcome]).start()
        else:
            self.told += 1
        self.tally.done(None)

    def kill(self, pid: int) -> None:
        self.killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)

    def arguments(self) -> Iterator[float]:
        end = time.monotonic() + 2 * self.patience
        while len(self.times) < self.TIMES and time.monotonic() < end:
            if self.killed_at is not None and time.monotonic() - self.killed_at > self.patience:
                return  # nobody came
            yield 0.001

    def counted(self, arguments: Iterable[float]) -> Iterator[float]:
        for argument in arguments:
            self.sent += 1
            yield argument


def strength(run: Run) -> None:
    if run.system.kind == "threads":
        raise Unavailable("it has no processes")
    killing = _Killing(run)
    system = run.open(tasks.nap, killing.done, _P2T4)
    # How many there will be is not known. What is left at the end is awaited below.
    killing.tally.expect(-1)
    try:
        system.feed(killing.counted(killing.tally.admit(killing.arguments())))
    except LostTasks:
        pass  # it is said below how many
    finally:
        if killing.times:
            run.record(full=median(killing.times) * 1e3)
        run.record(kills=len(killing.times), told=killing.told)
    end = time.monotonic() + run.patience
    while killing.came < killing.sent and time.monotonic() < end:
        time.sleep(0.01)
    if killing.came < killing.sent:
        raise LostTasks(killing.sent - killing.came, killing.sent)
    if not killing.times:
        raise Unavailable("nobody took the place of the killed worker")
    system.join()


def rotation(run: Run) -> None:
    """The same tasks without and with, by turns."""
    if not run.system.can_rotate:
        raise Unavailable("it does not replace workers")
    rates: dict[int | None, list[float]] = {None: [], 100: []}
    for _ in range(2):
        for rotate in rates:
            tally = Tally(run.patience)
            system = run.open(tasks.nap, tally.done, Shape(rotate=rotate))
            tally.batch(system, [0.001] * 64, 64)
            each = max(300, round(run.seconds * 500))
            count = system.slots * each
            rates[rotate].append(count / tally.batch(system, [0.001] * count, count))
            system.join()
    run.record(share=100 * sum(rates[100]) / sum(rates[None]), rate=sum(rates[100]) / 2)


# A long queue


def million(run: Run) -> None:
    """How fast ``put`` is behind 1,000 and behind a million waiting tasks, and what each one weighs."""
    total, part = 1_000_000, 50_000
    tally = Tally(run.patience)
    system = run.open(tasks.nap, tally.done, Shape(queue=2 * total))
    put, argument = system.put, 3600.0  # nobody gets through with it: what is put stays in the queue

    def put_many(count: int) -> float:
        start = time.perf_counter()
        for _ in itertools.repeat(None, count):
            put(argument)
        return count / (time.perf_counter() - start)

    put_many(1000)
    time.sleep(0.5)  # the workers have taken what they take
    before = rss()
    few = put_many(part)
    put_many(total - 2 * part - 1000)
    many = put_many(part)
    after = rss()
    run.record(share=100 * many / few, rate=many)
    if before is not None and after is not None:
        # The argument is one object for all of them; pickled, it is there once for each.
        payload = sys.getsizeof(pickle.dumps(((argument,), {}), 5))
        run.record(weight=(after - before) / (total - 1000) - payload)
    # The tasks last for an hour: who measures us kills all of it.
