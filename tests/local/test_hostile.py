"""Tasks that do what they can to harm their worker: the outcome is theirs, the pool goes on, nothing is left."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mpms import MPMS, RemoteWorkerError, TaskTimeout, WorkerCrashed, WorkerGracefulDie

from .helpers import (
    Stopwatch,
    announce_and_hold_the_gil,
    at_full_strength,
    hold_the_gil,
    meet,
    meeting,
    pids,
    promised,
    results,
    still_alive,
    until,
    with_gil,
)


def call(word: int, function: Callable[..., Any] | None = None, *args: Any) -> Any:
    return word if function is None else function(*args)


def run(method: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The outcome of one such task among twenty others, which all must have their results."""
    options = {
        "processes": 2,
        "threads": 2,
        "start_method": method,
        "task_timeout": 30,
        "retries": 0,
        **options,
    }
    with MPMS(call, **options) as pool:
        for word in range(10):
            pool.put(word)
        until(lambda: pool.finish_count == 10)
        pool.put(10, function, *args)
        until(lambda: pool.finish_count == 11)
        for word in range(11, 21):
            pool.put(word)
        pool.close()
        got = results(pool)
        assert pool.stats().zombies == 0
    outcome = got.pop(10)
    assert got == {word: word for word in range(21) if word != 10}
    return outcome


# Descriptors


def close_all_descriptors() -> str:
    os.closerange(0, 65_536)
    return "done"


def close_descriptors_and_open_others() -> str:
    os.closerange(3, 65_536)
    for _ in range(700):
        os.open(os.devnull, os.O_RDWR)
    return "done"


def close_one_by_one() -> str:
    for name in os.listdir("/proc/self/fd"):
        try:
            os.close(int(name))
        except OSError:
            pass
    return "done"


@pytest.mark.parametrize("function", [close_all_descriptors, close_descriptors_and_open_others, close_one_by_one])
def test_a_task_that_closes_all_descriptors_costs_itself_and_its_worker(
    any_method: str, function: Callable[..., Any]
) -> None:
    outcome = run(any_method, function)
    assert isinstance(outcome, WorkerCrashed)
    assert outcome.exitcode is not None


def resize_files_of_memory(size: int) -> int:
    """All that the worker has, and how many that were."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{name}"
        if os.path.exists(link) and os.readlink(link).startswith("/memfd:"):
            try:
                os.ftruncate(int(name), size)
            except PermissionError:
                pass
            count += 1
    return count


def resize_files_of_memory_and_crash(size: int) -> None:
    resize_files_of_memory(size)
    os.abort()


def test_a_task_that_cuts_off_what_its_worker_shares_with_the_parent_does_not_end_that(any_method: str) -> None:
    """To look at memory that isn't there any more ends a process."""
    assert run(any_method, resize_files_of_memory, 0, processes=1) >= 2


@pytest.mark.parametrize("size", [0, 1 << 50])
def test_a_worker_that_has_resized_its_files_crashes_as_others_do(any_method: str, size: int) -> None:
    outcome = run(any_method, resize_files_of_memory_and_crash, size)
    assert isinstance(outcome, WorkerCrashed)
    assert outcome.exitcode == -signal.SIGABRT
    assert size or "resize_files_of_memory_and_crash" in outcome.stack


def redirect_stdout_to_a_closed_pipe() -> str:
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    os.close(reading)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stdout.write("nobody will read this")
    return "done"


def close_the_standard_streams() -> str:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
    return "done"


def forget_the_standard_streams() -> str:
    sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]
    return "done"


@pytest.mark.parametrize(
    "function", [redirect_stdout_to_a_closed_pipe, close_the_standard_streams, forget_the_standard_streams]
)
def test_the_standard_streams_are_the_task_s_to_spoil(method: str, function: Callable[..., Any]) -> None:
    assert run(method, function, processes=1) == "done"


# Forks


def fork_and_return(address: str) -> str:
    if os.fork() == 0:
        meet(address, "child")
        return "the child's"
    return "the parent's"


def fork_and_raise(address: str) -> str:
    if os.fork() == 0:
        meet(address, "child")
        raise ValueError("the child's")
    return "the parent's"


def fork_and_exit(address: str) -> int:
    child = os.fork()
    if child == 0:
        meet(address, "child")
        sys.exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_and_exit_at_once() -> str:
    if os.fork() == 0:
        os._exit(7)
    return "the parent's"


