"""Rotation: by count, by age, by memory. The replacement comes first, and no task is lost."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from mpms import MPMS, TaskTimeout
from mpms.core import policy

from .helpers import Guest, Meeting, at_full_strength, meet, meeting, pids, until
from .stage import Stage, me


def most_alive(notes: Sequence[tuple[float, list[str]]]) -> int:
    """How many processes lived at a time, by the notes of initializers (born) and finalizers (ends)."""
    alive = most = 0
    for _, (what, *_) in notes:
        alive += {"born": 1, "ends": -1}.get(what, 0)
        most = max(most, alive)
    return most


# By count


def test_no_thread_runs_more_tasks_than_its_lifecycle(any_method: str) -> None:
    with MPMS(me, processes=2, threads=3, lifecycle=7, start_method=any_method) as pool:
        for _ in range(500):
            pool.put()
        pool.close()
        ran = Counter(result for _, result in pool.iter_results())
    assert sum(ran.values()) == 500
    assert max(ran.values()) <= 7
    assert len({pid for pid, _ in ran}) >= 500 / (7 * 3)


def test_a_lifecycle_of_one_gives_every_task_a_process_of_its_own(method: str) -> None:
    with MPMS(os.getpid, processes=2, threads=1, lifecycle=1, start_method=method) as pool:
        for _ in range(20):
            pool.put()
        pool.close()
        pids = [result for _, result in pool.iter_results()]
    assert len(set(pids)) == 20


def test_the_lifecycle_counts_tasks_that_raise(method: str) -> None:
    with MPMS(int, processes=1, threads=1, lifecycle=2, start_method=method) as pool:
        for _ in range(10):
            pool.put("no number")
        pool.close()
        assert [type(result) for _, result in pool.iter_results()] == [ValueError] * 10
    assert pool.stats().starts >= 5


def meet_as(address: str, what: str) -> int:
    """A task, or the initializer of a worker, that waits for the test."""
    meet(address, what)
    return os.getpid()


class Visitors:
    """Those who have come to the meeting, by their word."""

    def __init__(self, place: Meeting) -> None:
        self._place = place
        self._here: list[Guest] = []

    def next(self, word: str) -> Guest:
        while not (found := [guest for guest in self._here if guest.word == word]):
            self._here.append(self._place.arrive())
        self._here.remove(found[0])
        return found[0]

    def next_initializer(self, worker: int) -> Guest:
        """While tasks wait, but for those of other workers than this one."""
        while not any(guest.word == "initializer" for guest in self._here):
            guest = self._place.arrive()
            self._here.append(guest)
            if guest.word == "task" and guest.pid != worker:
                guest.release()
                self._here.remove(guest)
        return self.next("initializer")


ONE_SERVES = {"starting": 1, "serving": 1, "retiring": 0, "killed": 0}


def test_a_worker_serves_until_its_replacement_is_initialised(any_method: str) -> None:
    with (
        meeting() as place,
        MPMS(
            meet_as,
            processes=1,
            threads=1,
            lifecycle_duration=0.3,
            process_initializer=meet_as,
            process_initargs=(place.address, "initializer"),
            task_queue_maxsize=200,
            start_method=any_method,
        ) as pool,
    ):
        visitors = Visitors(place)
        for _ in range(100):
            pool.put(place.address, "task")
        coming = visitors.next("initializer")
        for _ in range(2):
            coming.release()
            until(lambda pid=coming.pid: pid in pids(pool))  # else the one before might do all tasks meanwhile
            while (task := visitors.next("task")).pid != coming.pid:
                task.release()  # the one before had begun it
            worker = coming.pid
            # One that the one before had begun may arrive after the first of the new one.
            coming = visitors.next_initializer(worker)
            assert pool.stats().workers == ONE_SERVES
            for _ in range(5):
                task.release()
                task = visitors.next("task")
                assert task.pid == worker
            assert pool.stats().workers == ONE_SERVES
            task.release()
        pool.graceful_shutdown(0)


def test_a_worker_by_count_serves_while_its_replacement_comes_up(method: str) -> None:
    with (
        meeting() as place,
        MPMS(
            meet_as,
            processes=1,
            threads=1,
            lifecycle=40,
            process_initializer=meet_as,
            process_initargs=(place.address, "initializer"),
            task_queue_maxsize=200,
            start_method=method,
        ) as pool,
    ):
        visitors = Visitors(place)
        for _ in range(120):
            pool.put(place.address, "task")
        coming = visitors.next("initializer")
        done = 0
        for _ in range(2):
            coming.release()
            until(lambda: not pool.stats().workers["starting"])
            # The replacement is asked for when 2 to 12 of 40 tasks are left to be sent: before the worker has none.
            ran = 0
            while not pool.stats().workers["starting"]:
                task = visitors.next("task")
                task.release()
                ran, done = ran + (task.pid == coming.pid), done + 1
                until(lambda done=done: pool.stats().done == done)
            assert ran + pool.stats().running >= 28  # a quick one has some in advance
            assert ran <= 39
            assert pool.stats().workers == ONE_SERVES
            coming = visitors.next("initializer")
            assert pool.stats().workers == ONE_SERVES
        pool.graceful_shutdown(0)


@pytest.mark.parametrize("processes", [1, 3])
def test_in_rotation_at_most_one_worker_more_lives(processes: int, method: str, stage: Stage) -> None:
    def finalize() -> None:
        time.sleep(0.15)  # so that the next one is due while this one ends
        stage.note("ends")

    with MPMS(
        time.sleep,
        processes=processes,
        threads=2,
        lifecycle_duration=0.3,
        process_initializer=stage.note,
        process_initargs=("born",),
        process_finalizer=finalize,
        task_queue_maxsize=20,
        start_method=method,
    ) as pool:
        for _ in range(20_000):  # until there were enough, however long a start takes
            if pool.stats().starts >= 3 * processes:
                break
            pool.put(0.01)
    notes = stage.notes()
    assert most_alive(notes) <= processes + 1
    assert [words for _, words in notes].count(["born"]) >= 2 * processes


# By age


def test_workers_that_were_born_together_are_not_rotated_together(method: str, stage: Stage) -> None:
    """Each has 80 % to 100 % of 3 s: so the first to go isn't the oldest, as it would be if all were due at once.

    Which of them it is, is decided by their numbers, the same in every run: the third, 190 ms before the others.
    """

    def finalize() -> None:
        stage.note(multiprocessing.current_process().name)

    with MPMS(
        time.sleep,
        processes=4,
        threads=1,
        lifecycle_duration=3.0,
        process_finalizer=finalize,
        name="N",
        start_method=method,
    ) as pool:
        at_full_strength(pool)  # each begins to age with its first task: all at once
        began = time.monotonic()
        while len(stage.notes()) < 4 and time.monotonic() - began < 60:  # replacements may take their time to come up
            pool.put(0.01)
    ends = [when for when, _ in stage.notes()]
    assert stage.words()[0] == "mpms-N-p3"
    assert all(later - sooner > 0.001 for sooner, later in pairwise(ends[:4]))


def test_a_worker_that_is_due_finishes_its_long_task(method: str) -> None:
    with MPMS(time.sleep, processes=1, threads=2, lifecycle_duration=0.2, start_method=method) as pool:
        pool.put(0.8)
        for _ in range(60):
            pool.put(0.01)
        pool.close()
        assert [result for _, result in pool.iter_results()] == [None] * 61
    assert pool.stats().starts >= 2
    assert pool.stats().crashes == {}


def test_an_idle_pool_rotates_nobody(method: str, stage: Stage) -> None:
    rotated = {"starting": 0, "serving": 2, "retiring": 0, "killed": 0}
    with MPMS(os.getpid, processes=2, threads=1, lifecycle_duration=0.1, start_method=method) as pool:
        at_full_strength(pool)
        for _ in range(2):
            pool.put()
        results = pool.iter_results()
        worked = {next(results)[1] for _ in range(2)}
        until(lambda: not worked & pids(pool) and pool.stats().workers == rotated)
        time.sleep(0.5)  # in which nothing is to happen, beyond one rotation of each who has worked
        assert pool.stats().starts == 2 + len(worked)


# By the hard limit


@pytest.mark.parametrize("option", ["lifecycle_duration_hard", "task_timeout"])
def test_a_task_is_timed_from_its_start_and_not_from_its_put(option: str, method: str) -> None:
    """Seven tasks of 0.3 s in a row: the last is put 2 s before it is done, and the limit is 1 s."""
    limit: dict[str, Any] = {option: 1.0}
    with MPMS(time.sleep, processes=1, threads=1, start_method=method, **limit) as pool:
        for _ in range(7):
            pool.put(0.3)
        pool.close()
        assert [result for _, result in pool.iter_results()] == [None] * 7


def test_a_task_over_the_hard_limit_is_a_timeout(method: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "DUMP_SECONDS", 2.0)  # on a busy machine the stack comes late
    # With a short grace the age of the process might end the task first, which began late on a busy machine.
    with MPMS(stage.wait, processes=1, threads=1, lifecycle_duration_hard=0.3, start_method=method) as pool:
        pool.put()
        pool.close()
        ((_, error),) = pool.iter_results()
    assert isinstance(error, TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert error.timeout == 0.3
    assert "in wait" in error.stack


def test_a_process_that_is_too_old_is_retired(method: str) -> None:
    began = time.monotonic()
    with MPMS(os.getpid, processes=1, threads=1, lifecycle_duration_hard=0.4, start_method=method) as pool:
        pids = set()
        results = pool.iter_results()
        while len(pids) < 3 and time.monotonic() - began < 60:
            pool.put()
            pids.add(next(results)[1])
        assert len(pids) == 3
    assert pool.stats().crashes == {}


def test_a_hung_worker_beyond_its_age_does_not_keep_the_others_from_working(method: str, stage: Stage) -> None:
    def task(what: str) -> Any:
        return stage.wait() if what == "hang" else what

    with MPMS(task, processes=2, threads=1, lifecycle_duration_hard=0.4, start_method=method) as pool:
        pool.put("hang")
        for _ in range(50):
            pool.put("go")
        pool.close()
        got = Counter(type(result) for _, result in pool.iter_results())
    assert got == {str: 50, TaskTimeout: 1}


# By memory


HOARD: list[bytearray] = []


def hoard(size: int) -> int:
    """Keep ``size`` bytes for good, written to, so that they are in memory."""
    HOARD.append(bytearray(b"x") * size)
    return os.getpid()


@pytest.mark.parametrize("limit", [60_000_000, "60MB"])
def test_a_worker_that_grows_is_replaced_and_loses_nothing(limit: Any, method: str) -> None:
    began = time.monotonic()
    with MPMS(hoard, processes=1, threads=2, max_memory_per_process=limit, start_method=method) as pool:
        results = pool.iter_results()
        pids: list[int] = []
        while len(set(pids)) < 2 and time.monotonic() - began < 60:
            for _ in range(5):
                pool.put(100_000_000 if not pids else 1)
            pids += [next(results)[1] for _ in range(5)]
        assert len(set(pids)) == 2
    assert pool.stats().crashes == {}


def test_a_worker_that_does_not_grow_stays(method: str) -> None:
    with MPMS(hoard, processes=1, threads=1, max_memory_per_process="200MB", start_method=method) as pool:
        pool.put(10)
        results = pool.iter_results()
        next(results)
        began = time.monotonic()
        while time.monotonic() - began < 1.8:  # longer than from one look to the next
            pool.put(10)
            next(results)
        assert pool.stats().starts == 1


def test_the_tasks_of_each_worker_add_up(method: str) -> None:
    """Rotation by all reasons at once: every task once, whoever ran it."""
    with MPMS(
        me,
        processes=2,
        threads=2,
        lifecycle=20,
        lifecycle_duration=0.1,
        max_memory_per_process="1GB",
        lifecycle_duration_hard=5,
        start_method=method,
    ) as pool:
        for _ in range(1000):
            pool.put()
        pool.close()
        threads: dict[int, set[int]] = defaultdict(set)
        taskids = set()
        for meta, (pid, thread) in pool.iter_results():
            threads[pid].add(thread)
            taskids.add(meta.taskid)
    assert len(taskids) == 1000
    assert all(len(ran) <= 2 for ran in threads.values())
