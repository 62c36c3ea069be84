"""Log records of a worker go to its parent, when that was asked for."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import threading
from collections.abc import Mapping

from ..wire.chunks import here
from ..wire.frames import encode
from ..wire.messages import LOG
from .interrupts import Interrupted
from .outbox import Outbox

__all__ = ["current", "forward_logs"]

current = threading.local()
"""``seq`` is the dispatch that the thread runs."""


class _Forward(logging.Handler):
    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._pid:
            self._emit_in_fork(record)
            return
        # As logging.handlers.QueueHandler.prepare: what can't be pickled becomes text here.
        try:
            message = self.format(record)
            record = copy.copy(record)
            record.message = record.msg = message
            record.args = record.exc_info = record.exc_text = record.stack_info = None
            self._outbox.add_log(encode(LOG, getattr(current, "seq", 0), pickle.dumps(record.__dict__, 5)))
            _make_sure_of_room()
            with here.place.unstruck():
                self._outbox.flush()
        except (Interrupted, RecursionError):  # they are the task's
            raise
        except Exception:
            self.handleError(record)

    @staticmethod
    def _emit_in_fork(record: logging.LogRecord) -> None:
        """In a child that a task has forked, which has no part in the socket: as a program without handlers."""
        last = logging.lastResort
        if last is not None and record.levelno >= last.level:
            last.handle(record)


def _make_sure_of_room(calls: int = 20) -> None:
    """Raise ``RecursionError`` here, if so many calls can't be nested any more, and not in the midst of sending: there
    are results of other tasks in hand, and a message torn in two is the end of the stream. It takes less than ten."""
    if calls:
        _make_sure_of_room(calls - 1)


def forward_logs(outbox: Outbox, levels: Mapping[str, int]) -> None:
    """Replace the handlers of all loggers by one that sends to the parent, whose handlers then see it all, once."""
    root = logging.getLogger()
    for logger in (root, *root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
            logger.propagate = True
    root.addHandler(_Forward(outbox))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
