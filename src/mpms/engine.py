"""What faces and engines share: the two protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Condition

from .ids import TaskId, TaskOptions
from .outcome import Failure, Outcome
from .typed import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from .figures import Stats, WorkerInfo, WorkerStacks

__all__ = [
    "Delivered",
    "Engine",
    "Pending",
    "Refused",
    "Sink",
    "Ticket",
    "Unopened",
    "WorkerHandle",
    "let_go",
    "log_error",
    "refusal",
]


Delivered: TypeAlias = tuple[TaskId, tuple[Any, ...], Mapping[str, Any], Any, Failure | None]
"""A task, its arguments as they were given to ``submit``, the value that it has returned, and what became of it if it
has not. Measured: to make an outcome of each value, and to take it out again, takes 0.3 µs."""


class Sink(Protocol):
    """Where an engine delivers outcomes: called from one thread, the engine's delivery thread, never two at once."""

    def deliver(self, outcomes: Iterable[Delivered]) -> None:
        """Take a batch. May call the user's code and be slow; an exception that it lets out is logged.

        A task is pending until its outcome is taken out of ``outcomes``, which unpickles it: hold no lock meanwhile.
        """
        ...

    def end(self) -> None:
        """There will be no more. Called once."""
        ...


class Ticket(Protocol):
    """Whoever wants the outcome of one task, in place of the sink."""

    def settle(self, outcome: Outcome) -> None:
        """Called once, on the engine's delivery thread, as the sink is. An exception that it lets out is logged."""
        ...


class Unopened(Protocol):
    """A value that a task has returned, as it came. The user's classes run when it is unpickled."""

    def load(self) -> object:
        """The value; raises what they raise."""
        ...

    def open(self) -> Outcome:
        """The outcome; what they raise makes it an error."""
        ...


class WorkerHandle(Protocol):
    """A worker process, as ``multiprocessing.Process`` shows it."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def exitcode(self) -> int | None: ...

    def is_alive(self) -> bool: ...


_Kept = TypeVar("_Kept")


class Pending(Mapping[TaskId, tuple[Any, ...]], Generic[_Kept]):
    """What is accepted and not delivered, as it is at each look; ``show`` makes of a record what is to be seen."""

    def __init__(self, records: Mapping[TaskId, _Kept], show: Callable[[TaskId, _Kept], tuple[Any, ...]]) -> None:
        self._records = records
        self._show = show
        self._listed: Mapping[TaskId, _Kept] = {}  # by __iter__: whoever goes through them finds each of these

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[TaskId]:
        self._listed = dict(self._records)
        return iter(self._listed)

    def __contains__(self, task: object) -> bool:
        return task in self._records

    def __getitem__(self, task: TaskId) -> tuple[Any, ...]:
        record = self._records.get(task)
        return self._show(task, self._listed[task] if record is None else record)


def log_error(message: str, *args: object) -> None:
    """As ``logger.exception``, on a thread that must not end by it: a handler or filter of the user's may raise, and
    nobody is there to be told."""
    try:
        import logging  # loaded long since: see `errors.__getattr__`

        logging.getLogger("mpms").exception(message, *args, stacklevel=2)
    except BaseException:
        pass


@contextmanager
def let_go(condition: Condition) -> Iterator[None]:
    """Without the lock, which this thread may have: the handler of a signal waits for the end of a pool while its
    thread is in the middle of ``put``. By the same private methods as ``Condition.wait``, and for the same reason."""
    lock: Any = condition
    if not lock._is_owned():
        yield
        return
    held = lock._release_save()
    try:
        yield
    finally:
        lock._acquire_restore(held)


class Refused(RuntimeError):
    """What an engine raises that accepts no more tasks: a name of its own, since pickling raises RuntimeError too."""


def refusal(broken: BaseException | None) -> BaseException:
    """What ``submit`` raises when no more is accepted: of a pool that broke a copy of why, for each who asks."""
    if broken is None:
        return Refused("cannot put a task into a pool that was closed")
    error = type(broken)(*broken.args)
    error.__cause__ = broken.__cause__
    return error


class Engine(Protocol):
    """Runs one function over tasks. All methods may be called from any thread, unless they say otherwise."""

    def start(self) -> None:
        """Start workers, without waiting for them. Call once. Raises ``TypeError`` for what can't be shipped."""
        ...

    def submit(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: TaskOptions | None = None,
        *,
        function: Callable[..., Any] | None = None,
        each: bool = False,
        ticket: Ticket | None = None,
        wait: bool = True,
    ) -> TaskId:
        """Accept a task; raises what pickling its arguments or its function raises, before anything is accepted.

        ``function`` is called in place of the engine's own; with ``each`` it is called for each item of a chunk, which
        ``args`` then are (see ``wire.chunks.Packed``; the value is a ``Chunk``). With a ``ticket`` that one gets the
        outcome, and the sink doesn't. With ``wait``, blocks while too much is pending, except on the delivery thread.
        Raises ``PoolBroken``, or ``Refused`` after :meth:`close`.
        """
        ...

    def cancel(self, task: TaskId, timeout: float = 0.0) -> bool:
        """Cancel the task if it has not started; its outcome is then ``TaskCancelled``. Whether that is certain within
        ``timeout`` seconds: normally it takes a millisecond, and with 0 is not waited for."""
        ...

    def expect(self, task: TaskId, take: Callable[[Unopened], bool] | None) -> None:
        """Somebody waits for what a task with a ticket returns. ``take`` may be given it, which is sooner; and when it
        says that it takes it, the ticket isn't. It must not wait, nor run code of the user's. ``None``: nobody waits
        any more."""
        ...

    def cancel_all(self) -> None:
        """As :meth:`cancel`, of every task. Does not block."""
        ...

    def close(self) -> None:
        """Accept no more. When every task has its outcome, workers end by themselves. Does not block."""
        ...

    def stop(self, timeout: float) -> None:
        """Close; whatever has no outcome after ``timeout`` seconds is killed and cancelled. Does not block."""
        ...

    def wait_queued(self, timeout: float | None = None) -> bool:
        """Wait until no accepted task waits for a thread; whether that came true in time."""
        ...

    def wait_stopped(self, timeout: float | None = None) -> bool:
        """After :meth:`close` or :meth:`stop`: wait until all is delivered and nothing is left; whether it was in time.

        Raises ``RuntimeError`` on the delivery thread, which would wait for itself.
        """
        ...

    def resize(self, processes: int) -> None:
        """Have this many workers from now on; those that are too many finish what they run. Does not block."""
        ...

    def pending(self) -> Mapping[TaskId, tuple[Any, ...]]:
        """A live view of the tasks that are not delivered: ``(id, args, kwargs, time)``."""
        ...

    def unfinished(self) -> Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        """The arguments of the tasks that were cancelled, or lost with a broken pool, in the order of acceptance."""
        ...

    def stats(self) -> Stats:
        """Figures as of now; costs some microseconds for each worker."""
        ...

    def workers(self) -> Sequence[WorkerInfo]:
        """The workers as of now."""
        ...

    def handles(self) -> Mapping[str, WorkerHandle]:
        """The processes as of now, by name."""
        ...

    def stacks(self) -> Sequence[WorkerStacks]:
        """Where every thread of every worker is. Blocks for some milliseconds; for a second if one is stopped."""
        ...

    def story(self) -> Sequence[str]:
        """The last things that happened, oldest first, one line each."""
        ...

    @property
    def submitted(self) -> int:
        """How many tasks were accepted without a ticket."""
        ...

    @property
    def broken(self) -> BaseException | None:
        """Why the pool broke, if it did."""
        ...
