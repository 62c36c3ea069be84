"""What runs first, how fast, on how many workers, with how many native threads, and until which failure."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mpms import MPMS, TaskCancelled, WorkerCrashed

from .helpers import at_full_strength, meet, meeting, note, noted, pids, promised, results, until


def note_or_meet(word: object, log: str, address: str = "") -> object:
    note(log, word)
    return meet(address, word) if address else word


# Priority


def test_tasks_of_higher_priority_start_first_and_older_ones_among_equals(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with meeting() as place, MPMS(note_or_meet, processes=1, threads=1, start_method=method) as pool:
        pool.put("first", log, place.address)
        guest = place.arrive()
        for word, priority in [("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5), ("f", -(10**20)), ("g", 10**20)]:
            pool.put_with((word, log), priority=priority)
        pool.put("h", log)
        guest.release()
    assert noted(log) == ["first", "g", "c", "e", "a", "d", "h", "b", "f"]


def test_a_task_with_options_gets_its_keyword_arguments_too(method: str, tmp_path: Path) -> None:
    with MPMS(note_or_meet, processes=1, threads=1, start_method=method) as pool:
        pool.put_with(["word"], {"log": str(tmp_path / "log")}, priority=1, retries=0, timeout=60)
        pool.put_with(kwargs={"word": "other", "log": str(tmp_path / "log")})
        pool.close()
        got = [(meta.args, sorted(meta.kwargs), result) for meta, result in pool.iter_results()]
    assert got == [(("word",), ["log"], "word"), ((), ["log", "word"], "other")]


def test_a_task_of_high_priority_that_was_lost_by_a_crash_comes_first_again(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with meeting() as place, MPMS(note_or_meet, processes=1, threads=2, start_method=method, retries=1) as pool:
        pool.put("first", log, place.address)
        guest = place.arrive()
        pool.put_with(("urgent", log, place.address), priority=1)
        place.arrive()
        for word in range(5):
            pool.put(word, log)
        os.kill(guest.pid, 9)
        for _ in range(2):
            place.arrive().release()
        pool.close()
        got = results(pool)
    assert len(got) == 7
    assert not any(isinstance(result, WorkerCrashed) for result in got.values())
    assert Counter(noted(log)) == Counter(["first", "urgent", "first", "urgent", *"01234"])


# Rate


def note_the_time(word: int, log: str) -> None:
    note(log, time.monotonic())


@pytest.mark.alone
@pytest.mark.parametrize("rate", [20, 50.0])
def test_so_many_tasks_start_in_a_second_and_evenly(method: str, rate: float, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    count = int(rate * 1.5)
    with MPMS(note_the_time, processes=2, threads=4, start_method=method, max_rate=rate) as pool:
        at_full_strength(pool)
        for word in range(count):
            pool.put(word, log)
    times = sorted(map(float, noted(log)))
    assert len(times) == count
    assert (count - 1) / (times[-1] - times[0]) == pytest.approx(rate, rel=0.12)
    # In no window of half a second many more than its share; one that was late may come with the next one.
    half = int(rate / 2)
    for at in range(count - half - 3):
        assert times[at + half + 3] - times[at] > 0.4


@pytest.mark.alone
def test_a_rate_below_one_a_second_holds(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(note_the_time, processes=2, threads=2, start_method=method, max_rate=0.8) as pool:
        for word in range(2):
            pool.put(word, log)
    first, second = sorted(map(float, noted(log)))
    assert second - first == pytest.approx(1.25, rel=0.15)


def test_after_a_pause_nothing_is_made_up_for(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(note_the_time, processes=1, threads=8, start_method=method, max_rate=20) as pool:
        pool.put(0, log)
        until(lambda: pool.finish_count == 1)
        threading.Event().wait(0.6)  # 12 starts that nobody wanted
        begun = time.monotonic()
        for word in range(1, 8):
            pool.put(word, log)
    times = list(map(float, noted(log)))
    assert len(times) == 8
    assert max(times) - begun >= 6 / 20 - 0.001  # one at once, and not more


# Size


def test_a_pool_grows_and_shrinks_while_it_works_and_loses_nothing(any_method: str, tmp_path: Path) -> None:
    starts, ends = str(tmp_path / "starts"), str(tmp_path / "ends")
    with (
        meeting() as place,
        MPMS(
            meet_as,
            processes=1,
            threads=2,
            start_method=any_method,
            process_initializer=note_pid,
            process_initargs=(starts,),
            process_finalizer=note_pid,
            process_finargs=(ends,),
        ) as pool,
    ):
        for word in range(6):
            pool.put(word, place.address)
        guests = place.arrivals(2)
        pool.resize(3)
        assert pool.processes_count == 3
        guests += place.arrivals(4)
        assert len({guest.pid for guest in guests}) == 3
        pool.resize(1)
        until(lambda: pool.stats().workers["retiring"] == 2)
        # They finish what they run, whoever else works meanwhile.
        pool.put(6, place.address)
        assert noted(ends) == []
        for guest in guests:
            guest.release()
        last = place.arrive()
        until(lambda: len(pool.workers()) == 1)
        assert {info.pid for info in pool.workers()} == {last.pid}
        assert len(noted(ends)) == 2
        pool.resize(2)
        assert len(at_full_strength(pool)) == 2
        last.release()
        pool.close()
        assert results(pool) == {word: word for word in range(7)}
        assert pool.stats().crashes == {}
    assert sorted(noted(starts)) == sorted(noted(ends))
    assert len(noted(starts)) == 4


def meet_as(word: object, address: str) -> object:
    return meet(address, word)


def note_pid(log: str) -> None:
    note(log, os.getpid())


def square(number: int) -> int:
    return number * number


def test_resizing_again_and_again_under_load_loses_no_task(method: str) -> None:
    with MPMS(square, processes=2, threads=2, start_method=method, task_queue_maxsize=4000) as pool:
        over = threading.Event()

        def resize() -> None:
            size = 1
            while not over.wait(0.01):
                size = size % 4 + 1
                pool.resize(size)

        resizer = threading.Thread(target=resize)
        resizer.start()
        for number in range(4000):
            pool.put(number)
            if number % 20 == 0:
                until(lambda floor=number - 500: pool.finish_count >= floor, every=0.001)
        over.set()
        resizer.join()
        pool.resize(2)
        at_full_strength(pool)
        until(lambda: len(pids(pool)) == 2)
        pool.close()
        assert results(pool) == {number: number * number for number in range(4000)}
        assert pool.stats().crashes == {}
        assert pool.stats().starts > 4


def test_the_size_may_be_changed_before_the_start_and_after_the_end() -> None:
    pool = MPMS(square, processes=1, threads=1)
    pool.resize(2)
    with pool:
        assert len(at_full_strength(pool)) == 2
    pool.resize(3)
    assert pool.workers() == []


# Native threads

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that looks at the environment when it is imported, as OpenMP does it; and tasks of it."""
    (tmp_path / "native_library_of_this_test.py").write_text(
        "import os\n"
        f"at_import = [os.environ.get(name) for name in {VARIABLES!r}]\n"
        "def look(word):\n"
        f"    return at_import, [os.environ.get(name) for name in {VARIABLES!r}]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    yield importlib.import_module("native_library_of_this_test")
    del sys.modules["native_library_of_this_test"]


def test_libraries_see_the_cap_on_native_threads_before_they_are_imported(any_method: str, library: ModuleType) -> None:
    before = dict(os.environ)
    with MPMS(library.look, processes=1, threads=1, start_method=any_method, native_threads=3) as pool:
        pool.put(1)
        pool.close()
        at_import, in_task = results(pool)[1]
    assert in_task == ["3"] * len(VARIABLES)
    if any_method != "fork":  # where the parent has imported it
        assert at_import == ["3"] * len(VARIABLES)
    assert dict(os.environ) == before


def test_without_the_option_the_environment_is_as_it_was(any_method: str, library: ModuleType) -> None:
    with MPMS(library.look, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(1)
        pool.close()
        _, in_task = results(pool)[1]
    assert in_task[0] == "16"


def native_pools(word: int) -> list[int]:
    import numpy
    import threadpoolctl

    numpy.ones((2, 2)) @ numpy.ones((2, 2))
    return [each["num_threads"] for each in threadpoolctl.threadpool_info()]


def test_libraries_that_are_loaded_already_are_capped_by_threadpoolctl(any_method: str) -> None:
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    pytest.importorskip("numpy", reason="numpy is not installed, and nothing else here starts native threads")
    with MPMS(native_pools, processes=1, threads=1, start_method=any_method, native_threads=1) as pool:
        pool.put(1)
        pool.close()
        assert set(results(pool)[1]) == {1}


class FakeLimits(ModuleType):
    """In place of threadpoolctl, where that is not installed."""

    def __init__(self, log: str) -> None:
        super().__init__("threadpoolctl")
        self.threadpool_limits = lambda number: note(log, number)


def test_threadpoolctl_is_called_in_each_worker_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = str(tmp_path / "calls")
    monkeypatch.setitem(sys.modules, "threadpoolctl", FakeLimits(log))
    with MPMS(square, processes=2, threads=1, start_method="fork", native_threads=2) as pool:
        at_full_strength(pool)
    assert noted(log) == ["2", "2"]


# Stopping at failures


def fail_if(word: int, fails: bool) -> int:
    if fails:
        raise ValueError(word)
    return word


def run_until(stop_on: int | str | None, fails: list[bool], method: str) -> list[str]:
    """How each task ended: in one thread, so in their order."""
    with (
        meeting() as place,
        MPMS(
            fail_after_the_gate,
            processes=1,
            threads=1,
            start_method=method,
            stop_on=stop_on,
            task_queue_maxsize=len(fails) + 1,
        ) as pool,
    ):
        pool.put(-1, False, place.address)
        gate = place.arrive()
        for word, each in enumerate(fails):
            pool.put(word, each)
        gate.release()
        pool.close()
        got: dict[int, Any] = results(pool)
    assert got.pop(-1) == -1
    return [
        "cancelled"
        if isinstance(got[word], TaskCancelled)
        else "failed"
        if isinstance(got[word], Exception)
        else "done"
        for word in range(len(fails))
    ]


def fail_after_the_gate(word: int, fails: bool, address: str = "") -> int:
    if address:
        meet(address, word)
    return fail_if(word, fails)


def the_stop_is_at(outcomes: list[str], fails: list[bool], least: int) -> None:
    """All before the stop have their own outcome; the rest is cancelled. Some were sent in advance."""
    first = outcomes.index("cancelled")
    assert set(outcomes[first:]) == {"cancelled"}
    assert outcomes[:first] == ["failed" if each else "done" for each in fails[:first]]
    assert sum(fails[:first]) >= least


@pytest.mark.parametrize("stop_on", [1, 5])
def test_so_many_failures_stop_the_pool_and_cancel_the_rest(any_method: str, stop_on: int) -> None:
    fails = [word % 100 == 99 for word in range(8_000)]
    outcomes = run_until(stop_on, fails, any_method)
    the_stop_is_at(outcomes, fails, stop_on)
    assert outcomes.count("cancelled") > 4000


def test_fewer_failures_stop_nothing(method: str) -> None:
    assert Counter(run_until(5, [word in (3, 5, 7, 9) for word in range(50)], method)) == {"failed": 4, "done": 46}


def test_a_share_of_failures_stops_the_pool_when_they_are_three_at_least(method: str) -> None:
    # Two of the first three: too few to be a share of anything.
    few = [word < 2 for word in range(300)]
    assert Counter(run_until("10%", few, method)) == {"failed": 2, "done": 298}
    # One in twenty, and then every second one: at the tenth part it ends.
    fails = [word % 20 == 0 if word < 1000 else word % 2 == 0 for word in range(8_000)]
    outcomes = run_until("10%", fails, method)
    the_stop_is_at(outcomes, fails, 100)
    assert outcomes.index("cancelled") > 1000


@pytest.mark.parametrize("how", ["exit", "timeout"])
def test_crashes_and_timeouts_are_failures_too(method: str, how: str) -> None:
    with MPMS(
        leave_or_hang,
        processes=1,
        threads=1,
        start_method=method,
        stop_on=2,
        task_timeout=0.2 if how == "timeout" else None,  # the word of an exit may take longer
        worker_graceful_die_timeout=0.1,
    ) as pool:
        for word in range(5):
            pool.put(word, how)
        pool.close()
        kinds = Counter(type(result).__name__ for result in results(pool).values())
        assert len(pool.unfinished()) == 3
    assert kinds == {"WorkerCrashed" if how == "exit" else "TaskTimeout": 2, "TaskCancelled": 3}


def leave_or_hang(word: int, how: str) -> None:
    if how == "exit":
        os._exit(1)
    threading.Event().wait()


def test_a_retry_is_no_failure(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(
        fail_at_first, processes=1, threads=1, start_method=method, stop_on=1, retries=1, retry_on=(ValueError,)
    ) as pool:
        for word in range(20):
            pool.put(word, log)
        pool.close()
        assert results(pool) == {word: word for word in range(20)}
        assert pool.stats().retried == 20


def fail_at_first(word: int, log: str) -> int:
    note(log, word)
    if noted(log).count(str(word)) == 1:
        raise ValueError(word)
    return word


def test_what_still_runs_when_the_pool_is_stopped_by_a_failure_is_cancelled(method: str) -> None:
    with meeting() as place, MPMS(fail_after_the_gate, processes=2, threads=1, start_method=method, stop_on=1) as pool:
        pool.put(1, False, place.address)
        running = place.arrive()
        pool.put(2, True)
        pool.close()
        got = results(pool)
        assert running.is_gone(promised(5))
    assert type(got[1]) is TaskCancelled
    assert got[1].started is True
    assert type(got[2]) is ValueError


@pytest.mark.alone
def test_intervals_are_even(method: str, tmp_path: Path) -> None:
    """Half of them are within a third of what they should be."""
    log = str(tmp_path / "starts")
    with MPMS(note_the_time, processes=1, threads=2, start_method=method, max_rate=25) as pool:
        for word in range(25):
            pool.put(word, log)
    gaps = sorted(later - earlier for earlier, later in pairwise(sorted(map(float, noted(log)))))
    assert gaps[len(gaps) // 2] == pytest.approx(1 / 25, rel=0.33)
