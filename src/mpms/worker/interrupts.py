"""``TaskTimeout`` raised in a thread that runs a task for too long; never in one that has gone on to the next."""

from __future__ import annotations

import ctypes
import os
import threading
import traceback
from contextlib import AbstractContextManager
from time import monotonic

from ..errors import TaskTimeout
from ..locks import Lock

__all__ = ["Interrupted", "Interrupts"]


_TASK_FRAMES = ("mpms/worker/slots.py", "mpms/wire/chunks.py")  # that call the user's code


class Interrupted(TaskTimeout):
    """What is raised in the thread. The interpreter makes the instance, so it takes no arguments."""

    def __init__(self) -> None:
        super().__init__("the task ran for longer than it may")


class Interrupts:
    """Each thread says when it enters and leaves the user's code; the main thread strikes in between.

    The exception is raised at the thread's next bytecode (``PyThreadState_SetAsyncExc``), which may be after the user's
    code: :meth:`leave` takes back what was not raised yet. It may itself be struck, and is then to be called again.
    The items of a chunk are entered one after the other; only the one that takes too long is struck.
    """

    def __init__(self, threads: int) -> None:
        # Each guards its thread's place in the two below. RLocks, for whoever holds one may come to log: see unstruck.
        self._locks = [Lock() for _ in range(threads)]
        self._running: list[tuple[int, int, float] | None] = [None] * threads  # dispatch, thread ident, since when
        self._struck: list[float | None] = [None] * threads
        self._last = [0] * threads  # the dispatch that each thread has entered last; its own

    def enter(self, slot: int, seq: int) -> None:
        self._last[slot] = seq
        self.enter_again(slot, 0.0)

    def enter_again(self, slot: int, now: float) -> None:
        """The same dispatch, with what begins ``now``."""
        with self._locks[slot]:
            self._struck[slot] = None
            self._running[slot] = self._last[slot], threading.get_ident(), now

    def leave(self, slot: int) -> None:
        with self._locks[slot]:
            self._running[slot] = None
            if self._struck[slot] is not None:
                _set_async_exception(threading.get_ident(), None)

    def unstruck(self, slot: int) -> AbstractContextManager[object]:
        """For the thread itself, where an exception between any two bytecodes would do harm: there is none in the
        functions that it calls within this. One that is due already is raised before the first of them has begun: at
        the start of a function Python looks for it. The lock itself, for ``with`` takes and lets go of it in one step
        (see ``locks``)."""
        return self._locks[slot]

    def told(self, slot: int, error: BaseException, worker: str) -> BaseException:
        """The error as the user is to see it, after this thread has left."""
        limit = self._struck[slot]
        if not isinstance(error, Interrupted) or limit is None:
            return error
        frames = traceback.extract_tb(error.__traceback__)
        while frames and frames[0].filename.endswith(_TASK_FRAMES):
            del frames[0]
        return TaskTimeout(
            f"the task ran in {worker} (pid {os.getpid()}) for more than {limit:g} seconds",
            timeout=limit,
            pid=os.getpid(),
            worker=worker,
            stack="".join(traceback.format_list(frames)).rstrip(),
        )

    def strike(self, seq: int, limit: float) -> None:
        """From the main thread: raise in the thread that runs this dispatch, if one still does."""
        for slot, lock in enumerate(self._locks):
            with lock:
                running = self._running[slot]
                if running is None or running[0] != seq or self._struck[slot] is not None:
                    continue
                if monotonic() >= running[2] + limit:  # else an item that was seen to take too long is over
                    self._struck[slot] = limit
                    _set_async_exception(running[1], Interrupted)


def _set_async_exception(ident: int, exception: type[BaseException] | None) -> None:
    raised = ctypes.py_object() if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), raised)
