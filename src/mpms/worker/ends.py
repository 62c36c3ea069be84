"""The ways in which a worker ends that are not orderly."""

from __future__ import annotations

import os
import signal
import sys
import traceback

from ..typed import NoReturn

__all__ = [
    "INTERNAL",
    "LOST_DESCRIPTORS",
    "START_FAILED",
    "die",
    "end_fork",
    "flush_streams",
    "forked",
    "parent_gone",
    "real_exit",
]

real_exit = os._exit
"""The system's own: in a worker ``os._exit`` also leaves a record of who called it."""

forked = False
"""Whether this is not the worker but a child that the user's code has forked."""

START_FAILED = 1
INTERNAL = 70  # EX_SOFTWARE of sysexits.h
LOST_DESCRIPTORS = 71  # EX_OSERR


def die(code: int, why: str) -> NoReturn:
    """End at once: nothing in this process can be reported any more but its exit code."""
    try:
        os.write(2, f"mpms worker {os.getpid()}: {why}\n".encode(errors="replace"))
    finally:
        real_exit(code)


def parent_gone() -> NoReturn:
    """Nobody wants the results: end, with all that tasks have forked."""
    sys.stderr = None
    os.killpg(os.getpgrp(), signal.SIGKILL)
    real_exit(0)


def end_fork(error: BaseException | None) -> NoReturn:
    """End a forked child that came back from the user's code, with an exit code as if that were a program.

    It is nobody's worker: the queue, the status board and the locks are its parent's.
    """
    code = 0
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = error.code or 0
    elif error is not None:
        code = 1
        try:
            traceback.print_exception(error)
        except (OSError, ValueError):
            pass  # stderr is closed
    flush_streams()
    real_exit(code & 0xFF)


def flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed, or None
