"""Delivery: what comes back, to whom, and that a slow or failing reader loses nothing."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from typing import Any

import pytest

from mpms import MPMS, Meta, RemoteTraceback, TaskTimeout, WorkerCrashed
from mpms.core import policy
from mpms.local.engine import LocalEngine

from .helpers import at_full_strength, promised, until
from .stage import Stage

# Values stay values, exceptions are exceptions


def echo(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        StopIteration,
        ValueError("a value"),
        KeyboardInterrupt,
        SystemExit(3),
        StopIteration(1),
        NotImplemented,
        ...,
        b"",
        {"deep": [({1, 2},)]},
    ],
    ids=repr,
)
def test_a_value_stays_a_value(value: Any, method: str) -> None:
    with MPMS(echo, processes=1, threads=1, start_method=method) as pool:
        pool.put(value)
        pool.put("next")
        pool.close()
        (first, second) = [result for _, result in pool.iter_results()]
    assert type(first) is type(value)
    assert repr(first) == repr(value)
    assert second == "next"
    assert (pool.stats().done, pool.stats().failed) == (2, 0)
    assert not isinstance(first, BaseException) or first.__cause__ is None


@pytest.mark.parametrize(
    "kind", [ValueError, SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, BaseException]
)
def test_whatever_a_task_raises_is_its_outcome_and_the_worker_goes_on(
    kind: type[BaseException], any_method: str
) -> None:
    def task(what: str) -> int:
        if what == "raise":
            raise kind("words", 5)
        return os.getpid()

    with MPMS(task, processes=1, threads=1, start_method=any_method) as pool:
        for what in ("go", "raise", "go"):
            pool.put(what)
        pool.close()
        (before, error, after) = [result for _, result in pool.iter_results()]
    assert type(error) is kind
    assert error.args == ("words", 5)
    assert before == after
    assert (pool.stats().done, pool.stats().failed) == (2, 1)


def test_the_remote_traceback_is_the_cause(method: str) -> None:
    def inner() -> None:
        {}["no such key"]

    def task() -> None:
        try:
            inner()
        except KeyError as error:
            raise ValueError("outer") from error

    with MPMS(task, processes=1, threads=1, start_method=method) as pool:
        pool.put()
        ((_, error),) = [next(pool.iter_results())]
    assert isinstance(error.__cause__, RemoteTraceback)
    text = str(error.__cause__)
    for words in ("in inner", "in task", "KeyError: 'no such key'", "direct cause", "ValueError: outer"):
        assert words in text


def test_a_result_of_200_megabytes_arrives(method: str) -> None:
    with MPMS(lambda size: b"x" * size, processes=1, threads=1, start_method=method) as pool:
        pool.put(200_000_000)
        result = next(pool.iter_results())[1]
        assert len(result) == 200_000_000
        assert result.count(b"x") == 200_000_000


def test_an_argument_of_200_megabytes_arrives(method: str) -> None:
    with MPMS(len, processes=1, threads=1, start_method=method) as pool:
        pool.put(bytes(200_000_000))
        assert next(pool.iter_results())[1] == 200_000_000


def test_many_large_results_come_through_at_once(method: str) -> None:
    with MPMS(lambda n: bytes([n]) * 3_000_000, processes=2, threads=4, start_method=method) as pool:
        for number in range(30):
            pool.put(number)
        pool.close()
        got = {meta.args[0]: result for meta, result in pool.iter_results()}
    assert all(result == bytes([number]) * 3_000_000 for number, result in got.items())
    assert len(got) == 30


def test_thousands_of_tasks_each_arrive_once(any_method: str) -> None:
    got: Counter[int] = Counter()
    with MPMS(abs, lambda meta, result: got.update([result]), processes=2, threads=4, start_method=any_method) as pool:
        for number in range(20_000):
            pool.put(-number)
    assert len(got) == 20_000
    assert set(got.values()) == {1}
    assert pool.finish_count == pool.total_count == 20_000


# The collector


def test_a_collector_that_raises_is_logged_and_the_run_goes_on(method: str, caplog: pytest.LogCaptureFixture) -> None:
    got: list[int] = []

    def collector(meta: Meta, result: int) -> None:
        if result % 3 == 0:
            raise {0: ValueError, 3: SystemExit, 6: KeyboardInterrupt}[result % 9]("no")
        got.append(result)

    with MPMS(abs, collector, 1, 2, start_method=method) as pool:
        for number in range(30):
            pool.put(number)
    assert sorted(got) == [number for number in range(30) if number % 3]
    assert pool.finish_count == 30
    failed = [record for record in caplog.records if "an error occurs in collector" in record.getMessage()]
    assert len(failed) == 10
    assert all(record.exc_info for record in failed)


def test_a_collector_may_put(any_method: str) -> None:
    """A walk through a tree: every result puts two more tasks, more than may wait."""
    got: list[int] = []

    def collector(meta: Meta, result: int) -> None:
        got.append(result)
        if result < 500:
            meta.mpms.put(2 * result)
            meta.mpms.put(2 * result + 1)
        if len(got) == 999:
            meta.mpms.close()

    pool = MPMS(echo, collector, 1, 1, start_method=any_method)
    pool.put(1)
    pool.join(close=False)
    assert sorted(got) == list(range(1, 1000))


def test_a_collector_may_put_more_than_may_wait_at_once(method: str) -> None:
    """And more than results may wait for it, while it does."""
    got: list[int] = []

    def collector(meta: Meta, result: int) -> None:
        got.append(result)
        if result == 1:
            for number in range(2, 10_000):
                meta.mpms.put(number)
            meta.mpms.close()

    pool = MPMS(echo, collector, 2, 2, start_method=method)
    pool.put(1)
    pool.join(close=False)
    assert sorted(got) == list(range(1, 10_000))


def test_who_waits_for_room_is_not_woken_for_each_task_of_no_time(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Counter[str]()
    real = LocalEngine._has_room

    def has_room(engine: LocalEngine) -> bool:
        looks[threading.current_thread().name] += 1
        return real(engine)

    monkeypatch.setattr(LocalEngine, "_has_room", has_room)
    with MPMS(time.sleep, processes=2, threads=4, start_method=method) as pool:
        for _ in range(1500):
            pool.put(0.001)
    assert 0 < looks[threading.current_thread().name] < 500  # 100 to 200; woken for each, 1,000


def test_a_slow_collector_makes_put_wait_and_memory_is_bounded(method: str) -> None:
    go_on = threading.Event()
    pool = MPMS(abs, lambda meta, result: go_on.wait(), 2, 2, start_method=method)
    putting = threading.Thread(target=lambda: [pool.put(number) for number in range(20_000)], daemon=True)
    putting.start()
    until(lambda: pool.stats().done == pool.total_count >= 1000)  # its workers may come up late
    assert _is_at_rest(lambda: pool.total_count)
    assert putting.is_alive()
    accepted = pool.total_count
    # A thousand results that wait for the collector, what waits for a thread, and what is on its way: as much as two
    # workers hold in advance, here and there.
    assert 1000 <= accepted <= 1000 + pool.task_queue_maxsize + 2 * 2 * policy.MAX_PREFETCH < 20_000
    go_on.set()
    putting.join(60)
    pool.join()
    assert pool.finish_count == 20_000


def test_close_waits_for_an_empty_queue_and_for_no_slow_collector(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpms.local.settling._UNDELIVERED_LEAST", 1)
    go_on = threading.Event()
    pool = MPMS(time.sleep, lambda meta, result: go_on.wait(), 1, 1, start_method=method)
    tasks = pool.task_queue_maxsize + 20  # too many results wait for the collector before the last tasks have begun
    for _ in range(tasks):
        pool.put(0.003)
    closing = threading.Thread(target=pool.close, kwargs={"wait_for_empty": True}, daemon=True)
    closing.start()
    closing.join(10)
    empty = not closing.is_alive()
    go_on.set()
    pool.join()
    assert empty
    assert pool.finish_count == tasks


def test_large_results_that_wait_for_a_slow_collector_make_put_wait_sooner(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.local.settling._UNDELIVERED_BYTES", 10 << 20)
    go_on = threading.Event()
    pool = MPMS(bytes, lambda meta, result: go_on.wait(), 1, 2, start_method=method)
    putting = threading.Thread(target=lambda: [pool.put(1 << 20) for _ in range(500)], daemon=True)
    putting.start()
    until(lambda: pool.stats().done == pool.total_count >= 11)
    assert _is_at_rest(lambda: pool.total_count)
    assert putting.is_alive()
    # Ten that wait and one that the collector has; what waits for a thread, and what is on its way.
    assert 11 <= pool.total_count <= 11 + pool.task_queue_maxsize + 100 < 500
    go_on.set()
    putting.join(60)
    pool.join()
    assert pool.finish_count == 500


def test_at_the_end_of_a_pass_that_brings_too_much_callers_have_to_ask() -> None:
    """And not only in the next one, which they would not wait for."""
    engine: Any = MPMS(abs, print)._engine  # type: ignore[attr-defined]
    engine._limit = 10
    engine.passed()
    assert engine._limit == 10
    engine._settling.done = 1 << 20
    engine.passed()
    assert engine._limit == 0


def test_without_a_collector_put_does_not_wait_for_the_reader(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Programs put all, and then iterate. The log tells of it."""
    with MPMS(abs, processes=1, threads=1, start_method=method) as pool:
        for number in range(12_000):
            pool.put(number)
    assert sum(1 for _ in pool.iter_results()) == 12_000
    assert "results wait for iter_results" in caplog.text


