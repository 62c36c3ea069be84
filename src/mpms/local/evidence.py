"""What a dead or hung worker has left behind, made into errors that say who, what and where."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence

from ..core.messages import Crash, Timeout
from ..errors import TaskTimeout, WorkerCrashed
from ..ids import Seq, TaskId
from ..record import Record
from ..wire.board import Slot
from ..wire.messages import THREAD_FRAME

__all__ = [
    "Death",
    "Who",
    "crashed",
    "describe_exit",
    "exit_call",
    "guilty",
    "items_begun",
    "read_stacks",
    "stack_of",
    "stacks",
    "timed_out",
]

# "Thread 0x00007f6a (most recent call first):"; Python 3.14 puts the thread's name before the bracket. Without a GIL it
# is "Stack (most recent call first):", of the current thread.
_HEADER = r"(?m)^(?:(Current thread|Thread) 0x([0-9a-f]+)[^\n]*|Stack \(most recent call first\):)\n((?:  [^\n]*\n?)*)"

_THREAD_FRAME = rf'(?m)mpms/worker/slots\.py", line \d+ in {THREAD_FRAME}(\d+)$'

_TASK_FRAMES = ("mpms/worker/slots.py", "mpms/wire/chunks.py")
"""The innermost frame of them calls the task: from there on outwards it is the same for all tasks."""

_FATAL = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}

_STACKS_MOST = 1 << 24
"""Bytes that are read of a file of stacks: 200 threads without a GIL, 1,000 frames deep, are 12 MB. A task may have
made the file as large as it likes."""

_CODES = {
    70: "an internal error of the worker, which it wrote to stderr",
    71: "a task had closed the descriptors of the worker",
}


class Death(Record):
    """How a worker ended or hangs, and what ran in it. ``stacks`` is what faulthandler wrote."""

    worker: str
    pid: int | None
    exitcode: int | None = None
    stacks: str = ""
    running: Sequence[Slot] = ()
    age: float | None = None
    done: int | None = None
    peak: int | None = None
    why: str = ""  # the pool's own reason, if it killed it
    oom_killed: bool = False


class Who(Record):
    """The task that an error is about. ``arguments`` as a short text."""

    task: TaskId
    arguments: str

    def __str__(self) -> str:
        return f"{self.task} {self.arguments}"


def describe_exit(exitcode: int | None) -> str:
    """A word for an exit code: ``SIGKILL`` or ``exit 3``."""
    if exitcode is None:
        return "lost"
    if exitcode >= 0:
        return f"exit {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


def read_stacks(fd: int) -> str:
    """What faulthandler has written to the file so far."""
    size = os.fstat(fd).st_size
    return os.pread(fd, min(size, _STACKS_MOST), max(0, size - _STACKS_MOST)).decode(errors="replace")


def guilty(stacks: str, running: Sequence[Slot]) -> Seq | None:
    """The dispatch that ended its process. ``None``: unknown, as when it was a thread that runs no task: one that a
    task has started, or the main thread, to which the system gives a signal that a task has sent to its process."""
    match = re.search(r"^(Fatal Python error|os\._exit)", stacks, re.MULTILINE)
    if match is None:
        return None
    for header in re.finditer(_HEADER, stacks[match.start() :]):
        if header[1] != "Thread":
            slot = _whose(header, running)
            return None if slot is None else Seq(slot.seq)
    return None


def _whose(header: re.Match[str], running: Sequence[Slot]) -> Slot | None:
    """The place of the thread that it is about, if that runs a task."""
    if header[2] is not None:
        ident = int(header[2], 16)
        return next((slot for slot in running if slot.ident == ident), None)
    named = re.search(_THREAD_FRAME, header[3])
    return None if named is None else next((slot for slot in running if slot.thread == int(named[1])), None)


def items_begun(seq: int, death: Death) -> int | None:
    """Of the items of a chunk, how many may have started. ``None``: it can't be told, so all of them."""
    return next((slot.items for slot in death.running if slot.seq == seq), None)


