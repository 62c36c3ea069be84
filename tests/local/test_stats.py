"""The figures of a pool: true at every moment, and cheap."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import statistics
import threading
import time
from typing import Any

import pytest

from mpms import MPMS, Stats, TaskTimeout
from mpms.ids import TaskId

from .helpers import at_full_strength, die, meet, meeting, until
from .stage import Stage


def work(number: int, how: str = "") -> int:
    if how == "raise":
        raise ValueError(number)
    if how:
        die(how)
    return number


def balance(stats: Stats) -> int:
    return stats.submitted - stats.done - stats.failed - stats.queued - stats.running


# Under load


def test_the_figures_add_up_at_every_moment_while_tasks_run_fail_and_crash(method: str) -> None:
    seen: list[Stats] = []
    over = threading.Event()
    count = 0
    with MPMS(work, lambda meta, result: None, processes=2, threads=2, start_method=method) as pool:

        def look() -> None:
            while not over.is_set():
                seen.append(pool.stats())

        looking = threading.Thread(target=look)
        looking.start()
        try:
            # Where who looks has hardly a turn it goes on, until he has seen the middle of it.
            while count < 6000 or (len({stats.done for stats in seen}) <= 10 and looking.is_alive()):
                way = "exit" if count % 1000 == 700 and count < 4000 else "raise" if count % 10 == 0 else ""
                pool.put(count, way)
                count += 1
            pool.join()
        finally:
            over.set()
            looking.join()
        last = pool.stats()
    assert [balance(stats) for stats in seen if balance(stats)] == []
    for stats in seen:
        figures = dataclasses.asdict(stats)
        assert all(value >= 0 for value in figures.values() if isinstance(value, int | float)), stats
        assert sum(stats.workers.values()) <= 3, stats  # one more: dead, and not heard to the end yet
        assert stats.zombies <= 2
    for earlier, later in itertools.pairwise(seen):
        for name in ("submitted", "done", "failed", "starts", "retried"):
            assert getattr(earlier, name) <= getattr(later, name), name
    assert len({stats.done for stats in seen}) > 10, "it has seen the middle of the run"
    assert (last.submitted, last.done + last.failed, last.queued, last.running) == (count, count, 0, 0)
    assert last.failed >= 600
    assert last.undelivered == 0
    assert last.crashes == {"exit 3": 4}
    # Who crashed last has no successor when the other one, by the time this is known, has done or taken all the rest.
    assert last.starts >= 5


def test_what_was_just_put_is_queued_while_no_worker_is_up(method: str, stage: Stage) -> None:
    with MPMS(
        work, lambda meta, result: None, processes=1, threads=1, start_method=method,
        process_initializer=stage.wait, task_queue_maxsize=500,
    ) as pool:  # fmt: skip
        for number in range(500):
            pool.put(number)
            stats = pool.stats()
            assert (stats.submitted, stats.queued, stats.running) == (number + 1, number + 1, 0)
        stage.open()


def test_queued_running_and_done_are_what_they_say(any_method: str) -> None:
    with meeting() as place, MPMS(meet, processes=2, threads=2, start_method=any_method) as pool:
        assert pool.stats().submitted == 0
        for word in range(10):
            pool.put(place.address, word)
        guests = place.arrivals(4)
        # Some wait in the pool, and at most some on the workers, where nobody runs them.
        stats = until(lambda: (s := pool.stats()).running >= 4 and s)
        assert (stats.submitted, stats.done, stats.failed) == (10, 0, 0)
        assert stats.queued + stats.running == 10
        assert sum(len(info.running) for info in pool.workers()) == 4
        for guest in guests:
            guest.release()
        for guest in place.arrivals(4):
            guest.release()
        for guest in place.arrivals(2):
            guest.release()
        stats = until(lambda: (s := pool.stats()).done == 10 and s)
        assert (stats.queued, stats.running, stats.failed) == (0, 0, 0)
        pool.close()
        assert len(list(pool.iter_results())) == 10


def test_results_that_nobody_has_taken_are_undelivered_until_the_collector_has_them(method: str, stage: Stage) -> None:
    free = threading.Event()

    def collect(meta: Any, result: Any) -> None:
        assert free.wait(30)

    with MPMS(work, collect, processes=1, threads=1, start_method=method) as pool:
        for number in range(3):
            pool.put(number)
        stats = until(lambda: (s := pool.stats()).done == 3 and s)
        assert stats.undelivered == 3
        free.set()
        until(lambda: pool.stats().undelivered == 0)


# A snapshot


def test_a_snapshot_cannot_be_changed_and_does_not_change(method: str) -> None:
    with MPMS(work, processes=1, threads=1, start_method=method) as pool:
        at_full_strength(pool)
        before = pool.stats()
        for name in [field.name for field in dataclasses.fields(before)]:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(before, name, 7)
        with pytest.raises((AttributeError, TypeError)):
            before.another = 7  # type: ignore[attr-defined]
        os.kill(min(at_full_strength(pool)), signal.SIGKILL)
        pool.put(1)
        pool.close()
        assert len(list(pool.iter_results())) == 1
        until(lambda: pool.stats().crashes == {"SIGKILL": 1})
    assert (before.submitted, before.crashes, before.workers["serving"]) == (0, {}, 1)


def test_a_pool_that_was_not_started_has_figures() -> None:
    pool = MPMS(work, processes=2, threads=2)
    assert pool.stats() == Stats(workers={"starting": 0, "serving": 0, "retiring": 0, "killed": 0})
    assert pool.workers() == []
    assert pool.story() == []


# Workers


def test_workers_are_counted_by_phase(any_method: str, stage: Stage) -> None:
    nobody = {"starting": 0, "serving": 0, "retiring": 0, "killed": 0}
    with (
        meeting() as place,
        MPMS(
            work,
            processes=2,
            threads=1,
            start_method=any_method,
            process_initializer=stage.wait,
            process_finalizer=meet,
            process_finargs=(place.address, "end"),
        ) as pool,
    ):
        until(lambda: sum(pool.stats().workers.values()) == 2)
        assert pool.stats().workers == {**nobody, "starting": 2}
        stage.open()
        at_full_strength(pool)
        assert pool.stats().workers == {**nobody, "serving": 2}
        assert [info.phase for info in pool.workers()] == ["serving"] * 2
        pool.close()
        guests = place.arrivals(2)
        assert pool.stats().workers == {**nobody, "retiring": 2}
        assert [info.phase for info in pool.workers()] == ["retiring"] * 2
        for guest in guests:
            guest.release()
    assert pool.stats().workers == nobody


def test_each_thread_shows_its_task_and_since_when(any_method: str) -> None:
    with meeting() as place, MPMS(meet, processes=2, threads=2, start_method=any_method, name="N") as pool:
        at_full_strength(pool)
        assert [info.running for info in pool.workers()] == [(), ()]
        began = time.monotonic()
        for word in range(3):
            pool.put(place.address, word)
        guests = place.arrivals(3)
        arrived = time.monotonic()
        infos = pool.workers()
        looked = time.monotonic()
        assert {info.pid for info in infos} >= {guest.pid for guest in guests}
        assert {info.name for info in infos} == {"mpms-N-p1", "mpms-N-p2"}
        running = [task for info in infos for task in info.running]
        assert sorted(task.task for task in running) == sorted(pool.running_tasks) == [1, 2, 3]
        for info in infos:
            assert len({task.thread for task in info.running}) == len(info.running)
            assert {task.thread for task in info.running} <= {1, 2}
            assert 0 < info.age < time.monotonic() - began + 60
            assert info.done == 0
        for task in running:
            word = pool.running_tasks[task.task][1][1]
            (pid,) = (info.pid for info in infos if task in info.running)
            assert pid == next(guest.pid for guest in guests if guest.word == word)
            assert 0 <= task.seconds <= looked - began
        first = max(task.seconds for task in running)
        stats = pool.stats()
        assert stats.oldest is not None
        assert first <= stats.oldest <= time.monotonic() - began
        assert stats.oldest_task == max(running, key=lambda task: task.seconds).task
        assert arrived - began < looked - began
        # The age is a clock's: it grows by what has passed.
        later = until(lambda: (s := pool.stats()).oldest > stats.oldest + 0.05 and s)
        assert later.oldest_task == stats.oldest_task
        for guest in guests:
            guest.release()
        until(lambda: pool.stats().done == 3)
        assert sum(info.done for info in pool.workers()) == 3
        assert (pool.stats().oldest, pool.stats().oldest_task) == (None, None)
        pool.close()
        assert len(list(pool.iter_results())) == 3


# Crashes


def test_crashes_are_counted_by_their_cause(any_method: str, stage: Stage) -> None:
    with MPMS(
        work_or_hang,
        processes=1,
        threads=1,
        start_method=any_method,
        task_timeout=0.3 if any_method != "spawn" else 1,
        worker_graceful_die_timeout=0.1,
    ) as pool:
        for how in ("SIGKILL", "exit", "SIGKILL", "hang", "SIGABRT", ""):
            pool.put(stage, how)
        pool.close()
        got = {meta.taskid: result for meta, result in pool.iter_results()}
        assert isinstance(got[TaskId(4)], TaskTimeout)
        assert got[TaskId(6)] == 1
        pool.join()
        stats = pool.stats()
    assert stats.crashes == {"SIGKILL": 2, "exit 3": 1, "timeout": 1, "SIGABRT": 1}
    assert (stats.starts, stats.zombies) == (6, 0)
    assert (stats.done, stats.failed) == (1, 5)


def work_or_hang(stage: Stage, how: str) -> int:
    if how == "hang":
        stage.wait()
    elif how:
        die(how)
    return 1


def test_retries_are_counted(method: str) -> None:
    with MPMS(work, processes=1, threads=1, start_method=method, retries=2) as pool:
        pool.put(1, "exit")
        pool.close()
        assert len(list(pool.iter_results())) == 1
        pool.join()
        stats = pool.stats()
    assert (stats.retried, stats.crashes, stats.done, stats.failed) == (2, {"exit 3": 3}, 0, 1)


# Time


def test_throughput_is_tasks_per_second_of_the_run_and_stands_still_after_it(method: str) -> None:
    began = time.monotonic()
    with MPMS(work, processes=1, threads=1, start_method=method) as pool:
        for number in range(100):
            pool.put(number)
        pool.close()
        assert len(list(pool.iter_results())) == 100
        pool.join()
        stats = pool.stats()
        took = time.monotonic() - began
    assert 0 < stats.uptime <= took
    assert stats.throughput == pytest.approx(100 / stats.uptime)
    later = pool.stats()
    assert (later.uptime, later.throughput) == (stats.uptime, stats.throughput)


def test_figures_outlive_the_pool(any_method: str) -> None:
    with MPMS(work, processes=2, threads=1, start_method=any_method) as pool:
        pool.put(1)
        pool.put(2, "raise")
        pool.close()
        assert len(list(pool.iter_results())) == 2
    stats = pool.stats()
    assert (stats.submitted, stats.done, stats.failed, stats.queued, stats.running) == (2, 1, 1, 0, 0)
    assert (sum(stats.workers.values()), stats.zombies, stats.undelivered) == (0, 0, 0)
    assert (pool.workers(), dict(pool.worker_processes_pool), pool.unfinished()) == ([], {}, [])
    assert (len(pool), pool.total_count, pool.finish_count) == (2 - 2, 2, 2)
    assert pool.story()


def test_stats_of_a_busy_pool_take_less_than_a_millisecond(method: str) -> None:
    """The processor's time, so that whoever else is on the machine makes no difference."""
    with MPMS(work, lambda meta, result: None, processes=4, threads=2, start_method=method) as pool:
        at_full_strength(pool)
        over = threading.Event()

        def feed() -> None:
            number = 0
            while not over.is_set():
                pool.put(number)
                number += 1

        feeder = threading.Thread(target=feed)
        feeder.start()
        took: list[float] = []
        try:
            until(lambda: pool.stats().done > 100)
            for _ in range(300):
                start = time.thread_time()
                pool.stats()
                took.append(time.thread_time() - start)
        finally:
            over.set()
            feeder.join()
    assert statistics.median(took) < 0.001


# The story


def test_the_story_tells_in_lines_what_has_happened_to_workers_and_tasks(any_method: str) -> None:
    with MPMS(work, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(1)
        pool.put(2, "exit")
        pool.close()
        assert len(list(pool.iter_results())) == 2
    story = pool.story()
    text = "\n".join(story)
    for word in ("StartWorker", "WorkerReady", "TasksSubmitted", "Dispatch", "WorkerExited", "Closed"):
        assert word in text, word
    assert all(line and "\n" not in line for line in story)
    times = [float(line.split()[0]) for line in story]
    assert times == sorted(times)


def test_the_story_of_a_long_run_is_short(method: str) -> None:
    with MPMS(work, lambda meta, result: None, processes=1, threads=1, start_method=method) as pool:
        for number in range(3000):
            pool.put(number)
    assert 0 < len(pool.story()) <= 200
    assert max(map(len, pool.story())) < 3000
