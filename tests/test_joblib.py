"""The backend of joblib."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import joblib
import psutil
import pytest
from joblib import Parallel, delayed, parallel_config

import mpms.joblib
from mpms import TaskCancelled, TaskTimeout, WorkerCrashed

from .local.conftest import nothing_is_left, stage
from .local.helpers import HAS_GIL, PATIENCE, Guest, is_freed, meet, meeting, still_alive, until
from .local.stage import Stage

__all__ = ["nothing_is_left", "stage"]


@pytest.fixture(autouse=True)
def workers_end(nothing_is_left: None) -> Iterator[None]:
    """They do as soon as nobody can use them any more; and joblib's own threads, which nested calls have."""
    children, threads = set(psutil.Process().children()), set(threading.enumerate())
    yield
    gc.collect()
    until(lambda: set(psutil.Process().children()) <= children and set(threading.enumerate()) <= threads)


def square(number: int) -> int:
    return number * number


def invert(number: int) -> float:
    return 1 / number


def kill_myself_once(path: str, number: int) -> int:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return number
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def test_results_are_those_of_a_plain_loop() -> None:
    expected = [square(number) for number in range(500)]
    assert Parallel(n_jobs=2, backend="mpms")(delayed(square)(number) for number in range(500)) == expected
    with parallel_config(backend="mpms", n_jobs=-1, threads=2):
        assert Parallel()(delayed(lambda number: number**2)(number) for number in range(500)) == expected
        assert Parallel(batch_size=1)(delayed(square)(number) for number in range(5)) == expected[:5]
        assert Parallel()(()) == []


