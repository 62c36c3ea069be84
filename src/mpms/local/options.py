"""What the core and the watch over memory need of the options of a pool."""

from __future__ import annotations

from ..config import PoolConfig
from ..core.limits import Limits
from ..errors import TaskTimeout, WorkerCrashed
from .memory_watch import MemoryLimits

__all__ = ["limits", "memory_limits"]


def limits(config: PoolConfig) -> Limits:
    return Limits(
        processes=config.processes,
        threads=config.threads,
        task_timeout=config.task_timeout,
        retries=config.retries,
        retry_backoff=config.retry_backoff,
        lifecycle=config.lifecycle,
        lifecycle_duration=config.lifecycle_duration,
        lifecycle_duration_hard=config.lifecycle_duration_hard,
        watch_memory=config.max_memory_per_process is not None or config.max_memory_hard is not None,
        watch_free_memory=config.min_free_memory is not None,
        max_rate=config.max_rate,
        retry_crashes=config.retries_after(WorkerCrashed),
        retry_timeouts=config.retries_after(TaskTimeout),
        timeout_raises=config.timeout_raises,
        stop_on=config.stop_after[0],
        stop_on_percent=config.stop_after[1],
        grace=config.grace,
        start_timeout=config.start_timeout,
        max_start_failures=config.max_start_failures,
    )


def memory_limits(config: PoolConfig) -> MemoryLimits:
    return MemoryLimits(
        soft=config.max_memory_per_process, hard=config.max_memory_hard, least_free=config.min_free_memory
    )
