"""Where outcomes go: to the collector, or to who iterates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ..engine import Delivered, log_error
from ..locks import Condition
from ..typed import Any
from .meta import Meta

__all__ = ["CollectorSink", "IteratorSink"]

_BACKLOG = 10_000
"""From this many results on that nobody has asked for, the log says so, at each doubling."""


class CollectorSink:
    """Calls the collector; with ``on_error``, that one for what is no value. The delivery thread owns it."""

    def __init__(
        self,
        collector: Callable[[Meta, Any], object] | None,
        on_error: Callable[[Meta, BaseException], object] | None,
        meta: Meta,
    ) -> None:
        self._collector = collector
        self._on_error = on_error
        self._meta = meta
        self.count = 0

    def deliver(self, outcomes: Iterable[Delivered]) -> None:
        meta = self._meta
        for task, args, kwargs, value, failure in outcomes:
            meta.taskid, meta.args, meta.kwargs = task, args, kwargs
            self.count += 1
            try:
                if failure is None:
                    if self._collector is not None:
                        self._collector(meta, value)
                elif self._on_error is not None:
                    self._on_error(meta, failure.error)
                elif self._collector is not None:
                    self._collector(meta, failure.error)
            except BaseException:  # the user's; SystemExit in it is no reason to lose the rest
                if failure is None:
                    log_error("an error occurs in collector, task: %s", task)
                else:
                    import traceback  # loaded long since: see `errors.__getattr__`

                    # What it choked on is most likely this: a result that is no result.
                    text = "".join(traceback.format_exception(type(failure.error), failure.error, None))
                    log_error("an error occurs in collector, task: %s, which failed with\n%s", task, text)
        meta.forget()

    def end(self) -> None:
        pass  # nobody waits for it


class IteratorSink:
    """Keeps outcomes until somebody asks for them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._outcomes: deque[Delivered] = deque()
        # Its lock guards the outcomes and the two below. A reentrant one: Python's collector may throw away a coroutine
        # that waits here, which is then to be forgotten.
        self._arrived = Condition()
        self._ended = False
        self._wakers: list[Callable[[], object]] = []  # of those that don't block in `take`; each is called once
        self.count = 0
        self._warn_at = _BACKLOG

    def deliver(self, outcomes: Iterable[Delivered]) -> None:
        batch = list(outcomes)  # not under the lock
        with self._arrived:
            self._outcomes.extend(batch)
            self.count += len(batch)
            self._notify()
        if len(self._outcomes) >= self._warn_at:
            self._warn_at *= 2
            try:
                import logging  # as above

                logger = logging.getLogger("mpms")
                logger.warning("mpms %s: %d results wait for iter_results", self._name, len(self._outcomes))
            except BaseException:  # a handler or filter of the user's
                pass

    def take(self) -> Delivered | None:
        """The next one; blocks. ``None``: there will be none."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._outcomes or self._ended)
            return self._outcomes.popleft() if self._outcomes else None

    def poll(self, wake: Callable[[], object] | None = None) -> list[Delivered] | None:
        """The next one, if it is there; else ``wake`` is called once when it is worth another look. ``None``: there
        will be none. Doesn't block."""
        with self._arrived:
            if self._outcomes:
                return [self._outcomes.popleft()]
            if self._ended:
                return None
            if wake is not None:
                self._wakers.append(wake)
            return []

    def forget(self, wake: Callable[[], object]) -> None:
        """Who gave it to :meth:`poll` waits no longer."""
        with self._arrived:
            if wake in self._wakers:
                self._wakers.remove(wake)

    def end(self) -> None:
        with self._arrived:
            self._ended = True
            self._notify()

    def _notify(self) -> None:
        self._arrived.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()
