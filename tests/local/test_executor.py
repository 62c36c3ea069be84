"""``Executor``: what is submitted, its futures, and its options."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpms import Executor, Future, PoolBroken, RemoteTraceback, TaskCancelled, TaskTimeout, WorkerCrashed
from mpms.local.link import _FUNCTIONS_MOST

from .helpers import PATIENCE, Stopwatch, die, meet, meeting, note, noted, stop, until
from .stage import Stage


@pytest.fixture
def executor(method: Any) -> Iterator[Executor]:
    with Executor(2, threads=2, start_method=method) as one:
        yield one


@pytest.fixture
def single(method: Any) -> Iterator[Executor]:
    """One process, one thread."""
    with Executor(1, start_method=method) as one:
        yield one


def add(a: int, b: int = 0) -> int:
    return a + b


def fail(*args: Any) -> None:
    raise LookupError(*args)


# Functions


class Loaded:
    """Counts how often it is pickled, and notes each time it is unpickled."""

    pickled = 0

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        Loaded.pickled += 1
        return _loaded, (self.path,)


def _loaded(path: str) -> Loaded:
    note(path, os.getpid())
    return Loaded(path)


def test_a_function_is_pickled_once_and_loaded_once_by_each_worker(executor: Executor, tmp_path: Path) -> None:
    loaded, before = Loaded(str(tmp_path / "log")), Loaded.pickled

    def function(address: str | None) -> int:
        if address is not None:
            meet(address)
        return os.getpid() if loaded else 0

    with meeting() as place:
        held = [executor.submit(function, place.address) for _ in range(4)]  # so that both workers have some
        for guest in place.arrivals(4):
            guest.release()
        pids = {future.result(PATIENCE) for future in [*held, *(executor.submit(function, None) for _ in range(200))]}
    assert len(pids) == 2
    assert sorted(noted(loaded.path)) == sorted(map(str, pids))
    assert Loaded.pickled == before + 1


def test_a_function_of_map_is_pickled_once_too(executor: Executor, tmp_path: Path) -> None:
    loaded, before = Loaded(str(tmp_path / "log")), Loaded.pickled
    function = lambda _: os.getpid() if loaded else 0  # noqa: E731
    pids = {*executor.map(function, range(100), chunksize=3), *executor.map(function, range(100), chunksize=3)}
    assert Counter(noted(loaded.path)) == Counter(map(str, pids))
    assert Loaded.pickled == before + 1


def test_what_a_function_refers_to_is_as_it_was_at_its_first_use(single: Executor) -> None:
    number = 1

    def function() -> int:
        return number

    assert single.submit(function).result(PATIENCE) == 1
    number = 2
    assert single.submit(function).result(PATIENCE) == 1
    assert single.submit(lambda: number).result(PATIENCE) == 2


class Counting:
    def __init__(self, number: int) -> None:
        self.number = number

    def get(self) -> int:
        return self.number

    def __call__(self, plus: int = 0) -> int:
        return self.number + plus


def test_a_bound_method_and_a_callable_object_are_as_they_are_at_each_call(single: Executor) -> None:
    counting = Counting(1)
    for number in (1, 2, 1):
        counting.number = number
        assert single.submit(counting.get).result(PATIENCE) == number
        assert single.submit(counting, plus=5).result(PATIENCE) == number + 5
        assert single.submit(functools.partial(add, number), 5).result(PATIENCE) == number + 5
        assert list(single.map(counting, [1, 2])) == [number + 1, number + 2]


def test_any_callable_may_be_submitted(executor: Executor) -> None:
    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

        @classmethod
        def made(cls, value: int) -> int:
            return cls(value).value

        @staticmethod
        def same(value: int) -> int:
            return value

    submitted = [
        executor.submit(len, "four"),
        executor.submit(int, "4"),
        executor.submit("-".join, "4"),
        executor.submit(lambda *, number: number, number="4"),
        executor.submit(Local.made, 4),
        executor.submit(Local.same, 4),
        executor.submit(functools.lru_cache(add), 1, 3),
        executor.submit(functools.partial(functools.partial(add, 1), b=3)),
        executor.submit(dict[str, int], fn=4, self=5),
    ]
    assert [future.result(PATIENCE) for future in submitted] == [4, 4, "4", "4", 4, 4, 4, 4, {"fn": 4, "self": 5}]
    assert executor.submit(Local, 4).result(PATIENCE).value == 4


class NoteItsEnd:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return _NotingItsEnd, (self.path,)


class _NotingItsEnd(NoteItsEnd):
    def __del__(self) -> None:
        note(self.path, "gone")


def test_workers_keep_the_functions_that_were_used_last(single: Executor, tmp_path: Path) -> None:
    ending = NoteItsEnd(str(tmp_path / "log"))
    first = lambda: bool(ending)  # noqa: E731
    assert single.submit(first).result(PATIENCE)
    others = [lambda number=number: number for number in range(_FUNCTIONS_MOST)]
    futures = [single.submit(other) for other in others]
    assert [future.result(PATIENCE) for future in futures] == [*range(_FUNCTIONS_MOST)]
    assert single.submit(others[0]).result(PATIENCE) == 0
    assert noted(ending.path) == ["gone"]
    assert single.submit(first).result(PATIENCE)  # it is sent again


class Stubborn:
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        raise self.error("I stay here")

    def __call__(self) -> None: ...


@pytest.mark.parametrize("error", [ArithmeticError, RuntimeError, TypeError])
def test_what_cannot_be_pickled_is_the_exception_of_the_future(executor: Executor, error: type[Exception]) -> None:
    stubborn, words = Stubborn(error), "I stay here"
    futures: list[Future[Any]] = [
        executor.submit(add, stubborn),  # type: ignore[arg-type]
        executor.submit(stubborn),
        executor.submit(lambda: stubborn),
    ]
    for future in futures:
        assert future.done()
        with pytest.raises(error, match=words):
            future.result()
    with pytest.raises(error, match=words):
        list(executor.map(lambda _: stubborn, [1]))
    good, bad, *_ = (executor.submit(add, 1), executor.submit(add, stubborn), executor.submit(add, 2))  # type: ignore[arg-type]
    assert good.result(PATIENCE) == 1
    assert isinstance(bad.exception(), error)


class LostOnTheWay:
    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return (die if self.how in ("exit", "SIGSEGV") else fail), (self.how,)

    def __call__(self) -> None: ...


@pytest.mark.parametrize("what", ["argument", "function"])
@pytest.mark.parametrize("how", ["raises", "exit"])
def test_what_cannot_be_unpickled_there_costs_its_task_only(single: Executor, what: str, how: str) -> None:
    lost = LostOnTheWay(how)
    function = (lambda: lost) if what == "function" else (lambda _=None: None)
    calls = [single.submit(function, *([] if what == "function" else [lost])) for _ in range(2)]
    others = [single.submit(add, number) for number in range(5)]
    for call in calls:
        with pytest.raises(WorkerCrashed if how == "exit" else LookupError):
            call.result(PATIENCE)
    assert [other.result(PATIENCE) for other in others] == [*range(5)]


@pytest.mark.parametrize("wrong", [None, 3, "print"])
def test_what_is_not_callable_is_refused(executor: Executor, wrong: Any) -> None:
    with pytest.raises(TypeError, match="fn must be callable"):
        executor.submit(wrong, 1)
    with pytest.raises(TypeError, match="fn must be callable"):
        executor.map(wrong, [1])


# Futures


def test_a_future_has_the_result_or_the_exception_with_its_remote_traceback(executor: Executor) -> None:
    future = executor.submit(add, 1, b=2)
    assert isinstance(future, concurrent.futures.Future)
    assert (future.result(PATIENCE), future.exception(), future.done(), future.cancelled()) == (3, None, True, False)
    failing = executor.submit(fail, "nothing at", 7)
    error = failing.exception(PATIENCE)
    assert repr(error) == "LookupError('nothing at', 7)"
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "raise LookupError(*args)" in str(error.__cause__)


def test_a_value_that_is_an_exception_stays_a_value(executor: Executor) -> None:
    assert repr(executor.submit(ValueError, "fine").result(PATIENCE)) == "ValueError('fine')"


def test_a_future_is_running_while_a_thread_runs_its_task(single: Executor, stage: Stage) -> None:
    running, waiting = single.submit(stage.say_and_wait), single.submit(add, 1)
    stage.hear()
    assert (running.running(), running.done()) == (True, False)
    assert (waiting.running(), waiting.done()) == (False, False)
    stage.open()
    assert waiting.result(PATIENCE) == 1
    assert (running.running(), running.done()) == (False, True)


def test_what_waits_here_can_be_cancelled_and_never_runs(
    single: Executor, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.faces.futures._CANCEL_SECONDS", PATIENCE)  # a busy worker may take longer to answer
    running = single.submit(stage.say_and_wait, "held")
    stage.hear()
    waiting = [single.submit(stage.note, number) for number in range(10)]
    assert [future.cancel() for future in waiting[::2]] == [True] * 5
    assert [future.cancelled() for future in waiting] == [True, False] * 5
    with pytest.raises(concurrent.futures.CancelledError):
        waiting[0].result()
    assert waiting[0].cancel()  # again
    assert not running.cancel()
    stage.open()
    assert running.result(PATIENCE) == "held"
    assert not running.cancel()
    single.shutdown()
    assert stage.words() == ["1", "3", "5", "7", "9"]


def test_what_was_sent_and_has_not_started_can_be_cancelled_and_never_runs(
    single: Executor, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.faces.futures._CANCEL_SECONDS", PATIENCE)  # a busy worker may take longer to answer
    warm = [single.submit(add, number) for number in range(3000)]  # so quick that many are sent at once
    held = single.submit(stage.say_and_wait)
    behind = [single.submit(stage.note, number) for number in range(100)]
    stage.hear()
    assert [future.result(PATIENCE) for future in warm] == [*range(3000)]
    assert [future.cancel() for future in behind] == [True] * 100
    assert not held.cancel()
    stage.open()
    single.shutdown()
    assert stage.words() == []


def test_a_task_of_a_stopped_worker_is_cancelled_when_it_is_given_back(single: Executor, stage: Stage) -> None:
    [single.submit(add, number) for number in range(3000)]
    held = single.submit(stage.say_and_wait)
    behind = [single.submit(add, number) for number in range(100)]
    stage.hear()
    # It may have worked before word of its birth is read.
    [pid] = until(lambda: [worker.pid for worker in single.workers() if worker.pid is not None])
    stop(pid)
    try:
        with Stopwatch() as watch:
            asked = behind[0].cancel()
        assert watch.seconds < 5
    finally:
        os.kill(pid, signal.SIGCONT)
    if not asked:  # it was sent
        until(behind[0].cancelled)
    assert behind[0].cancelled()
    stage.open()
    assert held.result(PATIENCE)
    assert [future.result(PATIENCE) for future in behind[1:]] == [*range(1, 100)]


def test_a_cancelled_future_calls_back_and_wakes_who_waits(single: Executor, stage: Stage) -> None:
    single.submit(stage.say_and_wait)
    stage.hear()
    waiting, called = single.submit(add, 1), threading.Event()
    waiting.add_done_callback(lambda future: called.set())
    assert waiting.cancel()
    done, _ = concurrent.futures.wait([waiting], PATIENCE)
    assert done == {waiting}
    assert called.wait(PATIENCE)
    stage.open()


def test_wait_and_as_completed_take_futures_of_several_executors(executor: Executor, stage: Stage) -> None:
    with (
        concurrent.futures.ThreadPoolExecutor(1) as threads,
        Executor(1, start_method=executor._config.start_method) as other,
    ):
        held = other.submit(stage.say_and_wait, "held")
        quick = [executor.submit(add, 1), threads.submit(add, 2), other.submit(add, 3)]
        stage.hear()
        done, not_done = concurrent.futures.wait([held, *quick[:2]], PATIENCE, concurrent.futures.FIRST_COMPLETED)
        assert held in not_done
        assert done <= {*quick[:2]}
        order = concurrent.futures.as_completed([held, *quick], PATIENCE)
        assert {next(order), next(order)} == {*quick[:2]}
        stage.open()
        assert {*order} == {held, quick[2]}


def test_an_event_loop_runs_functions_in_it_and_cancels_them(single: Executor, stage: Stage) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(*(loop.run_in_executor(single, add, number, 1) for number in range(10)))
        with pytest.raises(LookupError):
            await loop.run_in_executor(single, fail)
        held = loop.run_in_executor(single, stage.say_and_wait, "held")
        waiting = loop.run_in_executor(single, stage.note, "ran")
        await loop.run_in_executor(None, stage.hear)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)  # only then it is handed on
        stage.open()
        await loop.shutdown_default_executor()
        return [*results, await held]

    assert asyncio.run(main()) == [*range(1, 11), "held"]
    single.shutdown()
    assert stage.words() == []


# Callbacks


def test_a_callback_that_raises_keeps_nobody_from_the_rest(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()
    future = executor.submit(add, 1)
    future.add_done_callback(fail)
    future.add_done_callback(lambda _: called.set())
    assert called.wait(PATIENCE)
    assert executor.submit(add, 2).result(PATIENCE) == 2
    assert "exception calling callback" in caplog.text


def test_a_callback_may_submit_and_cancel_and_shut_down(single: Executor, stage: Stage) -> None:
    seen: list[Any] = []

    def call_back(future: concurrent.futures.Future[Any]) -> None:
        single.submit(add, 6).add_done_callback(lambda last: seen.append(last.result()))
        seen.append(behind.cancel())
        single.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            single.submit(add, 7)
        seen.append(future.result())

    first = single.submit(stage.say_and_wait, "held")
    first.add_done_callback(call_back)
    behind = single.submit(stage.note, "ran")
    stage.hear()
    stage.open()
    first.result(PATIENCE)
    until(lambda: len(seen) > 1)
    single.shutdown()
    assert seen == [behind.cancelled(), "held", 6]
    assert stage.words() == ([] if behind.cancelled() else ["ran"])


def test_a_callback_that_would_wait_for_its_own_executor_is_told_so(
    executor: Executor, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    mapped = executor.map(add, range(1000))
    future = executor.submit(stage.say_and_wait)
    errors: list[BaseException | None] = []

    def call_back(_: object) -> None:
        try:
            executor.shutdown()
        except RuntimeError as error:
            errors.append(error)

    stage.hear()
    future.add_done_callback(call_back)
    stage.open()
    executor.shutdown()
    assert len(errors) == 1
    assert [*mapped] == [*range(1000)]


# What goes wrong


@pytest.mark.parametrize("how", ["SIGSEGV", "exit"])
def test_a_crash_costs_the_tasks_that_ran_and_no_others(executor: Executor, how: str) -> None:
    guilty = executor.submit(die, how)
    others = [executor.submit(add, number) for number in range(200)]
    error = guilty.exception(PATIENCE)
    assert isinstance(error, WorkerCrashed)
    assert error.blamed
    errors = [error for future in others if (error := future.exception(PATIENCE)) is not None]
    assert len(errors) <= 1  # the other thread of its worker may have run one
    assert all(isinstance(error, WorkerCrashed) and not error.blamed for error in errors)


def test_retries_run_again_what_crashed(method: Any, tmp_path: Path) -> None:
    with Executor(1, start_method=method, retries=2) as executor:
        future = executor.submit(crash_at_first, str(tmp_path / "log"), 2)
        assert future.result(PATIENCE) == "third"


def crash_at_first(path: str, times: int) -> str:
    note(path, "try")
    if len(noted(path)) <= times:
        die("SIGKILL")
    return "third"


def test_a_task_that_runs_too_long_has_a_timeout_error(
    method: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.core.policy.DUMP_SECONDS", 2.0)  # its answer may take longer on a busy machine
    # The module is imported before: that may take longer on a busy machine.
    with Executor(1, start_method=method, task_timeout=1, preload=get_state) as executor:
        error = executor.submit(stage.wait).exception(PATIENCE)
        assert isinstance(error, TaskTimeout)
        assert "in wait" in error.stack
        assert executor.submit(add, 1).result(PATIENCE) == 1


def start_badly(path: str) -> None:
    note(path, "tried")
    raise LookupError("no such database")


def test_a_failing_initializer_breaks_the_executor_with_its_cause(method: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with Executor(1, start_method=method, initializer=start_badly, initargs=(path,), max_start_failures=2) as executor:
        future, mapped = executor.submit(add, 1), executor.map(add, range(100))
        error = future.exception(PATIENCE)
        assert isinstance(error, PoolBroken)
        assert isinstance(error, concurrent.futures.BrokenExecutor)
        assert repr(error.__cause__) == "LookupError('no such database')"
        for broken in (lambda: executor.submit(add, 1), lambda: next(mapped), lambda: next(executor.map(add, [1]))):
            with pytest.raises(concurrent.futures.BrokenExecutor, match="no such database"):
                broken()
    assert noted(path) == ["tried"] * 2
    with pytest.raises(concurrent.futures.BrokenExecutor):
        executor.submit(add, 1)


def test_an_initializer_that_cannot_be_sent_is_refused_with_the_first_task() -> None:
    lock = threading.Lock()
    with Executor(1, start_method="spawn", initializer=lambda: lock) as executor:
        for _ in range(2):
            with pytest.raises(TypeError, match="cannot pickle"):
                executor.submit(add, 1)


# Options


_state: list[Any] = ["fresh"]


def set_state(*words: str) -> None:
    _state[:] = words


def get_state() -> tuple[int, list[Any]]:
    return os.getpid(), _state


def test_the_initializer_runs_in_each_worker_with_its_arguments(method: Any, stage: Stage) -> None:
    with Executor(2, start_method=method, initializer=set_state, initargs=["a", "b"]) as executor:
        held = [executor.submit(lambda: (stage.say_and_wait(), get_state())) for _ in range(2)]
        stage.hear(2)
        stage.open()
        states = dict(future.result(PATIENCE)[1] for future in held)
    assert [*states.values()] == [["a", "b"]] * 2


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("how", ["submit", "map"])
def test_no_worker_runs_more_tasks_than_it_may(method: Any, limit: int, how: str) -> None:
    with Executor(2, start_method=method, max_tasks_per_child=limit) as executor:
        if how == "submit":
            pids = [future.result(PATIENCE) for future in [executor.submit(os.getpid) for _ in range(20)]]
        else:
            pids = list(executor.map(lambda _: os.getpid(), range(20), chunksize=7))
    assert len(pids) == 20
    assert max(Counter(pids).values()) <= limit


def test_no_worker_with_threads_runs_more_tasks_than_it_may(method: Any) -> None:
    with Executor(1, threads=4, start_method=method, max_tasks_per_child=8) as executor:
        pids = [future.result(PATIENCE) for future in [executor.submit(os.getpid) for _ in range(40)]]
    assert max(Counter(pids).values()) <= 8


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_a_context_of_multiprocessing_names_the_start_method(way: str) -> None:
    _state[:] = ["of the parent"]
    try:
        with Executor(1, mp_context=multiprocessing.get_context(way)) as executor:
            assert executor.submit(get_state).result(PATIENCE)[1] == [(way == "fork" and "of the parent") or "fresh"]
    finally:
        _state[:] = ["fresh"]


def test_the_default_is_a_worker_for_each_processor_with_one_thread() -> None:
    executor = Executor()
    assert f"{len(os.sched_getaffinity(0))} x 1, not started" in repr(executor)
    executor.shutdown()
    assert "shut down" in repr(executor)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 1.5}, TypeError, "max_workers must be an integer"),
        ({"max_workers": True}, TypeError, "max_workers must be an integer"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"threads": "2"}, TypeError, "threads must be an int"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"initializer": print, "initargs": 3}, TypeError, "initargs must be a sequence"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1"),
        ({"max_tasks_per_child": "3"}, TypeError, "max_tasks_per_child must be an integer"),
        ({"max_tasks_per_child": 3, "lifecycle": 3}, ValueError, "max_tasks_per_child and lifecycle"),
        ({"mp_context": "spawn"}, TypeError, "mp_context must be a context"),
        (
            {"mp_context": multiprocessing.get_context("fork"), "start_method": "spawn"},
            ValueError,
            "mp_context asks for 'fork', start_method for 'spawn'",
        ),
        ({"start_method": "thread"}, ValueError, "start_method must be one of"),
        ({"task_timeout": -1}, ValueError, "task_timeout"),
        ({"retries": "2"}, TypeError, "retries"),
        ({"name": ""}, TypeError, "name"),
        ({"max_memory_per_process": "much"}, ValueError, "max_memory_per_process"),
        ({"thread_initializer": 1}, TypeError, "thread_initializer"),
        ({"process_finalizer": print, "process_finargs": 1}, TypeError, "process_finargs"),
        ({"forward_logs": 1}, TypeError, "forward_logs"),
        ({"engine": "dask"}, ValueError, "engine must be .dask:..HOST:PORT. when it is a text"),
        ({"engine": 3}, TypeError, "engine must be a callable"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Executor(**options)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="process_count"):
        Executor(process_count=3)  # type: ignore[call-arg]


def test_figures_show_what_runs(single: Executor, stage: Stage) -> None:
    future = single.submit(stage.say_and_wait)
    stage.hear()
    assert single.stats().running == 1
    # It may have worked before word of its birth is read.
    [worker] = until(lambda: [worker for worker in single.workers() if worker.pid is not None])
    assert [running.task for running in worker.running] == [future._task]
    [stacks] = single.stacks()
    assert "in say_and_wait" in str(stacks)
    assert single.story()
    assert single.name in repr(single)
    stage.open()


def test_a_cancelled_task_is_told_from_one_that_ran(single: Executor, stage: Stage) -> None:
    assert issubclass(TaskCancelled, concurrent.futures.CancelledError)
    running = single.submit(stage.say_and_wait)
    stage.hear()
    single.kill_workers()
    error = running.exception(PATIENCE)
    assert isinstance(error, TaskCancelled)
    assert error.started
