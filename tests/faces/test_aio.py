"""``run``, ``aiter_results`` and ``async with`` of ``MPMS`` and ``Executor``, under asyncio and trio."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import trio

from mpms import MPMS, Executor, PoolBroken, TaskCancelled, WorkerCrashed
from mpms.faces.sinks import IteratorSink
from mpms.testing import InlineEngine

from ..local.helpers import PATIENCE, until
from ..local.stage import Stage

Work = Callable[[], Awaitable[Any]]


class Asyncio:
    cancelled: type[BaseException] = asyncio.CancelledError

    @staticmethod
    def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(asyncio.wait_for(main(), PATIENCE))

    @staticmethod
    async def together(*works: Work) -> list[Any]:
        return list(await asyncio.gather(*(work() for work in works)))

    @staticmethod
    async def cancelled_when(there: Callable[[], object], work: Work) -> None:
        """Have it begin, and cancel it when ``there`` returns, which may block."""
        task = asyncio.ensure_future(work())
        await asyncio.to_thread(there)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    pause = staticmethod(lambda: asyncio.sleep(0))
    in_thread = staticmethod(asyncio.to_thread)


class Trio:
    cancelled: type[BaseException] = trio.Cancelled

    @staticmethod
    def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        async def bounded() -> Any:
            with trio.fail_after(PATIENCE):
                return await main()

        return trio.run(bounded)

    @staticmethod
    async def together(*works: Work) -> list[Any]:
        results: list[Any] = [None] * len(works)

        async def one(at: int, work: Work) -> None:
            results[at] = await work()

        async with trio.open_nursery() as nursery:
            for at, work in enumerate(works):
                nursery.start_soon(one, at, work)
        return results

    @staticmethod
    async def cancelled_when(there: Callable[[], object], work: Work) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await Trio.in_thread(there)
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught

    pause = staticmethod(trio.lowlevel.checkpoint)

    @staticmethod
    async def in_thread(function: Callable[[], object]) -> None:
        """Not one of trio's own, which stay for some seconds."""
        done, token, errors = trio.Event(), trio.lowlevel.current_trio_token(), list[BaseException]()

        def perform() -> None:
            try:
                function()
            except BaseException as error:
                errors.append(error)
            token.run_sync_soon(done.set)

        thread = threading.Thread(target=perform)
        thread.start()
        await done.wait()
        thread.join()
        for error in errors:
            raise error


@pytest.fixture(params=[Asyncio, Trio])
def aio(request: pytest.FixtureRequest) -> Any:
    return request.param


def double(number: int) -> int:
    return number * 2


def invert(number: int) -> float:
    return 1 / number


def hold(stage: Stage, word: object) -> object:
    stage.note(word)
    return stage.say_and_wait(word)


def fail() -> None:
    raise OSError("no disk")


def inline(worker: Callable[..., Any] = double, **options: Any) -> MPMS:
    return MPMS(worker, engine=InlineEngine, **options)


# run


def test_run_awaits_what_the_function_returns(aio: Any, method: str) -> None:
    async def main() -> list[Any]:
        async with MPMS(double, processes=2, threads=2, start_method=method) as pool:  # type: ignore[arg-type]
            return await aio.together(*(lambda n=n: pool.run(pow, n, 2) for n in range(100)))

    assert aio.run(main) == [n * n for n in range(100)]


def test_run_of_an_executor_is_the_same(aio: Any, method: str) -> None:
    async def main() -> list[Any]:
        async with Executor(2, threads=2, start_method=method) as executor:  # type: ignore[arg-type]
            assert await executor.run(dict, a=1) == {"a": 1}
            return await aio.together(*(lambda n=n: executor.run(lambda: n + 1) for n in range(20)))

    assert aio.run(main) == list(range(1, 21))


def test_run_raises_what_the_function_raises(aio: Any) -> None:
    async def main() -> None:
        async with inline() as pool:
            with pytest.raises(ZeroDivisionError) as raised:
                await pool.run(invert, 0)
            assert "in invert" in str(raised.value.__cause__)
            with pytest.raises(TypeError, match="pickle"):
                await pool.run(invert, threading.Lock())  # type: ignore[arg-type]

    aio.run(main)


def test_run_raises_the_crash_of_its_worker_and_the_next_one_works(aio: Any, method: str) -> None:
    async def main() -> None:
        async with MPMS(double, processes=1, threads=1, start_method=method) as pool:  # type: ignore[arg-type]
            with pytest.raises(WorkerCrashed) as raised:
                await pool.run(os._exit, 3)
            assert raised.value.exitcode == 3
            assert await pool.run(double, 1) == 2

    aio.run(main)


