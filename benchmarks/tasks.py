"""What the pools are given to run. Imports next to nothing: it is loaded by every worker of every system."""

from __future__ import annotations

import os
import time
from itertools import repeat

__all__ = ["burn", "nap", "same"]


def same(value: object) -> object:
    """Nothing: its argument is its result."""
    return value


def nap(seconds: float) -> int:
    """Sleep, and tell who has slept."""
    time.sleep(seconds)
    return os.getpid()


def burn(loops: int) -> int:
    """Compute in Python, holding the GIL, with integers that CPython has ready and makes no memory for.

    With new integers in each round the time depends on where they happen to come to lie in memory, and that on what
    the process has done before: the same loop in threads and processes of the same kind took up to 20 % longer or
    shorter only because other modules were imported or another thread was started first. Without, 1.5 %.
    """
    state = 0
    for _ in repeat(None, loops):
        state = (state + 7) & 0x7F
    return state
