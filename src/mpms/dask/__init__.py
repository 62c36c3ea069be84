"""Pools on a cluster of Dask: ``MPMS(worker, collector, engine="dask://host:8786")``, or ``engine=DaskEngine(client)``.

``dask worker --nworkers 1 --nthreads N --preload mpms.dask`` has what a pool needs loaded before the first one comes.
"""

from __future__ import annotations

import importlib

from ..typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capability import Capability
    from .cluster import DaskEngine

__all__ = ["Capability", "DaskEngine", "dask_setup"]

_HOMES = {"DaskEngine": "cluster", "Capability": "capability"}


def dask_setup(server: object) -> None:
    """What Dask calls for ``--preload mpms.dask``, of a scheduler or a worker."""
    del server
    from . import engine  # noqa: F401  (to have it loaded)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mpms.dask' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
