"""What the workers run. A module of its own, so that a machine has nothing else to import."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

from ..contract.tasks import hold, note

__all__ = [
    "Picky",
    "fault",
    "hold",
    "note",
    "note_and_hold",
    "note_and_nap",
    "note_and_work",
    "pid",
    "raise_picky",
    "where",
]


def note_and_hold(path: str, word: str, fifo: str) -> str:
    """Says that it has started, and returns when the test lets go of ``fifo``."""
    note(path, word)
    hold(fifo)
    return word


def note_and_work(path: str, number: int) -> int:
    note(path, str(number))
    until = time.monotonic() + 0.01
    while time.monotonic() < until:
        pass
    return number


def note_and_nap(path: str, number: int) -> int:
    note(path, str(number))
    time.sleep(0.5)  # that is the task: it takes a while
    return number


def fault(text: str) -> None:
    """Ends its process by SIGSEGV."""
    del text
    ctypes.string_at(0)


def pid() -> int:
    return os.getpid()


def where() -> str:
    """Which Dask worker it is below: the pid of the parent of the fork server."""
    with open(f"/proc/{os.getppid()}/stat") as file:
        return file.read().rpartition(")")[2].split()[1]


class Picky(Exception):
    def __init__(self, text: str, detail: Any = None) -> None:
        super().__init__(text, detail)
        self.detail = detail


def raise_picky(text: str) -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise Picky(text, {"level": 3}) from error