def test_cross_val_score_gives_the_same_as_with_loky_though_a_worker_is_killed(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        import joblib, mpms.joblib
        from sklearn.datasets import make_classification
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score

        class Model(LogisticRegression):
            def fit(self, X, y):
                path = os.environ.get("KILL_ONCE")
                if path and not os.path.exists(path):
                    open(path, "w").close()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().fit(X, y)

        X, y = make_classification(300, random_state=1)
        scores = {}
        for backend, options in ("loky", {}), ("mpms", {"retries": 1}):
            if options:
                os.environ["KILL_ONCE"] = sys.argv[1]
            with joblib.parallel_config(backend=backend, n_jobs=2, **options):
                scores[backend] = list(cross_val_score(Model(), X, y, cv=3))
        assert os.path.exists(sys.argv[1])
        print(scores["loky"] == scores["mpms"], len(scores["mpms"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "killed")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "True 3\n"), done.stderr


# What goes wrong


def test_an_error_arrives_as_its_own_type_and_the_rest_is_killed() -> None:
    def work(number: int) -> object:
        meet(address, number)
        if number == 0:
            raise LookupError(number)
        return number

    def let_one_go_on() -> None:
        guests.extend(place.arrivals(2))
        next(guest for guest in guests if guest.word == 0).release()

    guests = list[Guest]()
    with meeting() as place, parallel_config(backend="mpms", n_jobs=2):
        address = place.address
        host = threading.Thread(target=let_one_go_on)
        host.start()
        with pytest.raises(LookupError) as raised:
            Parallel()(delayed(work)(number) for number in range(10))
        host.join()
        assert "in work" in str(raised.value.__cause__)
        assert all(guest.is_gone(PATIENCE) for guest in guests if guest.word)
        assert Parallel()(delayed(square)(number) for number in range(3)) == [0, 1, 4]


def test_a_killed_worker_is_the_error_of_the_call_that_it_ran_and_the_next_call_works(tmp_path: Path) -> None:
    with parallel_config(backend="mpms", n_jobs=2):
        with pytest.raises(WorkerCrashed, match="SIGKILL"):
            Parallel()(delayed(kill_myself_once)(str(tmp_path / "killed"), number) for number in range(10))
        assert Parallel()(delayed(square)(number) for number in range(3)) == [0, 1, 4]


def test_with_retries_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    with parallel_config(backend="mpms", n_jobs=2, retries=1):
        results = Parallel()(delayed(kill_myself_once)(str(tmp_path / "killed"), number) for number in range(20))
    assert (tmp_path / "killed").exists()
    assert results == list(range(20))


def test_what_cannot_be_pickled_is_an_error_of_the_call() -> None:
    with parallel_config(backend="mpms", n_jobs=2), pytest.raises(TypeError, match="pickle"):
        Parallel()(delayed(repr)(thing) for thing in (1, threading.Lock(), 2))


def test_a_managed_parallel_is_usable_after_an_error() -> None:
    with parallel_config(backend="mpms"), Parallel(n_jobs=2) as parallel:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                parallel(delayed(invert)(number) for number in range(5))
            assert parallel(delayed(square)(number) for number in range(3)) == [0, 1, 4]


class Begins:
    """Three calls of ``square``, for a ``Parallel`` that asks how many they are when it begins with them."""

    def __init__(self, at_the_beginning: Callable[[], object]) -> None:
        self._at_the_beginning = at_the_beginning

    def __len__(self) -> int:
        self._at_the_beginning()
        return 3

    def __iter__(self) -> Iterator[object]:
        return (delayed(square)(number) for number in range(3))


def test_what_ends_late_of_a_call_that_failed_is_no_part_of_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over = threading.Event(), threading.Event()
    submit = mpms.joblib.MpmsBackend.submit

    def submit_late(self: mpms.joblib.MpmsBackend, func: Callable[[], Any], callback: Callable[[Any], Any]) -> Any:
        def late(future: Any) -> None:
            is_late = isinstance(future.exception(), TaskCancelled)
            if is_late:
                begun.wait(0.5)  # in vain: the next call begins after this
            callback(future)
            if is_late:
                over.set()

        return submit(self, func, late)

    monkeypatch.setattr(mpms.joblib.MpmsBackend, "submit", submit_late)
    with parallel_config(backend="mpms"), Parallel(n_jobs=2) as parallel:
        with pytest.raises(ZeroDivisionError):
            parallel([delayed(invert)(0), delayed(time.sleep)(600)])
        next_one = Begins(lambda: (begun.set(), over.wait(PATIENCE)))
        assert parallel(next_one) == [0, 1, 4]
    assert over.is_set()


def test_after_an_abort_that_is_interrupted_the_next_call_has_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    with parallel_config(backend="mpms", n_jobs=2):
        with monkeypatch.context() as patch:
            patch.setattr("mpms.local.engine.LocalEngine.wait_stopped", interrupted)
            with pytest.raises(KeyboardInterrupt):
                Parallel()(delayed(invert)(number) for number in range(5))
        assert Parallel()(delayed(square)(number) for number in range(3)) == [0, 1, 4]


def test_after_an_error_a_managed_parallel_has_its_options_still() -> None:
    def where(_: int) -> str:
        return threading.current_thread().name

    with Parallel(n_jobs=2, backend="mpms", name="mine") as parallel:
        with pytest.raises(ZeroDivisionError):
            parallel(delayed(invert)(number) for number in range(5))
        assert all("mpms-mine-" in name for name in parallel(delayed(where)(number) for number in range(3)))


# Options


def test_options_are_those_of_the_executor(stage: Stage) -> None:
    with parallel_config(backend="mpms", n_jobs=2, task_timeout=0.2), pytest.raises(TaskTimeout):
        Parallel()(delayed(stage.say_and_wait)(number) for number in range(2))
    with pytest.raises(TaskTimeout):
        Parallel(n_jobs=2, backend="mpms", task_timeout=0.2)(delayed(stage.say_and_wait)(n) for n in range(2))
    with parallel_config(backend="mpms", n_jobs=2, tasktimeout=5), pytest.raises(TypeError, match="tasktimeout"):
        Parallel()(delayed(square)(number) for number in range(2))


def test_n_jobs_are_processes_and_each_has_its_threads(stage: Stage) -> None:
    def meet(number: int) -> tuple[int, int]:
        stage.say_and_wait(number)
        return os.getpid(), threading.get_ident()

    with parallel_config(backend="mpms", n_jobs=2, threads=3):
        assert joblib.effective_n_jobs() == 6
        opener = threading.Thread(target=lambda: (stage.hear(6), stage.open()))
        opener.start()
        seen = Parallel(pre_dispatch="n_jobs")(delayed(meet)(number) for number in range(6))
        opener.join()
    assert len(set(seen)) == 6
    assert len({pid for pid, _ in seen}) == 2


@pytest.mark.parametrize(("n_jobs", "processes"), [(1, 1), (3, 3), (-1, joblib.cpu_count()), (None, 1), (-1000, 1)])
def test_n_jobs_means_what_it_means_in_joblib(n_jobs: int | None, processes: int) -> None:
    assert mpms.joblib.MpmsBackend().effective_n_jobs(n_jobs) == processes


def test_one_call_at_a_time_runs_here() -> None:
    with parallel_config(backend="mpms", n_jobs=1):
        assert Parallel()(delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2
        with pytest.raises(ValueError, match="n_jobs == 0"):
            Parallel(n_jobs=0)(delayed(square)(number) for number in range(2))


def test_threads_of_a_managed_parallel_count_too() -> None:
    with Parallel(n_jobs=1, backend="mpms", threads=4) as parallel:
        assert os.getpid() not in parallel(delayed(os.getpid)() for _ in range(2))


def test_inner_max_num_threads_bounds_native_threads() -> None:
    with parallel_config(backend="mpms", n_jobs=2, inner_max_num_threads=3):
        assert set(Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2))) == {"3"}
    with parallel_config(backend="mpms", n_jobs=joblib.cpu_count() * 2):
        assert set(Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2))) == {"1"}


def test_the_environment_decides_on_native_threads_where_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with parallel_config(backend="mpms", n_jobs=2):
        assert set(Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2))) == {"7"}


