"""A pool that has nothing to do does nothing."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack

import psutil
import pytest

from mpms import MPMS

from .conftest import METHODS
from .helpers import at_full_strength, fork_server, until

pytestmark = pytest.mark.alone

SECONDS = 3.0
TICK = 1 / os.sysconf("SC_CLK_TCK")


def identity(word: int) -> int:
    return word


def used(process: psutil.Process) -> float:
    """Seconds of CPU time so far, without the thread that asks: its wait and its look are not the pool's, and a
    virtual machine that wakes it up late may count 12 ms for a wait."""
    if process.pid == os.getpid():
        return time.process_time() - time.thread_time()
    times = process.cpu_times()
    return times.user + times.system


def test_an_idle_pool_uses_no_cpu() -> None:
    """Of 2 x 50, with every option that has a deadline; one of each start method at the same time."""
    with ExitStack() as pools:
        processes = {"this one": psutil.Process()}
        for method in METHODS:
            pool = pools.enter_context(
                MPMS(
                    identity,
                    processes=2,
                    threads=50,
                    start_method=method,
                    task_timeout=0.5,
                    lifecycle_duration=600,
                    lifecycle_duration_hard=900,
                    max_memory_per_process="1GB",
                )
            )
            workers = [psutil.Process(pid) for pid in at_full_strength(pool)]
            assert [worker.num_threads() for worker in workers] == [51, 51]
            for word in range(200):
                pool.put(word)
            until(lambda pool=pool: pool.finish_count == 200)
            until(lambda pool=pool: pool.stats().running == 0)
            processes[f"{method}: fork server"] = psutil.Process(fork_server(pool))
            processes |= {f"{method}: worker {number}": worker for number, worker in enumerate(workers)}
        threading.Event().wait(1.5)  # the last looks at memory and running times, which are due once, are over
        before = {name: used(process) for name, process in processes.items()}
        threading.Event().wait(SECONDS)  # this is no waiting for something: it is the measurement
        burnt = {name: used(process) - before[name] for name, process in processes.items()}
        assert sum(burnt.values()) < 2.5 * TICK, burnt  # two; they are added up in floats


def test_an_idle_pool_does_not_switch_contexts(method: str) -> None:
    """Finer than CPU time: who never wakes up gives up the processor never."""
    with MPMS(identity, processes=2, threads=50, start_method=method) as pool:
        workers = [psutil.Process(pid) for pid in at_full_strength(pool)]
        processes = [psutil.Process(fork_server(pool)), *workers]
        for word in range(100):
            pool.put(word)
        until(lambda: pool.finish_count == 100)
        for word in range(100, 200):  # after such ones its threads look out for the next, before they sleep
            pool.put(word)
            while pool.finish_count <= word:
                time.sleep(0)
        threading.Event().wait(0.2)
        before = [process.num_ctx_switches().voluntary for process in processes]
        threading.Event().wait(1.0)
        assert [process.num_ctx_switches().voluntary for process in processes] == before
