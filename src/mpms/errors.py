"""The tree of errors. Each one pickles with all that it carries, and says what to do.

MpmsError
├── PoolBroken         no worker can be started, or the pool can't go on   (also a BrokenExecutor)
├── WorkerCrashed      the worker ended while it ran this task
├── TaskTimeout        the task ran longer than it may                     (also a TimeoutError)
├── TaskCancelled      cancelled, or the pool was stopped first            (also a CancelledError)
└── RemoteWorkerError  a value or exception that can't travel between processes
WorkerGracefulDie      raised by a task: "replace this process after me"
"""

from __future__ import annotations

from signal import Signals

from .ids import TaskId
from .typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .endings import PoolBroken, TaskCancelled

__all__ = [
    "MpmsError",
    "PoolBroken",
    "RemoteTraceback",
    "RemoteWorkerError",
    "TaskCancelled",
    "TaskTimeout",
    "WorkerCrashed",
    "WorkerGracefulDie",
]


class MpmsError(Exception):
    """The base of what mpms itself raises or delivers."""


class _WithEvidence(MpmsError):
    """What is known of a task that has no result of its own. All of it is in attributes, and pickles."""

    def __init__(
        self,
        message: str,
        *,
        task: TaskId | None = None,
        arguments: str = "",
        worker: str | None = None,
        pid: int | None = None,
        stack: str = "",
        attempts: tuple[BaseException, ...] = (),
    ) -> None:
        super().__init__(message)
        self.task = task
        self.arguments = arguments
        self.worker = worker
        self.pid = pid
        self.stack = stack
        self.attempts = attempts

    def __str__(self) -> str:
        text = str(self.args[0])
        return f"{text}\nStack of the task, most recent call last:\n{self.stack}" if self.stack else text

    def __reduce__(self) -> tuple[object, ...]:
        return rebuild, (type(self), self.args, self.__dict__)


class WorkerCrashed(_WithEvidence):
    """The worker process ended while it ran this task.

    ``str()`` is a paragraph for a person. For programs: ``task`` (its id), ``arguments`` (short, as text), ``worker``
    (its name), ``pid``, and

     - ``exitcode`` as in ``multiprocessing``: ``-9`` means killed by signal 9, which ``signal`` has by name; ``None``
       when it is unknown;
     - ``blamed``: ``True`` when this very task is known to have ended the process, ``False`` when another one is, or
       none of them; ``None`` when nobody can tell;
     - ``stack``: the Python stack of the task's thread at the crash, where it was recorded; ``exit_call``: the line
       that called ``os._exit``;
     - ``age`` of the worker in seconds, ``done`` (its tasks), ``peak_memory`` in bytes;
     - ``oom_killed``: whether the kernel's out-of-memory killer did it, as far as the kernel tells;
     - ``attempts``: the errors of the earlier attempts, when the task was retried.
    """

    def __init__(
        self,
        message: str,
        *,
        exitcode: int | None = None,
        blamed: bool | None = None,
        exit_call: str = "",
        age: float | None = None,
        done: int | None = None,
        peak_memory: int | None = None,
        oom_killed: bool = False,
        task: TaskId | None = None,
        arguments: str = "",
        worker: str | None = None,
        pid: int | None = None,
        stack: str = "",
        attempts: tuple[BaseException, ...] = (),
    ) -> None:
        super().__init__(
            message, task=task, arguments=arguments, worker=worker, pid=pid, stack=stack, attempts=attempts
        )
        self.exitcode = exitcode
        self.blamed = blamed
        self.exit_call = exit_call
        self.age = age
        self.done = done
        self.peak_memory = peak_memory
        self.oom_killed = oom_killed

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended the worker: ``"SIGSEGV"``; ``None`` when none did."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        try:
            return Signals(-self.exitcode).name
        except ValueError:  # a real-time signal
            return f"signal {-self.exitcode}"


class TaskTimeout(_WithEvidence, TimeoutError):
    """The task ran longer than ``timeout`` seconds; ``stack`` shows where it was at that time.

    ``task``, ``arguments``, ``worker``, ``pid`` and ``attempts`` are as those of :class:`WorkerCrashed`.
    """

    def __init__(
        self,
        message: str,
        *,
        timeout: float | None = None,
        task: TaskId | None = None,
        arguments: str = "",
        worker: str | None = None,
        pid: int | None = None,
        stack: str = "",
        attempts: tuple[BaseException, ...] = (),
    ) -> None:
        super().__init__(
            message, task=task, arguments=arguments, worker=worker, pid=pid, stack=stack, attempts=attempts
        )
        self.timeout = timeout


class RemoteWorkerError(MpmsError):
    """Stands for a value or an exception that can't be pickled or unpickled.

    ``kind`` is a word that a program can compare (``mpms_unpickleable_result`` and others), ``detail`` says which
    type and why, ``tb`` is the remote traceback or ``None``.
    """

    def __init__(self, kind: str, detail: str, tb: str | None = None) -> None:
        super().__init__(kind, detail, tb)
        self.kind = kind
        self.detail = detail
        self.tb = tb

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}\n{self.tb}" if self.tb else f"{self.kind}: {self.detail}"


class RemoteTraceback(Exception):
    """The ``__cause__`` of a task's exception: the traceback as text, as ``concurrent.futures`` does it."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}"""'


class WorkerGracefulDie(Exception):
    """Raise it in a task to have its process replaced in an orderly way. It is that task's outcome."""


def rebuild(cls: type[BaseException], args: tuple[object, ...], state: dict[str, object]) -> BaseException:
    # The keyword arguments are in the state: calling the constructor with `args` alone gives the defaults first.
    error = cls(*args)
    error.__dict__.update(state)
    return error


def __getattr__(name: str) -> Any:
    # PEP 562: nobody needs these before there is a pool, and they load `concurrent.futures` and `logging`. Measured:
    # without them a fork server is started 6 ms earlier, and the first result of a program comes 5 ms earlier, of 68.
    if name not in ("PoolBroken", "TaskCancelled"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import endings

    return getattr(endings, name)