def test_run_after_close_raises_and_so_does_one_of_a_broken_pool(aio: Any) -> None:
    async def main() -> None:
        pool = inline()
        assert await pool.run(double, 1) == 2
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            await pool.run(double, 1)
        pool.join()

        broken = inline(process_initializer=fail)
        for _ in range(2):
            with pytest.raises(PoolBroken, match="no disk"):
                await broken.run(double, 1)
        with pytest.raises(PoolBroken, match="no disk"):
            async with broken:
                pass
        assert broken.graceful_shutdown()

    aio.run(main)


def test_results_of_run_go_to_nobody_else(aio: Any) -> None:
    async def main() -> None:
        async with inline() as pool:
            assert await pool.run(double, 1) == 2
            assert (pool.total_count, pool.finish_count, len(pool)) == (0, 0, 0)
            pool.put(2)
            pool.close()
            assert [result async for _, result in pool.aiter_results()] == [4]

    aio.run(main)


# Cancelling


def test_cancelling_who_awaits_cancels_the_task_unless_it_has_started(aio: Any, method: str, stage: Stage) -> None:
    async def main() -> None:
        async with MPMS(double, processes=1, threads=1, start_method=method) as pool:  # type: ignore[arg-type]

            def the_first_runs_and_others_wait() -> None:
                stage.hear()
                until(lambda: pool.stats().submitted == 4)

            async def several() -> None:
                await aio.together(*(lambda n=n: pool.run(hold, stage, n) for n in range(4)))

            await aio.cancelled_when(the_first_runs_and_others_wait, several)
            stage.open()
            assert await pool.run(double, 21) == 42
            assert pool.stats().failed == 3

    aio.run(main)
    assert len(stage.words()) == 1, "what had started goes on, and no other starts"


