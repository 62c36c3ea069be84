"""Whole programs as users of mpms 2.6 wrote them: they run as they are, and print what they printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

QUICK_START = """
from mpms import MPMS

def worker(i, j=None):
    return i * j

def collector(meta, result):
    print(meta.args[0], meta.kwargs["j"], result)

def main():
    m = MPMS(
        worker,
        collector,  # optional
        processes=2,
        threads=10,
    )
    m.start()
    for i in range(100):
        m.put(i, j=i + 1)
    m.join()

if __name__ == '__main__':
    main()
"""

ITERATE_AFTER_CLOSE = """
from mpms import MPMS

def worker(i):
    if i == 7:
        raise ValueError("seven")
    return i * 2

m = MPMS(worker, processes=2, threads=4)
m.start()
for i in range(10):
    m.put(i)
m.close()
for meta, result in m.iter_results():
    if isinstance(result, Exception):
        print(meta.args[0], "failed:", result)
    else:
        print(meta.args[0], result)
m.join(close=False)
"""

ITERATE_WITH_TIMEOUT = ITERATE_AFTER_CLOSE.replace("iter_results()", "iter_results(timeout=1.0)")

ITERATE_BEFORE_CLOSE = """
import threading
from mpms import MPMS

def worker(i):
    return i * 2

m = MPMS(worker, processes=1, threads=2)
m.start()

def read():
    for meta, result in m.iter_results():
        print(meta.args[0], result)

reader = threading.Thread(target=read)
reader.start()
for i in range(10):
    m.put(i)
m.close()
reader.join()
m.join(close=False)
"""

LIFECYCLES = """
import os
import threading
from mpms import MPMS

def worker(i):
    return os.getpid(), threading.get_ident()

ran = {}

def collector(meta, result):
    ran[result] = ran.get(result, 0) + 1

for options in (
    {"lifecycle": 5},
    {"lifecycle_duration": 60},
    {"lifecycle": 5, "lifecycle_duration": 60},
    {"lifecycle": 5, "lifecycle_duration_hard": 60, "subproc_check_interval": 0.1},
):
    ran.clear()
    m = MPMS(worker, collector, processes=2, threads=2, **options)
    m.start()
    for i in range(100):
        m.put(i)
    m.join()
    print(sum(ran.values()), max(ran.values()) <= 5 or "lifecycle" not in options, m.finish_count, m.total_count)
"""

STATE_IN_META = """
from mpms import MPMS

def worker(i):
    return i

def collector(meta, result):
    meta["file"].append(result)
    meta["count"] += 1
    if meta["count"] == 3:
        print("three are done of", meta.mpms.name, meta.self is meta.mpms)

lines = []
m = MPMS(worker, collector, 1, 2, meta={"file": lines, "count": 0}, name="crawler")
for i in range(5):  # starts by itself
    m.put(i)
m.join()
print(sorted(lines), m.meta["count"])
"""

CRAWLER = """
# The collector finds more to do, and the queue is closed when there is nothing left.
import threading
from mpms import MPMS

pages = {"/": ["/a", "/b"], "/a": ["/b", "/c"], "/b": ["/"], "/c": ["/d"], "/d": []}
seen = {"/"}
done = threading.Event()

def worker(page):
    return pages[page]

def collector(meta, result):
    for link in result:
        if link not in seen:
            seen.add(link)
            meta.self.put(link)
    if len(meta.self.running_tasks) == 0:
        done.set()

m = MPMS(worker, collector, processes=2, threads=2)
m.start()
m.put("/")
done.wait()
m.join()
print(sorted(seen), m.total_count)
"""

INITIALIZERS = """
import threading
from mpms import MPMS

process_wide = {}
here = threading.local()

def init_process(dsn):
    process_wide["connection"] = "to " + dsn

def init_thread(name):
    here.session = process_wide["connection"] + " by " + name

def end_thread():
    del here.session

def end_process(word):
    process_wide.clear()

def worker(i):
    return here.session

m = MPMS(
    worker, None, 2, 2,
    process_initializer=init_process, process_initargs=("db",),
    thread_initializer=init_thread, thread_initargs=("me",),
    thread_finalizer=end_thread,
    process_finalizer=end_process, process_finargs=("bye",),
)
m.start()
for i in range(20):
    m.put(i)
m.close(wait_for_empty=True)
print({result for _, result in m.iter_results()})
m.join()
"""

GRACEFUL_DIE = """
import os
from mpms import MPMS, WorkerGracefulDie

def worker(i):
    if i % 10 == 3:
        raise WorkerGracefulDie("out of memory")
    if i % 10 == 4:
        raise MemoryError
    return os.getpid()

counts = {}

def collector(meta, result):
    kind = type(result).__name__
    counts[kind] = counts.get(kind, 0) + 1

