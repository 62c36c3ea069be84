"""For tests of programs that use mpms: a pool without processes, and a clock that stands still.

The pool is ``MPMS(worker, collector, engine=InlineEngine)``.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .config import Hook, PoolConfig
from .engine import Pending, Sink, Ticket, Unopened, WorkerHandle, let_go, log_error, refusal
from .errors import PoolBroken, RemoteWorkerError, TaskCancelled
from .figures import RunningTask, Stats, WorkerInfo, WorkerStacks
from .ids import TaskId, TaskOptions
from .locks import Condition
from .outcome import Broken, Cancelled, Outcome, Raised, Returned
from .typed import TYPE_CHECKING, Any
from .wire.chunks import Each
from .wire.failures import dump_error, load_error, unsendable
from .wire.pickling import dump, load

__all__ = ["FakeClock", "InlineEngine"]

_NEEDS_PROCESSES = (
    "start_method",
    "start_timeout",
    "task_timeout",
    "lifecycle",
    "lifecycle_duration",
    "lifecycle_duration_hard",
    "max_memory_per_process",
)


class _Record(NamedTuple):
    shown: tuple[TaskId, tuple[Any, ...], dict[str, Any], float]
    payload: bytes
    function: Callable[..., Any]
    ticket: Ticket | None


class InlineEngine:
    """See :class:`mpms.engine.Engine`. Runs tasks in this process, one at a time and in order, on its delivery thread.

    It needs no process, so breakpoints, mocks and coverage reach the worker function, and a test takes microseconds.
    Arguments and results are pickled as they are on their way to a process and back: what can't travel is found, and
    what a task does to its arguments is not seen outside. The function itself is called as it is.

    ``preload``, the initializers and the finalizers run once, on the same thread; an initializer that raises is tried
    as often as ``max_start_failures`` says, without a pause. A task that raises ``WorkerGracefulDie`` has that outcome,
    and no more follows from it. ``retries`` has no occasion: no worker dies.

    What it can't do:
     - isolate: a task that crashes or calls ``os._exit`` ends this process, one that hangs stops its pool;
     - kill: at the deadline of a shutdown a running task goes on, and its result is dropped for ``TaskCancelled``;
     - run in parallel, whatever ``processes`` and ``threads`` say: a task that waits for a later one waits for ever.

    Raises ``ValueError`` for an option that needs a process of its own: timeouts, lifecycles, ``start_method`` and
    ``max_memory_per_process``.
    """

    def __init__(
        self, function: Callable[..., Any] | None, config: PoolConfig, sink: Sink, *, bounded: bool = True
    ) -> None:
        _refuse_what_needs_processes(config)
        del bounded  # an outcome is delivered before the next one is made: none waits
        self._function = function
        self._config = config
        self._sink = sink
        self._bound = config.max_pending or sys.maxsize
        self._thread = threading.Thread(target=self._run, name=f"mpms-{config.name}-collector", daemon=True)
        self._story: deque[str] = deque(maxlen=200)
        self._changed = Condition()  # its lock, as in LocalEngine a reentrant one, guards all below
        self._records: dict[TaskId, _Record] = {}  # of what is not delivered
        self._queue: deque[TaskId] = deque()
        self._running: tuple[TaskId, float] | None = None  # and since when
        self._unfinished: dict[TaskId, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._last = 0
        self._ticketed = 0  # of these, those that came with a ticket
        self._cancelled: set[TaskId] = set()  # of what is in the queue
        self._done = self._failed = self._taken = 0  # settled with a value, without one, delivered
        self._closed = False
        self._sealed = False  # and all that was accepted has its outcome
        self._deadline: float | None = None  # of a stop
        self._broken: PoolBroken | None = None
        self._started: float | None = None
        self._ended: float | None = None

    # The callers' side

    def start(self) -> None:
        self._started = time.monotonic()
        self._thread.start()

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
        if options is not None and options != TaskOptions(retries=options.retries):  # these have no occasion
            raise ValueError(f"{options} needs processes, and InlineEngine runs tasks in this one, in order: use put")
        if self._closed:
            raise refusal(self._broken)
        function = self._function if function is None else function
        if function is None:
            raise TypeError("a task needs a function: this pool has none of its own")
        named = dict(kwargs)
        payload = dump((args, named))
        with self._changed:
            if wait and threading.current_thread() is not self._thread:  # which would wait for itself
                self._changed.wait_for(lambda: len(self._queue) < self._bound or self._closed)
            if self._closed:
                raise refusal(self._broken)
            self._last += 1
            self._ticketed += ticket is not None
            task = TaskId(self._last)
            shown = (task, args, named, time.time())
            record = _Record(shown, payload, Each(function) if each else function, ticket)
            if self._sealed:  # the handler of a signal came in between, and has waited for the end
                self._last -= 1
                self._ticketed -= ticket is not None
                raise refusal(self._broken)
            self._records[task] = record
            self._queue.append(task)
            self._changed.notify_all()
        return task

    def cancel(self, task: TaskId, timeout: float = 0.0) -> bool:
        with self._changed:
            if task not in self._queue or task in self._cancelled:
                return False
            self._cancelled.add(task)
            self._changed.notify_all()
        return timeout > 0

    def expect(self, task: TaskId, take: Callable[[Unopened], bool] | None) -> None:
        pass  # the ticket does

    def cancel_all(self) -> None:
        with self._changed:
            self._cancelled.update(self._queue)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            if self._deadline is None or deadline < self._deadline:
                self._deadline = deadline
            self._changed.notify_all()

    def wait_queued(self, timeout: float | None = None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue or self._broken is not None, timeout)

    def wait_stopped(self, timeout: float | None = None) -> bool:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a collector can't wait for its own pool to end")
        with let_go(self._changed):
            self._thread.join(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        return not self._thread.is_alive()

    def resize(self, processes: int) -> None:
        raise RuntimeError("InlineEngine has no processes of which there could be more or fewer")

    def pending(self) -> Mapping[TaskId, tuple[Any, ...]]:
        return Pending(self._records, lambda _, record: record.shown)

    def unfinished(self) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        with self._changed:
            lost = dict(self._unfinished)
            if self._time_is_over():  # also what isn't delivered yet, for a task that goes on
                lost.update((task, record.shown[1:3]) for task, record in self._records.items() if not record.ticket)
        return [lost[task] for task in sorted(lost)]

    def stats(self) -> Stats:
        now = time.monotonic()
        with self._changed:
            uptime = 0.0 if self._started is None else (self._ended or now) - self._started
            settled = self._done + self._failed
            return Stats(
                submitted=self._last,
                done=self._done,
                failed=self._failed,
                queued=len(self._queue),
                running=self._last - settled - len(self._queue),
                undelivered=settled - self._taken,
                starts=int(self._started is not None),
                workers={"serving": int(self._thread.is_alive() and self._ended is None)},
                oldest=None if self._running is None else now - self._running[1],
                oldest_task=None if self._running is None else self._running[0],
                uptime=uptime,
                throughput=settled / uptime if uptime else 0.0,
            )

    def workers(self) -> list[WorkerInfo]:
        """This thread in the part of a worker; without a pid, for nobody should kill that one."""
        stats = self.stats()
        if not stats.workers["serving"]:
            return []
        task, seconds = stats.oldest_task, stats.oldest
        running = () if task is None or seconds is None else (RunningTask(1, task, seconds),)
        name, done = f"mpms-{self._config.name}-p1", stats.done + stats.failed
        return [WorkerInfo(name=name, pid=None, phase="serving", age=stats.uptime, done=done, running=running)]

    def handles(self) -> Mapping[str, WorkerHandle]:
        """Empty: there is no process."""
        return {}

    def stacks(self) -> list[WorkerStacks]:
        return []

    def story(self) -> Sequence[str]:
        return list(self._story)

    @property
    def submitted(self) -> int:
        return self._last - self._ticketed

    @property
    def broken(self) -> BaseException | None:
        return self._broken

    def _time_is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    # The delivery thread's side

    def _run(self) -> None:
        if self._initialize():
            while (task := self._next()) is not None:
                if task in self._cancelled:
                    self._settle(task, Cancelled(TaskCancelled("it was cancelled before it had started")))
                else:
                    self._settle(task, self._perform(task))
            self._settle_queue(Cancelled(TaskCancelled("the pool was stopped before the task had started")))
            for hook in (self._config.thread_finalizer, self._config.process_finalizer):
                try:
                    _call(hook)
                except BaseException:  # the user's code, SystemExit included; so below
                    log_error("mpms %s: its finalizer failed", self._config.name)
        self._sink.end()
        self._ended = time.monotonic()

    def _initialize(self) -> bool:
        """Whether that went well; else the pool is broken."""
        config, attempts = self._config, self._config.max_start_failures
        try:
            _call(None if config.preload is None else Hook(config.preload))
            while True:
                try:
                    _call(config.process_initializer)
                    _call(config.thread_initializer)
                    return True
                except BaseException as error:
                    self._story.append(f"an initializer raised {type(error).__name__}")
                    attempts -= 1
                    if not attempts:
                        raise
        except BaseException as error:
            self._break(load_error(dump_error(error)))
            return False

    def _next(self) -> TaskId | None:
        """The next task; blocks. ``None``: there will be none, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue or self._time_is_over():
                return None
            task = self._queue.popleft()
            self._running = task, time.monotonic()
            self._changed.notify_all()
        return task

    def _perform(self, task: TaskId) -> Outcome:
        try:
            record = self._records[task]
            args, kwargs = load(record.payload)
            value = record.function(*args, **kwargs)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are outcomes as any other
            return _travel(dump_error(error), failed=True)
        try:
            return _travel(dump(value))
        except BaseException as problem:
            return _travel(dump_error(unsendable(value, problem)), failed=True)

    def _settle(self, task: TaskId, outcome: Outcome) -> None:
        with self._changed:
            started = self._running is not None
            if started:
                self._running = None
            else:
                self._queue.popleft()
            if started and self._time_is_over():
                outcome = Cancelled(TaskCancelled("the pool was stopped while it ran the task", started=True))
            (_, args, kwargs, _), _, _, ticket = self._records.pop(task)
            if isinstance(outcome, Cancelled | Broken) and ticket is None and task not in self._cancelled:
                self._unfinished[task] = args, kwargs
            self._cancelled.discard(task)
            self._done += isinstance(outcome, Returned)
            self._failed += not isinstance(outcome, Returned)
            self._changed.notify_all()
        self._story.append(f"task {task}: {type(outcome).__name__}")
        try:
            if ticket is None:
                value, failure = (outcome.value, None) if isinstance(outcome, Returned) else (None, outcome)
                self._sink.deliver([(task, args, kwargs, value, failure)])
            else:
                ticket.settle(outcome)
        except BaseException:  # SystemExit in a collector is no reason to lose the rest
            log_error("mpms: the delivery of %d outcomes failed", 1)
        self._taken += 1

    def _settle_queue(self, outcome: Outcome) -> None:
        while not self._seal():
            self._settle(self._queue[0], outcome)

    def _seal(self) -> bool:
        """When nothing is left, accept no more."""
        with self._changed:
            self._sealed = not self._queue
            return self._sealed

    def _break(self, cause: BaseException) -> None:
        text = f"the pool {self._config.name} can't start workers: {type(cause).__name__}: {cause}"
        error = PoolBroken(text)
        error.__cause__ = cause
        with self._changed:
            self._closed = True
            self._broken = error
            self._changed.notify_all()
        self._settle_queue(Broken(error))


