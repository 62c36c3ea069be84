"""The numbers that the core needs, and no more: a part of the pool's options."""

from __future__ import annotations

from ..record import Record

__all__ = ["Limits"]


class Limits(Record, kw_only=True):
    """Durations are in seconds; ``None`` means "off". The options of the pool of the same names say what they do."""

    processes: int
    threads: int
    task_timeout: float | None = None
    retries: int = 0
    retry_backoff: float = 0.0
    lifecycle: int | None = None
    lifecycle_duration: float | None = None
    lifecycle_duration_hard: float | None = None
    watch_memory: bool = False
    watch_free_memory: bool = False
    max_rate: float | None = None
    retry_crashes: bool = True
    retry_timeouts: bool = True
    timeout_raises: bool = False
    stop_on: int | None = None
    stop_on_percent: float | None = None
    grace: float = 5.0
    start_timeout: float = 60.0
    max_start_failures: int = 5

    @property
    def running_limit(self) -> float | None:
        """How long one task may run: the smaller of the two limits that bound it."""
        bounds = [x for x in (self.task_timeout, self.lifecycle_duration_hard) if x is not None]
        return min(bounds, default=None)

    @property
    def budget(self) -> int | None:
        """How many tasks a worker may run in all."""
        return None if self.lifecycle is None else self.lifecycle * self.threads
