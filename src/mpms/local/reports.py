"""What a pool logs, and what its workers log, handed to the user's loggers on a thread of its own.

Handlers are code of the user's, and may be slow or hang: neither supervision nor the collector waits for them.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from ..engine import log_error
from ..ids import TaskId

__all__ = ["Reporter"]

_LOGGER = logging.getLogger("mpms")

_MOST = 10_000
"""How many records wait for slow handlers at the most; of a flood the oldest are dropped, and counted."""

_PATIENCE = 10.0
"""So many seconds the end of a pool waits for a handler to take one record, as one that sends mail may need them."""


class Reporter:
    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: deque[Callable[[], None]] = deque()
        self._dropped = 0
        self._ending = False
        self._more = threading.Condition(threading.Lock())  # its lock guards the three above
        self._handled = 0  # only our thread writes it
        self.thread = self._new_thread()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name=f"mpms-{self._name}-logs", daemon=True)

    def start(self) -> None:
        self.thread = self._new_thread()  # Python 3.13 takes one that was made before a fork for ended
        self.thread.start()

    def say(self, level: int, message: str, *args: object) -> None:
        """As ``logger.log``, later and elsewhere: even to ask whether it is enabled may take logging's own lock."""
        self._add(partial(_LOGGER.log, level, message, *args))

    def forward(self, worker: str, task: TaskId | None, record: bytes) -> None:
        """A pickled record of a worker."""
        self._add(partial(_handle, worker, task, record))

    def end(self) -> None:
        """After all that was said before."""
        with self._more:
            self._ending = True
            self._more.notify()

    def wait(self, until: float) -> None:
        """Until all is logged, but no longer than for one record that hangs. ``until`` is of the monotonic clock."""
        while self.thread.is_alive() and (left := until - time.monotonic()) > 0:
            handled = self._handled
            self.thread.join(min(left, _PATIENCE))
            if left > _PATIENCE and self.thread.is_alive() and self._handled == handled:
                # Not by logging, which may be what hangs. There may be no stderr, or a closed one.
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    sys.stderr.write(f"mpms {self._name}: a handler of logging hangs: what it was to log is lost\n")
                return

    def _add(self, handle: Callable[[], None]) -> None:
        with self._more:
            if len(self._waiting) >= _MOST:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(handle)
            self._more.notify()

    def _run(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting:
                    return
                handle = self._waiting.popleft()
                dropped, self._dropped = self._dropped, 0
            try:
                if dropped:
                    _LOGGER.warning("mpms %s: %d log records were dropped: handlers are slow", self._name, dropped)
                handle()
            except BaseException:  # handlers and classes of the user's; SystemExit in one is no reason to lose the rest
                log_error("mpms %s: a log record was lost", self._name)
            self._handled += 1


def _handle(worker: str, task: TaskId | None, record: bytes) -> None:
    made = logging.makeLogRecord({**pickle.loads(record), "mpms_worker": worker, "mpms_task": task})
    logger = logging.getLogger(made.name)
    if logger.isEnabledFor(made.levelno):
        logger.handle(made)
