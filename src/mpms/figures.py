"""What a pool can be asked about itself. Loaded by the first who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .ids import TaskId

__all__ = ["RunningTask", "Stats", "ThreadStack", "WorkerInfo", "WorkerStacks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """A snapshot of a pool.

    ``submitted = done + failed + queued + running``, where ``done`` and ``failed`` have their outcome (``failed``:
    any but a returned value), ``running`` are on a thread now or about to be, and ``queued`` wait. ``workers`` counts
    processes by phase (``starting``, ``serving``, ``retiring``, ``killed``), ``crashes`` worker ends by cause
    (``"SIGKILL"``, ``"exit 3"``, ``"timeout"``, ``"start timeout"``). ``oldest`` is the running time in seconds of the
    task that has run longest, and ``oldest_task`` its id. ``throughput`` is tasks per second since the start.
    """

    submitted: int = 0
    done: int = 0
    failed: int = 0
    queued: int = 0
    running: int = 0
    undelivered: int = 0
    retried: int = 0
    starts: int = 0
    zombies: int = 0
    workers: Mapping[str, int] = field(default_factory=dict)
    crashes: Mapping[str, int] = field(default_factory=dict)
    oldest: float | None = None
    oldest_task: TaskId | None = None
    uptime: float = 0.0
    throughput: float = 0.0


@dataclass(frozen=True, slots=True)
class RunningTask:
    """What one thread of a worker runs: the task and for how many seconds."""

    thread: int
    task: TaskId
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process as the pool sees it now. ``age`` is in seconds since its start was asked for."""

    name: str
    pid: int | None
    phase: str
    age: float
    done: int
    running: tuple[RunningTask, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadStack:
    """Where one thread of a worker is. ``thread`` is its number, and ``dispatch`` the number under which it runs a task
    for ``seconds``; all three are ``None`` for a thread that runs none. ``task`` is known within the pool's process."""

    thread: int | None
    dispatch: int | None
    seconds: float | None
    stack: str
    task: TaskId | None = None

    def __str__(self) -> str:
        what = "no task" if self.seconds is None else f"for {self.seconds:.1f} s"
        if self.task is not None:
            what = f"task {self.task} {what}"
        return f"{'thread' if self.thread is None else f'#t{self.thread}'}: {what}\n{self.stack}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStacks:
    """Where the threads of one worker are; none when it didn't answer. ``str()`` shows it."""

    name: str
    pid: int
    threads: tuple[ThreadStack, ...]

    def __str__(self) -> str:
        if not self.threads:
            return f"{self.name} (pid {self.pid}) did not answer: it is stopped, or in the kernel"
        return "\n".join([f"{self.name} (pid {self.pid})", *map(str, self.threads)])