@pytest.mark.parametrize("function", [fork_and_return, fork_and_raise])
def test_a_forked_child_that_comes_back_from_the_task_ends_there(any_method: str, function: Callable[..., Any]) -> None:
    """The child is no worker: it reports nothing, takes no task, and doesn't wait for one either."""
    with meeting() as place, MPMS(call, processes=1, threads=3, start_method=any_method) as pool:
        for word in range(5):
            pool.put(word, function, place.address)
        children = place.arrivals(5)
        until(lambda: pool.finish_count == 5)
        worker = min(pids(pool))
        for child in children:
            child.release()
        assert still_alive([child.pid for child in children], promised(5)) == []
        assert at_full_strength(pool) == {worker}
        assert pool.stats().crashes == {}
        for word in range(5, 20):
            pool.put(word)
        pool.close()
        got = results(pool)
    assert {word: got[word] for word in range(5)} == dict.fromkeys(range(5), "the parent's")
    assert {word: got[word] for word in range(5, 20)} == {word: word for word in range(5, 20)}


def test_a_forked_child_that_comes_back_does_not_mark_the_task_of_its_parent_as_done(method: str) -> None:
    """The status board is shared memory: a child that wrote to it would hide that the parent still runs."""
    with meeting() as place, MPMS(call, processes=1, threads=1, start_method=method) as pool:
        pool.put(1, fork_and_go_on, place.address)
        guests = {guest.word: guest for guest in place.arrivals(2)}
        guests["child"].release()
        assert still_alive([guests["child"].pid], promised(5)) == []
        running = [run.task for info in pool.workers() for run in info.running]
        assert running == [1]
        os.kill(guests["parent"].pid, signal.SIGKILL)
        pool.close()
        error = results(pool)[1]
    assert isinstance(error, WorkerCrashed)
    assert "while it ran task" in str(error)  # and not after it had run: the board says which


def fork_and_go_on(address: str) -> object:
    return meet(address, "child" if os.fork() == 0 else "parent")


def test_the_exit_code_of_a_forked_child_that_leaves_by_sys_exit_is_its_own(method: str) -> None:
    with meeting() as place, MPMS(call, processes=1, threads=2, start_method=method) as pool:
        pool.put(1, fork_and_exit, place.address)
        place.arrive().release()
        pool.close()
        assert results(pool) == {1: 7}


def test_a_forked_child_that_exits_concerns_nobody(any_method: str) -> None:
    assert run(any_method, fork_and_exit_at_once) == "the parent's"


def fork_and_live_on(address: str) -> int:
    child = os.fork()
    if child == 0:
        meet(address, "child")
        os._exit(0)
    return child


def start_a_program() -> int:
    return subprocess.Popen(["sleep", "600"]).pid


def test_what_a_task_leaves_running_ends_with_its_worker(any_method: str) -> None:
    with meeting() as place, MPMS(call, processes=2, threads=1, start_method=any_method) as pool:
        pool.put(1, fork_and_live_on, place.address)
        pool.put(2, start_a_program)
        pool.put(3)
        child = place.arrive()
        pool.close()
        got = results(pool)
        assert got[1] == child.pid
        assert got[3] == 3
        pool.join()
        assert child.is_gone(promised(1))
        assert still_alive([got[1], got[2]], promised(1)) == []


