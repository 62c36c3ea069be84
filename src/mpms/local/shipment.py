"""What the workers of a pool do, made ready to be sent to them."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

from ..config import Hook, PoolConfig
from ..ids import StartMethod
from ..record import Record
from ..typed import Any
from ..wire.messages import Call, Job
from ..wire.pickling import dump_for_child

__all__ = ["Shipment", "job_of", "ship"]

_KEPT_BY_WORKERS = 1 << 26
"""And of large results, by each worker; not where memory is limited, for it is part of what a worker holds."""


class Shipment(Record):
    """A job, ready to be sent: pickled, with the descriptors that go with it; as it is for ``fork``."""

    method: StartMethod
    job: Job
    pickled: bytes = b""
    inherited: tuple[int, ...] = ()


def ship(function: Callable[..., Any] | None, config: PoolConfig, method: StartMethod) -> Shipment:
    """By ``method``; by ``fork``, with a warning, if that can't be and ``config`` doesn't ask for it.

    Raises ``TypeError`` for what can't be pickled.
    """
    job = job_of(function, config)
    if method == "fork":
        return Shipment(method, job)
    try:
        pickled, inherited = dump_for_child(job)
    except Exception as error:  # the reducers of the user's objects raise anything
        problem = f"{_name_of(function)} can't be sent to a new process: {type(error).__name__}: {error}"
        if config.start_method is not None:
            raise TypeError(f"{problem}. With start_method='fork' it needs not be sent.") from error
        warnings.warn(
            f"{problem}. The pool falls back to start_method='fork': workers inherit the threads' locks of this "
            "process in whatever state they are. Name start_method='fork' if that is what you want.",
            RuntimeWarning,
            stacklevel=_steps_to_the_caller(),
        )
        return Shipment("fork", job)
    return Shipment(method, job, pickled, tuple(inherited))


def job_of(function: Callable[..., Any] | None, config: PoolConfig) -> Job:
    """What the workers of such a pool do."""
    return Job(
        function=function,
        threads=config.threads,
        lifecycle=config.lifecycle,
        die_exceptions=config.die_exceptions,
        retry_on=config.retry_on,
        timeout_raises=config.timeout_raises,
        native_threads=config.native_threads,
        preload=config.preload,
        process_initializer=_call(config.process_initializer),
        thread_initializer=_call(config.thread_initializer),
        process_finalizer=_call(config.process_finalizer),
        thread_finalizer=_call(config.thread_finalizer),
        log_levels=_log_levels() if config.forward_logs else None,
        kept_memory=_KEPT_BY_WORKERS if config.max_memory_per_process is config.max_memory_hard is None else 0,
    )


def _call(hook: Hook | None) -> Call | None:
    return None if hook is None else (hook.function, hook.args)


def _log_levels() -> dict[str, int]:
    root = logging.getLogger()
    loggers = {"": root, **root.manager.loggerDict}
    return {name: it.level for name, it in loggers.items() if isinstance(it, logging.Logger) and it.level}


def _name_of(function: Callable[..., Any] | None) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def _steps_to_the_caller() -> int:
    """How many frames above the calling one the first is that isn't ours."""
    steps, frame, ours = 0, sys._getframe(1), __name__.partition(".")[0] + "."
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(ours):
        steps, frame = steps + 1, frame.f_back
    return steps + 1
