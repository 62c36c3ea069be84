"""Programs that end while their pool starts, shuts down or idles: in time, without a word too many, and all of it."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from .helpers import Program, meeting, program, promised, until

ENDS = 3.0
"""Seconds that a program may take to end. It takes 0.1 on a machine with nothing else to do; one is promised."""

SOON = 2.0
"""Seconds after which nobody may be left. It is promised within one; the other is for a loaded machine."""


def ends_well(running: Program, code: int, *, tracebacks: int = 0) -> None:
    """In time, with this exit code and so many tracebacks, no other word, and all that it had started."""
    exitcode, _, err = running.ends(promised(ENDS))  # when all who hold the pipes have ended
    assert running.left_after(promised(SOON)) == []
    assert exitcode == code, err
    if tracebacks:
        assert err.count("Traceback") == tracebacks, err
        assert err.splitlines()[-1] == "KeyboardInterrupt"
    else:
        assert err == ""


# Killed


HANGING_START = """
def hang():
    ctypes.PyDLL(None).system(b"echo hangs; exec sleep 600")  # with the GIL held

with MPMS(print, processes=1, threads=1, start_method=sys.argv[1], **{sys.argv[2]: hang}) as pool:
    pool.put()
    say("waits")
    pool.join()
"""


def hangs_at_its_start(running: Program) -> None:
    """Wait until it does, and somebody waits for it."""
    text = ""
    while not ("hangs" in text and "waits" in text):  # they may write into each other's lines
        line = running.stdout.readline()
        assert line, running.process.communicate()[1]
        text += line


@pytest.mark.parametrize("where", ["preload", "process_initializer", "thread_initializer"])
def test_a_parent_killed_while_its_pool_starts_leaves_nobody(any_method: str, where: str) -> None:
    """Nobody there gets to look whether the parent is still alive."""
    with program(HANGING_START, any_method, where) as running:
        hangs_at_its_start(running)
        assert until(lambda: len(running.family()) >= 3)  # one that is just about to become `sleep` isn't seen
        os.kill(running.pid, signal.SIGKILL)
        assert running.left_after(promised(SOON)) == []


@pytest.mark.parametrize("where", ["preload", "process_initializer"])
def test_ctrl_c_while_the_pool_starts_leaves_nobody(any_method: str, where: str) -> None:
    with program(HANGING_START, any_method, where) as running:
        # Not before it is past its fork: in what Python has others do after one, it ignores an interrupt.
        hangs_at_its_start(running)
        os.killpg(running.pid, signal.SIGINT)
        ends_well(running, -signal.SIGINT, tracebacks=1)


@pytest.mark.parametrize("end", ["parent killed", "fork server killed", "joined"])
def test_what_preload_has_started_ends_with_the_pool(method: str, end: str) -> None:
    preloading = """
    import subprocess

    def preload():
        subprocess.Popen(["sleep", "600"])
        if not os.fork():
            meet(sys.argv[2], "forked")
            os._exit(0)

    with MPMS(meet, processes=1, threads=1, start_method=sys.argv[1], preload=preload) as pool:
        pool.put(sys.argv[2], "task")
        pool.close()
        for _ in pool.iter_results():
            pass
    say("joined")
    signal.pause()
    """
    with meeting() as place, program(preloading, method, place.address) as running:
        guests = {guest.word: guest for guest in place.arrivals(2)}
        until(lambda: len(running.family()) == 5)  # one that is just about to become `sleep` isn't seen
        if end == "parent killed":
            os.kill(running.pid, signal.SIGKILL)
            assert running.left_after(promised(SOON)) == []
            return
        if end == "fork server killed":
            os.kill(psutil.Process(guests["task"].pid).ppid(), signal.SIGKILL)
            assert guests["forked"].is_gone(promised(SOON))
        guests["task"].release()
        running.says("joined")
        assert until(lambda: len(running.family()) == 1, promised(SOON))


def test_parents_killed_at_any_moment_of_a_start_leave_nobody(any_method: str) -> None:
    """From before the fork server is up until the workers are busy: it takes some 60 ms to come up, a worker 5 more."""
    starting = """
    import select
    import mpms.local.engine  # once for all

    for step in range(15):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            with MPMS(int, processes=2, threads=2, start_method=sys.argv[1]) as pool:
                os.write(write, b"!")
                while True:
                    pool.put()
        os.close(write)
        os.read(read, 1)
        os.close(read)
        select.select([], [], [], step / 150)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    say("killed")
    signal.pause()
    """
    with program(starting, any_method) as running:
        running.says("killed")
        assert until(lambda: len(running.family()) == 1, promised(SOON))


def test_a_killed_parent_of_two_pools_leaves_nobody_of_either(any_method: str) -> None:
    """The second fork server is a fork of the parent, and so might hold the first one's socket."""
    twice = """
    pools = [MPMS(meet, processes=1, threads=1, start_method=method) for method in (sys.argv[1], "fork")]
    for pool in pools:
        pool.put(sys.argv[2], "task")
    for pool in pools:
        pool.join()
    """
    with meeting() as place, program(twice, any_method, place.address) as running:
        place.arrivals(2)
        assert len(running.family()) == 5
        os.kill(running.pid, signal.SIGKILL)
        assert running.left_after(promised(SOON)) == []


# Interrupted while it waits


@pytest.mark.parametrize("where", ["pool.close(wait_for_empty=True)", "pool.graceful_shutdown(600)"])
def test_ctrl_c_ends_every_other_wait_too(method: str, where: str) -> None:
    waiting = f"""
    pool = MPMS(meet, processes=1, threads=1, start_method=sys.argv[1])
    for _ in range(20):
        pool.put(sys.argv[2])
    say("waits")
    {where}
    """
    with meeting() as place, program(waiting, method, place.address) as running:
        running.says("waits")
        place.arrive()
        os.killpg(running.pid, signal.SIGINT)
        ends_well(running, -signal.SIGINT, tracebacks=1)


# The end of the interpreter


def test_a_program_that_ends_with_an_idle_pool_ends_with_it(any_method: str) -> None:
    idle = """
    from tests.local.helpers import at_full_strength
    unstarted = MPMS(print, processes=2)
    pool = MPMS(print, processes=2, start_method=sys.argv[1])
    pool.start()
    at_full_strength(pool)
    say("up")
    """
    with program(idle, any_method) as running:
        running.says("up")
        ends_well(running, 0)


def test_sys_exit_in_a_thread_or_a_task_ends_only_that(method: str) -> None:
    exiting = """
    with MPMS(sys.exit, processes=1, threads=1, start_method=sys.argv[1]) as pool:
        thread = threading.Thread(target=lambda: (pool.put(3), sys.exit(4)))
        thread.start()
        thread.join()
        pool.close()
        say([repr(result) for _, result in pool.iter_results()])
    """
    with program(exiting, method) as running:
        assert running.ends(promised(ENDS + 1)) == (0, "['SystemExit(3)']\n", "")