def _refuse_what_needs_processes(config: PoolConfig) -> None:
    default = PoolConfig(processes=1)
    for name in _NEEDS_PROCESSES:
        value = getattr(config, name)
        if value != getattr(default, name):
            raise ValueError(
                f"{name}={value!r} needs processes, and InlineEngine runs tasks in this one: leave the option out"
            )


def _travel(data: bytes, *, failed: bool = False) -> Outcome:
    try:
        return Raised(load_error(data)) if failed else Returned(load(data))
    except BaseException as error:  # the user's classes
        detail = f"it could not be unpickled: {type(error).__name__}: {error}"
        return Raised(RemoteWorkerError("mpms_unpickleable_result", detail))


def _call(hook: Hook | None) -> None:
    if hook is not None:
        hook.function(*hook.args)


class FakeClock:
    """A monotonic clock for code that takes its clock as an argument: ``clock()`` is the time, in seconds.

    It moves by :meth:`advance` only. It starts at a random value: code that takes it for a time since 0 fails. That
    value is a whole number, so that differences of times are exact.
    """

    def __init__(self) -> None:
        self._now = float(random.randrange(1_000, 1_000_000))

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Raises ``ValueError`` for less than 0: it is monotonic."""
        if not seconds >= 0:
            raise ValueError(f"seconds must be a number of at least 0, not {seconds!r}")
        self._now += seconds


if TYPE_CHECKING:
    from .engine import Engine

    def _engine(one: InlineEngine) -> Engine:
        return one
