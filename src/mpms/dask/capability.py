"""What the engine on Dask can't do. Whoever asks for it is told so when the pool is made."""

from __future__ import annotations

import enum

from ..config import PoolConfig

__all__ = ["Capability", "refuse_what_is_missing"]


class Capability(enum.Enum):
    """What some engine can do and this one can't, and why."""

    FORK = "start_method='fork' makes workers of the very process that has the pool, and that one is on another machine"
    RATE = "max_rate counts the starts of all tasks, and no machine knows of those of the others"
    LOGS = "forward_logs would carry what workers log through the scheduler; Dask's own logs have what they print"


def missing(config: PoolConfig) -> list[tuple[str, Capability]]:
    """The options that ask for something that can't be done, each with what that is."""
    asked = []
    if config.start_method == "fork":
        asked.append((f"start_method={config.start_method!r}", Capability.FORK))
    if config.max_rate is not None:
        asked.append((f"max_rate={config.max_rate!r}", Capability.RATE))
    if config.forward_logs:
        asked.append(("forward_logs=True", Capability.LOGS))
    return asked


def refuse_what_is_missing(config: PoolConfig) -> None:
    """Raises ``ValueError``."""
    for option, capability in missing(config):
        raise ValueError(f"{option} can't be had on Dask ({capability.name}): {capability.value}; leave the option out")
