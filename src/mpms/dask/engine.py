"""The engine on Dask, as callers see it: admits tasks, and keeps what must be kept of them.

submit ─▶ records, inbox ─▶ courier ─▶ machines ─▶ courier ─▶ delivery ─▶ sink
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from distributed import Client

from ..config import PoolConfig
from ..engine import Pending, Sink, Ticket, Unopened, WorkerHandle, let_go, refusal
from ..errors import TaskTimeout, WorkerCrashed
from ..figures import RunningTask, Stats, WorkerInfo, WorkerStacks
from ..ids import TaskId, TaskOptions
from ..local.answers import Answers
from ..local.delivery import Delivery
from ..local.functions import Functions, Shipped
from ..local.records import Record, record_of, shown
from ..local.shipment import job_of
from ..locks import Condition
from ..typed import TYPE_CHECKING, Any
from ..wire.pickling import dump_call, dump_function
from .capability import refuse_what_is_missing
from .courier import Courier
from .hosts import Cancel, Close, Order, Stop
from .machine import Machine, stacks_of, workers_of
from .telling import at

__all__ = ["ClusterEngine"]

_UNDELIVERED_LEAST = 1000  # as of the local engine


class ClusterEngine:
    """See :class:`mpms.engine.Engine`. ``connect`` gives the client, and whether it is this pool's own to close.

    ``machines_timeout``: seconds that tasks wait while there is no machine at all, before the pool is broken.
    """

    def __init__(
        self,
        function: Callable[..., Any] | None,
        config: PoolConfig,
        sink: Sink,
        *,
        bounded: bool,
        connect: Callable[[PoolConfig], tuple[Client, bool]],
        machines_timeout: float | None,
    ) -> None:
        refuse_what_is_missing(config)
        self._name = f"mpms-{config.name}-{uuid.uuid4().hex[:12]}"
        self._config = config
        self._function = function
        self._connect = connect
        self._bound = config.max_pending or sys.maxsize
        self._undelivered_bound = max(_UNDELIVERED_LEAST, self._bound) if bounded else sys.maxsize
        self._records: dict[TaskId, Record] = {}
        self.options: dict[TaskId, TaskOptions] = {}  # of the tasks that have some
        self.inbox: deque[TaskId | Order] = deque()
        self._functions, self._each = Functions(), Functions(each=True)
        self._delivery = Delivery(sink, self._records, self._delivered, f"mpms-{config.name}-collector")
        self._courier = Courier(self, self._name, config, self._records, self._delivery, machines_timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = False
        # Guards admission: all up to the waiters. Reentrant: handlers of signals, and the collector, call from within.
        self._changed = Condition()
        self._last = 0
        self.submitted = 0  # of these, those without a ticket; read without the lock, also by handlers of signals
        self._closed = False
        self._answers = Answers()
        self._waiters = 0
        self._taken = 0  # delivered
        self._started = 0.0
        self._ended_at: float | None = None
        self._ended = threading.Event()

    # Starting

    def start(self) -> None:
        """Raises ``OSError`` when there is no scheduler."""
        job = self._job()
        client, own_client = self._connect(self._config)
        self._started = time.monotonic()
        self._delivery.start()
        machine = Machine(self._name, _bare(self._config), self._config.start_method, job)
        self._loop = self._courier.start(client, machine, own_client=own_client)

    def _job(self) -> bytes:
        try:
            return dump_function(job_of(self._function, self._config))
        except Exception as error:  # the reducers of the user's objects raise anything
            what = getattr(self._function, "__qualname__", None) or type(self._function).__qualname__
            problem = f"{type(error).__name__}: {error}"
            raise TypeError(f"{what} and its hooks can't be sent to another machine: {problem}") from error

    # The callers' side

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
        self._refuse_if_closed()
        named = dict(kwargs)
        payload = dump_call(args, named)
        shipped = self._ship(function, each=each) if function is not None or each else None
        with self._changed:
            if wait and self._is_full():
                self._wait(lambda: not self._is_full() or self._closed, None)
            self._last += 1
            task = TaskId(self._last)
            record = record_of(payload, shipped, args, named, ticket)
            if self._closed:  # now: the handler of a signal may have come in between, and have waited for the end
                self._last -= 1
                raise refusal(self._courier.broken)
            self.submitted += ticket is None
            self._records[task] = record
            if options is not None:
                self.options[task] = options
            self.inbox.append(task)
        self._wake()
        return task

    def _ship(self, function: Callable[..., Any] | None, *, each: bool) -> Shipped:
        function = self._function if function is None else function
        if function is None:
            raise TypeError("a task needs a function: this pool has none of its own")
        return (self._each if each else self._functions).ship(function)

    def cancel(self, task: TaskId, timeout: float = 0.0) -> bool:
        with self._changed:
            if task not in self._records:
                return False
            answer = self._answers.ask(task) if timeout else None
            self.inbox.append(Cancel(task))
        self._wake()
        return answer is not None and answer.wait(timeout)

    def expect(self, task: TaskId, take: Callable[[Unopened], bool] | None) -> None:
        pass  # the ticket does

    def cancel_all(self) -> None:
        self._order(Cancel(None))

    def close(self) -> None:
        self._order(Close(), closes=True)

    def stop(self, timeout: float) -> None:
        self._order(Stop(time.monotonic() + timeout), closes=True)

    def _order(self, order: Order, *, closes: bool = False) -> None:
        with self._changed:
            self._closed = self._closed or closes
            self.inbox.append(order)
            self._changed.notify_all()
        self._wake()

    def wait_queued(self, timeout: float | None = None) -> bool:
        with self._changed:
            return self._wait(lambda: not self._queued() or self._courier.broken is not None, timeout)

    def wait_stopped(self, timeout: float | None = None) -> bool:
        if threading.current_thread() is self._delivery.thread:
            raise RuntimeError("a collector can't wait for its own pool to end")
        until = None if timeout is None else time.monotonic() + timeout
        with let_go(self._changed):
            if not self._ended.wait(_bounded(timeout)):
                return False
            self._delivery.thread.join(None if until is None else _bounded(max(0.0, until - time.monotonic())))
        return not self._delivery.thread.is_alive()

    def resize(self, processes: int) -> None:
        raise RuntimeError(
            "a pool on Dask is as large as its cluster: add or remove Dask workers, as by cluster.scale()"
        )

    def pending(self) -> Mapping[TaskId, tuple[Any, ...]]:
        return Pending(self._records, shown)

    def unfinished(self) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        return [self._courier.unfinished[task] for task in sorted(self._courier.unfinished)]

    @property
    def broken(self) -> BaseException | None:
        return self._courier.broken

    def stats(self) -> Stats:
        """Of what the client knows. ``running`` is what is with Dask, some of which may wait there, and ``oldest``
        counts from when it went there. ``starts``, ``workers``, ``crashes``, ``retried`` and ``zombies`` are as of the
        last answer of each machine."""
        now = time.monotonic()
        counts = self._courier.counts
        oldest = next(iter(list(self._courier.counts.out_since.items())[:1]), None)
        uptime = (self._ended_at or now) - self._started if self._started else 0.0
        taken = self._taken  # first: what is delivered meanwhile was settled before
        done, failed, submitted = counts.done, counts.failed, self._last
        queued = min(self._queued(), submitted - done - failed)
        figures = list(counts.figures.values())
        crashes = _sum(each.crashes for each in figures)
        if counts.lost_machines:
            crashes["machine lost"] = counts.lost_machines
        return Stats(
            submitted=submitted,
            done=done,
            failed=failed,
            queued=queued,
            running=max(0, submitted - done - failed - queued),
            undelivered=done + failed - taken,
            retried=counts.retried + sum(each.retried for each in figures),
            starts=sum(each.starts for each in figures),
            zombies=sum(each.zombies for each in figures),
            workers=_sum(each.workers for each in figures) if self._ended_at is None else {},
            crashes=crashes,
            oldest=None if oldest is None else now - oldest[1],
            oldest_task=None if oldest is None else oldest[0],
            uptime=uptime,
            throughput=(done + failed) / uptime if uptime else 0.0,
        )

    def workers(self) -> list[WorkerInfo]:
        """Asks every machine; one that doesn't answer within two seconds is left out. Without pids: they are of other
        machines, and nobody should signal them here."""
        infos = list[WorkerInfo]()
        for address, (workers, numbers) in self._ask(workers_of):
            for info in workers:
                running = tuple(
                    RunningTask(each.thread, numbers[each.task], each.seconds)
                    for each in info.running
                    if each.task in numbers
                )
                infos.append(
                    WorkerInfo(
                        name=at(info.name, address),
                        pid=None,
                        phase=info.phase,
                        age=info.age,
                        done=info.done,
                        running=running,
                    )
                )
        return infos

    def handles(self) -> Mapping[str, WorkerHandle]:
        """Empty: the processes are those of other machines."""
        return {}

    def stacks(self) -> list[WorkerStacks]:
        """Asks every machine; one that doesn't answer within two seconds is left out."""
        return [
            WorkerStacks(name=at(each.name, address), pid=each.pid, threads=each.threads)
            for address, stacks in self._ask(stacks_of)
            for each in stacks
        ]

    def story(self) -> Sequence[str]:
        return list(self._courier.story)

    def _ask(self, function: Callable[..., Any]) -> list[tuple[str, Any]]:
        if self._loop is None or self._courier.finishing:
            return []
        asking = self._courier.link.ask_all(function, list(self._courier.counts.machines))
        return asyncio.run_coroutine_threadsafe(asking, self._loop).result()

    def _queued(self) -> int:
        return len(self.inbox) + self._courier.waiting

    def _is_full(self) -> bool:
        undelivered = self._courier.counts.done + self._courier.counts.failed - self._taken
        if self._queued() < self._bound and undelivered < self._undelivered_bound:
            return False
        return threading.current_thread() is not self._delivery.thread  # which would wait for itself

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise refusal(self._courier.broken)

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """With the lock held."""
        self._waiters += 1
        try:
            return self._changed.wait_for(ready, timeout)
        finally:
            self._waiters -= 1

    def _delivered(self, count: int) -> None:
        """On the delivery thread."""
        self._taken += count
        self.notify()

    def _wake(self) -> None:
        if self._loop is None or self._woken:
            return
        self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._courier.step)
        except RuntimeError:
            pass  # the client was closed, and all tasks have their outcome

    # The courier's side: see courier.Host

    def awake(self) -> None:
        self._woken = False

    def refuse(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def notify(self) -> None:
        if self._waiters:
            with self._changed:
                self._changed.notify_all()

    def answered(self, task: TaskId, *, cancelled: bool) -> None:
        if self._answers:
            self._answers.give(task, cancelled=cancelled)

    def ended(self) -> None:
        self.refuse()
        self._answers.end()
        self._ended_at = time.monotonic()
        self._delivery.end()
        self._ended.set()
        self.notify()


def _bare(config: PoolConfig) -> PoolConfig:
    """For the machines: without what belongs to the user, which is in the job, and without what the client does."""
    retry_on = config.retry_on
    crashes = (WorkerCrashed, TaskTimeout)
    covered = tuple(each for each in crashes if not isinstance(retry_on, tuple) or issubclass(each, retry_on))
    return config.replace(
        max_pending=0,
        preload=None,
        process_initializer=None,
        thread_initializer=None,
        process_finalizer=None,
        thread_finalizer=None,
        die_exceptions=(),
        retry_on=covered,
        stop_on=None,
    )


def _bounded(timeout: float | None) -> float | None:
    return None if timeout is None else min(timeout, threading.TIMEOUT_MAX)


def _sum(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, number in each.items():
            total[name] = total.get(name, 0) + number
    return total


if TYPE_CHECKING:
    from ..engine import Engine

    def _engine(one: ClusterEngine) -> Engine:
        return one
