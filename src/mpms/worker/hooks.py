"""The user's initializers and finalizers."""

from __future__ import annotations

import logging

from ..wire.messages import Call
from . import ends

__all__ = ["finalize", "initialize"]

_LOGGER = logging.getLogger("mpms")


def initialize(call: Call | None) -> None:
    """Run it; what it raises is the caller's to report."""
    if call is None:
        return
    function, args = call
    try:
        function(*args)
    except BaseException as error:
        if ends.forked:
            ends.end_fork(error)
        raise
    if ends.forked:
        ends.end_fork(None)


def finalize(call: Call | None, who: str) -> None:
    """Run it; what it raises is logged, and the end goes on."""
    if call is None:
        return
    function, args = call
    try:
        function(*args)
    except BaseException:  # user code, SystemExit included: it ends anyway
        _LOGGER.exception("mpms %s: its finalizer failed", who)
