"""Several things at once that each end workers: no task falls between them."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from mpms import MPMS, TaskTimeout, WorkerCrashed

from .helpers import die, kill, note, noted, pids, results


def work(word: int, log: str, how: str = "") -> int:
    note(log, word)
    if how == "hangs":
        threading.Event().wait()
    elif how:
        die(how)
    return word


def test_kills_crashes_timeouts_and_rotation_at_once_lose_nothing_and_run_nothing_twice(
    method: str, tmp_path: Path
) -> None:
    log = str(tmp_path / "starts")
    rng = random.Random(3)
    ways = {word: rng.choice(["SIGSEGV", "exit", "hangs"]) for word in range(50, 1500, 100)}
    over = threading.Event()

    def kill_now_and_then() -> None:
        while not over.wait(0.05):
            for pid in list(pids(pool))[:1]:
                kill(pid)

    killer = threading.Thread(target=kill_now_and_then)
    with MPMS(
        work,
        processes=3,
        threads=2,
        start_method=method,
        lifecycle=20,
        task_timeout=0.3,
        worker_graceful_die_timeout=0.1,
        task_queue_maxsize=2000,
    ) as pool:
        killer.start()
        try:
            for word in range(1500):
                pool.put(word, log, ways.get(word, ""))
            pool.close()
            got = results(pool)
        finally:
            over.set()
            killer.join()
    assert sorted(got) == list(range(1500))
    for word, result in got.items():
        assert result == word or isinstance(result, WorkerCrashed | TaskTimeout)
    starts = [int(word) for word in noted(log)]
    assert len(starts) == len(set(starts))
    assert {word for word, result in got.items() if result == word} <= set(starts)
    assert not any(got[word] == word for word in ways)