def stack_of(seq: int, stacks: str, running: Sequence[Slot]) -> str:
    """The Python stack of the thread that runs this dispatch, innermost frame last, as tracebacks have it."""
    found = ""
    for header in re.finditer(_HEADER, stacks):
        slot = _whose(header, running)
        if slot is not None and slot.seq == seq:
            found = header[3]  # the last one: an earlier one is of an earlier hang
    frames = found.rstrip("\n").splitlines()
    ours = next((at for at, frame in enumerate(frames) if any(file in frame for file in _TASK_FRAMES)), len(frames))
    return "\n".join(reversed(frames[:ours]))


def stacks(text: str) -> list[tuple[int, str]]:
    """Thread ident and Python stack of each thread in the text, innermost frame last."""
    named = [header for header in re.finditer(_HEADER, text) if header[2] is not None]
    return [(int(header[2], 16), _outermost_first(header[3])) for header in named]


def _outermost_first(frames: str) -> str:
    return "\n".join(reversed(frames.rstrip("\n").splitlines()))


def exit_call(stacks: str) -> str:
    """The line that called ``os._exit``, as ``file:line in function``."""
    match = re.search(r'^os\._exit\(.*\n\nCurrent thread.*\n  File "(.*)", line (\d+) in (.*)$', stacks, re.MULTILINE)
    return "" if match is None else f"{match[1]}:{match[2]} in {match[3]}"


def crashed(verdict: Crash, seq: int, death: Death, who: Who) -> WorkerCrashed:
    stack, call = stack_of(seq, death.stacks, death.running), exit_call(death.stacks)
    when = "while it ran"
    if death.done is not None and all(slot.seq != seq for slot in death.running):
        when = "after it had run, and before it had sent the result of,"
    text = f"the worker {death.worker} (pid {death.pid}) {_how(death, call)} {when} task {who}."
    text += {
        True: " This task did it.",
        False: " This task did not do it.",
        None: " Which of the tasks in it did it is not known.",
    }[verdict.blamed]
    if verdict.attempts > 1:
        text += f" It was attempt {verdict.attempts}."
    facts = []
    if death.age is not None:
        facts.append(f"was {death.age:.1f} s old")
    if death.done is not None:
        facts.append(f"had done {death.done} tasks")
    if death.peak:
        facts.append(f"had held {death.peak / 1e6:,.0f} MB at the most")
    if facts:
        text += f" The worker {', '.join(facts)}."
    advice = _advice(death, verdict.blamed)
    return WorkerCrashed(
        f"{text} {advice}" if advice else text,
        exitcode=death.exitcode,
        blamed=verdict.blamed,
        exit_call=call,
        age=death.age,
        done=death.done,
        peak_memory=death.peak,
        oom_killed=death.oom_killed,
        task=who.task,
        arguments=who.arguments,
        worker=death.worker,
        pid=death.pid,
        stack=stack,
    )


def _how(death: Death, call: str) -> str:
    if death.why:
        return f"was killed by the pool ({death.why})"
    if death.oom_killed:
        return "was killed by the kernel, which was out of memory (SIGKILL)"
    if death.exitcode is not None and death.exitcode < 0:
        return f"was killed by {describe_exit(death.exitcode)}"
    if call:
        return f"was ended by os._exit({death.exitcode}) at {call}"
    note = _CODES.get(death.exitcode or 0)
    return f"ended with {describe_exit(death.exitcode)}" + (f" ({note})" if note else "")


def _advice(death: Death, blamed: bool | None) -> str:
    """What the reader may do about it."""
    if blamed is False:
        return "With retries=1 it would have been run again."
    if death.oom_killed:
        return "Give the machine less to hold at once, or name max_memory_per_process or min_free_memory."
    if death.exitcode == -signal.SIGKILL and not death.why:
        return "The pool did not send it: somebody did, or the kernel when memory ran out; its log (dmesg) would tell."
    if death.exitcode in _FATAL:
        return "It crashed in native code: a C extension, or a library that it called."
    return ""


def timed_out(verdict: Timeout, seq: int, hung: Death, who: Who) -> TaskTimeout:
    tries = f" It was attempt {verdict.attempts}." if verdict.attempts > 1 else ""
    return TaskTimeout(
        f"task {who} ran in {hung.worker} (pid {hung.pid}) for more than {verdict.limit:g} seconds.{tries}",
        timeout=verdict.limit,
        task=who.task,
        arguments=who.arguments,
        pid=hung.pid,
        worker=hung.worker,
        stack=stack_of(seq, hung.stacks, hung.running),
    )
