"""The fork server dies, is stopped, or can't come up: the pool goes on with a new one, or says that it can't."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import Counter, deque
from pathlib import Path

import psutil
import pytest

from mpms import MPMS, PoolBroken, TaskCancelled, WorkerCrashed
from mpms.local.forkserver import ForkServer
from mpms.wire.frames import Decoder, encode
from mpms.wire.messages import KILL
from mpms.worker import main

from .helpers import (
    Stopwatch,
    at_full_strength,
    fork_server,
    hold_the_gil,
    kill,
    meet,
    meeting,
    note,
    noted,
    pids,
    program,
    promised,
    results,
    still_alive,
    stop,
    until,
)

SOON = 2.0
"""Seconds after which nobody may be left that is to end at once."""


def note_and_meet(word: int, log: str, address: str) -> object:
    note(log, word)
    return meet(address, word) if word < 4 else word


def fork_and_meet(word: int, address: str) -> object:
    if not os.fork():
        meet(address, "forked")
        os._exit(0)
    return meet(address, word)


def meet_or_return(word: int, address: str = "") -> object:
    return meet(address, word) if address else word


def hang_with_the_gil(word: int, log: str) -> None:
    note(log, word)
    hold_the_gil()


def test_a_killed_fork_server_costs_only_the_tasks_that_ran(any_method: str, tmp_path: Path) -> None:
    """The log of starts proves it: each task has started once, whoever ran has crashed, and the rest has results."""
    log = str(tmp_path / "starts")
    with meeting() as place, MPMS(note_and_meet, processes=2, threads=2, start_method=any_method) as pool:
        for word in range(30):
            pool.put(word, log, place.address)
        guests = place.arrivals(4)
        before, server = pids(pool), fork_server(pool)
        os.kill(server, signal.SIGKILL)
        assert all(guest.is_gone(promised(SOON)) for guest in guests)
        pool.close()
        got = results(pool)
    crashed = {word for word, result in got.items() if isinstance(result, WorkerCrashed)}
    assert crashed == {0, 1, 2, 3}
    assert {word: got[word] for word in range(4, 30)} == {word: word for word in range(4, 30)}
    assert Counter(noted(log)) == Counter(map(str, range(30)))
    assert still_alive([server, *before], promised(SOON)) == []


def test_a_killed_fork_server_of_an_idle_pool_costs_nothing(any_method: str) -> None:
    with MPMS(meet_or_return, processes=2, threads=2, start_method=any_method) as pool:
        for round in range(2):
            before, server = at_full_strength(pool), fork_server(pool)
            os.kill(server, signal.SIGKILL)
            until(lambda before=before: not pids(pool) & before and at_full_strength(pool))
            for number in range(20):
                pool.put((round, number))
            until(lambda round=round: pool.finish_count == 20 * (round + 1))
            assert still_alive([server, *before], promised(SOON)) == []
            assert pool.stats().zombies == 0
            assert [p.pid for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE] == []
        pool.close()
        assert results(pool) == {(r, n): (r, n) for r in range(2) for n in range(20)}


def test_what_tasks_have_forked_ends_with_their_fork_server(any_method: str) -> None:
    with meeting() as place, MPMS(fork_and_meet, processes=2, threads=1, start_method=any_method) as pool:
        pool.put(0, place.address)
        pool.put(1, place.address)
        guests = place.arrivals(4)
        os.kill(fork_server(pool), signal.SIGKILL)
        assert all(guest.is_gone(promised(SOON)) for guest in guests)
        pool.close()
        assert [type(result) for result in results(pool).values()] == [WorkerCrashed] * 2


def test_a_worker_that_holds_the_gil_ends_with_its_fork_server(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with MPMS(hang_with_the_gil, processes=1, threads=1, start_method=method) as pool:
        pool.put(0, log)
        until(lambda: noted(log))
        workers = at_full_strength(pool)
        os.kill(fork_server(pool), signal.SIGKILL)
        assert still_alive(sorted(workers), promised(SOON)) == []
        pool.close()
        assert isinstance(results(pool)[0], WorkerCrashed)


def test_tasks_are_retried_whose_fork_server_was_killed(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "starts")
    with (
        meeting() as place,
        MPMS(note_and_meet, processes=2, threads=1, start_method=method, retries=1) as pool,
    ):
        for word in range(2, 10):
            pool.put(word, log, place.address)
        place.arrivals(2)
        os.kill(fork_server(pool), signal.SIGKILL)
        for _ in range(2):
            place.arrive().release()
        pool.close()
        assert results(pool) == {word: word for word in range(2, 10)}
    assert Counter(noted(log)) == Counter([*map(str, range(2, 10)), "2", "3"])


def test_a_fork_server_killed_again_and_again_loses_no_task(any_method: str, tmp_path: Path) -> None:
    """Also while it comes up, and while it bears workers."""
    log = str(tmp_path / "starts")
    count = 200
    with MPMS(note_and_meet, processes=2, threads=2, start_method=any_method, max_start_failures=100) as pool:
        for word in range(10, 10 + count):
            pool.put(word, log, "")
        for pause in (0.0, 0.002, 0.02, 0.06, 0.1):
            servers = until(lambda: [p for p in psutil.Process().children() if _is_fork_server(p)])
            signal.sigtimedwait([], pause)
            for server in servers:
                kill(server.pid)
            assert still_alive([server.pid for server in servers], promised(SOON)) == []
        pool.close()
        got = results(pool)
    assert set(got) == set(range(10, 10 + count))
    crashed = {word for word, result in got.items() if isinstance(result, WorkerCrashed)}
    assert {word: got[word] for word in got if word not in crashed} == {
        word: word for word in got if word not in crashed
    }
    starts = Counter(noted(log))
    assert max(starts.values()) == 1
    assert {str(word) for word in got if word not in crashed} <= set(starts)


def _is_fork_server(process: psutil.Process) -> bool:
    try:
        return "resource_tracker" not in "".join(process.cmdline()[-1:]) and process.status() not in (
            psutil.STATUS_ZOMBIE,
            psutil.STATUS_DEAD,
        )
    except psutil.Error:
        return False


def test_a_fork_server_is_missed_though_preload_has_forked_a_child_that_lives_on(method: str, tmp_path: Path) -> None:
    """Whatever that child has inherited: the end of the socket is what tells the pool."""
    log = str(tmp_path / "children")

    def preload() -> None:
        pid = os.fork()
        if not pid:
            signal.pause()
        note(log, pid)

    with MPMS(meet_or_return, processes=1, threads=1, start_method=method, preload=preload) as pool:
        before, server = at_full_strength(pool), fork_server(pool)
        try:
            os.kill(server, signal.SIGKILL)
            until(lambda: not pids(pool) & before and at_full_strength(pool))
        finally:
            kill(int(noted(log)[0]))
        pool.put(1)
        pool.close()
        assert results(pool) == {1: 1}


def lose_the_board() -> None:
    def no_board(*_: object) -> None:
        raise OSError("no board for you")

    main.Board = no_board  # type: ignore[assignment,misc]


def test_a_worker_that_fails_before_it_can_tell_the_pool_says_why_on_stderr(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = MPMS(abs, processes=1, threads=1, start_method=method, preload=lose_the_board, max_start_failures=1)
    with contextlib.suppress(PoolBroken):  # when it is late already
        pool.put(1)
    with pytest.raises(PoolBroken):
        pool.join()
    assert "OSError: no board for you" in capfd.readouterr().err


def test_a_group_that_can_t_be_killed_any_more_ends_no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError  # as macOS says of zombies

    ours, theirs = socket.socketpair()
    server = object.__new__(ForkServer)  # it would have the kernel end this process with its parent
    server._sock, server._decoder, server._descriptors, server._pids = theirs, Decoder(), deque(), {1: 2**22 + 1}
    with ours, theirs:
        ours.send(encode(KILL, 1))
        monkeypatch.setattr(os, "killpg", refuse)
        server._read()


def test_a_stopped_fork_server_does_not_hold_up_a_shutdown(any_method: str) -> None:
    """It can neither kill nor reap; still all ends, with what tasks have forked."""
    with meeting() as place:
        pool = MPMS(fork_and_meet, processes=2, threads=1, start_method=any_method)
        pool.put(0, place.address)
        pool.put(1, place.address)
        pool.put(2, place.address)
        guests = place.arrivals(4)
        workers, server = pids(pool), fork_server(pool)
        stop(server)
        with Stopwatch() as watch:
            assert pool.graceful_shutdown(0.2) is False
        assert watch.seconds < promised(1.5)
        got = results(pool)
        assert all(guest.is_gone(promised(SOON)) for guest in guests)
        pool.join()
        assert still_alive([server, *workers], promised(SOON)) == []
    assert [type(got[word]) for word in range(3)] == [TaskCancelled] * 3
    assert sorted(args[0] for args, _ in pool.unfinished()) == [0, 1, 2]


def test_a_stopped_fork_server_of_an_idle_pool_does_not_hold_up_a_shutdown(method: str) -> None:
    pool = MPMS(meet_or_return, processes=2, threads=1, start_method=method)
    pool.start()
    workers, server = at_full_strength(pool), fork_server(pool)
    stop(server)
    with Stopwatch() as watch:
        pool.graceful_shutdown(0.3)
    assert watch.seconds < promised(1.8)
    pool.join()
    assert still_alive([server, *workers], promised(SOON)) == []


DEADLY = """
import fcntl, os, signal
if "HARMLESS" not in os.environ:
    fcntl.flock(open(__file__), fcntl.LOCK_SH)  # until both tasks are there
    {how}
