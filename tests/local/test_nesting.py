"""A pool in a pool, in any process and thread; forks of the user's; tasks that start processes themselves."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpms import MPMS, WorkerCrashed

from .helpers import PATIENCE, at_full_strength, meet, meeting, note, noted, program, promised, still_alive, until

_SECONDS = 60.0
"""For what takes a second or two on a machine with nothing else to do."""


def square(number: int) -> int:
    return number * number


def squares(count: int, start_method: Any = None) -> int:
    """A pool of its own."""
    with MPMS(square, processes=2, threads=2, start_method=start_method) as pool:
        for number in range(count):
            pool.put(number)
        pool.close()
        return sum(result for _, result in pool.iter_results())


def sum_of_squares(count: int) -> int:
    return sum(number * number for number in range(count))


# In a pool


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("forkserver", "forkserver"),
        ("forkserver", "fork"),
        ("fork", "forkserver"),
        ("fork", "spawn"),
        ("spawn", "fork"),
    ],
)
def test_a_task_may_have_a_pool_of_its_own(outer: Any, inner: str) -> None:
    with MPMS(squares, processes=1, threads=2, start_method=outer) as pool:
        pool.put(10, inner)
        pool.put(20, inner)
        pool.close()
        got = {meta.args[0]: result for meta, result in pool.iter_results()}
    assert got == {10: sum_of_squares(10), 20: sum_of_squares(20)}


def deeper(depth: int) -> int:
    if not depth:
        return 1
    with MPMS(deeper, processes=1, threads=1) as pool:
        pool.put(depth - 1)
        pool.close()
        ((_, result),) = pool.iter_results()
        return result + 1


def test_pools_nest_deeper(method: str) -> None:
    with MPMS(deeper, processes=1, threads=1, start_method=method) as pool:
        pool.put(2)
        pool.close()
        assert [result for _, result in pool.iter_results()] == [3]


_kept: list[MPMS] = []


def leave_a_pool_behind(address: str, how: str) -> tuple[int, list[int]]:
    """Two busy workers and their fork server."""
    pool = MPMS(meet, processes=2, threads=1)
    _kept.append(pool)
    pool.put(address, 1)
    pool.put(address, 2)
    family = [*at_full_strength(pool), psutil.Process(min(at_full_strength(pool))).ppid()]
    if how == "dies":
        meet(address, [os.getpid(), family])
        os._exit(3)
    return os.getpid(), family


@pytest.mark.parametrize("how", ["ends", "dies", "is killed"])
def test_a_nested_pool_that_is_not_joined_ends_with_its_worker(method: str, how: str) -> None:
    with meeting() as place:
        with MPMS(leave_a_pool_behind, processes=1, threads=1, start_method=method) as pool:
            pool.put(place.address, how)
            if how == "dies":
                guests = place.arrivals(3)
                (guest,) = (guest for guest in guests if isinstance(guest.word, list))
                worker, family = guest.word
                guest.release()
                ((_, error),) = [next(pool.iter_results())]
                assert isinstance(error, WorkerCrashed)
            else:
                worker, family = next(pool.iter_results())[1]
                place.arrivals(2)
                if how == "is killed":
                    os.kill(worker, signal.SIGKILL)
            if how != "ends":
                assert still_alive([worker, *family], promised(5)) == []
        assert still_alive([worker, *family], promised(5)) == []
        assert len(family) == 3


# In other processes and threads


SPAWNED = """
import multiprocessing

class Pair:
    def __init__(self, half):
        self.both = half, half

def pair(half):
    return Pair(half)

def child(writer, method):
    with MPMS(pair, processes=1, threads=1, start_method=method) as pool:
        pool.put(3)
        pool.close()
        [(_, result)] = pool.iter_results()
    with Executor(1, start_method=method) as executor:
        writer.send((result.both, type(result) is Pair, executor.submit(pair, Pair).result().both[0] is Pair))

if __name__ == "__main__":
    spawning = multiprocessing.get_context("spawn")
    reader, writer = spawning.Pipe(duplex=False)
    process = spawning.Process(target=child, args=(writer, sys.argv[1]))
    process.start()
    print(reader.recv())
    process.join()
