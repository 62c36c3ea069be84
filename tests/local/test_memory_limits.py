"""Memory: who holds too much is replaced, or killed with figures; and none is handed out that the machine hasn't."""

from __future__ import annotations

import io
import logging
import mmap
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from mpms import MPMS, TaskCancelled, WorkerCrashed
from mpms.local import memory, memory_watch
from mpms.local.launcher import Launcher, Report
from mpms.local.memory_watch import MemoryWatch

from .helpers import announce, meet, meeting, note, noted, results, until

_kept: list[bytes] = []


def keep(megabytes: int) -> None:
    """As a leak does it: pages that are written to, and never freed."""
    _kept.append(b"x" * (megabytes * 1_000_000))


def grow(word: object, megabytes: int = 0, address: str = "") -> object:
    keep(megabytes)
    return meet(address, word) if address else word


def test_above_the_hard_limit_a_worker_is_killed_and_the_error_has_the_figures(any_method: str) -> None:
    with (
        meeting() as place,
        MPMS(grow, processes=1, threads=1, start_method=any_method, max_memory_hard="100MB") as pool,
    ):
        pool.put("small", 1)
        pool.put("large", 250, place.address)
        pool.put("after")
        pool.close()
        got = results(pool)
        assert pool.stats().crashes == {"memory": 1}
    assert (got["small"], got["after"]) == ("small", "after")
    error = got["large"]
    assert type(error) is WorkerCrashed
    assert (error.signal, error.oom_killed) == ("SIGKILL", False)
    match = re.search(
        r"was killed by the pool \(memory: it held (\d+) MB, (\d+) MB more than at its start, "
        r"above max_memory_hard of 100 MB\) while it ran task 2 \('large'",
        str(error),
    )
    assert match is not None, str(error)
    held, more = map(int, match.groups())
    assert 100 < more < held  # a fork of this process holds all that the tests have imported
    assert more < 400
    # It may have been looked at while it still took more: what it held then is no more than it ever held.
    assert error.peak_memory is not None
    assert held * 1e6 < error.peak_memory * 1.01
    assert "the kernel" not in str(error)


def test_with_retries_the_task_that_grows_is_found_and_its_siblings_are_not_lost(method: str) -> None:
    with (
        meeting() as place,
        MPMS(come_and_grow, processes=1, threads=2, start_method=method, max_memory_hard="100MB", retries=1) as pool,
    ):
        pool.put("small", 1, place.address)
        place.arrive()
        pool.put("large", 250, place.address)
        place.arrive()
        small = place.arrive()  # and then both again, each in turn
        assert small.word == "small"
        small.release()
        pool.close()
        got = results(pool)
    assert got["small"] == "small"
    assert type(got["large"]) is WorkerCrashed
    assert got["large"].blamed is True
    assert "memory: it held" in str(got["large"])
    assert "memory: it held" in str(got["large"].attempts[0])


def come_and_grow(word: object, megabytes: int, address: str) -> object:
    """A look may come, and end it, while it still takes more."""
    with announce(address, word) as sock:
        keep(megabytes)
        sock.recv(1)
    return word


@pytest.mark.parametrize("told_late", [False, True])
def test_what_the_initializer_took_does_not_count(
    method: str, monkeypatch: pytest.MonkeyPatch, told_late: bool
) -> None:
    """Also when the worker says that it is ready before the fork server says that it is born."""
    read = Launcher.read

    def read_late(launcher: Launcher) -> list[Report]:
        ready = launcher.loading or any("WorkerReady" in line for line in pool.story())
        return read(launcher) if ready else []  # what is not read makes the loop come again

    if told_late:
        monkeypatch.setattr(Launcher, "read", read_late)
    pool = MPMS(
        grow,
        processes=1,
        threads=1,
        start_method=method,
        max_memory_hard="100MB",
        process_initializer=keep,
        process_initargs=(250,),
    )
    with meeting() as place, pool:
        pool.put(1, 1, place.address)
        guest = place.arrive()
        until(lambda: sum("MemorySeen" in line for line in pool.story()) >= 2)
        guest.release()
        pool.close()
        assert results(pool) == {1: 1}
        assert pool.stats().starts == 1


