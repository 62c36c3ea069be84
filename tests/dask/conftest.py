"""Engines on clusters of this machine, behind the factory of tests/contract."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpms.config import PoolConfig
from mpms.engine import Engine

from ..contract.conftest import PATIENCE, Recorder, gate, settled
from ..local.conftest import Watch

pytest.importorskip("distributed", reason="Dask is not installed")

from .clusters import commands_client, local_client

__all__ = ["commands_client", "gate", "local_client", "settled"]

CLUSTERS = {"local cluster": "local_client", "commands": "commands_client"}
"""The fixture with a client of the cluster, for each kind. ``make test`` has the first one."""

KINDS = [*CLUSTERS] if os.environ.get("MPMS_TEST_DASK") == "all" else ["local cluster"]


class _Make:
    """As that of tests/contract."""

    def __init__(self, name: str, client: Any) -> None:
        from mpms.dask import DaskEngine

        self.name = name
        self._dask = DaskEngine(client)
        self._engines: list[Engine] = []

    def __call__(
        self,
        function: Callable[..., Any],
        *,
        sink: Recorder | None = None,
        start: bool = True,
        **options: Any,
    ) -> tuple[Engine, Recorder]:
        sink = sink or Recorder()
        config = PoolConfig(**{"processes": 2, "threads": 2, "name": "contract"} | options)
        engine = self._dask(function, config, sink)
        if start:
            engine.start()
            self._engines.append(engine)
        return engine, sink

    def can(self, what: str) -> bool:
        return what != "handles"  # the processes are those of other machines

    def for_mpms(self) -> dict[str, Any]:
        return {"engine": self._dask}

    def stop(self) -> None:
        for engine in self._engines:
            engine.stop(0.0)
        for engine in self._engines:
            assert engine.wait_stopped(PATIENCE)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def client(kind: str, request: pytest.FixtureRequest) -> Any:
    """Of a cluster of one machine."""
    return request.getfixturevalue(CLUSTERS[kind])


@pytest.fixture
def nothing_is_left(client: Any) -> Iterator[None]:
    """As in tests/local, over here and below the nannies; but for the connections and threads of a Dask client, which
    come and go as it likes."""
    watch = Watch()
    yield

    def left() -> dict[str, set[str]]:
        left = watch.left()
        left.pop("descriptors", None)
        left["threads"] = {name for name in left.get("threads", ()) if not name.startswith("Dask-")}
        return left

    # The engines were stopped, and a stop waits for the machines' workers for a third of a second only: those that were
    # just starting on a busy machine end on their own.
    deadline = time.monotonic() + 10
    while "children" in left() and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert left() == {"threads": set()}


@pytest.fixture
def make(kind: str, client: Any, nothing_is_left: None) -> Iterator[_Make]:
    made = _Make(kind, client)
    yield made
    made.stop()
