"""Large arguments and results, which go from process to process by memory: in files of it, or by a ring."""

from __future__ import annotations

import os
import platform
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpms import MPMS, Executor, WorkerCrashed
from mpms.config import PoolConfig
from mpms.local.packing import Packing
from mpms.local.shipment import job_of
from mpms.wire.frames import Marked

from .helpers import HAS_GIL, PATIENCE, at_full_strength, kill, note, noted, pids, program, results, stop, until

SIZE = 3 << 20
MIDDLING = 80_000

both_sizes = pytest.mark.parametrize("size", [SIZE, MIDDLING])

needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there they go through the socket")

numpy = pytest.importorskip("numpy")


def spoil(word: int, array: object, log: str) -> bytes:
    """Change the argument, and die at the first attempt."""
    seen = array.tobytes()  # type: ignore[attr-defined]
    array[:] = 0  # type: ignore[index]
    note(log, word)
    if len(noted(log)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return seen


def test_a_retry_has_the_arguments_as_they_were_put(any_method: str, tmp_path: Path) -> None:
    array = numpy.frombuffer(random.Random(1).randbytes(SIZE), dtype=numpy.uint8).copy()
    before = array.tobytes()
    with MPMS(spoil, processes=1, threads=1, retries=1, start_method=any_method) as pool:
        pool.put(1, array, str(tmp_path / "log"))
        array[:] = 7  # from now on it may be used for something else
        pool.close()
        assert results(pool) == {1: before}
    assert noted(tmp_path / "log") == ["1", "1"]


def doubled(word: int, array: object) -> object:
    return array * 2  # type: ignore[operator]


@both_sizes
def test_arrays_come_back_and_can_be_written_to(any_method: str, size: int) -> None:
    with MPMS(doubled, processes=2, threads=2, start_method=any_method) as pool:
        for word in range(20):
            pool.put(word, numpy.full(size // 8, word, dtype=numpy.int64))
        pool.close()
        got = results(pool)
    for word, array in got.items():
        assert array.flags.writeable
        array += 1
        assert (array == 2 * word + 1).all()


def same(word: int, data: bytes) -> bytes:
    return data


kept = list[object]()


def keep(word: int, array: object) -> object:
    """The argument, for good; and say what became of the earlier ones."""
    kept.append(array)
    return doubled(word, array), [bool((each == each[0]).all()) and int(each[0]) for each in kept]  # type: ignore[index]


@both_sizes
def test_what_a_task_or_its_caller_keeps_stays_as_it_is(any_method: str, size: int) -> None:
    """Though the memory of what nobody keeps is used for the next ones."""
    got = list[Any]()

    def collect(meta: Any, result: Any) -> None:
        got.append((*result, meta.args[0]))

    with MPMS(keep, collect, processes=1, threads=1, start_method=any_method) as pool:
        for word in range(30):
            pool.put(word, numpy.full(size // 8, word, dtype=numpy.int64))
        pool.close()
        pool.join()
    assert len(got) == 30
    for array, seen, word in got:
        assert (array == 2 * word).all()
        assert seen == list(range(word + 1))


def test_a_task_that_waits_has_no_copy_of_its_bytes() -> None:
    data = bytes(100_000)
    packed = Packing(same).pack(("name", data), {})
    assert isinstance(packed, Marked)
    assert packed.data is data


def test_a_worker_holds_no_more_large_tasks_in_advance_than_there_is_shared_memory_for(method: str) -> None:
    size = 500_000
    with MPMS(same, processes=1, threads=2, start_method=method) as pool:
        for word in range(400):
            pool.put(word, bytes(size))
        pool.close()
        ahead = 0
        for _ in pool.iter_results():
            workers = pool._engine._machine.fleet.workers.copy()  # type: ignore[attr-defined]
            ahead = max([ahead, *(worker.ahead for worker in workers.values())])
    assert 1 <= ahead <= (4 << 20) // size - 2


@both_sizes
def test_killed_workers_lose_what_they_had_started_and_leave_nothing(any_method: str, size: int) -> None:
    chance = random.Random(1)
    contents = {word: bytes([word]) * (size + word) for word in range(60)}
    with MPMS(same, processes=2, threads=2, start_method=any_method) as pool:
        for word, content in contents.items():
            pool.put(word, content)
            if word % 10 == 9:
                kill(chance.choice(sorted(until(lambda: pids(pool)))))
        pool.close()
        got = results(pool)
    assert got.keys() == contents.keys()
    others = {word: result for word, result in got.items() if not isinstance(result, WorkerCrashed)}
    wrong = {word: result for word, result in others.items() if result != contents[word]}
    assert {word: bytes(result[:60]) if isinstance(result, bytes) else result for word, result in wrong.items()} == {}
    assert sum(isinstance(result, WorkerCrashed) for result in got.values()) < 40


@pytest.mark.skipif(sys.platform != "linux", reason="there they go through the socket")
def test_they_go_by_the_rings_there_and_back(method: str) -> None:
    with MPMS(same, processes=1, threads=1, start_method=method) as pool:
        for word in range(10):
            pool.put(word, bytes(MIDDLING))
        until(lambda: pool.finish_count == 10)
        [link] = pool._engine._links.values()  # type: ignore[attr-defined]
        assert link._board.down._read[0] >= MIDDLING
        assert link._board.up._read[0] >= MIDDLING
        pool.close()
        assert len(results(pool)) == 10


def test_bytes_that_somebody_waits_for_are_what_they_were(any_method: str) -> None:
    with Executor(1, threads=1, start_method=any_method) as pool:
        for size in (100, 5_000, MIDDLING, SIZE) * 5:
            content = random.Random(size).randbytes(size)
            future = pool.submit(bytes.join, b"", [content[: size // 2], content[size // 2 :]])
            assert future.result() == content
            assert pool.submit(bytes, content).exception() is None


def test_a_stopped_worker_takes_no_more_than_there_is_room_for_and_goes_on_where_it_was(any_method: str) -> None:
    count = 300
    with MPMS(same, processes=2, threads=1, start_method=any_method) as pool:
        workers = sorted(at_full_strength(pool))
        for word in range(count):  # each of them holds some, and has more under way
            pool.put(word, bytes([word % 251]) * (MIDDLING + word))
            if word == 50:
                stop(workers[0])
        others = until(lambda: pool.finish_count > 50 and pool.finish_count)
        assert others < count
        os.kill(workers[0], signal.SIGCONT)
        pool.close()
        got = results(pool)
    assert {word: len(data) for word, data in got.items()} == {word: MIDDLING + word for word in range(count)}
    assert all(set(data) == {word % 251} for word, data in got.items())


SHORT_FILES = """
    import resource
    from tests.local.helpers import results
    from tests.local.test_large import MIDDLING, same

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    with MPMS(same, processes=1, threads=1, start_method=sys.argv[1]) as pool:
        for word in range(50):
            pool.put(word, bytes(MIDDLING))
        pool.close()
        assert results(pool) == dict.fromkeys(range(50), bytes(MIDDLING))
"""


def test_where_files_may_not_be_large_they_go_through_the_socket(any_method: str) -> None:
    with program(SHORT_FILES, any_method) as running:
        code, _, err = running.ends(PATIENCE)
    assert not code, err


def leak(word: int, data: bytes) -> int:
    """Leave no descriptor to this process."""
    if not word:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    return len(data)


@needs_memfd
def test_a_worker_that_has_no_descriptor_left_gives_way_to_another_one(method: str) -> None:
    with MPMS(leak, processes=1, threads=1, start_method=method) as pool:
        pool.put(0, b"")
        [first] = at_full_strength(pool)
        until(lambda: pool.finish_count == 1)
        pool.put(1, bytes(SIZE))
        pool.put(2, bytes(SIZE))
        pool.close()
        got = results(pool)
        assert first not in pids(pool)
    assert got == {0: 0, 1: SIZE, 2: SIZE}


def measured(word: int, data: bytes) -> tuple[int, int]:
    return len(data), os.getpid()


def have_little_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20), resource.RLIM_INFINITY))


LITTLE_MEMORY = """
    from tests.local.helpers import results
    from tests.local.test_large import have_little_memory, measured

    method, one, many = sys.argv[1], 1 << 20, 1 << 26
    with MPMS(measured, processes=1, threads=1, start_method=method, thread_initializer=have_little_memory) as pool:
        pool.put(1, bytes(one))
        pool.put(2, bytes(many))
        pool.put(3, bytes(one))
        pool.close()
        got = results(pool)
    assert isinstance(got[2], MemoryError), got
    assert got[1] == got[3], got
    assert got[1][0] == one, got
"""


@needs_memfd
@pytest.mark.skipif(not HAS_GIL, reason="its allocator has addresses in reserve, which is all that the limit counts")
def test_an_argument_for_which_a_worker_has_no_memory_costs_that_task_only(method: str) -> None:
    # Not of this process: a fork of it has all the memory too that other tests have used and left free.
    with program(LITTLE_MEMORY, method) as running:
        code, _, err = running.ends(PATIENCE)
    assert not code, err


FAULTS = """
import copy
import resource
from mpms import Executor
with Executor(1, threads=2) as executor:
    for turn in range(15):
        if turn == 5:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        futures = [executor.submit(copy.copy, bytes(100_000 + number)) for number in range(150)]
        assert all(len(future.result()) == 100_000 + number for number, future in enumerate(futures))
        del futures
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not HAS_GIL, reason="others keep what they keep")
def test_what_a_program_has_freed_of_its_results_is_used_for_the_next_ones() -> None:
    # Dask sets one of these in its own process, for those that it starts; with it glibc doesn't change its mind.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    told = subprocess.run([sys.executable, "-c", FAULTS], env=environ, capture_output=True, text=True, check=True)
    assert int(told.stdout) < 3 * 1_500  # of which each would be 25 pages, and another 25 of its result


def test_a_worker_whose_memory_is_limited_keeps_none_for_later() -> None:
    assert job_of(abs, PoolConfig(processes=1, threads=1)).kept_memory > 0
    for limit in ("max_memory_per_process", "max_memory_hard"):
        assert job_of(abs, PoolConfig(processes=1, threads=1, **{limit: 1 << 30})).kept_memory == 0  # type: ignore[arg-type]
