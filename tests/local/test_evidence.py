"""What faulthandler writes, in the words of each Python, names the task and shows its stack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpms import Executor
from mpms.core.messages import Crash, Timeout
from mpms.ids import TaskId, WorkerId
from mpms.local.evidence import Death, Who, crashed, describe_exit, guilty, stack_of, timed_out
from mpms.wire.board import Slot
from mpms.wire.messages import THREAD_FRAME

from .helpers import HAS_GIL

WHO = Who(TaskId(5), "(x)")

RUNNING = [
    Slot(0, 11, 1.0, 0x7F0000000001),
    Slot(1, 12, 1.0, 0x7F0000000002),
    Slot(2, 9, 1.0, 0x7F0000000003),
]

# The thread of dispatch 12 crashes, that of 11 computes; the last thread is the main one.
THREADS = """\
{current} 0x00007f0000000002{two} (most recent call first):
  File "/home/me/native.py", line 7 in call
  File "/home/me/jobs.py", line 20 in work
  File "/lib/mpms/worker/slots.py", line 172 in _perform
  File "/lib/mpms/worker/slots.py", line 115 in _work
  File "/lib/python3/threading.py", line 975 in run

{other} 0x00007f0000000001{one} (most recent call first):
  File "/home/me/jobs.py", line 33 in compute
  File "/lib/mpms/worker/slots.py", line 172 in _perform

Thread 0x00007f0000000009{main} (most recent call first):
  File "/lib/mpms/worker/main.py", line 99 in _serve
