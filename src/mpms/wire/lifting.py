"""Which numbers our descriptors have."""

from __future__ import annotations

import fcntl
import os
import resource

__all__ = ["lift"]

_LOWEST = 600


def lift(fd: int) -> int:
    """The same under a high number: one that a file of the user's won't have, after a task has closed all it found; nor
    a library that goes on using a number that it has closed."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = _LOWEST if soft == resource.RLIM_INFINITY else min(_LOWEST, max(soft - 40, soft // 2))
    try:
        lifted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    except OSError:
        os.set_inheritable(fd, False)
        return fd  # no high numbers left: a low one works too
    os.close(fd)
    return lifted