def test_above_the_soft_limit_a_worker_is_rotated_in_an_orderly_way(
    any_method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = str(tmp_path / "ends")
    with (
        caplog.at_level(logging.INFO, "mpms"),
        meeting() as place,
        MPMS(
            grow,
            processes=1,
            threads=2,
            start_method=any_method,
            max_memory_per_process="100MB",
            process_finalizer=note_pid,
            process_finargs=(log,),
        ) as pool,
    ):
        pool.put("running", 0, place.address)
        running = place.arrive()
        pool.put("leaks", 250)
        assert next(pool.iter_results())[1] == "leaks"
        # The replacement first: it comes while the old one still runs its task.
        until(lambda: pool.stats().starts == 2 and pool.stats().workers["retiring"] == 1)
        pool.put("elsewhere", 0, place.address)
        elsewhere = place.arrive()
        assert elsewhere.pid != running.pid
        assert noted(log) == []
        running.release()
        until(lambda: noted(log) == [str(running.pid)])
        elsewhere.release()
        pool.close()
        assert results(pool) == {"running": "running", "elsewhere": "elsewhere"}
        assert pool.stats().crashes == {}
        assert pool.stats().starts == 2
    assert len(noted(log)) == 2
    assert any(
        re.search(r"is replaced: it held \d+ MB, \d+ MB more than at its start$", record.message)
        for record in caplog.records
    )


def note_pid(log: str) -> None:
    note(log, os.getpid())


def test_what_is_freed_again_does_not_count(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the peak, as ``ru_maxrss`` would have it."""
    look_at, freed = MemoryWatch.look_at, threading.Event()
    # What is not freed yet does count.
    monkeypatch.setattr(MemoryWatch, "look_at", lambda *args: look_at(*args) if freed.is_set() else None)
    with (
        meeting() as place,
        MPMS(free_again, processes=1, threads=1, start_method=method, max_memory_per_process="100MB") as pool,
    ):
        pool.put(1, place.address)
        guest = place.arrive()
        freed.set()
        until(lambda: sum("MemorySeen" in line for line in pool.story()) >= 2)
        assert pool.stats().starts == 1
        guest.release()


def free_again(word: int, address: str) -> object:
    with mmap.mmap(-1, 250_000_000) as big:  # not of an allocator, which may keep it for later
        for _ in range(250):
            big.write(b"x" * 1_000_000)
    return meet(address, word)


def test_nothing_is_looked_at_when_the_options_are_off(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    monkeypatch.setattr(memory_watch, "resident_memory", looks.append)
    monkeypatch.setattr(memory_watch, "free_memory", lambda: looks.append("free"))
    with meeting() as place, MPMS(grow, processes=1, threads=1, start_method=method) as pool:
        pool.put(1, 0, place.address)
        guest = place.arrive()
        until(lambda: any("task=1" in line or "tasks=[(1, 1)]" in line for line in pool.story()))
        before = len(pool.story())
        threading.Event().wait(1.3)  # a look would come each second
        assert len(pool.story()) == before
        guest.release()
    assert looks == []


def test_an_idle_worker_is_not_looked_at(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(memory_watch, "resident_memory", lambda pid: looks.append(pid) or 1)
    with MPMS(grow, processes=1, threads=1, start_method=method, max_memory_hard="1GB", min_free_memory=1) as pool:
        pool.put(1)
        assert next(pool.iter_results())[1] == 1
        # The last look was due. Not FreeMemorySeen.
        until(lambda: " MemorySeen" in "\n".join(pool.story()).rpartition("ResultsArrived")[2])
        before, steps = len(looks), len(pool.story())
        threading.Event().wait(1.3)
        assert (len(looks), len(pool.story())) == (before, steps)


# The machine's


def test_no_task_starts_while_the_machine_has_too_little(
    any_method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = str(tmp_path / "starts")
    with caplog.at_level(logging.WARNING, "mpms"):
        pool = MPMS(note_word, processes=1, threads=1, start_method=any_method, min_free_memory="1000TB")
        for word in range(3):
            pool.put(word, log)
        until(lambda: sum("FreeMemorySeen" in line for line in pool.story()) >= 2)
        assert pool.stats().queued == 3
        assert pool.graceful_shutdown(0) is False
        assert {type(result) for _, result in pool.iter_results()} == {TaskCancelled}
    assert [args[0] for args, _ in pool.unfinished()] == [0, 1, 2]
    assert noted(log) == []
    (line,) = [record.message for record in caplog.records if "no task is handed out" in record.message]
    assert re.search(r"while the machine has less than 1000000000 MB free; it has \d+ MB$", line)


def note_word(word: object, log: str) -> object:
    note(log, word)
    return word


def test_tasks_start_when_there_is_enough(any_method: str) -> None:
    with MPMS(grow, processes=1, threads=1, start_method=any_method, min_free_memory="1MB") as pool:
        for word in range(300):
            pool.put(word)
        pool.close()
        assert len(results(pool)) == 300


def test_tasks_go_on_when_memory_is_free_again_and_both_are_logged_once(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = [10_000_000]
    monkeypatch.setattr(memory_watch, "free_memory", lambda: free[0])
    with (
        caplog.at_level(logging.WARNING, "mpms"),
        MPMS(grow, processes=1, threads=1, start_method=method, min_free_memory="20MB") as pool,
    ):
        pool.put(1)
        until(lambda: sum("FreeMemorySeen" in line for line in pool.story()) >= 2)
        assert pool.finish_count == 0
        free[0] = 30_000_000
        pool.close()
        assert results(pool) == {1: 1}
    said = [record.message.partition(": ")[2] for record in caplog.records]
    assert said == [
        "no task is handed out while the machine has less than 20 MB free; it has 10 MB",
        "memory is free again, tasks are handed out",
    ]


# The kernel's


def fake_vmstat(monkeypatch: pytest.MonkeyPatch, counts: list[int | None]) -> None:
    """What ``/proc/vmstat`` says at each look; ``None``: there is none."""
    counts = counts[:]  # the list is every start method's

    def opened(path: str, mode: str = "r") -> io.BytesIO:
        assert path == "/proc/vmstat"
        count = counts.pop(0) if len(counts) > 1 else counts[0]
        if count is None:
            raise FileNotFoundError(path)
        return io.BytesIO(b"nr_free_pages 5000\noom_kill %d\nnuma_hit 7\n" % count)

    monkeypatch.setattr(memory, "open", opened, raising=False)


def test_the_kernels_counter_tells_of_its_kills_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vmstat(monkeypatch, [3, 3, 4, 4, 6])
    watch = memory.OomWatch()
    assert [watch.has_killed() for _ in range(4)] == [False, True, False, True]


def test_without_the_kernels_counter_nobody_says_that_it_was_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vmstat(monkeypatch, [None, None, 5])
    watch = memory.OomWatch()
    assert [watch.has_killed() for _ in range(3)] == [False, False, False]


@pytest.mark.parametrize(("counts", "killed"), [([3, 4], True), ([3, 3], False)])
def test_a_kill_by_the_kernel_is_named(
    method: str, monkeypatch: pytest.MonkeyPatch, counts: list[Any], killed: bool
) -> None:
    """The kill is real; that the kernel has counted it is not."""
    with meeting() as place:
        fake_vmstat(monkeypatch, counts)
        with MPMS(grow, processes=1, threads=1, start_method=method) as pool:
            pool.put(1, 0, place.address)
            os.kill(place.arrive().pid, signal.SIGKILL)
            pool.close()
            error = results(pool)[1]
        monkeypatch.undo()
    assert error.oom_killed is killed
    assert ("was killed by the kernel, which was out of memory (SIGKILL)" in str(error)) is killed
    assert ("name max_memory_per_process or min_free_memory" in str(error)) is killed
