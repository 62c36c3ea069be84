"""Exceptions that come from outside, at any moment, to a thread that does something again and again."""

from __future__ import annotations

import ctypes
import queue
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
    begun = threading.Semaphore(0)
    seen: queue.SimpleQueue[bool] = queue.SimpleQueue()
    turn = call

    def work() -> None:
        for _ in range(times):
            try:
                begun.release()
                while True:  # with a condition Python 3.13 lets a strike out between two turns
                    turn()
            except Struck:
                pass
            then()
            seen.put(True)

    def unraisable(problem: sys.UnraisableHookArgs) -> None:
        """What it came in was called by the interpreter, which lets nothing out of it, as of what a weak reference
        calls: nobody sees it."""
        if isinstance(problem.exc_value, Struck):
            seen.put(False)
        else:
            hook(problem)

    thread = threading.Thread(target=work, daemon=True)
    pauses = random.Random(1)
    before, hook = sys.getswitchinterval(), sys.unraisablehook
    sys.setswitchinterval(1e-5)  # threads change places soon, for that is when one is struck
    sys.unraisablehook = unraisable
    try:
        thread.start()
        for _ in range(times):
            assert begun.acquire(timeout=PATIENCE)
            if pause:
                time.sleep(pauses.random() * pause)
            assert thread.ident is not None
            while True:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Struck))
                try:
                    if seen.get(timeout=PATIENCE):
                        break
                except queue.Empty:
                    raise AssertionError("it waits for ever") from None
        thread.join(PATIENCE)
    finally:
        turn = sys.exit  # in that thread: it is not to go on beside the next test
        sys.unraisablehook = hook
        sys.setswitchinterval(before)
