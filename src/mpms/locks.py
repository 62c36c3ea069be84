"""Locks that an exception from outside doesn't leave locked: ``KeyboardInterrupt``, or what is raised in a thread that
has run for too long.

Such an exception comes when the interpreter has called a function that is written in C, and when it begins one that is
written in Python. So it may come when ``__enter__`` has taken the lock and before ``with`` has noted that, or when
``__exit__`` is called and before it has let go of it. Then nobody ever does. Measured, of exceptions that came while a
thread did nothing but take and let go of a lock, these left it locked::

    with threading.RLock()     Python 3.14: 2 %, without a GIL 60 %; none before, where ``with`` didn't look in between
    with threading.Condition() Python 3.10 to 3.14: a third to a half of them
    with the two below         none of 400 in each of these, and of 6,500 without a GIL
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Iterator
from operator import attrgetter

from .typed import TYPE_CHECKING, Any

__all__ = ["Condition", "Lock", "taken"]

_ONCE = (True,)
_AT_ONCE = (False,)

if sys.version_info < (3, 14) or TYPE_CHECKING:
    Lock = threading.RLock
    """Reentrant, for a handler of a signal may want it whose thread has it; so may what Python's collector finalizes.
    """
else:

    class Lock(_thread.RLock):
        __slots__ = ()

        def __enter__(self):
            # Where a function in C calls another one nobody looks for exceptions, and neither does who has called a
            # function in Python when that returns.
            [*map(self.acquire, _ONCE)]


class Condition(threading.Condition):
    """With such a lock. Its ``with`` is that of the lock itself."""

    def __init__(self, lock: threading.RLock | None = None) -> None:
        super().__init__(Lock() if lock is None else lock)

    def wait(self, timeout: float | None = None) -> bool:
        """As that of threading; also has the lock again when the exception came right after it was let go of."""
        try:
            return super().wait(timeout)
        except BaseException:
            condition: Any = self
            if not condition._is_owned():
                self.acquire()
            raise

    if not TYPE_CHECKING:  # for which they are methods
        __enter__ = property(attrgetter("_lock.__enter__"))
        __exit__ = property(attrgetter("_lock.__exit__"))


def taken(lock: threading.Lock) -> Iterator[object]:
    """For ``for``, in place of an ``if lock.acquire(blocking=False)``: runs once if it was free. To be let go of in a
    ``try`` that is all that is in it."""
    return filter(None, map(lock.acquire, _AT_ONCE))
