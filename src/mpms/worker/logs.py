"""Log records of a worker go to its parent, when that was asked for."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from collections.abc import Mapping

from ..wire.frames import encode
from ..wire.messages import LOG
from .outbox import Outbox

__all__ = ["current", "forward_logs"]

current = threading.local()
"""``seq`` is the dispatch that the thread runs."""


class _Forward(logging.Handler):
    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        # As logging.handlers.QueueHandler.prepare: what can't be pickled becomes text here.
        try:
            message = self.format(record)
            record = copy.copy(record)
            record.message = record.msg = message
            record.args = record.exc_info = record.exc_text = record.stack_info = None
            self._outbox.add_log(encode(LOG, getattr(current, "seq", 0), pickle.dumps(record.__dict__, 5)))
            self._outbox.flush()
        except Exception:
            self.handleError(record)


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
