"""All options of a pool, validated once, at the earliest place: the constructor."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from .errors import TaskTimeout, WorkerCrashed, WorkerGracefulDie
from .ids import START_METHODS, StartMethod
from .record import Record
from .typed import Any

__all__ = ["Hook", "PoolConfig", "check_integer", "check_seconds", "default_processes", "hook", "parse_size"]

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def default_processes() -> int:
    """One per processor."""
    # The cpus that this process may use, not those of the machine: containers and taskset count.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Hook(Record):
    """A callable of the user with its arguments, run in the worker at a certain point."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()


class PoolConfig(Record, kw_only=True):
    """The options of a pool. Durations are in seconds, ``None`` means "off" unless it says otherwise.

    Raises ``ValueError`` or ``TypeError`` that name the option, what was given and what may be.
    """

    processes: int
    threads: int = 2
    name: str = "mpms_worker"
    max_pending: int = 0
    start_method: StartMethod | None = None
    preload: Callable[[], Any] | None = None
    process_initializer: Hook | None = None
    thread_initializer: Hook | None = None
    process_finalizer: Hook | None = None
    thread_finalizer: Hook | None = None
    lifecycle: int | None = None
    lifecycle_duration: float | None = None
    lifecycle_duration_hard: float | None = None
    task_timeout: float | None = None
    retries: int = 0
    retry_backoff: float = 0.0
    retry_on: tuple[type[BaseException], ...] | Callable[[BaseException], bool] = (WorkerCrashed, TaskTimeout)
    timeout_raises: bool = False
    max_rate: float | None = None
    stop_on: int | str | None = None
    native_threads: int | None = None
    max_memory_per_process: int | None = None
    max_memory_hard: int | None = None
    min_free_memory: int | None = None
    max_start_failures: int = 5
    start_timeout: float = 60.0
    grace: float = 5.0
    die_exceptions: tuple[type[BaseException], ...] = (WorkerGracefulDie,)
    forward_logs: bool = False

    def __post_init__(self) -> None:
        for name in ("processes", "threads", "max_start_failures"):
            check_integer(name, getattr(self, name), 1)
        for name in ("max_pending", "retries"):
            check_integer(name, getattr(self, name), 0)
        if self.lifecycle is not None:
            check_integer("lifecycle", self.lifecycle, 1)
        for name in ("lifecycle_duration", "lifecycle_duration_hard", "task_timeout"):
            if getattr(self, name) is not None:
                check_seconds(name, getattr(self, name), above_zero=True)
        check_seconds("start_timeout", self.start_timeout, above_zero=True)
        check_seconds("retry_backoff", self.retry_backoff)
        check_seconds("worker_graceful_die_timeout", self.grace)
        if self.start_method is not None and self.start_method not in START_METHODS:
            raise ValueError(
                f"start_method must be one of {', '.join(map(repr, START_METHODS))} or None, not {self.start_method!r}"
            )
        if self.preload is not None and not callable(self.preload):
            raise TypeError(f"preload must be a callable without parameters or None, not {self.preload!r}")
        for name in ("process_initializer", "thread_initializer", "process_finalizer", "thread_finalizer"):
            hook = getattr(self, name)
            if hook is not None and not callable(hook.function):
                raise TypeError(f"{name} must be a callable or None, not {hook.function!r}")
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name must be a non-empty str or None, not {self.name!r}")
        if not _are_exceptions(self.die_exceptions):
            raise TypeError(
                f"worker_graceful_die_exceptions must be a tuple of exception classes, not {self.die_exceptions!r}"
            )
        for name in ("forward_logs", "timeout_raises"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.max_rate is not None:
            _number("max_rate", self.max_rate, "a number of task starts a second", above_zero=True)
        if self.native_threads is not None:
            check_integer("native_threads", self.native_threads, 1)
        if isinstance(self.retry_on, type) or not (callable(self.retry_on) or _are_exceptions(self.retry_on)):
            raise TypeError(
                "retry_on must be a tuple of exception classes, or a function of an exception that says whether to "
                f"retry, not {self.retry_on!r}"
            )
        _ = self.stop_after  # says what is wrong with stop_on

    def retries_after(self, error: type[BaseException]) -> bool:
        """Whether ``retry_on`` has the error. A function is asked about what tasks raise, and by their workers."""
        return issubclass(error, self.retry_on) if isinstance(self.retry_on, tuple) else True

    @property
    def stop_after(self) -> tuple[int | None, float | None]:
        """``stop_on`` as a number of failed tasks, or as a percentage of the finished ones."""
        match self.stop_on:
            case None:
                return None, None
            case str() as text if text.endswith("%"):
                try:
                    percent = float(text[:-1])
                except ValueError:
                    percent = -1.0
                if 0 < percent <= 100:
                    return None, percent
            case bool():
                pass
            case int() as number if number >= 1:
                return number, None
        raise ValueError(
            f'stop_on must be a number of failed tasks from 1 on, or a share as "10%", or None, not {self.stop_on!r}'
        )


def hook(name: str, function: Callable[..., Any] | None, args_name: str, args: Sequence[Any]) -> Hook | None:
    """``function`` with ``args`` as a :class:`Hook`, or ``None``; the names are those of the options, for errors."""
    if function is None:
        return None
    if not callable(function):
        raise TypeError(f"{name} must be a callable or None, not {function!r}")
    try:
        return Hook(function, tuple(args))
    except TypeError:
        raise TypeError(f"{args_name} must be a sequence, not {args!r}") from None


def parse_size(name: str, value: int | str | None) -> int | None:
    """Bytes from ``1_500_000_000`` or ``"1.5GB"`` or ``"512MiB"``; ``name`` is the option that errors name."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip().lower().removesuffix("b")
        digits = text.rstrip("kmgti")
        unit = text[len(digits) :]
        try:
            size = int(float(digits) * _UNITS[unit])
        except (ValueError, KeyError, OverflowError):
            raise ValueError(f'{name} must be bytes or a text like "1.5GB" or "512MiB", not {value!r}') from None
    elif isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'{name} must be bytes or a text like "1.5GB", not {value!r}')
    else:
        size = value
    if size <= 0:
        raise ValueError(f"{name} must be above 0 bytes, not {value!r}")
    return size


def _are_exceptions(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in value)


def check_integer(name: str, value: object, least: int) -> None:
    """Raise ``TypeError`` or ``ValueError``, by the ``name`` of the option, for what is no such ``int``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int of at least {least}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    """Raise ``TypeError`` or ``ValueError``, by the ``name`` of the option, for what is no such duration."""
    _number(name, value, "a number of seconds", above_zero=above_zero)


def _number(name: str, value: object, what: str, *, above_zero: bool) -> None:
    bound = "above 0" if above_zero else "of at least 0"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {what} {bound}, not {value!r}")
    if not (value > 0 if above_zero else value >= 0):
        raise ValueError(f"{name} must be {what} {bound}, not {value!r}")
