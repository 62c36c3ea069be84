"""Where every thread of a worker is, now: also while C code holds the GIL, and from another process."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..figures import ThreadStack, WorkerStacks
from ..wire.board import Board, Slot, threads_of
from ..wire.messages import ASK_SIGNAL, DUMP_SIGNAL, STACKS_BEGIN, STACKS_END
from . import evidence

__all__ = ["stacks_of_process", "take_stacks", "thread_stacks"]

_PATIENCE = 1.0
"""Seconds for a worker to answer. faulthandler needs well under a millisecond for 100 threads; a stopped process never
does, nor one in a system call that can't be interrupted."""

_POLITE = 0.7
"""Of that, the seconds for its main thread. With eight threads that compute it has the GIL at one switch of eight, and
there is one every 5 ms; a busy machine takes a multiple of that."""

_PAUSE = 0.003

_FILE = re.compile(r"^/memfd:(mpms-.*)-stacks \(deleted\)$")


def take_stacks(pid: int, read: Callable[[], str]) -> str:
    """What faulthandler writes when it is asked now; empty when it doesn't answer. Blocks for some milliseconds."""
    if not _catches_signal(pid):
        return ""  # it has only just begun, and would die of it
    before = read()
    os.kill(pid, ASK_SIGNAL)
    until = time.monotonic() + _PATIENCE
    insist = until - _PATIENCE + _POLITE
    last, insisted = "", False
    while time.monotonic() < until:
        # Nobody tells that another process has written: it is looked at.
        select.select([], [], [], _PAUSE)
        text = read()
        text = text[len(before) :] if text.startswith(before) else text  # else it has begun a new one
        _, _, answer = text.partition(STACKS_BEGIN)
        answer, whole, _ = answer.partition(STACKS_END)
        if whole:
            return answer
        if insisted and text and text == last:  # that one has no end: two looks are the same
            return text
        if not text and not insisted and time.monotonic() > insist:
            insisted = True
            # Who is stopped would answer when he goes on, when nobody asks any more, and while his threads run: that
            # may crash him.
            if not _is_stopped(pid):
                os.kill(pid, DUMP_SIGNAL)
        last = text
    return last


def thread_stacks(text: str, running: Sequence[Slot]) -> tuple[ThreadStack, ...]:
    """The threads of a dump. Those that run no task come last, with an unknown place."""
    now = time.monotonic()
    slots = {slot.ident: slot for slot in running}
    threads = []
    for ident, stack in evidence.stacks(text):
        slot = slots.get(ident)
        if slot is None:
            threads.append(ThreadStack(thread=None, dispatch=None, seconds=None, stack=stack))
        else:
            threads.append(
                ThreadStack(thread=slot.thread + 1, dispatch=slot.seq, seconds=max(0.0, now - slot.start), stack=stack)
            )
    return tuple(sorted(threads, key=lambda each: each.thread or 1 << 30))


def stacks_of_process(pid: int) -> list[WorkerStacks]:
    """Of every worker that the process ``pid`` has started; of itself, when it is one. Found by their memory files.

    Raises ``FileNotFoundError`` when there is no such process, or no ``/proc``, and ``PermissionError``.
    """
    wanted = _memory_files(pid)
    holders: dict[int, list[int]] = {inode: [] for inode in wanted}
    for process in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            # The parent holds the file as well. Only a worker catches the signal, and others would die of it.
            if _catches_signal(process):
                for inode in _memory_files(process).keys() & wanted.keys():
                    holders[inode].append(process)
        except OSError:
            continue  # it has ended, or is somebody else's
    found = []
    for inode, (name, path) in wanted.items():
        # A worker that has a pool itself holds the files of that one too. Who they are about was born after it.
        if holders[inode]:
            try:
                found.append(_stacks_of_worker(max(holders[inode], key=_birth), name, path))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended since it was found
    return sorted(found, key=lambda worker: worker.pid)


def _stacks_of_worker(pid: int, name: str, path: Path) -> WorkerStacks:
    def read() -> str:
        with path.open("rb") as file:
            return evidence.read_stacks(file.fileno())

    text = take_stacks(pid, read)
    return WorkerStacks(name=name, pid=pid, threads=thread_stacks(text, _running(pid, name)))


def _running(pid: int, name: str) -> list[Slot]:
    """What its board says. The board's descriptor is kept by the mapping of it."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(path) == f"/memfd:{name} (deleted)":
                fd = os.open(path, os.O_RDWR)
                break
        except OSError:
            continue
    else:
        return []
    try:
        board = Board(fd, threads_of(os.fstat(fd).st_size))
        try:
            return board.running()
        finally:
            board.close()
    finally:
        os.close(fd)


def _memory_files(pid: int) -> dict[int, tuple[str, Path]]:
    """Name of the worker and path, by inode, of each file of stacks that the process holds."""
    files = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = _FILE.match(os.readlink(path))
            if match is not None:
                files[path.stat().st_ino] = match[1], path
        except FileNotFoundError:
            continue  # closed meanwhile
    return files


def _birth(pid: int) -> tuple[int, int]:
    """When it was born, in clock ticks since the machine was; pids are used again."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19]), pid
    except OSError:
        return 0, pid  # it has ended


def _catches_signal(pid: int) -> bool:
    caught = _status(pid, "SigCgt")
    return caught is None or bool(int(caught or "0", 16) >> (ASK_SIGNAL - 1) & 1)


def _is_stopped(pid: int) -> bool:
    return _status(pid, "State") in ("T", "t")  # by a signal, by a debugger


def _status(pid: int, key: str) -> str | None:
    """The first word of what the system says of the process; ``None``: it is not to be known here."""
    if not os.path.exists("/proc/self/status"):
        return None
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.split()[0]
    return ""