def test_a_result_for_a_loop_that_has_ended_is_dropped_without_a_word(
    aio: Any, method: str, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    pool = MPMS(double, processes=1, threads=1, start_method=method)  # type: ignore[arg-type]

    async def main() -> None:
        await aio.cancelled_when(stage.hear, lambda: pool.run(hold, stage, "here"))

    aio.run(main)
    stage.open()
    pool.join()
    assert pool.stats().done == 1
    assert caplog.records == []


def test_a_loop_that_was_closed_on_the_way_is_no_error(
    method: str, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    pool = MPMS(double, processes=1, threads=1, start_method=method)  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    coroutine = pool.run(hold, stage, "here")
    task = loop.create_task(coroutine)

    async def until_it_runs() -> None:
        await asyncio.to_thread(stage.hear)

    loop.run_until_complete(until_it_runs())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    stage.open()
    pool.join()
    assert pool.stats().done == 1
    assert [record for record in caplog.records if record.name == "mpms"] == []
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is: that is what this is about
    coroutine.close()


# The loop


class SlowToStart(InlineEngine):
    """Starts when it is told to."""

    go = threading.Event()

    def start(self) -> None:
        assert self.go.wait(PATIENCE)
        super().start()


def test_starting_does_not_block_the_loop_and_is_done_once(aio: Any) -> None:
    async def main() -> None:
        pool = MPMS(double, engine=SlowToStart)

        async def go_on() -> None:
            for _ in range(10):
                await aio.pause()
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("mpms-async-start") == 1
            SlowToStart.go.set()

        results = await aio.together(*(lambda n=n: pool.run(double, n) for n in range(5)), go_on)
        assert results == [0, 2, 4, 6, 8, None]
        pool.join()

    SlowToStart.go.clear()
    aio.run(main)


def test_leaving_waits_for_all_tasks_and_does_not_block_the_loop(aio: Any, method: str, stage: Stage) -> None:
    left = list[str]()

    async def main() -> None:
        async def in_the_pool() -> None:
            async with MPMS(
                lambda: hold(stage, "here"),
                processes=1,
                threads=1,
                start_method=method,  # type: ignore[arg-type]
            ) as pool:
                pool.put()
                await aio.in_thread(stage.hear)
            left.append("done")

        async def open_the_gate() -> None:
            await aio.in_thread(lambda: until(lambda: "mpms-async-join" in [t.name for t in threading.enumerate()]))
            assert not left
            stage.open()

        await aio.together(in_the_pool, open_the_gate)

    aio.run(main)
    assert left == ["done"]


def test_awaiting_many_takes_no_threads(method: str, stage: Stage) -> None:
    async def main() -> None:
        async with MPMS(double, processes=1, threads=1, start_method=method) as pool:  # type: ignore[arg-type]
            assert await pool.run(double, 1) == 2
            before = threading.active_count()
            tasks = [asyncio.ensure_future(pool.run(hold, stage, n)) for n in range(200)]
            while pool.stats().submitted < 201:
                await asyncio.sleep(0)
            assert threading.active_count() == before
            stage.open()
            assert await asyncio.gather(*tasks) == list(range(200))

    asyncio.run(main())


def test_a_burst_of_results_wakes_the_loop_once() -> None:
    async def main() -> None:
        loop, wake_ups = asyncio.get_running_loop(), itertools.count()
        post = loop.call_soon_threadsafe
        async with inline() as pool:
            tasks = [asyncio.ensure_future(pool.run(double, n)) for n in range(500)]
            loop.call_soon_threadsafe = lambda *args: (next(wake_ups), post(*args))[1]  # type: ignore[method-assign,assignment]
            await asyncio.sleep(0)  # all of them submit
            until(lambda: pool.stats().done == 500)  # and the loop is busy until all have come
            assert await asyncio.gather(*tasks) == [2 * n for n in range(500)]
            del loop.call_soon_threadsafe  # type: ignore[method-assign]
        assert next(wake_ups) <= 2  # the first one came while the last was submitted

    asyncio.run(main())


def test_results_that_are_there_do_not_keep_others_from_their_turn(aio: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        turns, ended = itertools.count(), list[bool]()

        async def iterate() -> None:
            begun = next(turns)
            async for _ in pool.aiter_results():
                stop.wait(0.0001)
            assert next(turns) > begun + 5
            ended.append(True)

        async def take_turns() -> None:
            while not ended:
                next(turns)
                await aio.pause()

        stop = threading.Event()
        pool = inline()
        pool.put_many(range(1000))
        pool.join()
        await aio.together(iterate, take_turns)

    caplog.set_level(logging.ERROR, logger="mpms")
    aio.run(main)


# aiter_results


def test_aiter_results_yields_each_result_with_its_task_until_the_pool_is_closed(aio: Any, method: str) -> None:
    async def main() -> dict[Any, Any]:
        async with MPMS(invert, processes=2, threads=2, start_method=method) as pool:  # type: ignore[arg-type]
            results = dict[Any, Any]()

            async def take() -> None:
                async for meta, result in pool.aiter_results():
                    results[meta.args] = result
                    if len(results) == 3:
                        pool.close()

            async def give() -> None:
                for number in range(3):
                    pool.put(number)
                    await aio.pause()

            await aio.together(take, give)
            return results

    results = aio.run(main)
    assert isinstance(results.pop((0,)), ZeroDivisionError)
    assert results == {(1,): 1.0, (2,): 0.5}


def test_aiter_results_raises_errors_where_it_is_asked_to_and_goes_on(aio: Any) -> None:
    async def main() -> None:
        async with inline(invert) as pool:
            pool.put_many([1, 0, 2])
            pool.close()
            results = pool.aiter_results(raise_errors=True)
            assert (await results.__anext__())[1] == 1.0
            with pytest.raises(ZeroDivisionError):
                await results.__anext__()
            assert (await results.__anext__())[1] == 0.5
            with pytest.raises(StopAsyncIteration):
                await results.__anext__()

    aio.run(main)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_that_is_raised_does_not_hold_the_arguments_of_its_task(
    aio: Any, asynchronous: bool, uncollected: None
) -> None:
    class Argument:
        def __reduce__(self) -> tuple[Any, ...]:
            return str, ("a",)

    async def main() -> None:
        results = pool.aiter_results(raise_errors=True)
        with pytest.raises(TypeError):
            await anext(results)

    pool, argument = inline(invert), Argument()
    left = weakref.ref(argument)
    pool.put(argument)  # type: ignore[arg-type]
    del argument
    pool.join()
    if asynchronous:
        aio.run(main)
    else:
        with pytest.raises(TypeError):
            next(pool.iter_results(raise_errors=True))
    assert left() is None


def test_who_waits_no_longer_leaves_nothing_in_an_idle_pool(aio: Any) -> None:
    async def main() -> None:
        async with inline() as pool:
            sink = pool._sink
            assert isinstance(sink, IteratorSink)
            for _ in range(3):
                waits = pool.aiter_results().__anext__
                await aio.cancelled_when(lambda: until(lambda: sink._wakers), waits)
                assert sink._wakers == []

    aio.run(main)


def test_a_start_without_a_thread_raises_and_the_next_one_works(aio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread:
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async def main() -> None:
        pool = inline()
        with monkeypatch.context() as patch:
            patch.setattr("mpms.faces.aio._thread", lambda what, function: NoThread())
            with pytest.raises(RuntimeError, match="new thread"):
                await pool.run(double, 1)
        assert await pool.run(double, 1) == 2
        pool.join()

    aio.run(main)


def test_several_tasks_may_iterate_and_each_result_goes_to_one_of_them(aio: Any, method: str) -> None:
    async def main() -> list[list[int]]:
        async with MPMS(double, processes=1, threads=2, start_method=method) as pool:  # type: ignore[arg-type]

            async def take() -> list[Any]:
                return [result async for _, result in pool.aiter_results()]

            async def give() -> list[Any]:
                pool.put_many(range(30))
                pool.close()
                return []

            return await aio.together(take, take, take, give)

    assert sorted(itertools.chain(*aio.run(main))) == [2 * n for n in range(30)]


def test_aiter_results_needs_a_pool_that_is_started_and_has_no_collector(aio: Any) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="start the pool before aiter_results"):
            inline().aiter_results()
        async with MPMS(double, print, engine=InlineEngine) as pool:
            with pytest.raises(RuntimeError, match="aiter_results needs collector=None"):
                pool.aiter_results()

    aio.run(main)


# async with


@pytest.mark.parametrize("kind", [MPMS, Executor])
def test_an_exception_in_the_block_stops_at_once(aio: Any, kind: Any, method: str, stage: Stage) -> None:
    if kind is MPMS:
        pool = MPMS(double, processes=1, threads=1, start_method=method)  # type: ignore[arg-type]
    else:
        pool = Executor(1, start_method=method)  # type: ignore[arg-type]

    async def main() -> None:
        errors = list[BaseException]()

        async def hang() -> None:
            try:
                await pool.run(hold, stage, "here")
            except TaskCancelled as error:
                errors.append(error)

        async def leave() -> None:
            with pytest.raises(LookupError, match="enough"):  # noqa: PT012  (it is raised within)
                async with pool:
                    await aio.in_thread(stage.hear)
                    raise LookupError("enough")

        await aio.together(hang, leave)
        assert [type(error) for error in errors] == [TaskCancelled]

    aio.run(main)
    assert pool._engine.wait_stopped(PATIENCE)  # it had half a second only
    assert pool.workers() == []


def test_being_cancelled_while_leaving_stops_at_once(aio: Any, method: str, stage: Stage) -> None:
    pool = MPMS(lambda: hold(stage, "here"), processes=1, threads=1, start_method=method)  # type: ignore[arg-type]

    def it_leaves() -> None:
        stage.hear()
        until(lambda: pool.task_queue_closed)

    async def in_the_pool() -> None:
        async with pool:
            pool.put()

    aio.run(lambda: aio.cancelled_when(it_leaves, in_the_pool))
    assert pool._engine.wait_stopped(PATIENCE)
    assert pool.workers() == []
    assert pool.unfinished() == [((), {})]


def test_being_cancelled_while_the_pool_starts_leaves_nothing_running(aio: Any) -> None:
    pool = MPMS(double, engine=SlowToStart)

    def there_is(name: str) -> bool:
        return name in [thread.name for thread in threading.enumerate()]

    def start_when_it_is_to_stop() -> None:
        until(lambda: there_is("mpms-async-stop"))
        SlowToStart.go.set()

    def it_starts() -> None:
        until(lambda: there_is("mpms-async-start"))
        helper.start()

    async def in_the_pool() -> None:
        async with pool:
            raise AssertionError("not reached")

    SlowToStart.go.clear()
    helper = threading.Thread(target=start_when_it_is_to_stop)
    aio.run(lambda: aio.cancelled_when(it_starts, in_the_pool))
    helper.join()
    assert pool.task_queue_closed
    assert pool._engine.wait_stopped(PATIENCE)


def test_a_coroutine_that_is_thrown_away_stops_its_pool(method: str) -> None:
    pool = MPMS(double, processes=1, threads=1, start_method=method)  # type: ignore[arg-type]
    pool.start()

    class Forever:
        def __await__(self) -> Any:
            yield

    async def in_the_pool() -> None:
        pool._begin()
        async with pool:
            await Forever()

    async def main() -> None:
        coroutine = in_the_pool()
        coroutine.send(None)
        coroutine.close()

    asyncio.run(main())
    assert pool._engine.wait_stopped(PATIENCE)
    assert pool.workers() == []


def test_an_executor_runs_what_a_loop_gives_it(method: str) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        with Executor(1, threads=2, start_method=method) as executor:  # type: ignore[arg-type]
            return await asyncio.gather(*(loop.run_in_executor(executor, double, n) for n in range(10)))

    assert asyncio.run(main()) == [2 * n for n in range(10)]
