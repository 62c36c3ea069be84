"""A pool of worker processes with many threads each that runs a function over a stream of tasks, and loses none."""

from __future__ import annotations

import importlib

# Known by its name to type checkers. Measured: to import `typing` for it takes ten times as long as all the rest.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from .errors import (
        MpmsError,
        PoolBroken,
        RemoteTraceback,
        RemoteWorkerError,
        TaskCancelled,
        TaskTimeout,
        WorkerCrashed,
        WorkerGracefulDie,
    )
    from .faces.classic import MPMS, Meta
    from .faces.executor import Executor
    from .faces.futures import Future
    from .figures import RunningTask, Stats, WorkerInfo

__all__ = [
    "MPMS",
    "Executor",
    "Future",
    "Meta",
    "MpmsError",
    "PoolBroken",
    "RemoteTraceback",
    "RemoteWorkerError",
    "RunningTask",
    "Stats",
    "TaskCancelled",
    "TaskTimeout",
    "WorkerCrashed",
    "WorkerGracefulDie",
    "WorkerInfo",
]

_HOMES = {
    **dict.fromkeys(("MPMS", "Meta"), "faces.classic"),
    "Executor": "faces.executor",
    "Future": "faces.futures",
    **dict.fromkeys(("Stats", "RunningTask", "WorkerInfo"), "figures"),
}


def __getattr__(name: str) -> Any:
    # PEP 562: `import mpms` costs nothing but the names, and a worker imports what a worker needs.
    if name not in __all__:
        raise AttributeError(f"module 'mpms' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
