"""The parent killed with SIGKILL, its fork server too: within a second nobody is left of what they had started."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from .helpers import Program, kill, meeting, program, promised, still_alive
from .test_fallbacks import without

SECOND = 1.0

POOL = """
def task(address, *kinds):
    for kind in kinds:
        if kind == "forks":
            if os.fork() == 0:
                meet(address, "a fork")
                os._exit(0)
        elif kind == "runs a program":
            import subprocess
            subprocess.Popen([sys.executable, "-c", f"from tests.local.helpers import meet; meet({address!r})"])
        elif kind == "leaves":
            if os.fork() == 0:
                os.setsid()
                meet(address, "in a session of its own")
                os._exit(0)
        elif kind == "holds the GIL":
            announce_and_hold_the_gil(address, "holds the GIL")
        elif kind == "waits":
            meet(address, "waits")

method, address = sys.argv[1:3]
pool = MPMS(task, processes=2, threads=2, start_method=method)
for kinds in sys.argv[3:]:
    pool.put(address, *kinds.split(","))
say("started")
threading.Event().wait()
"""


def servers(script: Program) -> list[int]:
    """The processes that the script has started itself."""
    return [child.pid for child in psutil.Process(script.pid).children()]


@pytest.mark.parametrize(
    ("tasks", "guests"),
    [
        ([], 0),
        (["waits", "waits", "waits"], 3),
        (["holds the GIL"], 1),
        (["forks,waits", "runs a program,waits"], 4),
        (["forks,runs a program,holds the GIL"], 3),
        (["forks,runs a program"], 2),
    ],
    ids=["idle", "busy", "with the GIL held", "forked", "forked, with the GIL held", "forked, and done"],
)
def test_nobody_is_left_a_second_after_the_parent_was_killed(any_method: str, tasks: list[str], guests: int) -> None:
    # A fork beside a thread that runs a program may hold the pipe by which Popen hears of the exec.
    code = POOL.replace("threads=2", "threads=1") if "forks,waits" in tasks else POOL
    with meeting() as place, program(code, any_method, place.address, *tasks) as script:
        script.says("started")
        place.arrivals(guests)
        assert script.family()
        os.kill(script.pid, signal.SIGKILL)
        assert script.left_after(promised(SECOND)) == []


@pytest.mark.parametrize("tasks", [["waits", "waits"], ["holds the GIL"]], ids=str)
def test_nobody_is_left_after_parent_and_fork_server_were_killed_together(any_method: str, tasks: list[str]) -> None:
    with meeting() as place, program(POOL, any_method, place.address, *tasks) as script:
        script.says("started")
        place.arrivals(len(tasks))
        for pid in (script.pid, *servers(script)):
            kill(pid)
        assert script.left_after(promised(SECOND)) == []


@pytest.mark.parametrize("order", ["parent first", "fork server first"])
def test_no_fork_of_a_task_is_left_after_parent_and_fork_server_were_killed_together(
    any_method: str, order: str
) -> None:
    with (
        meeting() as place,
        program(POOL, any_method, place.address, "forks,runs a program,holds the GIL") as script,
    ):
        script.says("started")
        place.arrivals(3)
        victims = [script.pid, *servers(script)]
        for pid in victims if order == "parent first" else reversed(victims):
            kill(pid)
        assert script.left_after(promised(SECOND)) == []


def test_who_has_made_itself_a_session_of_its_own_is_left_alone(method: str) -> None:
    with meeting() as place, program(POOL, method, place.address, "leaves,waits") as script:
        script.says("started")
        guests = {guest.word: guest for guest in place.arrivals(2)}
        os.kill(script.pid, signal.SIGKILL)
        assert guests["waits"].is_gone(promised(SECOND))
        leaver = guests["in a session of its own"].pid
        still_alive([each.pid for each in script.family() if each.pid != leaver], promised(SECOND))
        assert [each.pid for each in script.family()] == [leaver]


def test_nobody_is_left_when_the_parent_is_killed_while_it_starts(any_method: str) -> None:
    """At once after the first `put`: while the fork server loads, and workers are being born."""
    code = """
    def task(): ...
    say("starting")
    pool = MPMS(task, processes=4, threads=4, start_method=sys.argv[1])
    pool.put()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with program(code, any_method) as script:
        script.says("starting")
        script.process.wait(20)
        assert script.left_after(promised(SECOND)) == []


def test_nobody_is_left_when_the_parent_is_killed_while_it_pickles_the_job(method: str) -> None:
    """Then a fork server is coming up that was told nothing."""
    code = """
    class Task:
        def __call__(self): ...
        def __reduce__(self):
            os.kill(os.getpid(), signal.SIGKILL)
    say("starting")
    MPMS(Task(), start_method=sys.argv[1]).start()
    """
    with program(code, method) as script:
        script.says("starting")
        script.process.wait(20)
        assert script.left_after(promised(SECOND)) == []


def test_nobody_is_left_when_the_parent_is_killed_among_births(any_method: str) -> None:
    """Workers die and are born all the time when it happens."""
    code = """
    def task():
        os._exit(1)
    pool = MPMS(task, processes=4, threads=1, start_method=sys.argv[1])
    for number in range(40):
        pool.put()
    while pool.stats().failed < 5:
        time.sleep(0.001)
    say("dying")
    threading.Event().wait()
    """
    with program(code, any_method) as script:
        script.says("dying")
        os.kill(script.pid, signal.SIGKILL)
        assert script.left_after(promised(SECOND)) == []


@pytest.mark.parametrize("missing", ["prctl", "F_SETSIG", "prctl and F_SETSIG"])
@pytest.mark.parametrize("tasks", [["waits", "waits"], ["holds the GIL"], ["forks,holds the GIL"]], ids=str)
def test_nobody_is_left_without_help_of_the_kernel(
    any_method: str, tasks: list[str], missing: str, tmp_path: Path
) -> None:
    """The end of file on the socket is what tells the fork server, here and on macOS."""
    with (
        meeting() as place,
        program(POOL, any_method, place.address, *tasks, **without(missing, tmp_path)) as script,
    ):
        script.says("started")
        place.arrivals(len(tasks) + sum("forks" in task for task in tasks))
        os.kill(script.pid, signal.SIGKILL)
        assert script.left_after(promised(SECOND)) == []
