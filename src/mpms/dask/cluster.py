"""Where the tasks go: a cluster of Dask, as an address, as a client, or made for trying it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from distributed import Client, LocalCluster

from ..config import PoolConfig, check_integer, check_seconds
from ..engine import Sink
from ..typed import Any
from .engine import ClusterEngine

__all__ = ["DaskEngine"]


class DaskEngine:
    """Runs the tasks of a pool on a cluster of Dask: ``MPMS(worker, collector, engine=DaskEngine(client))``.

    On each Dask worker there is a pool of ``processes`` times ``threads``, with all other options too, so give it as
    many threads: ``dask worker --nworkers 1 --nthreads N``. Several pools may be made of one ``DaskEngine``.

    Args:
        client: a ``distributed.Client`` that is not asynchronous, which stays open; or the address of a scheduler, to
            which each pool then connects on its own.
        machines_timeout: seconds that tasks wait while there is no Dask worker, before the pool is broken; ``None``:
            for ever.

    Raises:
        TypeError, ValueError: for an option. A pool refuses by name what can't be done on a cluster.
    """

    def __init__(self, client: Client | str, *, machines_timeout: float | None = 60.0) -> None:
        if machines_timeout is not None:
            check_seconds("machines_timeout", machines_timeout)
        if isinstance(client, Client):
            if client.asynchronous:
                raise ValueError("an asynchronous client runs on its user's event loop: leave out asynchronous=True")
        elif not isinstance(client, str):
            raise TypeError(f"client must be a distributed.Client or the address of a scheduler, not {client!r}")
        self._client = client
        self._machines_timeout = machines_timeout

    @classmethod
    def local(cls, machines: int = 2, *, machines_timeout: float | None = 60.0) -> DaskEngine:
        """A cluster on this machine, for trying it: each of its ``machines`` is a Dask worker under a nanny, with the
        threads that the first pool asks for. It is made with that pool, and ends with :meth:`close`, at the end of a
        ``with`` block, or at the interpreter's exit. As with any ``LocalCluster``, a script needs a main guard."""
        check_integer("machines", machines, 1)
        return _LocalDaskEngine(machines, machines_timeout)

    def __call__(
        self, function: Callable[..., Any] | None, config: PoolConfig, sink: Sink, *, bounded: bool = True
    ) -> ClusterEngine:
        """For the pool."""
        return ClusterEngine(
            function,
            config,
            sink,
            bounded=bounded,
            connect=self._connect,
            machines_timeout=self._machines_timeout,
        )

    def _connect(self, config: PoolConfig) -> tuple[Client, bool]:
        """The client, and whether the pool is to close it."""
        if isinstance(self._client, str):
            return Client(self._client, set_as_default=False, name=f"mpms-{config.name}"), True
        return self._client, False

    def close(self) -> None:
        """End the cluster, if it was made by :meth:`local`. May be called again."""

    def __enter__(self) -> DaskEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _LocalDaskEngine(DaskEngine):
    def __init__(self, machines: int, machines_timeout: float | None) -> None:
        super().__init__("", machines_timeout=machines_timeout)
        self._machines = machines
        self._made: tuple[LocalCluster, Client] | None = None

    def _connect(self, config: PoolConfig) -> tuple[Client, bool]:
        if self._made is None:
            cluster = LocalCluster(
                n_workers=self._machines,
                threads_per_worker=config.processes * config.threads,
                processes=True,
                dashboard_address=":0",
            )
            self._made = cluster, Client(cluster, set_as_default=False)
        return self._made[1], False

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            cluster, client = made
            client.close()
            cluster.close()
