"""Uses of the public names that type-check under ``mypy --strict``. Not run, only checked: see test_typing.py."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from typing_extensions import assert_type

from mpms import (
    MPMS,
    Executor,
    Future,
    Meta,
    PoolBroken,
    RunningTask,
    Stats,
    TaskTimeout,
    WorkerCrashed,
    WorkerGracefulDie,
    WorkerInfo,
)
from mpms.engine import Delivered, Engine, Sink
from mpms.testing import FakeClock, InlineEngine


def work(a: int, b: int = 0) -> int:
    return a + b


def collect(meta: Meta, result: int | BaseException) -> None:
    args: tuple[Any, ...] = meta.args
    kwargs: Mapping[str, Any] = meta.kwargs
    meta["seen"] = (args, kwargs, meta.taskid)
    pool: Any = meta.mpms
    pool.put(1)


def open_it(path: str) -> None: ...


def everything() -> None:
    pool = MPMS(
        work,
        collect,
        processes=2,
        threads=4,
        task_queue_maxsize=100,
        meta={"started": 1.5},
        lifecycle=100,
        lifecycle_duration=60.0,
        lifecycle_duration_hard=120,
        process_initializer=open_it,
        process_initargs=("path",),
        thread_initializer=open_it,
        thread_initargs=["path"],
        process_finalizer=print,
        thread_finalizer=print,
        name="typed",
        worker_graceful_die_timeout=1,
        worker_graceful_die_exceptions=(WorkerGracefulDie, MemoryError),
        task_timeout=2.5,
        retries=1,
        retry_backoff=0.5,
        start_method="spawn",
        preload=lambda: None,
        max_memory_per_process="1.5GB",
        max_start_failures=3,
        start_timeout=10,
        forward_logs=True,
    )
    pool.start()
    pool.put(1, b=2)
    pool.close(wait_for_empty=True)
    pool.join()
    done: bool = pool.graceful_shutdown(timeout=1.0)
    count: int = len(pool) + pool.total_count + pool.finish_count
    stats: Stats = pool.stats()
    oldest: float | None = stats.oldest
    workers: list[WorkerInfo] = pool.workers()
    running: Sequence[RunningTask] = workers[0].running
    pids: list[int | None] = [handle.pid for handle in pool.worker_processes_pool.values()]
    story: list[str] = pool.story()
    for args, kwargs in pool.unfinished():
        pool.put(*args, **kwargs)
    print(done, count, oldest, running, pids, story)


def iterate() -> None:
    with MPMS(work, processes=1) as pool:
        pool.put(1)
        pool.close()
        for meta, result in pool.iter_results():
            if isinstance(result, WorkerCrashed):
                code: int | None = result.exitcode
                blamed: bool | None = result.blamed
                print(meta.args, code, blamed, result.stack)
            elif isinstance(result, TaskTimeout):
                timeout: float | None = result.timeout
                print(timeout)
            elif isinstance(result, PoolBroken):
                raise result


def iterate_over_values() -> None:
    with MPMS(work, processes=1) as pool:
        for meta, result in pool.iter_results():
            assert_type(meta, Meta)
            assert_type(result, int | BaseException)
            if not isinstance(result, BaseException):
                assert_type(result, int)
        for _, value in pool.iter_results(raise_errors=True):
            assert_type(value, int)


def collect_values(meta: Meta, result: int) -> None: ...


def see_error(meta: Meta, error: BaseException) -> None: ...


class Scaler:
    def __call__(self, number: float) -> float:
        return number


def measure(word: str | bytes) -> int:
    return len(word)


def types_are_kept() -> None:
    pool = MPMS(work, processes=2)
    pool.put(1)
    pool.put(1, 2)
    pool.put(a=1, b=2)
    assert_type(pool.map(None, [1, 2]), Iterator[int])
    assert_type(pool.map(None, [(1, 2)], star=True, chunksize=3, buffersize=100), Iterator[int])
    assert_type(pool.map(None, [1], raise_errors=False), Iterator[int | BaseException])
    assert_type(pool.map(measure, ["a"], chunksize="auto"), Iterator[int])
    assert_type(pool.map(chr, range(3)), Iterator[str])
    assert_type(pool.map(work, [(1, 2)], star=True), Iterator[int])
    assert_type(pool.map(chr, [1], raise_errors=False), Iterator[str | BaseException])
    assert_type(pool.map_unordered(None, ["1"]), Iterator[tuple[str, int | BaseException]])
    assert_type(pool.map_unordered(None, ["1"], raise_errors=True), Iterator[tuple[str, int]])
    assert_type(pool.map_unordered(chr, [1]), Iterator[tuple[int, str | BaseException]])
    assert_type(pool.map_unordered(chr, [1], raise_errors=True), Iterator[tuple[int, str]])
    assert_type(pool.map_unordered(work, [(1, 2)], star=True), Iterator[tuple[tuple[int, int], int | BaseException]])
    assert_type(pool.put_many([1, 2, 3]), int)


async def asynchronously() -> None:
    async with MPMS(work, processes=1) as pool:
        assert_type(await pool.run(measure, "a"), int)
        assert_type(await pool.run(work, 1, b=2), int)
        async for meta, result in pool.aiter_results():
            assert_type(meta, Meta)
            assert_type(result, int | BaseException)
        async for _, value in pool.aiter_results(raise_errors=True):
            assert_type(value, int)
    async with Executor(2) as executor:
        assert_type(executor, Executor)
        assert_type(await executor.run(measure, b"a"), int)


def any_callable_is_a_worker() -> None:
    MPMS(measure).put("text")
    MPMS(Scaler()).put(1.5)
    MPMS(Scaler, processes=1).put()
    MPMS(functools.partial(work, b=3)).put(1)
    MPMS(lambda word: word.upper(), lambda meta, result: print(meta.args, result)).put("text")
    MPMS("text".startswith).put("t")
    MPMS(len, processes=1).put([1])
    MPMS(abs, processes=1).put(-1)
    MPMS(print, processes=1).put("a", 1, sep="")
    MPMS(work, collect_values, on_error=see_error).put(1)


def annotations_may_say_less(pool: MPMS, typed: MPMS[[str], int]) -> None:
    pool.put("anything", at=1)
    assert_type(pool.map(None, [1]), Iterator[Any])
    typed.put("text")
    annotations_may_say_less(MPMS(work), MPMS(len))


def crawl(page: str) -> list[str]:
    return [page]


def collect_pages(meta: Meta, links: list[str] | BaseException) -> None:
    if isinstance(links, BaseException):
        return
    crawler: MPMS[[str], list[str]] = meta.mpms
    crawler.put(links[0])


class MySink:
    def deliver(self, outcomes: Iterable[Delivered]) -> None: ...

    def end(self) -> None: ...


def in_tests() -> None:
    pool = MPMS(work, collect, engine=InlineEngine)
    pool.join()
    sink: Sink = MySink()
    clock = FakeClock()
    clock.advance(0.5)
    now: float = clock()
    print(sink, now)


def engine_of_ones_own(engine: Engine) -> MPMS:
    return MPMS(work, engine=lambda function, config, sink, bounded: engine)


def executor_of_everything() -> None:
    with Executor(
        4,
        threads=2,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=open_it,
        initargs=("path",),
        max_tasks_per_child=100,
        start_method="spawn",
        task_timeout=2.5,
        retries=1,
        retry_on=(ValueError,),
        max_memory_per_process="1.5GB",
        name="typed",
    ) as executor:
        stats: Stats = executor.stats()
        workers: list[WorkerInfo] = executor.workers()
        print(stats, workers, executor.name)
        executor.shutdown(wait=False, cancel_futures=True)
    executor.terminate_workers()
    executor.kill_workers()
    Executor(engine=InlineEngine).shutdown()


class Catalogue:
    def look_up(self, key: str, *, strict: bool = True) -> bytes:
        return key.encode() if strict else b""


T = TypeVar("T")


def same(value: T) -> T:
    return value


def submit_keeps_parameters_and_result(executor: Executor) -> None:
    future: Future[int] = executor.submit(work, 1, b=2)
    as_in_the_standard_library: concurrent.futures.Future[int] = executor.submit(work, 1)
    result: int = future.result(timeout=1.0) + as_in_the_standard_library.result()
    found: Future[bytes] = executor.submit(Catalogue().look_up, "key", strict=False)
    from_a_lambda: str = executor.submit(lambda: "text").result()
    from_a_class: Catalogue = executor.submit(Catalogue).result()
    from_a_builtin: int = executor.submit(len, "four").result()
    generic: list[int] = executor.submit(same, [1, 2]).result()
    cancelled: bool = future.cancel() or found.cancelled() or found.running()
    future.add_done_callback(lambda done: print(done.result() + 1))
    done, not_done = concurrent.futures.wait([future], return_when=concurrent.futures.FIRST_COMPLETED)
    for each in concurrent.futures.as_completed([future]):
        number: int = each.result()
        print(number)
    print(result, from_a_lambda, from_a_class, from_a_builtin, generic, cancelled, done, not_done)


def map_keeps_the_result(executor: Executor) -> None:
    sums: Iterator[int] = executor.map(work, [1, 2], [3, 4])
    keys: Iterable[bytes] = executor.map(Catalogue().look_up, "abc", chunksize=10, timeout=1.5)
    texts: list[str] = list(executor.map(str, itertools.count(), buffersize=100, chunksize="auto"))
    print(list(sums), list(keys), texts)


def stands_in(executor: concurrent.futures.Executor) -> int:
    return executor.submit(work, 1).result() + sum(executor.map(work, [1]))


async def in_an_event_loop(executor: Executor) -> int:
    loop = asyncio.get_running_loop()
    wrapped: asyncio.Future[int] = asyncio.wrap_future(executor.submit(work, 1))
    return stands_in(executor) + await wrapped + await loop.run_in_executor(executor, work, 1)
