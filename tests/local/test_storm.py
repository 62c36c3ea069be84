"""Workers are killed all the time, and the parent is busy: every task has one outcome all the same."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from mpms import MPMS, WorkerCrashed

from .helpers import at_full_strength, kill, note, noted, pids, program, promised, results, still_alive, until

COUNT = 2000


def work(number: int, log: str) -> int:
    """Some milliseconds, so that the storm has time: 16 threads are done with all in two seconds."""
    note(log, number)
    threading.Event().wait(0.015)
    note(f"{log}-of-ends", number)
    return number * number


class Storm:
    """Kills a random worker every 50 ms, and looks for zombies at each. A worker that has come up is in danger at once.

    Not before: a pool none of whose workers come up breaks, and should. And not before ``pause`` more tasks are done:
    where workers take longer to start than they live, the pool would be at it for minutes.
    """

    def __init__(self, pool: MPMS, seed: int, *, pause: int = 0) -> None:
        self.killed: list[int] = []
        self.zombies: list[object] = []
        self._pool = pool
        self._pause = pause
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._blow)

    def _blow(self) -> None:
        seen: Counter[int] = Counter()
        next_at = 0
        while not self._over.wait(0.05):
            workers = sorted(pids(self._pool))
            if workers and self._pool.finish_count >= next_at:
                next_at = self._pool.finish_count + self._pause
                victim = self._rng.choice(workers)
                kill(victim)
                self.killed.append(victim)
            now = {p.pid for p in psutil.Process().children(recursive=True) if _is_zombie(p)}
            seen = Counter({pid: seen[pid] + 1 for pid in now})
            # One that is seen once has just ended; and not everything on a loaded machine is reaped in 50 ms.
            self.zombies += [pid for pid, times in seen.items() if times >= 10]
            if self._pool.stats().zombies > 4:
                self.zombies.append(self._pool.stats())

    def __enter__(self) -> Storm:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def weather(pool: MPMS, log: str, seed: int) -> tuple[dict[Any, Any], int]:
    """All tasks in a storm, and then the pool at full strength, without zombies. The results, and how many it were."""
    at_full_strength(pool)
    count = 0
    with Storm(pool, seed, pause=COUNT // 50) as storm:
        while len(storm.killed) < 20:  # on a busy machine the storm may be slower than the tasks: then again
            for number in range(count, count + COUNT):
                pool.put(number, log)
            count += COUNT
            until(lambda count=count: pool.finish_count == count, promised(60))
    assert storm.zombies == []
    until(lambda: not pids(pool) & set(storm.killed))  # nobody may have heard yet of whom the last blow hit
    until(lambda: pool.stats().zombies == 0, promised(5))  # whom the last blow hit is one for a moment
    at_full_strength(pool)
    assert still_alive(sorted(set(storm.killed) - pids(pool)), promised(5)) == []
    assert pool.stats().workers["serving"] == 4
    pool.close()
    return results(pool), count


def test_in_a_storm_every_task_has_one_outcome_and_runs_once(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(work, processes=4, threads=4, start_method=method) as pool:
        got, count = weather(pool, log, 1)
    assert set(got) == set(range(count))
    crashed = {number for number, result in got.items() if isinstance(result, WorkerCrashed)}
    assert crashed
    assert all(got[number] == number * number for number in got if number not in crashed)
    starts = Counter(map(int, noted(log)))
    assert max(starts.values()) == 1
    assert {number for number in got if number not in crashed} <= set(starts)
    # Who is said to have run, and did not come to its end, was in a thread, of which each worker has four.
    ended = set(map(int, noted(f"{log}-of-ends")))
    assert max(Counter(got[number].worker for number in crashed - ended).values(), default=0) <= 4


def test_in_a_storm_with_retries_every_task_has_its_result(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(work, processes=4, threads=4, start_method=method, retries=100) as pool:
        got, count = weather(pool, log, 2)
        assert pool.stats().retried > 0
    assert got == {number: number * number for number in range(count)}
    assert set(map(int, noted(log))) == set(range(count))


def test_a_storm_over_an_idle_pool_leaves_it_at_full_strength(any_method: str, tmp_path: Path) -> None:
    """Few blows: of workers that die before they have done anything the next ones come later and later."""
    log = str(tmp_path / "starts")
    with MPMS(work, processes=3, threads=2, start_method=any_method) as pool:
        at_full_strength(pool)
        with Storm(pool, 3) as storm:
            until(lambda: len(storm.killed) >= 5)
        assert storm.zombies == []
        at_full_strength(pool)
        pool.put(3, log)
        pool.close()
        assert results(pool) == {3: 9}


# A parent whose threads are busy and whose locks are held


@contextmanager
def spinning() -> Iterator[None]:
    over = False

    def spin() -> None:
        while not over:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        over = True
        thread.join()


def test_workers_restart_beside_a_busy_thread_of_the_parent(any_method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with spinning(), MPMS(work, processes=2, threads=2, start_method=any_method, retries=100) as pool:
        at_full_strength(pool)
        for number in range(100):
            pool.put(number, log)
        for _ in range(5):
            for victim in at_full_strength(pool):
                kill(victim)
                until(lambda victim=victim: victim not in pids(pool))
        pool.close()
        assert results(pool) == {number: number * number for number in range(100)}


LOCKED = """
import logging
from tests.local.helpers import at_full_strength, kill, pids, until

logging.basicConfig(stream=open(os.devnull, "w"))
locks = [logging._lock, logging.getLogger().handlers[0].lock]
over = threading.Event()

def work(number):
    logging.getLogger("mine").warning("%s", number)  # stands still if the lock was copied while it was held
    return number

def hold():
    while not over.wait(0.005):
        for lock in locks:
            lock.acquire()
        over.wait(0.05)
        for lock in reversed(locks):
            lock.release()

holder = threading.Thread(target=hold)
holder.start()
with MPMS(work, processes=2, threads=2, start_method=sys.argv[1], retries=100) as pool:
    for number in range(200):
        pool.put(number)
    for _ in range(3):
        before = at_full_strength(pool)
        for pid in before:
            kill(pid)
        until(lambda: not pids(pool) & before)
    pool.close()
    say(sorted(result for _, result in pool.iter_results()) == list(range(200)))
over.set()
"""


def test_workers_restart_while_a_thread_of_the_parent_holds_the_locks_of_logging(any_method: str) -> None:
    """It lets go of them now and then: a program that doesn't couldn't log, nor fork, without a pool either."""
    with program(LOCKED, any_method) as running:
        assert running.ends(60)[:2] == (0, "True\n")  # what the tasks logged is on stderr where nothing was set up