def work(number):
    return number
"""


@pytest.mark.parametrize(
    "how", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)", "raise ImportError('not here')"]
)
def test_a_function_whose_import_ends_the_fork_server_breaks_the_pool(method: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY.format(how=how))
    trying = """
    sys.path.insert(0, sys.argv[2])
    import deadly, fcntl
    from mpms import PoolBroken
    del os.environ["HARMLESS"]
    held = open(deadly.__file__)
    fcntl.flock(held, fcntl.LOCK_EX)

    pool = MPMS(deadly.work, processes=2, threads=1, start_method=sys.argv[1], max_start_failures=3)
    pool.put(1)
    pool.put(2)
    held.close()
    pool.close()
    outcomes = []
    try:
        for _, result in pool.iter_results():
            outcomes.append(type(result).__name__)
    except PoolBroken as error:
        outcomes.append(str(error))
    try:
        pool.join()
    except PoolBroken:
        say(outcomes)
    """
    with program(trying, "forkserver" if method == "fork" else method, tmp_path, HARMLESS="yes") as running:
        code, out, err = running.ends(promised(15))
        assert code == 0, err
        assert out.startswith("['PoolBroken', 'PoolBroken', "), out
        assert "can't start workers" in out
        assert ("not here" in out) is ("ImportError" in how)
        assert running.left_after(promised(SOON)) == []


def test_a_fork_server_lost_while_no_new_one_can_load_breaks_the_pool(method: str, tmp_path: Path) -> None:
    """It came up once; the next ones die: the pool doesn't try for ever, and what waits has its outcome."""
    log = str(tmp_path / "starts")

    def preload() -> None:
        note(log, os.getpid())
        if len(noted(log)) > 1:
            os._exit(3)

    with meeting() as place:
        pool = MPMS(meet, processes=1, threads=1, start_method="forkserver", preload=preload, max_start_failures=3)
        pool.put(place.address, 1)
        pool.put(place.address, 2)
        place.arrive()
        with Stopwatch() as watch:
            os.kill(fork_server(pool), signal.SIGKILL)
            pool.close()
            with pytest.raises(PoolBroken):
                pool.join()
        outcomes = []
        with pytest.raises(PoolBroken):
            outcomes.extend(type(result) for _, result in pool.iter_results())
    assert outcomes == [WorkerCrashed, PoolBroken]
    assert watch.seconds < promised(10)
    assert len(noted(log)) == 4
