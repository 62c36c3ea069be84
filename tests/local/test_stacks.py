"""Where every thread of every worker is, now: asked of the pool, or of a process that is somebody else's."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mpms import MPMS, WorkerCrashed
from mpms.figures import ThreadStack, WorkerStacks
from mpms.local.stacks import _memory_files, stacks_of_process, take_stacks
from mpms.wire.messages import ASK_SIGNAL, DUMP_SIGNAL

from .helpers import (
    Stopwatch,
    announce,
    at_full_strength,
    hold_the_gil,
    meet,
    meeting,
    pids,
    program,
    promised,
    stop,
    until,
)


def meet_here(word: int, address: str) -> object:
    return meet(address, word)


def announce_and_hold_the_gil(word: int, address: str) -> None:
    with announce(address, word):
        hold_the_gil()


def compute(word: int, address: str, seconds: float) -> int:
    """Python code whose frames come and go all the time."""
    with announce(address, word):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            exec("def f(x): return [y for y in range(x)]\nf(5)")
            _deep(word % 7 * 9)
    return word


def _deep(depth: int) -> int:
    return 0 if depth == 0 else 1 + _deep(depth - 1)


def mpms_stack(pid: int) -> tuple[int, str, str]:
    """Asked again while a worker that gets no processor for a second hasn't answered."""
    command = [sys.executable, "-m", "mpms", "stack", str(pid)]

    def ask() -> subprocess.CompletedProcess[str] | None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return None if "did not answer" in done.stdout else done

    done = until(ask)
    return done.returncode, done.stdout, done.stderr


