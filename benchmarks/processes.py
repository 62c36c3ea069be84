"""Trees of processes: who belongs to one, what it uses, and its end. By way of /proc: elsewhere than on Linux only
the process group is known, and what is used is not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["adoption", "cpu_seconds", "kill_all", "pss", "rss", "tree"]

_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 10.0  # seconds: a killed process with gigabytes of memory, or in the kernel, takes a while to go


def _parents() -> dict[int, int]:
    parents = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:
            stat = entry.read_text(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        # The name, in parentheses, may hold anything.
        pid, rest = int(stat.split(" ", 1)[0]), stat.rpartition(")")[2].split()
        parents[pid] = int(rest[1])
    return parents


def tree(root: int) -> list[int]:
    """``root`` and all that descend from it, zombies included."""
    children = defaultdict(list)
    for pid, parent in _parents().items():
        children[parent].append(pid)
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children[pid]
    return found


def pss(pids: Iterable[int]) -> int | None:
    """Bytes of memory of all together, shared pages counted once; ``None`` where that is not known."""
    total, known = 0, False
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total, known = total + int(line.split()[1]) * 1024, True
    return total if known else None


def rss() -> int | None:
    """Bytes of memory of this process."""
    try:
        return int((_PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def cpu_seconds(pids: Iterable[int], but_for: int = 0) -> float | None:
    """Time on a processor of all their threads but one, to the nanosecond; ``None`` where that is not known."""
    total, known = 0, False
    for pid in pids:
        # Not `stat`: it counts in ticks of 10 ms, and an idle pool is to use less.
        for entry in _PROC.glob(f"{pid}/task/*/schedstat"):
            if entry.parent.name == str(but_for):
                continue
            with contextlib.suppress(OSError):
                total, known = total + int(entry.read_text().split()[0]), True
    return total / 1e9 if known else None


@contextlib.contextmanager
def adoption() -> Iterator[None]:
    """Within it, orphans of our descendants become our children, even if they are daemons: so none gets away."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def kill_all(child: subprocess.Popen[bytes], spared: Iterable[int]) -> int:
    """Kill ``child``, that leads a session, and all our descendants but ``spared``; how many others than it there were.

    To be called within :func:`adoption`. Not knowing who has ended and whose number is used anew would be a danger, but
    nobody here is reaped by anyone but us, so a number in our tree is one of ours.
    """
    keep, seen = {os.getpid(), *spared}, set()
    deadline = time.monotonic() + _PATIENCE
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    while time.monotonic() < deadline:
        left = [pid for pid in tree(os.getpid()) if pid not in keep] if _PROC.exists() else []
        if not left:
            break
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            # Those that we have adopted; the others are reaped when their parents are gone.
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        seen.update(left)
        time.sleep(0.005)  # nobody tells us of the end of a grandchild
    return len(seen)
