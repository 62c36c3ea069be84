"""On the scheduler: sees to it that no task starts twice, whatever Dask decides to run again.

Dask runs a task again when its worker is lost or retires, and when the result is lost; it can't know whether that does
harm. So a machine *claims* a parcel before it starts any of it. The first claim is granted, all others are refused. A
parcel that was not claimed has not started, and may go wherever Dask sends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from distributed import Scheduler, SchedulerPlugin

from ..typed import Any

__all__ = ["Guard", "claim_op", "halt", "post_op", "withdraw"]

_DONE = object()
"""In place of the machine that has claimed a parcel: all its outcomes have passed here."""


class Guard(SchedulerPlugin):  # type: ignore[misc]
    """One per pool, under the pool's name. Lives on the scheduler's event loop. Ends the pools of the machines when the
    client is gone."""

    def __init__(self, name: str, client: str) -> None:
        self.name = name
        self._client = client
        self._claims: dict[str, Any] = {}  # key → address of the machine, or _DONE, or None: withdrawn
        self._halted = False
        self._scheduler: Any = None

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        scheduler.handlers[claim_op(self.name)] = self.claim
        scheduler.handlers[post_op(self.name)] = self.post
        self._tell_machines()

    def end(self) -> None:
        self._halted = True
        self._scheduler.handlers.pop(claim_op(self.name), None)
        self._scheduler.handlers.pop(post_op(self.name), None)
        self._scheduler.remove_plugin(self.name)

    # What machines ask

    def claim(self, keys: Sequence[str], machine: str) -> list[str]:
        """Those of the parcels that may start on the machine."""
        granted = []
        machine = self._scheduler.coerce_address(machine)  # it may know itself by name
        for key in keys:
            task = self._scheduler.tasks.get(key)
            here = task is not None and task.processing_on is not None and task.processing_on.address == machine
            if here and key not in self._claims and not self._halted:
                self._claims[key] = machine
                granted.append(key)
            elif self._claims.get(key) not in (None, machine, _DONE):
                self._tell({"op": "lost", "machine": self._claims[key], "keys": [key]})
        return granted

    def post(self, data: bytes, ended: Sequence[str]) -> None:
        """Hand an answer on. By the stream that Dask's own reports to the client take, so it comes before them."""
        for key in ended:
            self._claims[key] = _DONE
        self._tell({"op": "answer", "data": data})

    # What the client asks

    def withdraw(self, keys: Iterable[str]) -> list[str]:
        """Those that were not claimed, and can't be any more."""
        withdrawn = [key for key in keys if self._claims.get(key) is None]
        self._claims.update(dict.fromkeys(withdrawn))
        return withdrawn

    def halt(self, keys: Iterable[str]) -> list[str]:
        self._halted = True
        return self.withdraw(keys)

    # What Dask tells

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        # What is forgotten without an answer stays: by a restart of the cluster, for example. It may have run.
        if finish == "forgotten" and self._claims.get(key, "") in (None, _DONE):
            del self._claims[key]

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._tell_machines()

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self._tell_machines()
        keys = [key for key, machine in self._claims.items() if machine == worker]
        self._tell({"op": "lost", "machine": worker, "keys": keys})

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        if client == self._client:
            self.end()
            ending = asyncio.ensure_future(scheduler.unregister_worker_plugin(comm=None, name=self.name))
            _endings.add(ending)
            ending.add_done_callback(_endings.discard)

    def _tell_machines(self) -> None:
        machines = {address: worker.nthreads for address, worker in self._scheduler.workers.items()}
        self._tell({"op": "machines", "machines": machines})

    def _tell(self, note: dict[str, Any]) -> None:
        # As an event of the pool's topic, but none that the scheduler keeps: results would swell it.
        self._scheduler.client_send(self._client, {"op": "event", "topic": self.name, "event": (0.0, note)})


_endings: set[asyncio.Future[Any]] = set()  # an event loop holds its tasks weakly


def claim_op(name: str) -> str:
    return f"{name}-claim"


def post_op(name: str) -> str:
    return f"{name}-post"


# Run on the scheduler by the client


def withdraw(name: str, keys: list[str], dask_scheduler: Any) -> list[str]:
    guard = dask_scheduler.plugins.get(name)
    return [] if guard is None else guard.withdraw(keys)


def halt(name: str, keys: list[str], dask_scheduler: Any) -> list[str]:
    guard = dask_scheduler.plugins.get(name)
    return [] if guard is None else guard.halt(keys)


def end(name: str, dask_scheduler: Any) -> None:
    guard = dask_scheduler.plugins.get(name)
    if guard is not None:
        guard.end()
