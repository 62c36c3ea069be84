"""Uses that a type checker must refuse: the comment behind each names the error. See test_typing.py."""

from __future__ import annotations

from mpms import MPMS, Executor, Future, Meta
from mpms.testing import FakeClock


def work(a: int) -> int:
    return a


def two(a: int, *, b: str) -> bytes:
    return b.encode() * a


def collect_one(result: int) -> None: ...


def collect(meta: Meta, result: int) -> None: ...


def collect_words(meta: Meta, result: str) -> None: ...


MPMS(work, processes="4")  # E: arg-type
MPMS(work, threads=None)  # E: arg-type
MPMS(1)  # E: arg-type
MPMS(work, collect_one)  # E: arg-type
MPMS(work, task_timeout="soon")  # E: arg-type
MPMS(work, start_method="thread")  # E: arg-type
MPMS(work, process_count=4)  # E: call-arg
MPMS(work, worker_graceful_die_exceptions=ValueError)  # E: arg-type
MPMS(work, preload=collect_one)  # E: arg-type
MPMS(work, engine=1)  # E: arg-type

pool = MPMS(work, collect)
pool.put_all([1])  # E: attr-defined
pool.close("now")  # E: arg-type
pool.graceful_shutdown(timeout=None)  # E: arg-type
pool.stats().queue  # E: attr-defined
pool.stats().done = 1  # E: misc
number: int = pool.workers()[0].pid  # E: assignment
for pair in pool.iter_results():
    pair.args  # E: attr-defined
for _, result in pool.iter_results():
    result + 1  # E: operator

# What the worker takes and gives

pool.put("one")  # E: arg-type
pool.put(1, 2)  # E: call-arg
pool.put()  # E: call-arg
pool.put(b=1)  # E: call-arg
MPMS(work, collect_words)  # E: arg-type
pool.put_many(1)  # E: arg-type
pool.map(1, [1])  # E: call-overload
pool.map(work, ["one"])  # E: arg-type
pool.map(None, [1], chunksize="big")  # E: call-overload
word: str = next(pool.map(None, [1]))  # E: assignment
pool.run(work, "one")  # E: arg-type
both: int = next(pool.map(None, [1], raise_errors=False))  # E: assignment
FakeClock(5.0)  # E: call-arg

Executor("4")  # E: arg-type
Executor(4, 2)  # E: call-arg
Executor(processes=4)  # E: call-arg
Executor(mp_context="spawn")  # E: arg-type
Executor(initializer=work, initargs=1)  # E: arg-type

executor = Executor()
executor.submit(work)  # E: call-arg
executor.submit(work, "1")  # E: arg-type
executor.submit(work, 1, 2)  # E: call-arg
executor.submit(two, 1, "x")  # E: call-arg
executor.submit(two, 1, b=b"x")  # E: arg-type
executor.submit(two, 1, b="x", c=3)  # E: call-arg
executor.submit(fn=work, a=1)  # E: call-arg
executor.submit(3)  # E: arg-type
text: str = executor.submit(work, 1).result()  # E: assignment
future: Future[str] = executor.submit(work, 1)  # E: arg-type
executor.submit(work, 1).add_done_callback(lambda done: done.result().upper())  # E: attr-defined

texts: list[str] = list(executor.map(work, [1]))  # E: arg-type
executor.map(work, 1)  # E: arg-type
executor.map(3, [1])  # E: arg-type
executor.map(work, [1], chunksize="many")  # E: arg-type
executor.map(work, [1], buffersize=1.5)  # E: arg-type
executor.shutdown(True, True)  # E: call-arg