"""

NO_NAMES = {"one": "", "two": "", "main": ""}
NAMES = {"one": " [mpms-job-p1#t1]", "two": " [mpms-job-p1#t2]", "main": " [mpms-job-p1]"}
CRASH = {"current": "Current thread", "other": "Thread"}

TEXTS = {
    "3.10": "Fatal Python error: Segmentation fault\n\n" + THREADS.format(**NO_NAMES, **CRASH),
    "3.11": "Fatal Python error: Segmentation fault\n\n"
    + THREADS.format(**NO_NAMES, **CRASH)
    + "\nExtension modules: numpy.core._multiarray_umath, yaml._yaml (total: 2)\n",
    "3.12, collecting garbage": "Fatal Python error: Segmentation fault\n\n"
    + THREADS.format(**NO_NAMES, **CRASH).replace(
        'first):\n  File "/home/me/native.py', 'first):\n  Garbage-collecting\n  File "/home/me/native.py'
    ),
    "3.13": "Fatal Python error: Aborted\n\n"
    + THREADS.format(**NO_NAMES, **CRASH)
    + "\nExtension modules: _cffi_backend (total: 1)\n",
    "3.14": "Fatal Python error: Segmentation fault\n\n"
    + THREADS.format(**NAMES, **CRASH)
    + "\nCurrent thread's C stack trace (most recent call first):\n"
    + '  Binary file "/lib/native.so", at crash+0x12 [0x7f00deadbeef]\n'
    + '  Binary file "/usr/bin/python3", at _PyEval_EvalFrameDefault+0x1e2 [0x55d0c0ffee00]\n'
    + "\nExtension modules: _cffi_backend (total: 1)\n",
    "3.14, without a GIL": "Fatal Python error: Segmentation fault\n\n"
    "<Cannot show all threads while the GIL is disabled>\n"
    "Stack (most recent call first):\n"
    '  File "/home/me/native.py", line 7 in call\n'
    '  File "/home/me/jobs.py", line 20 in work\n'
    '  File "/lib/mpms/worker/slots.py", line 172 in _perform\n'
    '  File "/lib/mpms/worker/slots.py", line 360 in task-thread-1\n'
    '  File "/lib/python3/threading.py", line 975 in run\n'
    "\nCurrent thread's C stack trace (most recent call first):\n"
    '  Binary file "/lib/native.so", at crash+0x12 [0x7f00deadbeef]\n',
    "os._exit": "os._exit(3)\n\n" + THREADS.format(**NO_NAMES, **CRASH),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_current_thread_of_a_crash_names_the_dispatch(text: str) -> None:
    assert guilty(text, RUNNING) == 12


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_stack_is_that_of_the_task_and_ends_with_its_innermost_frame(text: str) -> None:
    lines = [line for line in stack_of(12, text, RUNNING).splitlines() if "Garbage" not in line]
    assert lines == [
        '  File "/home/me/jobs.py", line 20 in work',
        '  File "/home/me/native.py", line 7 in call',
    ]
    is_alone = "Cannot show all threads" in text
    assert stack_of(11, text, RUNNING) == ("" if is_alone else '  File "/home/me/jobs.py", line 33 in compute')


def test_a_stack_of_who_runs_nothing_or_was_not_seen_is_empty() -> None:
    assert stack_of(99, TEXTS["3.11"], RUNNING) == ""
    assert stack_of(9, TEXTS["3.11"], RUNNING) == ""
    assert stack_of(12, "", RUNNING) == ""


def test_each_thread_of_a_worker_has_a_frame_that_names_it() -> None:
    with Executor(1, threads=2) as pool:
        names = [pool.submit(frames).result() for _ in range(4)]
    found = {name for each in names for name in each if name.startswith(THREAD_FRAME)}
    assert found <= {f"{THREAD_FRAME}0", f"{THREAD_FRAME}1"}
    assert all(sum(name.startswith(THREAD_FRAME) for name in each) == 1 for each in names)


def frames() -> list[str]:
    names, frame = list[str](), sys._getframe()
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def test_a_crash_of_a_thread_without_a_task_blames_nobody() -> None:
    # A thread that a task has started; or the main thread, which gets the signal that a task sends to its process.
    text = TEXTS["3.11"].replace("0x00007f0000000002", "0x00007f0000000077")
    assert guilty(text, RUNNING) is None


def test_without_a_crash_nobody_is_guilty() -> None:
    hang = THREADS.format(**NO_NAMES, **CRASH)  # the parent asked where the threads are
    assert guilty(hang, RUNNING) is None
    assert guilty("", RUNNING) is None


def test_a_torn_text_blames_nobody() -> None:
    assert guilty("Fatal Python error: Segmentation fault\n\nCurrent thr", RUNNING) is None


def test_a_crash_after_a_hang_is_the_crash_that_counts() -> None:
    hang = THREADS.format(**NO_NAMES, current="Thread", other="Current thread")
    assert guilty(hang + TEXTS["3.11"], RUNNING) == 12
    later = TEXTS["3.11"].replace("line 20 in work", "line 21 in work")
    assert "line 21 in work" in stack_of(12, hang + later, RUNNING)


def test_a_file_of_the_users_of_the_same_name_is_shown() -> None:
    text = TEXTS["3.11"].replace("/home/me/jobs.py", "/home/me/worker/slots.py")
    assert stack_of(11, text, RUNNING) == '  File "/home/me/worker/slots.py", line 33 in compute'


@pytest.mark.skipif(not HAS_GIL, reason="it doesn't say whose stack it is, unless it is that of a worker's thread")
def test_a_real_crash_of_this_python(tmp_path: Path) -> None:
    program = (
        "import faulthandler, os, sys, threading\n"
        "faulthandler.enable(open(sys.argv[1], 'wb', buffering=0), all_threads=True)\n"
        "def crash():\n"
        "    print(threading.get_ident(), flush=True)\n"
        "    os.abort()\n"
        "threading.Thread(target=crash, name='a name with [brackets] (and more)').start()\n"
        "threading.Event().wait(60)\n"
    )
    stacks = tmp_path / "stacks"
    done = subprocess.run(
        [sys.executable, "-c", program, str(stacks)], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    slots = [Slot(0, 4, 1.0, 123), Slot(1, 5, 1.0, int(done.stdout))]
    text = stacks.read_text()
    assert guilty(text, slots) == 5, text
    assert stack_of(5, text, slots).endswith('File "<string>", line 5 in crash')


@pytest.mark.parametrize(
    ("code", "word"),
    [(0, "exit 0"), (3, "exit 3"), (-9, "SIGKILL"), (-11, "SIGSEGV"), (-250, "signal 250"), (None, "lost")],
)
def test_an_exit_code_has_a_word(code: int | None, word: str) -> None:
    assert describe_exit(code) == word


@pytest.mark.parametrize(
    ("exitcode", "why", "blamed", "attempts", "words"),
    [
        (-11, "", True, 1, "w1 (pid 77) was killed by SIGSEGV while it ran task 5 (x). This task did it."),
        (3, "", False, 1, "ended with exit 3 while it ran task 5 (x). This task did not do it."),
        (-9, "", None, 2, "Which of the tasks in it did it is not known. It was attempt 2."),
        (-9, "grace over", False, 1, "was killed by the pool (grace over) while"),
        (70, "", None, 1, "ended with exit 70 (an internal error of the worker, which it wrote to stderr) while"),
        (71, "", None, 1, "ended with exit 71 (a task had closed the descriptors of the worker) while"),
    ],
)  # fmt: skip
def test_a_crash_says_who_how_and_whose_fault(
    exitcode: int, why: str, blamed: bool | None, attempts: int, words: str
) -> None:
    death = Death("w1", 77, exitcode, TEXTS["3.11"], RUNNING, why=why)
    error = crashed(Crash(WorkerId(1), blamed, attempts), 12, death, WHO)
    assert words in error.args[0]
    assert (error.worker, error.pid, error.exitcode) == ("w1", 77, exitcode)
    assert (error.blamed, error.task, error.arguments) == (blamed, 5, "(x)")
    assert str(error).endswith('\n  File "/home/me/native.py", line 7 in call')


def test_a_timeout_says_how_long_and_where() -> None:
    error = timed_out(Timeout(WorkerId(1), 2.5, 3), 11, Death("w1", 77, None, TEXTS["3.14"], RUNNING), WHO)
    assert error.args[0] == "task 5 (x) ran in w1 (pid 77) for more than 2.5 seconds. It was attempt 3."
    assert (error.timeout, error.worker, error.pid, error.task) == (2.5, "w1", 77, 5)
    assert error.stack == '  File "/home/me/jobs.py", line 33 in compute'
    assert str(error) == f"{error.args[0]}\nStack of the task, most recent call last:\n{error.stack}"


def test_without_a_stack_none_is_shown() -> None:
    error = timed_out(Timeout(WorkerId(1), 1.0, 1), 11, Death("w1", 77, None), WHO)
    assert error.stack == ""
    assert str(error) == error.args[0]
