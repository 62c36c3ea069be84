"""Descriptors that belong to pools in this process, and to no child that it forks."""

from __future__ import annotations

import os

__all__ = ["close", "own"]

_OWNED: set[int] = set()
"""A child that the user forks would otherwise keep sockets of the pool open: the fork server would then not see that
the parent is gone, and workers would be left behind."""


def own(fd: int) -> int:
    _OWNED.add(fd)
    return fd


def close(fd: int) -> None:
    if fd in _OWNED:  # else this is a forked child, which has closed it
        _OWNED.discard(fd)
        try:
            os.close(fd)
        except OSError:
            pass  # the user's program has closed what it took for its own; the rest is to be closed all the same


def _after_fork() -> None:
    while _OWNED:
        try:
            os.close(_OWNED.pop())
        except OSError:
            pass


os.register_at_fork(after_in_child=_after_fork)
