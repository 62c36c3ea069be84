"""A thread of a worker, as the chunk that it runs sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from ..typed import Any
from ..wire import chunks
from ..wire.board import Board
from ..wire.chunks import Place
from ..wire.messages import Job
from .interrupts import Interrupts

__all__ = ["WorkersPlace"]


class WorkersPlace(Place):
    """Its own thread uses it, and it counts what that thread runs."""

    def __init__(
        self,
        board: Board,
        slot: int,
        job: Job,
        asks_for_retry: Callable[[BaseException], bool],
        interrupts: Interrupts | None,
        worker: str,
        watch: Callable[[], None],
    ) -> None:
        super().__init__()
        self.is_dying = False
        self._since = 0.0  # the last note
        self._watch = watch
        self._board = board
        self._slot = slot
        self._die_exceptions = job.die_exceptions
        self._asks_for_retry = asks_for_retry
        self._interrupts = interrupts
        self._worker = worker
        self._left = job.lifecycle
        self._ran = 0  # of a chunk; a task that is none counts as one

    @property
    def most(self) -> int | None:
        return self._left

    def go_on(self, items: int, now: float) -> None:
        self._since = now
        self._board.go_on(self._slot, items, now)

    def hold(self, items: list[Any]) -> None:
        super().hold(items)
        self._watch()  # last: whoever watches looks whether there are any

    def let_go_if_slow(self, now: float) -> None:
        """For who watches: what has not begun after so long begins elsewhere. It may be about what has begun since,
        which then goes elsewhere too early."""
        if now - self._since >= chunks.CHUNK_SECONDS:
            self.items.clear()

    def enter(self, now: float) -> None:
        if self._interrupts is not None:
            self._interrupts.enter_again(self._slot, now)

    def leave(self) -> None:
        if self._interrupts is not None:
            self._interrupts.leave(self._slot)

    def unstruck(self) -> AbstractContextManager[object]:
        return super().unstruck() if self._interrupts is None else self._interrupts.unstruck(self._slot)

    def told(self, error: BaseException) -> BaseException:
        return error if self._interrupts is None else self._interrupts.told(self._slot, error, self._worker)

    def asks_for_retry(self, error: BaseException) -> bool:
        return self._asks_for_retry(error)

    def is_the_last(self, error: BaseException) -> bool:
        self.is_dying = isinstance(error, self._die_exceptions)
        return self.is_dying

    def ran(self, items: int) -> None:
        self._ran = items

    def is_worn(self) -> bool:
        """After each task: whether this thread has run its share."""
        if self._left is None:
            return False
        self._left -= self._ran or 1
        self._ran = 0
        return self._left <= 0