def pending_signals(pid: int) -> set[int]:
    """Of the process as a whole."""
    found = re.search(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return {number for number in range(1, 65) if int(found[1], 16) >> (number - 1) & 1}


def tasks(workers: list[WorkerStacks]) -> dict[int, ThreadStack]:
    """The threads that run one, by task."""
    return {thread.task: thread for worker in workers for thread in worker.threads if thread.task is not None}


def stacks_with_tasks(pool: MPMS, wanted: set[int]) -> list[WorkerStacks]:
    """Asked again while a worker that gets no processor for a second hasn't answered."""
    found: list[WorkerStacks] = until(lambda: set(tasks(workers := pool.stacks())) == wanted and workers)
    return found


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    stop(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_pool_says_where_each_thread_is_with_its_task_and_since_when(any_method: str) -> None:
    with meeting() as place, MPMS(meet_here, processes=2, threads=2, start_method=any_method) as pool:
        began = time.monotonic()
        for word in range(3):
            pool.put(word, place.address)
        guests = place.arrivals(3)
        here = time.monotonic()
        workers = stacks_with_tasks(pool, {1, 2, 3})
        asked = time.monotonic()
        assert {worker.pid for worker in workers} == {guest.pid for guest in guests}
        assert {worker.name for worker in workers} == set(pool.worker_processes_pool)
        found = tasks(workers)
        for thread in found.values():
            assert "in meet_here" in thread.stack
            assert "helpers.py" in thread.stack.splitlines()[-1]  # the innermost one last
            assert thread.seconds is not None
            assert here - asked <= thread.seconds <= time.monotonic() - began
            assert re.match(rf"#t{thread.thread}: task {thread.task} for \d+\.\d s\n  File", str(thread))
        idle = [thread for worker in workers for thread in worker.threads if thread.task is None]
        assert len(idle) == 3  # one that has no task, and the two main threads
        assert all("thread: no task\n" in str(thread) for thread in idle)
        text = "\n".join(map(str, workers))
        assert all(f"(pid {guest.pid})\n" in text for guest in guests)
        for guest in guests:
            guest.release()


def test_a_worker_without_a_gil_writes_the_stacks_itself(method: str) -> None:
    with (
        meeting() as place,
        MPMS(meet_here, processes=1, threads=2, start_method=method, process_initializer=have_no_gil) as pool,
    ):
        for word in range(2):
            pool.put(word, place.address)
        guests = place.arrivals(2)
        found = tasks(stacks_with_tasks(pool, {1, 2}))
        assert ["in meet_here" in thread.stack for thread in found.values()] == [True, True]
        assert all("helpers.py" in thread.stack.splitlines()[-1] for thread in found.values())
        assert len(pool.stacks()[0].threads) == 3
        for guest in guests:
            guest.release()


def have_no_gil() -> None:
    """As far as is known here."""
    sys._is_gil_enabled = lambda: False  # type: ignore[attr-defined]
    faulthandler.dump_traceback = None  # type: ignore[assignment]  # that would show one thread only


def test_stacks_are_shown_while_c_code_holds_the_gil(method: str) -> None:
    with (
        meeting() as place,
        MPMS(announce_and_hold_the_gil, processes=1, threads=2, start_method=method) as pool,
    ):
        pool.put(1, place.address)
        guest = place.arrive()
        until(lambda: "in hold_the_gil" in stacks_with_tasks(pool, {1})[0].threads[0].stack.splitlines()[-1])
        # Asked again, it is the same process in the same call.
        assert [worker.pid for worker in pool.stacks()] == [guest.pid]
        pool.graceful_shutdown(0)


def test_to_be_asked_again_and_again_while_it_computes_harms_no_worker(method: str) -> None:
    """A dump without the GIL reads frames that change at that moment, and crashes the process soon."""
    with meeting() as place, MPMS(compute, processes=1, threads=4, start_method=method) as pool:
        for word in range(4):
            pool.put(word, place.address, 4.0)
        guests = place.arrivals(4)
        seen = 0
        while pool.finish_count == 0:
            seen += len(tasks(pool.stacks()))
        pool.close()
        assert pool.stats().crashes == {}
        assert sorted(result for _, result in pool.iter_results()) == list(range(4))
        assert len({guest.pid for guest in guests}) == 1
        assert seen >= 8


def test_the_answers_do_not_fill_the_memory(any_method: str) -> None:
    with meeting() as place, MPMS(meet_here, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(1, place.address)
        guest = place.arrive()
        [(_, file)] = _memory_files(guest.pid).values()
        for _ in range(2):
            with file.open("ab") as answers:
                answers.write(b"an answer\n" * 110_000)
            [thread] = tasks(stacks_with_tasks(pool, {1})).values()
            assert "in meet_here" in thread.stack
            assert file.stat().st_size < 100_000
        guest.release()


def ask_in_this_thread(word: int, address: str) -> object:
    signal.pthread_kill(threading.get_ident(), ASK_SIGNAL)
    return meet(address, word)


def test_a_question_that_does_not_interrupt_the_main_thread_wakes_it(any_method: str) -> None:
    """As one that comes when it is just about to wait. Unanswered, it would be followed by the dangerous dump."""
    with meeting() as place, MPMS(ask_in_this_thread, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(1, place.address)
        guest = place.arrive()
        (file,) = (fd for fd in Path(f"/proc/{guest.pid}/fd").iterdir() if "-stacks " in os.readlink(fd))
        until(lambda: "in ask_in_this_thread" in file.read_text(), promised(5))
        guest.release()


def hang_in_the_initializer(address: str) -> None:
    meet(address)


def test_a_worker_that_is_just_starting_survives_the_question(any_method: str) -> None:
    with MPMS(abs, processes=2, threads=2, start_method=any_method) as pool:
        for number in range(4):
            pool.put(number)  # those that never do anything are replaced ever more slowly
            until(lambda done=number + 1: pool.finish_count == done)
            before = at_full_strength(pool)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            while len(pids(pool) - before) < 2:
                pool.stacks()  # the handlers are in place some milliseconds after the birth
        assert set(pool.stats().crashes) == {"SIGKILL"}
        assert pool.stats().starts == 2 + pool.stats().crashes["SIGKILL"]


def test_a_worker_in_its_initializer_is_shown_too(method: str) -> None:
    with (
        meeting() as place,
        MPMS(
            abs,
            processes=1,
            threads=1,
            start_method=method,
            process_initializer=hang_in_the_initializer,
            process_initargs=(place.address,),
        ) as pool,
    ):
        guest = place.arrive()
        (worker,) = until(lambda: [w for w in pool.stacks() if w.threads])
        assert worker.pid == guest.pid
        assert "in hang_in_the_initializer" in worker.threads[-1].stack
        guest.release()


def test_a_stopped_worker_did_not_answer_and_keeps_the_others_from_nothing(method: str) -> None:
    with meeting() as place, MPMS(meet_here, processes=2, threads=1, start_method=method) as pool:
        for word in range(2):
            pool.put(word, place.address)
        guests = place.arrivals(2)
        with stopped(guests[0].pid):
            with Stopwatch() as watch:
                answers = {worker.pid: worker for worker in pool.stacks()}
            assert watch.seconds < promised(3)
            assert answers[guests[0].pid].threads == ()
            assert f"(pid {guests[0].pid}) did not answer: it is stopped, or in the kernel" in str(
                answers[guests[0].pid]
            )
            # It was not asked in the way that may crash who goes on.
            assert pending_signals(guests[0].pid) & {ASK_SIGNAL, DUMP_SIGNAL} == {ASK_SIGNAL}
            # The other one may have got no processor in its second.
            until(lambda: [len(w.threads) for w in pool.stacks() if w.pid == guests[1].pid] == [2])
        for guest in guests:
            guest.release()
        pool.close()
        assert sorted(result for _, result in pool.iter_results()) == [0, 1]
        assert pool.stats().crashes == {}


def test_a_pool_that_has_not_started_or_has_ended_has_no_stacks() -> None:
    pool = MPMS(abs, processes=1, threads=1)
    assert pool.stacks() == []
    pool.start()
    pool.join()
    assert pool.stacks() == []


# From another process


POOL = """
    def hang(word, address):
        meet(address, word)

    with MPMS(hang, processes=2, threads=2) as pool:
        for word in range(3):
            pool.put(word, sys.argv[1])
"""


def test_mpms_stack_shows_the_workers_of_a_process_and_harms_nobody() -> None:
    with meeting() as place, program(POOL, place.address) as running:
        guests = place.arrivals(3)
        family = {each.pid for each in running.family()}
        workers = {guest.pid for guest in guests}
        status, out, err = mpms_stack(running.pid)
        assert (status, err) == (0, "")
        assert [int(pid) for pid in re.findall(r"^mpms-\S+-p\d+ \(pid (\d+)\)$", out, re.MULTILINE)] == sorted(workers)
        assert len(re.findall(r"^#t[12]: for \d+\.\d s$", out, re.MULTILINE)) == 3
        assert out.count("in hang\n") == 3
        assert len(re.findall(r"^thread: no task$", out, re.MULTILINE)) == 3
        for pid in sorted(workers):
            status, out, err = mpms_stack(pid)
            assert (status, err) == (0, "")
            assert re.findall(r"\(pid (\d+)\)$", out, re.MULTILINE) == [str(pid)]
            assert "in hang" in out
        (server,) = family - workers - {running.pid} - _helpers(running.pid)
        mpms_stack(server)  # whatever it says
        assert {each.pid for each in running.family()} == family
        for guest in guests:
            guest.release()
        assert running.ends(60)[0] == 0


def _helpers(pid: int) -> set[int]:
    """The resource trackers of multiprocessing."""
    return {
        each.pid
        for each in psutil.Process(pid).children(recursive=True)
        if "resource_tracker" in " ".join(each.cmdline())
    }


NESTED = """
    def inner(address):
        meet(address, "inner")

    def outer(address):
        with MPMS(inner, processes=1, threads=1) as pool:
            pool.put(address)
            with announce(address, "outer"):
                pool.join()

    with MPMS(outer, processes=1, threads=1) as pool:
        pool.put(sys.argv[1])
"""


def test_a_worker_that_ends_while_others_are_asked_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    dead: list[int] = []

    def ask(pid: int, read: Callable[[], str]) -> str:
        if not dead:
            dead.append(pid)
            os.kill(pid, signal.SIGKILL)
            until(lambda: not psutil.pid_exists(pid))
        return take_stacks(pid, read)

    monkeypatch.setattr("mpms.local.stacks.take_stacks", ask)
    with meeting() as place, MPMS(meet_here, processes=2, threads=1) as pool:
        for word in range(2):
            pool.put(word, place.address)
        asked = {guest.pid: guest for guest in place.arrivals(2)}
        assert [worker.pid for worker in stacks_of_process(os.getpid())] == sorted(asked.keys() - set(dead))
        for pid in asked.keys() - set(dead):
            asked[pid].release()
        pool.close()
        assert [type(result) for _, result in pool.iter_results() if not isinstance(result, int)] == [WorkerCrashed]


def test_mpms_stack_of_nested_pools_asks_each_one_for_its_own_and_harms_nobody() -> None:
    with meeting() as place, program(NESTED, place.address) as running:
        guests = {guest.word: guest for guest in place.arrivals(2)}
        family = {each.pid for each in running.family()}
        shown = {}
        for name, pid in (("parent", running.pid), ("outer", guests["outer"].pid), ("inner", guests["inner"].pid)):
            status, out, err = mpms_stack(pid)
            assert (status, err) == (0, "")
            shown[name] = {int(pid) for pid in re.findall(r"\(pid (\d+)\)", out)}, "in outer" in out, "in inner" in out
        outer, inner = guests["outer"].pid, guests["inner"].pid
        assert shown["parent"] == ({outer}, True, False)
        assert shown["inner"] == ({inner}, False, True)
        assert outer in shown["outer"][0]
        assert {each.pid for each in running.family()} == family
        guests["inner"].release()
        assert running.ends(60)[0] == 0


@pytest.mark.parametrize(
    ("pid", "says"), [(2**22 + 7, "no process"), (os.getpid(), "has no workers of mpms")], ids=["none", "another"]
)
def test_mpms_stack_of_a_process_without_workers_says_so(pid: int, says: str) -> None:
    status, out, err = mpms_stack(pid)
    assert (status, out) == (1, "")
    assert says in err
    assert str(pid) in err


def test_who_does_not_catch_the_signal_is_not_sent_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert take_stacks(process.pid, lambda: "") == ""
        assert process.poll() is None
        process.communicate(b"\n", timeout=60)
        assert process.returncode == 0


# The story


def test_the_story_is_what_happened_in_its_order() -> None:
    with MPMS(abs, processes=1, threads=1) as pool:
        pool.put(-1)
        pool.close()
        assert [result for _, result in pool.iter_results()] == [1]
    story = pool.story()
    times = [float(line.split()[0]) for line in story]
    assert times == sorted(times)
    assert abs(times[-1] - time.monotonic()) < 60
    text = "\n".join(story)
    words = ["StartWorker(worker=1)", "WorkerReady(worker=1)", "Dispatch(worker=1", "Settle(", "Retire(", "Stopped("]
    assert [text.index(word) for word in words] == sorted(text.index(word) for word in words)


def test_the_story_of_a_long_life_is_its_end(method: str) -> None:
    with MPMS(abs, processes=1, threads=1, start_method=method) as pool:
        for number in range(400):
            pool.put(number)
            until(lambda done=number + 1: pool.finish_count == done, every=0.0005)
    story = pool.story()
    assert len(story) == 200
    assert "Stopped" in story[-1]


def test_every_effect_is_logged_when_the_environment_asks_for_it() -> None:
    code = """
    import logging
    logging.basicConfig(format="%(name)s %(message)s")
    with MPMS(abs, processes=1, threads=1, name="job") as pool:
        pool.put(-1)
        pool.close()
        say([result for _, result in pool.iter_results()])
    """
    for debug, logged in (("1", True), ("0", False), ("", False)):
        with program(code, MPMS_DEBUG=debug) as running:
            running.says("[1]")
            status, _, err = running.ends(60)
        assert status == 0
        lines = [line for line in err.splitlines() if line.startswith("mpms mpms job debug: ")]
        assert any("StartWorker(worker=1)" in line for line in lines) is logged
        assert any("Settle(" in line for line in lines) is logged


def test_threads_that_ask_at_the_same_time_all_get_an_answer(method: str) -> None:
    with meeting() as place, MPMS(meet_here, processes=1, threads=1, start_method=method) as pool:
        pool.put(1, place.address)
        guest = place.arrive()
        until(lambda: pids(pool))  # of its birth the pool hears by another way than of its tasks
        answers: list[list[WorkerStacks]] = []
        askers = [threading.Thread(target=lambda: answers.append(pool.stacks())) for _ in range(4)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert len(answers) == 4
        assert all("in meet_here" in tasks(answer)[1].stack for answer in answers)
        guest.release()


@pytest.mark.parametrize("name", ["ä" * 300, "before\0after", "half a pair \ud800"])
def test_any_name_of_a_pool_will_do(method: str, name: str) -> None:
    """Also one that is too long for a file."""
    with meeting() as place, MPMS(meet_here, processes=2, threads=1, start_method=method, name=name) as pool:
        for word in range(2):
            pool.put(word, place.address)
        guests = place.arrivals(2)
        found = stacks_of_process(os.getpid())
        assert {worker.pid for worker in found} == {guest.pid for guest in guests}
        assert {worker.name[-3:] for worker in found} == {"-p1", "-p2"}
        assert {worker.threads[0].dispatch for worker in found} == {1, 2}  # by the board of each
        for guest in guests:
            guest.release()