def test_what_a_task_has_forked_ends_with_its_killed_worker(any_method: str) -> None:
    with meeting() as place, MPMS(call, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(1, fork_and_live_on, place.address)
        pool.put(2, start_a_program)
        child = place.arrive()
        until(lambda: pool.finish_count == 2)
        os.kill(min(pids(pool)), signal.SIGKILL)
        assert child.is_gone(promised(1))
        pool.close()
        assert still_alive([results(pool)[2]], promised(1)) == []


def kill_the_own_group() -> None:
    os.killpg(0, signal.SIGKILL)


def test_a_task_that_kills_its_group_kills_its_worker_only(any_method: str) -> None:
    outcome = run(any_method, kill_the_own_group)
    assert isinstance(outcome, WorkerCrashed)
    assert outcome.exitcode == -signal.SIGKILL


# Threads, signals, settings


def leave_a_thread(address: str) -> str:
    threading.Thread(target=meet, args=(address,), daemon=False).start()
    return "done"


def test_a_thread_that_a_task_leaves_does_not_keep_the_pool_from_ending(any_method: str) -> None:
    with meeting() as place:
        with Stopwatch() as watch:
            with MPMS(call, processes=1, threads=1, start_method=any_method) as pool:
                pool.put(1, leave_a_thread, place.address)
                place.arrive()
                pool.close()
                assert results(pool) == {1: "done"}
        assert watch.seconds < promised(5)


def end_a_thread_by_exit() -> str:
    thread = threading.Thread(target=lambda: os._exit(3))
    thread.start()
    thread.join()
    return "not reached"


def test_an_exit_in_a_thread_of_the_task_s_is_a_crash(method: str) -> None:
    outcome = run(method, end_a_thread_by_exit)
    assert isinstance(outcome, WorkerCrashed)
    assert outcome.exitcode == 3


def ignore_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass


def block_signals() -> str:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    return "done"


def change_a_handler() -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "not reached: a thread that is not the main one can't"


def raise_limits_and_settings() -> str:
    socket.setdefaulttimeout(0.01)
    sys.setrecursionlimit(150)
    sys.setswitchinterval(1.0)
    threading.stack_size(65_536)
    os.chdir("/")
    os.environ.clear()
    os.umask(0o777)
    sys.path.clear()
    logging.disable()
    return "done"


def test_a_task_can_t_change_handlers_of_signals_and_says_so(method: str) -> None:
    assert isinstance(run(method, change_a_handler), ValueError)


@pytest.mark.parametrize("function", [block_signals, raise_limits_and_settings])
def test_settings_that_a_task_leaves_behind_do_not_disturb_the_pool(
    any_method: str, function: Callable[..., Any]
) -> None:
    assert run(any_method, function, processes=1) == "done"


def test_a_worker_whose_initializer_ignores_all_signals_is_still_stopped_in_time(any_method: str) -> None:
    with MPMS(
        call,
        processes=1,
        threads=2,
        start_method=any_method,
        process_initializer=ignore_signals,
        task_timeout=0.5,
        worker_graceful_die_timeout=0.2,
    ) as pool:
        pool.put(1, hold_the_gil)
        with Stopwatch() as watch:
            pool.close()
            assert isinstance(results(pool)[1], TaskTimeout)
    assert watch.seconds < promised(6)


def test_a_default_timeout_of_sockets_does_not_reach_the_sockets_of_the_pool(method: str) -> None:
    """Neither the parent's, nor one that a task has set: the threads wait for tasks for longer than that."""
    with meeting() as place:
        socket.setdefaulttimeout(0.01)
        try:
            with MPMS(call, processes=1, threads=2, start_method=method) as pool:
                pool.put(1, socket.setdefaulttimeout, 0.01)
                until(lambda: pool.finish_count == 1)
                pool.put(2, meet, place.address)
                guest = place.arrive()
                assert not guest.is_gone(0.1)  # ten times that long nothing happens on any socket of the pool
                guest.release()
                for word in range(3, 20):
                    pool.put(word)
                pool.close()
                assert results(pool) == {1: None, 2: None, **{word: word for word in range(3, 20)}}
                assert pool.stats().starts == 1
        finally:
            socket.setdefaulttimeout(None)


def give_a_large_result(address: str) -> bytes:
    socket.setdefaulttimeout(30)
    meet(address, "large")
    return bytes(100_000_000)


def ask_for_the_end(address: str) -> None:
    meet(address, "end")
    raise WorkerGracefulDie


def test_a_default_timeout_of_sockets_does_not_tear_the_result_that_is_written_when_a_worker_retires(
    method: str,
) -> None:
    """Descriptors are shared by threads: to make a socket of one in the wrong way changes it for the one who writes."""
    with meeting() as place, MPMS(call, processes=1, threads=2, start_method=method) as pool:
        pool.put(1, give_a_large_result, place.address)
        pool.put(2, ask_for_the_end, place.address)
        guests = {guest.word: guest for guest in place.arrivals(2)}
        guests["large"].release()
        guests["end"].release()
        pool.close()
        got = results(pool)
    assert isinstance(got[2], WorkerGracefulDie)
    assert got[1] == bytes(100_000_000)


# Exceptions and values


class Unusual(BaseException):
    pass


class Unpicklable(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(one)


def throw(error: BaseException) -> None:
    raise error


def throw_what_unpickles_badly() -> None:
    raise Unpicklable(1, 2)


def give(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        SystemExit(),
        KeyboardInterrupt(),
        GeneratorExit(),
        Unusual("x"),
        StopIteration(7),
        StopAsyncIteration(),
        MemoryError(),
        RecursionError(),
        TimeoutError("its own"),
    ],
    ids=repr,
)
def test_whatever_a_task_raises_is_its_outcome_and_its_worker_goes_on(method: str, error: BaseException) -> None:
    with MPMS(call, processes=1, threads=2, start_method=method) as pool:
        for word in range(4):
            pool.put(word, throw, error)
        for word in range(4, 8):
            pool.put(word)
        pool.close()
        got = results(pool)
        assert pool.stats().starts == 1
        assert (pool.stats().done, pool.stats().failed) == (4, 4)
    assert [(type(got[word]), got[word].args) for word in range(4)] == [(type(error), error.args)] * 4
    assert "in throw" in str(got[0].__cause__)
    assert {word: got[word] for word in range(4, 8)} == {word: word for word in range(4, 8)}


@pytest.mark.parametrize(
    "value",
    [StopIteration, ValueError("a value"), SystemExit(3), KeyboardInterrupt(), StopIteration(1), Exception],
    ids=repr,
)
def test_an_exception_that_is_returned_is_a_value(any_method: str, value: Any) -> None:
    with MPMS(call, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(1, give, value)
        pool.close()
        result = results(pool)[1]
        assert (pool.stats().done, pool.stats().failed) == (1, 0)
    if isinstance(value, type):
        assert result is value
    else:
        assert (type(result), result.args) == (type(value), value.args)
        assert result.__cause__ is None  # nobody has raised it


def test_an_exception_that_does_not_unpickle_arrives_as_a_stand_in(method: str) -> None:
    outcome = run(method, throw_what_unpickles_badly)
    assert isinstance(outcome, RemoteWorkerError)
    assert "mpms_unpickleable_result" in str(outcome)
    assert "throw_what_unpickles_badly" in str(outcome)


def interrupt_the_main_thread() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "done"


def test_an_interrupt_that_reaches_a_worker_changes_nothing(any_method: str) -> None:
    """The terminal sends it to the whole group of a pool that a script runs; it is the parent's to answer."""
    assert run(any_method, interrupt_the_main_thread, processes=1) == "done"


# Hangs


def hang_in_a_write(address: str) -> None:
    announce_and_hold_the_gil(address)


def hang_in_a_wait(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address.replace("@", "\0"))
        os.dup2(sock.fileno(), 1)
    ctypes.PyDLL(None).system(b"echo '[0, 0]'; exec sleep 600")


@with_gil
@pytest.mark.parametrize("function", [hang_in_a_write, hang_in_a_wait])
def test_a_task_that_hangs_with_the_gil_held_times_out_with_its_stack(
    any_method: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.core.policy.DUMP_SECONDS", 2.0)  # on a busy machine the stacks come late
    with Stopwatch() as watch:
        with (
            meeting() as place,
            MPMS(call, processes=2, threads=2, start_method=any_method, worker_graceful_die_timeout=0.5) as pool,
        ):
            pool.put_with((0, function, place.address), timeout=0.5)
            place.arrive()  # the GIL is held: no other task gets to start there, and to hang with it
            for word in range(1, 20):
                pool.put(word)
            pool.close()
            got = results(pool)
    error = got.pop(0)
    assert isinstance(error, TaskTimeout)
    assert function.__name__ in error.stack
    assert "in call" in error.stack
    assert got == {word: word for word in range(1, 20)}
    assert watch.seconds < promised(6)


def test_a_sibling_of_one_that_hangs_with_the_gil_held_is_not_blamed(method: str) -> None:
    with (
        meeting() as place,
        MPMS(
            call,
            processes=1,
            threads=2,
            start_method=method,
            task_timeout=1.0,
            worker_graceful_die_timeout=0.2,
        ) as pool,
    ):
        pool.put_with((0, meet, place.address), timeout=60)
        place.arrive()
        pool.put(1, hold_the_gil)
        pool.close()
        got = results(pool)
    assert isinstance(got[1], TaskTimeout)
    assert isinstance(got[0], WorkerCrashed)
    assert got[0].blamed is False


def test_a_hang_with_the_gil_held_does_not_delay_a_shutdown(any_method: str) -> None:
    with meeting() as place, MPMS(call, processes=2, threads=2, start_method=any_method) as pool:
        pool.put(0, meet, place.address)
        place.arrive()
        for word in range(1, 8):
            pool.put(word, hold_the_gil)
        until(lambda: pool.stats().queued == 0 or pool.stats().running >= 4)
        with Stopwatch() as watch:
            assert pool.graceful_shutdown(0.3) is False
        assert watch.seconds < promised(0.8)
        pool.join()  # it returns in time though somebody may not be seen to have ended
        assert len(pool.unfinished()) == 8
