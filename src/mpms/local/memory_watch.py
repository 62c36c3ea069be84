"""Memory against the limits that were asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..core.messages import FreeMemorySeen, MemorySeen
from ..record import Record
from .link import Link
from .memory import free_memory, resident_memory

__all__ = ["MemoryLimits", "MemoryWatch"]


class MemoryLimits(Record):
    """In bytes. What a worker may hold more than at its start: ``soft`` has it replaced, ``hard`` killed."""

    soft: int | None = None
    hard: int | None = None
    least_free: int | None = None


class MemoryWatch:
    """Reads, says what it has seen, and remembers no more than whether it has said that memory is short."""

    def __init__(self, limits: MemoryLimits, say: Callable[..., None], pool: str) -> None:
        self._limits = limits
        self._say = say
        self._pool = pool
        self._short = False

    def weigh(self, link: Link) -> None:
        """Note what the worker holds, as that of its start, when somebody wants to know and it can be known."""
        if link.pid is not None and not (self._limits.soft is None and self._limits.hard is None):
            link.base_memory = resident_memory(link.pid) or 0

    def look_at(self, link: Link) -> tuple[MemorySeen, str] | None:
        """How it compares, and the figures for who is killed for it; ``None`` when that can't be known."""
        memory = None if link.pid is None else resident_memory(link.pid)
        if memory is None:
            return None
        grown, limits = memory - link.base_memory, self._limits
        seen = MemorySeen(
            link.worker,
            over=limits.soft is not None and grown > limits.soft,
            over_hard=limits.hard is not None and grown > limits.hard,
        )
        figures = f"it held {memory / 1e6:,.0f} MB, {grown / 1e6:,.0f} MB more than at its start"
        if seen.over and not seen.over_hard:
            self._say(logging.INFO, "mpms %s is replaced: %s", link.name, figures)
        return seen, f"{figures}, above max_memory_hard of {(limits.hard or 0) / 1e6:,.0f} MB"

    def look_at_machine(self) -> FreeMemorySeen:
        free, least = free_memory(), self._limits.least_free or 0
        short = free is not None and free < least
        if short and not self._short:
            text = "mpms %s: no task is handed out while the machine has less than %d MB free; it has %d MB"
            self._say(logging.WARNING, text, self._pool, least // 1_000_000, (free or 0) // 1_000_000)
        elif self._short and not short:
            self._say(logging.WARNING, "mpms %s: memory is free again, tasks are handed out", self._pool)
        self._short = short
        return FreeMemorySeen(not short)
