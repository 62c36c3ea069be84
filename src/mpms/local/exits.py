"""What becomes of engines that nobody has joined: at the interpreter's exit, and in a child that the user forks."""

from __future__ import annotations

import atexit
import os
import time
import weakref

from ..typed import Protocol

__all__ = ["SECONDS", "Engine", "watch"]

SECONDS = 1.0
"""How long the interpreter's exit waits for a pool that was not joined."""


class Engine(Protocol):
    def stop(self, timeout: float) -> None: ...

    def wait_stopped(self, timeout: float | None = None) -> bool: ...

    def disown(self) -> None:
        """In a child: let go of what is the parent's."""
        ...


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def watch(engine: Engine) -> None:
    _engines.add(engine)


def _stop_all() -> None:
    """Nobody can take results any more: nothing is waited for but the ends."""
    engines = list(_engines)
    for engine in engines:
        engine.stop(0.0)
    until = time.monotonic() + SECONDS
    for engine in engines:
        engine.wait_stopped(max(0.0, until - time.monotonic()))


def _disown_all() -> None:
    for engine in list(_engines):
        engine.disown()
    _engines.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_disown_all)
