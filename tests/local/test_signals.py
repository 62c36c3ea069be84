"""Ctrl-C, SIGTERM, and the end of the interpreter: in time, quietly, and with nobody left."""

from __future__ import annotations

import os
import signal

import pytest

from .helpers import Stopwatch, meeting, program, promised

SECONDS = 3.0
"""The promise is one second; this machine may be busy, and an interpreter takes some time to start and to end."""

POOL = """
def task(address, kind="waits"):
    if kind == "waits":
        meet(address)
    if kind == "holds the GIL":
        announce_and_hold_the_gil(address)

method, address, how, where, kind = sys.argv[1:6]

if how == "SIGTERM, handled":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))

def block(pool):
    pool.put(address, kind)
    pool.put(address, kind)
    if where == "put":
        say("ready")
        while True:
            pool.put(address)
    elif where == "join":
        say("ready")
        pool.join()
    elif where == "iteration":
        say("ready")
        for _ in pool.iter_results():
            pass
    elif where == "the block":
        say("ready")
        threading.Event().wait()

"""

PLAIN = """
pool = MPMS(task, processes=2, threads=1, start_method=method)
block(pool)
"""

WITH = """
with MPMS(task, processes=2, threads=1, start_method=method) as pool:
    block(pool)
"""

WHERE = ("put", "join", "iteration", "the block")


def stopped(method: str, how: str, where: str, code: str, kind: str = "waits") -> tuple[int, str]:
    """Run such a script, stop it in that way in that place; its exit code and what it wrote to stderr."""
    with meeting() as place, program(POOL + code, method, place.address, how, where, kind) as script:
        script.says("ready")
        place.arrivals(2)
        with Stopwatch() as watch:
            if how == "SIGINT to the group":
                os.killpg(script.pid, signal.SIGINT)
            elif how == "SIGINT":
                os.kill(script.pid, signal.SIGINT)
            else:
                os.kill(script.pid, signal.SIGTERM)
            exitcode, _, err = script.ends(60)
        assert watch.seconds < promised(SECONDS)
        assert script.left_after(promised(1)) == []
    return exitcode, err


@pytest.mark.parametrize("code", [PLAIN, WITH], ids=["plain", "with"])
@pytest.mark.parametrize("where", WHERE)
def test_ctrl_c_ends_the_program_with_one_traceback_and_no_orphan(any_method: str, where: str, code: str) -> None:
    """From the terminal: the whole group of the script gets it."""
    exitcode, err = stopped(any_method, "SIGINT to the group", where, code)
    assert exitcode == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "mpms" not in err.replace("src/mpms", "")  # no message of a worker's, nor of the pool's


@pytest.mark.parametrize("where", WHERE)
def test_an_interrupt_of_the_parent_alone_ends_it_too(method: str, where: str) -> None:
    exitcode, err = stopped(method, "SIGINT", where, WITH)
    assert exitcode == -signal.SIGINT
    assert err.count("Traceback") == 1


@pytest.mark.parametrize("where", WHERE)
def test_sigterm_ends_the_program_as_any_other_and_leaves_no_orphan(any_method: str, where: str) -> None:
    assert stopped(any_method, "SIGTERM", where, PLAIN) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("code", [PLAIN, WITH], ids=["plain", "with"])
@pytest.mark.parametrize("where", WHERE)
def test_a_handler_of_sigterm_that_raises_system_exit_ends_the_program(method: str, where: str, code: str) -> None:
    assert stopped(method, "SIGTERM, handled", where, code) == (5, "")


@pytest.mark.parametrize("how", ["SIGINT to the group", "SIGTERM", "SIGTERM, handled"])
def test_a_worker_that_hangs_with_the_gil_held_delays_no_end(any_method: str, how: str) -> None:
    exitcode, _ = stopped(any_method, how, "join", WITH, "holds the GIL")
    assert exitcode == {"SIGINT to the group": -2, "SIGTERM": -15, "SIGTERM, handled": 5}[how]


END = """
def task(address, number):
    if number < 2:
        meet(address)

pool = MPMS(task, processes=2, threads=1, start_method=sys.argv[1])
for number in range(6):
    pool.put(sys.argv[2], number)
say("ready")
meet(sys.argv[2], "parent")
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("sys.exit(4)", 4), ("raise SystemExit", 0), ("del pool", 0), ("pool.close()", 0)],
    ids=["the end", "sys.exit", "SystemExit", "del", "close"],
)
def test_the_interpreter_ends_without_join_in_time_and_quietly(any_method: str, ending: str, code: int) -> None:
    with meeting() as place, program(END + ending, any_method, place.address) as script:
        script.says("ready")
        guests = place.arrivals(3)
        with Stopwatch() as watch:
            next(guest for guest in guests if guest.word == "parent").release()
            exitcode, _, err = script.ends(60)
        assert (exitcode, err) == (code, "")
        assert watch.seconds < promised(SECONDS)
        assert script.left_after(promised(1)) == []


def test_an_exception_in_the_main_thread_ends_the_interpreter_with_its_traceback_only(method: str) -> None:
    code = """
    def task(address):
        meet(address)
    pool = MPMS(task, processes=2, threads=1, start_method=sys.argv[1])
    pool.put(sys.argv[2])
    meet(sys.argv[2], "parent")
    raise LookupError("of the script's own")
    """
    with meeting() as place, program(code, method, place.address) as script:
        guests = place.arrivals(2)
        with Stopwatch() as watch:
            next(guest for guest in guests if guest.word == "parent").release()
            exitcode, _, err = script.ends(60)
        assert watch.seconds < promised(SECONDS)
        assert exitcode == 1
        assert err.count("Traceback") == 1
        assert err.rstrip().endswith("LookupError: of the script's own")
        assert script.left_after(promised(1)) == []


def test_sys_exit_inside_with_stops_at_once(any_method: str) -> None:
    code = """
    def task(address):
        meet(address)
    with MPMS(task, processes=2, threads=1, start_method=sys.argv[1]) as pool:
        for _ in range(5):
            pool.put(sys.argv[2])
        meet(sys.argv[2], "parent")
        sys.exit(6)
    """
    with meeting() as place, program(code, any_method, place.address) as script:
        guests = place.arrivals(3)
        with Stopwatch() as watch:
            next(guest for guest in guests if guest.word == "parent").release()
            exitcode, _, err = script.ends(60)
        assert (exitcode, err) == (6, "")
        assert watch.seconds < promised(SECONDS)
        assert script.left_after(promised(1)) == []


def test_a_second_ctrl_c_during_the_stop_is_no_harm(method: str) -> None:
    with meeting() as place, program(POOL + WITH, method, place.address, "SIGINT", "join", "holds the GIL") as script:
        script.says("ready")
        place.arrivals(2)
        with Stopwatch() as watch:
            os.kill(script.pid, signal.SIGINT)
            os.kill(script.pid, signal.SIGINT)
            exitcode, _, err = script.ends(60)
        assert exitcode == -signal.SIGINT
        assert "mpms-__main__" not in err
        assert watch.seconds < promised(SECONDS)
        assert script.left_after(promised(1)) == []
