"""Exceptions that come from outside, at any moment, to a thread that does something again and again."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections.abc import Callable

__all__ = ["Struck", "while_struck"]

PATIENCE = 60.0


class Struck(BaseException):
    """As ``KeyboardInterrupt``: no ``except Exception`` takes it for something else."""


def while_struck(
    times: int, call: Callable[[], object], *, then: Callable[[], object] = lambda: None, pause: float = 0.0
) -> None:
    """Have an exception come so often to a thread that does nothing but ``call``, up to ``pause`` seconds after it has
    begun; after each ``then``, in that thread too."""
    begun, seen = threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        for _ in range(times):
            try:
                begun.release()
                while True:
                    call()
            except Struck:
                pass
            then()
            seen.release()

    thread = threading.Thread(target=work, daemon=True)
    pauses = random.Random(1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places soon, for that is when one is struck
    try:
        thread.start()
        for _ in range(times):
            assert begun.acquire(timeout=PATIENCE)
            if pause:
                time.sleep(pauses.random() * pause)
            assert thread.ident is not None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Struck))
            assert seen.acquire(timeout=PATIENCE), "it waits for ever"
        thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(before)
