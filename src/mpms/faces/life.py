"""The life of an ``Executor``: from its first task to the end of all of them, though nobody has it any more."""

from __future__ import annotations

import atexit
import functools
import os
import weakref
from collections.abc import Iterable

from ..engine import Delivered, Engine
from ..locks import Condition
from .bulk import Bulk

__all__ = ["Life"]


class Life:
    """Whether the engine was started, and when it may be closed: not before the feeds of :meth:`Executor.map` have sent
    all that they have. It lives as long as the engine, whose sink it is: one that gets nothing, for all tasks have
    tickets."""

    engine: Engine

    def __init__(self) -> None:
        # Its lock guards all below. A reentrant one: handlers of signals shut down, and so does Python's collector.
        self._changed = Condition()
        self._starting = False
        self._started = False
        self._shut = False
        self._feeds: set[Bulk] = set()

    def deliver(self, outcomes: Iterable[Delivered]) -> None:
        pass

    def end(self) -> None:
        pass

    @property
    def state(self) -> str:
        return "shut down" if self._shut else "started" if self._started else "not started"

    @property
    def begun(self) -> bool:
        return self._started

    def begin(self) -> None:
        """Start the engine unless that was done. Raises when it is too late for that."""
        if self._started and not self._shut:
            return
        with self._changed:
            self._refuse_if_over()
            if self._starting:
                raise RuntimeError("cannot schedule new futures in a signal handler that has interrupted the first one")
            if not self._started:
                self._starting = True
                try:
                    self.engine.start()
                    self._started = True
                finally:
                    self._starting = False
                _finish_at_exit()
                _unfinished.add(self)
        self._close_if_over()  # meanwhile, by the handler of a signal

    def refuse_if_over(self) -> None:
        with self._changed:
            self._refuse_if_over()

    def _refuse_if_over(self) -> None:
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._shut and self.engine.broken is None:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def feeds(self, bulk: Bulk) -> None:
        with self._changed:
            self._refuse_if_over()  # else `shut` would have it in its list
            self._feeds.add(bulk)

    def fed(self, bulk: Bulk) -> None:
        with self._changed:
            self._feeds.discard(bulk)
        self._close_if_over()

    def shut(self, *, cancel: bool = False) -> None:
        """Accept no more; with ``cancel``, cancel what has not started. Does not block."""
        with self._changed:
            self._shut = True
            feeds = list(self._feeds) if cancel else []
        for bulk in feeds:
            bulk.cancel()
        self._close_if_over()
        if cancel and self._started:
            self.engine.cancel_all()  # last: what another thread submits meanwhile is refused, or in it

    def _close_if_over(self) -> None:
        with self._changed:
            if not self._shut or self._feeds:
                return
            self._changed.notify_all()
            started = self._started
        if started:  # without this lock: who has the engine's may be in `shut`, by way of Python's collector
            self.engine.close()

    def disown(self) -> None:
        """In a fork of the user's: nobody feeds here, and the lock may be held by a thread that isn't here."""
        self._changed = Condition()
        self._feeds.clear()

    def wait(self) -> None:
        """Until all is done. After :meth:`shut`."""
        if self._started:
            self.engine.wait_stopped(0.0)  # raises on the delivery thread, without which no feed ends
        with self._changed:
            self._changed.wait_for(lambda: not self._feeds or not self._started)
        if self._started:
            self.engine.wait_stopped()


_unfinished: weakref.WeakSet[Life] = weakref.WeakSet()
_exiting = False


@functools.cache
def _finish_at_exit() -> None:
    """After an engine's module was loaded: handlers run in the reverse order, and its own stops what is not done."""
    atexit.register(_finish_all)


def _finish_all() -> None:
    """At the interpreter's exit: what was submitted is done first, as ``concurrent.futures`` has it."""
    global _exiting
    _exiting = True
    lives = list(_unfinished)
    for life in lives:
        life.shut()
    for life in lives:
        life.wait()


def _disown_all() -> None:
    for life in list(_unfinished):
        life.disown()


os.register_at_fork(after_in_child=_disown_all)
