"""The client of Dask, as a pool uses it. All coroutines run on its event loop."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Sequence

from distributed import Client, Future

from ..typed import Any
from . import guard
from .machine import Machine, carry

__all__ = ["ASK_SECONDS", "Link"]

ASK_SECONDS = 1.0
"""That who is asked for something has to answer."""

_LOOK_SECONDS = 2.0
"""That machines have to answer what somebody wants to see: for a stopped worker's stacks one waits a second itself."""

_GRAPH_SMALL = 5_000_000  # bytes; Dask warns of those above 10 MB

_SETUP_SECONDS = 10.0  # that machines have to set up their pools before the first parcel is sent


class Link:
    """``name`` is the pool's, unique on the cluster. ``hear`` is called with each note of the scheduler, and ``say``
    with what went wrong and does no harm."""

    def __init__(self, client: Client, name: str, hear: Callable[[Any], None], say: Callable[[str], None]) -> None:
        self._client = client
        self._name = name
        self._hear = hear
        self._say = say
        self._background: set[asyncio.Future[Any]] = set()  # an event loop holds its tasks weakly
        self._comm: Any = None  # the connection to the scheduler
        self.loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop

    @property
    def is_up(self) -> bool:
        # Dask connects again by itself; but the scheduler has let go of what the pool had there, or is another one.
        return bool(self._client.status == "running" and self._client.scheduler_comm is self._comm)

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return getattr(self._client.scheduler, "address", None) or "of Dask"

    async def set_up(self, machine: Machine) -> None:
        self._comm = self._client.scheduler_comm
        self._client.subscribe_topic(self._name, self._hear)
        await self._client.register_plugin(guard.Guard(self._name, self._client.id), name=self._name)
        setting_up = asyncio.ensure_future(self._client.register_plugin(machine, name=self._name))
        self._background.add(setting_up)
        setting_up.add_done_callback(self._background.discard)
        # A machine that is stopped doesn't keep the others waiting: what it is given is not started.
        await asyncio.wait([setting_up], timeout=_SETUP_SECONDS)
        if setting_up.done():
            setting_up.result()

    def submit(self, keys: Sequence[str], parcels: Sequence[bytes]) -> list[Future]:
        if sum(map(len, parcels)) < _GRAPH_SMALL:
            return self._map(keys, parcels)
        # Not each time: filters are those of the whole process, and another thread may be about to change them, too.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a graph is large: so are the arguments, then
            return self._map(keys, parcels)

    def _map(self, keys: Sequence[str], parcels: Sequence[bytes]) -> list[Future]:
        futures: list[Future] = self._client.map(
            carry, [self._name] * len(keys), keys, parcels, key=list(keys), pure=False, retries=0
        )
        return futures

    async def done(self, future: Future) -> tuple[str, BaseException | None]:
        """Wait until Dask is through with it, and don't raise; its status, and its exception if it has one."""
        error: BaseException | None = await future.exception()
        return str(future.status), error

    async def release(self, futures: list[Future]) -> None:
        try:
            await self._client.cancel(futures)
        except Exception as error:  # the connection is lost, and with it all that there was to cancel
            self._say(f"parcels were not taken back: {error!r}")

    async def on_scheduler(self, function: Callable[..., Any], keys: list[str], seconds: float) -> list[str]:
        """What the function says of the keys; nothing if it can't be asked."""
        try:
            running = self._client.run_on_scheduler(function, self._name, keys)
            answer: list[str] = await asyncio.wait_for(running, seconds)
            return answer
        except Exception as error:  # it is gone, or hangs: then nobody knows what was claimed
            self._say(f"the scheduler didn't answer: {error!r}")
            return []

    async def on_machines(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            running = self._client.run(function, self._name, *args, wait=False, on_error="ignore")
            await asyncio.wait_for(running, ASK_SECONDS)
        except Exception as error:  # as above
            self._say(f"the machines can't be asked: {error!r}")

    async def ask_all(self, function: Callable[..., Any], machines: Sequence[str]) -> list[tuple[str, Any]]:
        """The address and the answer of each machine that has one in time."""
        answers = await asyncio.gather(*(self._ask(function, address) for address in machines))
        return [(address, answer) for address, answer in zip(machines, answers, strict=True) if answer is not None]

    async def _ask(self, function: Callable[..., Any], address: str) -> Any:
        try:
            running = self._client.run(function, self._name, workers=[address], on_error="ignore")
            return (await asyncio.wait_for(running, _LOOK_SECONDS)).get(address)
        except Exception:  # it is about to be lost, or stopped
            return None

    async def tear_down(self, seconds: float) -> None:
        """End the pools of the machines, and then what the scheduler has, which they need until then. Goes on in the
        background when it takes longer."""
        if self.is_up:
            ending = asyncio.ensure_future(self._tear_down())
            self._background.add(ending)
            ending.add_done_callback(self._background.discard)
            await asyncio.wait([ending], timeout=seconds)

    async def _tear_down(self) -> None:
        try:
            self._client.unsubscribe_topic(self._name)
            await self._client.unregister_worker_plugin(self._name)
        except Exception as error:  # a machine was lost meanwhile
            self._say(f"the machines were left as they were: {error!r}")
        try:
            await self._client.run_on_scheduler(guard.end, self._name)
        except Exception as error:  # the connection was lost
            self._say(f"the scheduler was left as it was: {error!r}")

    def close(self) -> None:
        """The client. Blocks; on any thread but the event loop's."""
        try:
            self._client.close(timeout=ASK_SECONDS)
        except Exception as error:  # it was lost
            self._say(f"the client was not closed: {error!r}")