def test_a_slow_collector_does_not_stop_supervision(method: str) -> None:
    """While it sleeps, a worker is killed and replaced, and a task times out."""
    first, go_on = threading.Event(), threading.Event()
    got: list[Any] = []

    def collector(meta: Meta, result: Any) -> None:
        first.set()
        go_on.wait()
        got.append(result)

    def task(what: str) -> int:
        if what == "hang":
            time.sleep(60)
        return os.getpid()

    with MPMS(task, collector, 1, 2, task_timeout=0.3, worker_graceful_die_timeout=0.1, start_method=method) as pool:
        pool.put("go")
        first.wait()
        [old] = at_full_strength(pool)  # it may have worked before word of its birth is read
        os.kill(old, signal.SIGKILL)
        pool.put("go")
        pool.put("hang")
        assert _comes(lambda: pool.stats().failed == 1 and pool.stats().done == 2)
        go_on.set()
    assert got[0] == old != got[1]
    assert isinstance(got[2], TaskTimeout)


# put


def test_many_threads_may_put(method: str) -> None:
    got: Counter[int] = Counter()
    with MPMS(echo, lambda meta, result: got.update([result]), processes=2, threads=2, start_method=method) as pool:
        threads = [
            threading.Thread(target=lambda first=first: [pool.put(first + n) for n in range(500)])
            for first in range(0, 4000, 500)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == Counter(range(4000))


def test_put_from_inside_iteration(method: str) -> None:
    pool = MPMS(echo, processes=1, threads=1, start_method=method)
    pool.put(1)
    got = []
    for _, result in pool.iter_results():
        got.append(result)
        if result < 500:
            pool.put(2 * result)
            pool.put(2 * result + 1)
        if len(got) == 999:
            pool.close()
    pool.join()
    assert sorted(got) == list(range(1, 1000))


# Iteration


def test_several_threads_may_iterate_and_each_result_goes_to_one(method: str) -> None:
    got: Counter[int] = Counter()
    lock = threading.Lock()
    pool = MPMS(echo, processes=2, threads=2, start_method=method)
    pool.start()

    def take() -> None:
        for meta, result in pool.iter_results():
            assert meta.args == (result,)  # nobody else's
            with lock:
                got[result] += 1

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        pool.put(number)
    pool.close()
    for thread in threads:
        thread.join()
    pool.join()
    assert got == Counter(range(2000))


def test_an_abandoned_iteration_keeps_nobody_waiting(method: str) -> None:
    with MPMS(echo, processes=1, threads=2, start_method=method) as pool:
        for number in range(200):
            pool.put(number)
        for _ in pool.iter_results():
            break
    assert pool.finish_count == 200
    assert sum(1 for _ in pool.iter_results()) == 199  # another one goes on where it stopped


def test_iteration_in_a_thread_ends_when_another_one_closes(method: str) -> None:
    pool = MPMS(echo, processes=1, threads=1, start_method=method)
    pool.start()
    got: list[Any] = []
    reading = threading.Thread(target=lambda: got.extend(pool.iter_results()), daemon=True)
    reading.start()
    pool.close()
    reading.join(20)
    assert not reading.is_alive()
    pool.join()
    assert got == []


# Retries and timeouts


def test_retries_run_a_task_again_whose_worker_died(any_method: str, stage: Stage) -> None:
    def task() -> int:
        stage.note("try")
        if len(stage.words()) < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(stage.words())

    with MPMS(task, processes=1, threads=1, retries=2, start_method=any_method) as pool:
        pool.put()
        assert next(pool.iter_results())[1] == 3
    assert pool.stats().retried == 2


def test_when_retries_are_used_up_the_crash_is_the_outcome(method: str, stage: Stage) -> None:
    def task() -> None:
        stage.note("try")
        os.kill(os.getpid(), signal.SIGKILL)

    with MPMS(task, processes=1, threads=1, retries=2, start_method=method) as pool:
        pool.put()
        error = next(pool.iter_results())[1]
    assert isinstance(error, WorkerCrashed)
    assert (len(error.attempts), error.exitcode) == (2, -signal.SIGKILL)
    assert len(stage.words()) == 3


def test_without_retries_a_task_is_run_once(method: str, stage: Stage) -> None:
    def task() -> None:
        stage.note("try")
        os.kill(os.getpid(), signal.SIGKILL)

    with MPMS(task, processes=1, threads=1, start_method=method) as pool:
        pool.put()
        assert isinstance(next(pool.iter_results())[1], WorkerCrashed)
    assert stage.words() == ["try"]


def test_an_exception_of_the_task_is_no_reason_to_retry(method: str, stage: Stage) -> None:
    def task() -> None:
        stage.note("try")
        raise ValueError

    with MPMS(task, processes=1, threads=1, retries=5, start_method=method) as pool:
        pool.put()
        assert isinstance(next(pool.iter_results())[1], ValueError)
    assert stage.words() == ["try"]


def test_retries_are_backed_off(method: str, stage: Stage) -> None:
    """0.2 to 0.4 s, then 0.4 to 0.8 s; other tasks are run meanwhile."""

    def task(what: str) -> str:
        stage.note(what)
        if what == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        return what

    with MPMS(task, processes=2, threads=1, retries=2, retry_backoff=0.4, start_method=method) as pool:
        at_full_strength(pool)  # so that nobody has to be born for the other task
        pool.put("crash")
        until(lambda: pool.stats().retried == 1)
        results = pool.iter_results()
        pool.put("go")
        assert next(results)[1] == "go"
        assert isinstance(next(results)[1], WorkerCrashed)
    tries = [when for when, words in stage.notes() if words == ["crash"]]
    assert len(tries) == 3
    assert tries[1] - tries[0] > 0.19
    assert tries[2] - tries[1] > 0.39
    (went,) = [when for when, words in stage.notes() if words == ["go"]]
    assert went < tries[1]


def test_a_task_that_takes_too_long_is_a_timeout_that_shows_where_it_hung(
    any_method: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.core.policy.DUMP_SECONDS", 2.0)  # its answer may take longer on a busy machine

    def hang_here() -> None:
        stage.wait()

    with MPMS(
        hang_here,
        processes=1,
        threads=1,
        task_timeout=0.3,
        worker_graceful_die_timeout=0.1,
        start_method=any_method,
    ) as pool:
        at_full_strength(pool)
        began = time.monotonic()
        pool.put()
        error = next(pool.iter_results())[1]
        assert time.monotonic() - began < promised(5)
    assert isinstance(error, TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert (error.timeout, error.attempts) == (0.3, ())
    assert "in hang_here" in error.stack
    assert "in hang_here" in str(error)
    assert "0.3 seconds" in str(error)
    assert pool.stats().crashes == {"timeout": 1}


def test_siblings_of_a_task_that_takes_too_long_finish(method: str, stage: Stage) -> None:
    def task(what: str) -> str:
        if what == "hang":
            stage.wait()
        time.sleep(0.2)
        return what

    with MPMS(task, processes=1, threads=3, worker_graceful_die_timeout=2, start_method=method) as pool:
        for _ in range(6):
            pool.put("go")
        pool.put_with(("hang",), timeout=0.5)
        for _ in range(6):
            pool.put("go")
        pool.close()
        got = Counter(result if isinstance(result, str) else type(result) for _, result in pool.iter_results())
        stage.open()
    assert got == {"go": 12, TaskTimeout: 1}


def test_a_timeout_is_retried(method: str, stage: Stage) -> None:
    def task() -> int:
        stage.note("try")
        if len(stage.words()) == 1:
            stage.wait()
        return len(stage.words())

    with MPMS(
        task,
        processes=1,
        threads=1,
        task_timeout=1,
        retries=1,
        worker_graceful_die_timeout=0.1,
        start_method=method,
    ) as pool:
        pool.put()
        assert next(pool.iter_results())[1] == 2


# Logs


def test_logs_of_workers_are_forwarded_when_asked_for(any_method: str, caplog: pytest.LogCaptureFixture) -> None:
    def task(number: int) -> None:
        logging.getLogger("mine").warning("number %d, %s", number, object())
        logging.getLogger("mine").debug("too low")
        try:
            1 / 0
        except ZeroDivisionError:
            logging.getLogger("mine").exception("it failed")

    with caplog.at_level(logging.INFO):
        with MPMS(task, processes=1, threads=1, forward_logs=True, name="N", start_method=any_method) as pool:
            for number in range(3):
                pool.put(number)
    records = [record for record in caplog.records if record.name == "mine"]
    assert [record.getMessage().partition(",")[0] for record in records if record.levelno == logging.WARNING] == [
        "number 0",
        "number 1",
        "number 2",
    ]
    failed = [record for record in records if record.levelno == logging.ERROR]
    assert len(failed) == 3
    assert "ZeroDivisionError" in failed[0].getMessage()
    assert len(records) == 6
    assert {record.processName for record in records} == {"mpms-N-p1"}
    assert {record.threadName for record in records} == {"mpms-N-p1#t1"}
    assert os.getpid() not in {record.process for record in records}


def test_logs_of_workers_are_their_own_otherwise(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with MPMS(lambda: logging.getLogger("mine").warning("here"), processes=1, start_method=method) as pool:
        pool.put()
    assert "mine" not in {record.name for record in caplog.records}


def _comes(condition: Any) -> bool:
    """For what the pool shows and does not tell: looked at again and again, within some seconds."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            return False
        threading.Event().wait(0.005)
    return True


def _is_at_rest(figure: Any) -> bool:
    """A figure has begun to grow, and did not for half a second."""
    until = time.monotonic() + 60
    last, since = figure(), time.monotonic()
    while time.monotonic() < until:
        threading.Event().wait(0.02)
        if figure() != last or not last:
            last, since = figure(), time.monotonic()
        elif time.monotonic() - since > 0.5:
            return True
    return False
