"""What the pools are given to run. Imports next to nothing: it is loaded by every worker of every system."""

from __future__ import annotations

import os
import time

__all__ = ["burn", "nap", "same"]


def same(value: object) -> object:
    """Nothing: its argument is its result."""
    return value


def nap(seconds: float) -> int:
    """Sleep, and tell who has slept."""
    time.sleep(seconds)
    return os.getpid()


def burn(loops: int) -> int:
    """Compute in Python, holding the GIL."""
    state = 0
    for number in range(loops):
        state = (state * 5 + number) & 0xFFFF
    return state