"""


def test_what_a_script_defines_works_in_a_process_that_multiprocessing_has_spawned(
    any_method: str, tmp_path: Path
) -> None:
    """There the script is called ``__mp_main__``."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom mpms import MPMS, Executor\n" + SPAWNED)
    command = [sys.executable, script, any_method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.stdout.strip() == "((3, 3), True, True)", done.stderr


@pytest.mark.parametrize(
    ("context", "inner"), [("fork", "forkserver"), ("fork", "fork"), ("fork", "spawn"), ("spawn", "forkserver")]
)
def test_a_daemonic_child_of_multiprocessing_may_have_a_pool(context: str, inner: str) -> None:
    """Which may have no children by multiprocessing's own means."""
    spawning = multiprocessing.get_context(context)
    reader, writer = spawning.Pipe(duplex=False)
    child = spawning.Process(target=send_squares, args=(writer, inner), daemon=True)
    child.start()
    writer.close()
    with reader:
        assert reader.poll(_SECONDS)
        assert reader.recv() == sum_of_squares(10)
    child.join(PATIENCE)
    assert child.exitcode == 0
    child.close()


def send_squares(writer: Any, method: str) -> None:
    assert multiprocessing.current_process().daemon
    writer.send(squares(10, method))
    writer.close()


def test_a_task_of_a_process_pool_executor_may_have_a_pool(method: str) -> None:
    with program(
        """
        import concurrent.futures, multiprocessing
        from tests.local.test_nesting import squares, sum_of_squares
        if __name__ == "__main__":
            for way in ("fork", "spawn"):
                context = multiprocessing.get_context(way)
                with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
                    futures = [executor.submit(squares, count, sys.argv[1]) for count in (5, 10)]
                    assert [future.result(60) for future in futures] == [sum_of_squares(n) for n in (5, 10)]
                say(way)
        """,
        method,
    ) as script:
        script.says("fork")
        script.says("spawn")
        assert script.ends(_SECONDS) == (0, "", "")


def test_pools_in_many_threads_at_once_do_not_disturb_each_other(any_method: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        futures = [executor.submit(squares, count, any_method) for count in (40, 50, 60, 70)]
        got = [future.result(_SECONDS) for future in futures]
    assert got == [sum_of_squares(count) for count in (40, 50, 60, 70)]


def test_a_pool_may_be_started_used_and_joined_in_different_threads(method: str) -> None:
    pool = MPMS(square, processes=1, threads=2, start_method=method)
    got: list[int] = []

    def in_a_thread(function: Any, *args: Any) -> None:
        thread = threading.Thread(target=function, args=args)
        thread.start()
        thread.join(_SECONDS)
        assert not thread.is_alive()

    in_a_thread(pool.start)
    # The thread that has started it has ended: a parent-death signal follows threads, and nobody may die of that.
    pool.put(1)
    in_a_thread(pool.put, 2)
    in_a_thread(pool.close)
    in_a_thread(lambda: got.extend(result for _, result in pool.iter_results()))
    in_a_thread(pool.join)
    assert sorted(got) == [1, 4]
    assert (pool.stats().starts, pool.stats().failed) == (1, 0)


def test_two_pools_side_by_side_share_nothing(any_method: str) -> None:
    with (
        MPMS(square, processes=1, threads=1, start_method=any_method) as one,
        MPMS(str, processes=1, threads=1, start_method=any_method) as other,
    ):
        before = at_full_strength(other)
        os.kill(min(at_full_strength(one)), signal.SIGKILL)
        one.put(3)
        other.put(3)
        assert next(one.iter_results())[1] == 9
        assert next(other.iter_results())[1] == "3"
        assert at_full_strength(other) == before


def collect_into_another(method: str) -> list[int]:
    got: list[int] = []
    with MPMS(square, lambda _, result: got.append(result), processes=1, threads=1, start_method=method) as second:
        with MPMS(square, lambda _, result: second.put(result), processes=1, threads=1, start_method=method) as first:
            for number in range(20):
                first.put(number)
    return sorted(got)


def test_the_results_of_one_pool_may_be_the_tasks_of_another(method: str) -> None:
    assert collect_into_another(method) == [number**4 for number in range(20)]


# A fork of the user's

FORKS = """
import warnings
from tests.local.helpers import at_full_strength, results
from tests.local.test_nesting import square
pool = MPMS(square, processes=2, threads=1, start_method=sys.argv[1])
pool.put(1)
before = at_full_strength(pool)
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: to fork beside threads is what this is about
child = os.fork()
if not child:
    try:
        pool.put(2)
    except RuntimeError:
        note(sys.argv[3], "refused")
    for method in (pool.close, lambda: len(pool), pool.stats, pool.workers, pool.running_tasks.items):
        method()
    note(sys.argv[3], "still here")
    if sys.argv[2] == "os._exit":
        os._exit(0)
    elif sys.argv[2] == "sys.exit":
        sys.exit(0)
    else:
        with MPMS(square, processes=1, threads=1, start_method=sys.argv[1]) as own:
            own.put(3)
            own.close()
            note(sys.argv[3], results(own))
        sys.exit(0)
assert os.waitpid(child, 0) == (child, 0)
say("child ended")
for number in range(2, 10):
    pool.put(number)
pool.close()
assert results(pool) == {number: number * number for number in range(1, 10)}
pool.join()
assert pool.stats().starts == 2
say("parent ended")
"""


@pytest.mark.parametrize(
    ("start_method", "how"),
    [
        *(("forkserver", how) for how in ("os._exit", "sys.exit", "a pool of its own")),
        *(("fork", how) for how in ("sys.exit", "a pool of its own")),
        ("spawn", "sys.exit"),
    ],
)
def test_a_pool_stays_with_the_parent_when_the_user_forks(start_method: str, how: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with program(FORKS, start_method, how, log) as script:
        script.says("child ended")
        script.says("parent ended")
        assert script.ends(_SECONDS) == (0, "", "")
        assert script.left_after(promised(2)) == []
    assert noted(log) == ["refused", "still here", *(["{3: 9}"] if how == "a pool of its own" else [])]


def test_a_forked_child_that_outlives_the_parent_keeps_no_worker_alive(method: str, tmp_path: Path) -> None:
    """It has copies of the sockets; nobody may wait for their end."""
    with meeting() as place:
        with program(
            """
            from tests.local.helpers import at_full_strength
            pool = MPMS(meet, processes=1, threads=1, start_method=sys.argv[1])
            pool.put(sys.argv[2], "task")
            at_full_strength(pool)
            if not os.fork():
                meet(sys.argv[2], "child")
                os._exit(0)
            signal.pause()
            """,
            method,
            place.address,
        ) as script:
            guests = {guest.word: guest for guest in place.arrivals(2)}
            os.kill(script.pid, signal.SIGKILL)
            assert guests["task"].is_gone(promised(5))
            assert still_alive([guests["child"].pid], 0) != []
            guests["child"].release()


# Tasks that start processes


def reply(connection: Any, number: int) -> None:
    connection.send((number * 2, multiprocessing.parent_process().pid))
    connection.close()


def by_multiprocessing(number: int, way: str) -> tuple[int, int, int | None]:
    context = multiprocessing.get_context(way)
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=reply, args=(writer, number))
    child.start()
    writer.close()
    with reader:
        value, parent = reader.recv()
    child.join()
    # In multiprocessing another thread that starts a process may have reaped it just now, and says so a moment later.
    until(lambda: child.exitcode is not None)
    return value, parent - os.getpid(), child.exitcode


def by_subprocess(number: int, _: str) -> tuple[int, int, int | None]:
    code = f"import os; print({number} * 2, os.getppid())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    value, parent = map(int, done.stdout.split())
    return value, parent - os.getpid(), done.returncode


def by_fork(number: int, _: str) -> tuple[int, int, int | None]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, f"{number * 2} {os.getppid()}".encode())
        os._exit(7)
    os.close(writer)
    value, parent = map(int, os.read(reader, 100).split())
    os.close(reader)
    return value, parent - os.getpid(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - 7


@pytest.mark.parametrize(
    ("worker", "way"),
    [
        (by_multiprocessing, "fork"),
        (by_multiprocessing, "spawn"),
        (by_multiprocessing, "forkserver"),
        (by_subprocess, "subprocess"),
        (by_fork, "os.fork"),
    ],
)
def test_a_task_may_start_processes_and_wait_for_them(any_method: str, worker: Any, way: str) -> None:
    if any_method == "spawn" and worker is not by_fork:
        pytest.skip("a spawned worker differs in what it has inherited; and this is slow")
    with MPMS(worker, processes=1, threads=2, start_method=any_method) as pool:
        for number in range(2):
            pool.put(number, way)
        pool.close()
        got = {meta.args[0]: result for meta, result in pool.iter_results()}
        assert pool.stats().starts == 1
    assert got == {number: (number * 2, 0, 0) for number in range(2)}


BOTH_HAVE_A_FORK_SERVER = """
from multiprocessing import forkserver
from tests.local.test_nesting import by_multiprocessing
forkserver.ensure_running()
with MPMS(by_multiprocessing, processes=1, threads=1, start_method="fork") as pool:
    pool.put(1, "forkserver")
    pool.close()
    say([result for _, result in pool.iter_results()])
"""


def test_a_task_may_have_a_fork_server_of_multiprocessing_though_the_parent_has_one() -> None:
    with program(BOTH_HAVE_A_FORK_SERVER) as script:
        script.says("[(2, 0, 0)]")
        assert script.ends(_SECONDS) == (0, "", "")


def fork_and_return(number: int, log: str) -> int:
    """The child comes back from the task as well."""
    if not os.fork():
        note(log, os.getpid())
        return -1
    return number


def test_a_child_that_returns_from_its_task_is_not_heard_and_ends(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "children")
    with MPMS(fork_and_return, processes=1, threads=1, start_method=method) as pool:
        for number in range(5):
            pool.put(number, log)
        outcomes = pool.iter_results()
        assert sorted(next(outcomes)[1] for _ in range(5)) == list(range(5))
        # Before the worker ends: what it has forked would end with it.
        children = until(lambda: len(noted(log)) == 5 and list(map(int, noted(log))))
        assert still_alive(children, promised(5)) == []
