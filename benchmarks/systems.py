"""All that is compared, by name, in the order in which it is measured."""

from __future__ import annotations

from . import ours, peers
from .system import System

__all__ = ["SYSTEMS"]

SYSTEMS: dict[str, type[System]] = {
    system.name: system
    for system in (
        ours.Mpms,
        ours.MpmsFork,
        ours.MpmsExecutor,
        ours.MpmsExecutorFork,
        ours.MpmsOld,
        peers.ConcurrentFutures,
        peers.MultiprocessingPool,
        peers.Threads,
        peers.Loky,
        peers.Pebble,
        peers.Mpire,
        peers.Joblib,
        peers.Billiard,
        peers.Dask,
        peers.Ray,
    )
}
