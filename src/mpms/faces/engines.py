"""What the ``engine`` option of the faces may be."""

from __future__ import annotations

from collections.abc import Callable

from ..engine import Engine
from ..typed import TypeAlias

__all__ = ["EngineOption", "resolve"]

EngineOption: TypeAlias = Callable[..., Engine] | str | None

_DASK = "dask://"


def resolve(engine: EngineOption) -> Callable[..., Engine]:
    """What makes the engine: called as ``(function, config, sink, bounded=)``.

    Raises ``TypeError`` or ``ValueError`` for what is none, and ``ImportError`` where Dask isn't installed.
    """
    if engine is None:
        from ..local.engine import LocalEngine

        return LocalEngine
    if isinstance(engine, str):
        if not engine.startswith(_DASK) or engine == _DASK:
            raise ValueError(f'engine must be "{_DASK}HOST:PORT" when it is a text, not {engine!r}')
        try:
            from ..dask import DaskEngine
        except ImportError as error:
            raise ImportError(f"engine={engine!r} needs Dask: pip install 'mpms[dask]' ({error})") from error

        made: Callable[..., Engine] = DaskEngine(f"tcp://{engine.removeprefix(_DASK)}")
        return made
    if not callable(engine):
        raise TypeError(f"engine must be a callable that returns an Engine, or None, not {engine!r}")
    return engine
