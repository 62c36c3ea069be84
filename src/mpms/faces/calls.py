"""What ``MPMS`` and ``Executor`` have in common: calls that are awaited, and figures of the engine."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from ..config import PoolConfig
from ..engine import Engine
from ..typed import TYPE_CHECKING, ParamSpec, TypeVar, cast

if TYPE_CHECKING:  # type checkers know this module, installed or not
    from typing_extensions import Self

    from ..figures import Stats, WorkerInfo, WorkerStacks
    from .pace import Paces

__all__ = ["Calls"]

Q = ParamSpec("Q")
T = TypeVar("T")


class Calls:
    """An engine that is called in several ways."""

    _engine: Engine
    _config: PoolConfig
    _paces: Paces | None = None

    def _remembered(self) -> Paces:
        """Of earlier maps."""
        from .pace import Paces

        if self._paces is None:
            self._paces = Paces()
        return self._paces

    def _begin(self) -> None:
        """Start the engine unless that was done. Raises when it takes no more tasks."""
        raise NotImplementedError

    @property
    def _begun(self) -> bool:
        """Whether it was started, so that ``_begin`` takes no time."""
        raise NotImplementedError

    def _join(self) -> None:
        """Take no more tasks; block until all are done and nothing is left."""
        raise NotImplementedError

    def _stop(self, kind: type[BaseException]) -> None:
        """Because of such an exception: kill what runs, cancel the rest, and block until nothing is left."""
        raise NotImplementedError

    # Under asyncio and trio

    async def run(self, fn: Callable[Q, T], /, *args: Q.args, **kwargs: Q.kwargs) -> T:
        """Have ``fn(*args, **kwargs)`` called in a worker, and await what it returns; raises what it raises.

        For asyncio and trio. It blocks no loop, and takes no thread, however many are awaited at once; nothing but
        their number bounds what waits here, so bound that. Starts the pool if nobody has. When the awaiting task is
        cancelled, the task here is cancelled as well, unless it has started: then it goes on, and what comes of it is
        dropped.

        Raises what pickling ``fn`` or its arguments raises, ``RuntimeError`` when the pool was closed, ``PoolBroken``
        when no worker can be started, and :class:`TaskCancelled` for a task that was stopped with the pool.
        """
        from . import aio

        return cast(T, await aio.run(self, fn, args, kwargs))

    async def __aenter__(self) -> Self:
        """Start, without blocking the loop."""
        from . import aio

        await aio.enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait until all is done, without blocking the loop; after an exception, or when cancelled meanwhile, stop at
        once, which takes half a second at the most."""
        from . import aio

        await aio.leave(self, kind)

    # Figures

    def stats(self) -> Stats:
        """A snapshot of the figures; cheap enough for every second of a busy pool. See :class:`mpms.Stats`.

        All tasks are counted, in whichever way they came; of a ``map``, a chunk is one.
        """
        return self._engine.stats()

    def workers(self) -> list[WorkerInfo]:
        """The worker processes now: pid, age, tasks done, what each thread runs and since when."""
        return list(self._engine.workers())

    def stacks(self) -> list[WorkerStacks]:
        """Where every thread of every worker is now, with its task and since when; ``print(*pool.stacks())`` shows it.

        Works while C code holds the GIL. Blocks for some milliseconds, and for up to a second for each worker that is
        stopped or whose GIL is held.
        """
        return list(self._engine.stacks())

    def story(self) -> list[str]:
        """The last things that happened to workers and tasks, a line each, oldest first: for reports of bugs."""
        return list(self._engine.story())