m = MPMS(
    worker, collector, processes=2, threads=2,
    worker_graceful_die_timeout=3, worker_graceful_die_exceptions=(WorkerGracefulDie, MemoryError),
)
m.start()
for i in range(100):
    m.put(i)
m.join()
print(sorted(counts.items()))
"""

ROTATING_POOLS = """
from mpms import MPMS

class Service:
    def __init__(self):
        self.got = []
        self.pool = None
        self.rotate()

    def work(self, i):
        return i

    def collect(self, meta, result):
        self.got.append(result)

    def rotate(self):
        if self.pool is not None:
            assert self.pool.graceful_shutdown(timeout=30.0)
        self.pool = MPMS(abs, self.collect, processes=1, threads=2)
        self.pool.start()

service = Service()
for i in range(90):
    service.pool.put(-i)
    if i % 30 == 29:
        service.rotate()
service.pool.join()
print(sorted(service.got) == list(range(90)))
"""

BOUND_METHOD = """
import multiprocessing
from mpms import MPMS

class Job:
    def __init__(self, factor):
        self.factor = factor
        self.queue = multiprocessing.get_context("spawn").Queue()

    def work(self, i):
        self.queue.put(i)
        return i * self.factor

if __name__ == "__main__":
    job = Job(3)
    m = MPMS(job.work, processes=1, threads=2)
    m.start()
    for i in range(5):
        m.put(i)
    m.close()
    print(sorted(result for _, result in m.iter_results()))
    print(sorted(job.queue.get() for _ in range(5)))
    m.join(close=False)
"""

WATCHED = """
import threading
import time
from mpms import MPMS

first = threading.Event()

def worker(i):
    if i == 2:
        time.sleep(60)
    return i

def collector(meta, result):
    # One word: what print is given goes out piece by piece, and the main thread prints too.
    print(f"{meta.args[0]} {'timeout' if isinstance(result, TimeoutError) else result}\\n", end="")
    first.set()

m = MPMS(worker, collector, processes=2, threads=1, lifecycle_duration_hard=1, worker_graceful_die_timeout=1)
m.start()
for i in range(4):
    m.put(i)
first.wait()
alive = any(p.is_alive() and p.pid and p.exitcode is None for p in m.worker_processes_pool.values())
print(f"alive {alive}\\n", end="")
m.join()
print("left", len(m), len(m.worker_processes_pool))
"""

RESULTS_THAT_DO_NOT_PICKLE = """
import threading
from mpms import MPMS

def worker(i):
    return threading.Lock() if i else "fine"

def collector(meta, result):
    if isinstance(result, Exception):
        print("mpms_unpickleable_result" in str(result), result.kind)
    else:
        print(result)

m = MPMS(worker, collector, processes=1, threads=1)
m.put(0)
m.put(1)
m.join()
"""

PROGRAMS: dict[str, tuple[str, set[str]]] = {
    "quick start": (QUICK_START, {f"{i} {i + 1} {i * (i + 1)}" for i in range(100)}),
    "iterate after close": (
        ITERATE_AFTER_CLOSE,
        {*(f"{i} {2 * i}" for i in range(10) if i != 7), "7 failed: seven"},
    ),
    "iterate with timeout": (
        ITERATE_WITH_TIMEOUT,
        {*(f"{i} {2 * i}" for i in range(10) if i != 7), "7 failed: seven"},
    ),
    "iterate before close": (ITERATE_BEFORE_CLOSE, {f"{i} {2 * i}" for i in range(10)}),
    "lifecycles": (LIFECYCLES, {"100 True 100 100"}),
    "state in meta": (STATE_IN_META, {"three are done of crawler True", "[0, 1, 2, 3, 4] 5"}),
    "crawler": (CRAWLER, {"['/', '/a', '/b', '/c', '/d'] 5"}),
    "initializers": (INITIALIZERS, {"{'to db by me'}"}),
    "graceful die": (GRACEFUL_DIE, {"[('MemoryError', 10), ('WorkerGracefulDie', 10), ('int', 80)]"}),
    "rotating pools": (ROTATING_POOLS, {"True"}),
    "bound method": (BOUND_METHOD, {"[0, 3, 6, 9, 12]", "[0, 1, 2, 3, 4]"}),
    "watched": (WATCHED, {"0 0", "1 1", "2 timeout", "3 3", "alive True", "left 0 0"}),
    "results that do not pickle": (RESULTS_THAT_DO_NOT_PICKLE, {"fine", "True mpms_unpickleable_result"}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_2_6_prints_what_it_did(name: str, tmp_path: Path) -> None:
    program, lines = PROGRAMS[name]
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == lines
    if name != "watched":  # which has a crash to tell of
        assert done.stderr == ""