def test_calls_within_calls_run_in_threads_of_the_worker_and_those_within_one_after_the_other() -> None:
    def outer(number: int) -> tuple[list[Any], int]:
        return Parallel(n_jobs=2)(delayed(inner)(number) for _ in range(2)), os.getpid()

    def inner(number: int) -> tuple[int, bool, list[int]]:
        innermost = Parallel(n_jobs=2)(delayed(threading.get_ident)() for _ in range(2))
        mine = threading.get_ident()
        return os.getpid(), threading.current_thread() is not threading.main_thread(), [id - mine for id in innermost]

    with parallel_config(backend="mpms", n_jobs=2):
        for inners, pid in Parallel()(delayed(outer)(number) for number in range(2)):
            assert pid != os.getpid()
            assert inners == [(pid, True, [0, 0])] * 2


# Streams


@pytest.mark.parametrize("order", ["generator", "generator_unordered"])
def test_results_come_one_by_one_where_that_is_asked_for(order: str, stage: Stage) -> None:
    def work(number: int) -> int:
        if number == 3:
            stage.wait()
        return number

    with parallel_config(backend="mpms", n_jobs=2):
        results = Parallel(return_as=order, batch_size=1)(delayed(work)(number) for number in range(6))
        first = [next(results) for _ in range(3 if order == "generator" else 5)]
        assert sorted(first) == ([0, 1, 2] if order == "generator" else [0, 1, 2, 4, 5])
        stage.open()
        assert sorted(first + list(results)) == list(range(6))


def test_a_generator_that_is_dropped_ends_what_runs(stage: Stage) -> None:
    def work(number: int) -> object:
        return stage.say_and_wait(os.getpid()) if number else number

    with parallel_config(backend="mpms", n_jobs=2):
        results = Parallel(return_as="generator", batch_size=1)(delayed(work)(number) for number in range(6))
        assert next(results) == 0
        pids = [int(pid) for pid in stage.hear(2)]
        with pytest.warns(UserWarning, match="tasks"):
            results.close()
        assert still_alive(pids, PATIENCE) == []


def test_no_more_is_read_than_pre_dispatch_says(stage: Stage) -> None:
    read = itertools.count()

    def source() -> Iterator[Any]:
        for number in range(50):
            next(read)
            yield delayed(work)(number)

    def work(number: int) -> object:
        return stage.say_and_wait(number) if number < 2 else number

    def look() -> None:
        stage.hear(2)
        so_far.append(next(read))
        stage.open()

    so_far = list[int]()
    looker = threading.Thread(target=look)
    looker.start()
    with parallel_config(backend="mpms", n_jobs=2):
        assert Parallel(pre_dispatch="2*n_jobs", batch_size=1)(source()) == list(range(50))
    looker.join()
    assert so_far == [4]


# Workers


def test_workers_stay_for_all_calls_within_one_parallel_config(stage: Stage) -> None:
    def meet_the_other() -> object:
        return stage.say_and_wait(os.getpid())

    def let_them_go() -> None:
        stage.hear(2)
        stage.open()

    opener = threading.Thread(target=let_them_go)
    opener.start()
    with parallel_config(backend="mpms", n_jobs=2):
        both = set(Parallel(batch_size=1)(delayed(meet_the_other)() for _ in range(2)))
        assert len(both) == 2
        for _ in range(3):
            assert set(Parallel()(delayed(os.getpid)() for _ in range(20))) <= both
        others = Parallel(n_jobs=3)(delayed(os.getpid)() for _ in range(20))
        assert not both & set(others)
    opener.join()


def test_a_call_of_its_own_leaves_no_workers() -> None:
    pids = Parallel(n_jobs=2, backend="mpms")(delayed(os.getpid)() for _ in range(20))
    seconds = PATIENCE if HAS_GIL else 0.1  # at a time
    assert is_freed(lambda: not still_alive(sorted(set(pids)), seconds))


def test_without_joblib_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['joblib'] = None; import mpms.joblib"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (
        done.stderr.splitlines()[-1]
        == "ImportError: mpms.joblib needs joblib, 1.5 or newer: pip install 'mpms[joblib]'"
    )


def test_a_stopped_executor_is_no_hang(stage: Stage) -> None:
    """Somebody stops the workers for good, while a call is under way."""

    def stop(backends: Callable[[], Any]) -> None:
        stage.hear(2)
        [executor] = [one for one in backends() if not any(one is old for old in before)]
        executor.kill_workers()

    def executors() -> list[Any]:
        return [thing for thing in gc.get_objects() if isinstance(thing, mpms.Executor)]

    stopper = threading.Thread(target=stop, args=(executors,))
    before = executors()  # whoever else still has one
    stopper.start()
    with parallel_config(backend="mpms", n_jobs=2), pytest.raises(CancelledError):
        Parallel(batch_size=1)(delayed(stage.say_and_wait)(number) for number in range(6))
    stopper.join()
