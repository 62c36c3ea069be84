"""On each machine, in its Dask worker: a local pool, and what Dask runs to hand it tasks.

    parcel ─▶ carry ─ claim ─▶ LocalEngine ─▶ worker processes ─▶ outcomes, still pickled ─▶ post

The Dask worker never loads what belongs to the user: functions, arguments and results pass through it as bytes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from distributed import Worker, WorkerPlugin, get_worker

from ..config import PoolConfig
from ..engine import Delivered
from ..errors import PoolBroken
from ..figures import WorkerInfo, WorkerStacks
from ..ids import StartMethod, TaskId
from ..local.delivery import Delivery, Results
from ..local.engine import LocalEngine
from ..local.evidence import Who
from ..local.functions import Shipped
from ..local.records import ticket_of
from ..local.shipment import Shipment
from ..outcome import Broken, Cancelled, Failure, Outcome, Raised
from ..typed import Any
from ..wire.failures import dump_error
from ..wire.messages import OPEN, RETURNED, Job
from ..wire.pickling import dump
from .guard import claim_op, post_op
from .messages import ARGUMENTS, Answer, Figures, GivenBack, Parcel, Sealed, parcel_from
from .telling import withdrawn

__all__ = ["Machine", "cancel_at", "carry", "stacks_of", "stop_at", "workers_of"]

_FUNCTIONS_MOST = 256

_SLICE_SECONDS = 0.05
"""After so long, what has not started of a parcel of many tasks is given back: other machines may be idle."""

_COMPANY_SECONDS = 0.002
"""So long an outcome waits for others to go with: to send one alone costs half of that."""

_FIGURES_SECONDS = 0.5  # between two looks at the figures of the pool


async def carry(name: str, key: str, parcel: bytes) -> None:
    """The task that Dask knows of. It ends when all that is in the parcel has its outcome, and that is posted."""
    machine = get_worker().plugins.get(name)
    if machine is None:
        raise LookupError(f"the pool {name} isn't set up on this machine")
    await machine.run(key, parcel_from(parcel))


class Machine(WorkerPlugin):  # type: ignore[misc]
    """The pool of one machine. Lives on the worker's event loop, but for :meth:`settle`."""

    def __init__(self, name: str, config: PoolConfig, method: StartMethod | None, job: bytes) -> None:
        self.name = name
        self._config = config
        self._method = method
        self._job = job

    def setup(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._functions: OrderedDict[int, Shipped] = OrderedDict()
        self._outcomes: list[tuple[_Lease, TaskId, Outcome | GivenBack]] = []  # appended to by the delivery thread
        self._claims: list[tuple[str, asyncio.Future[bool]]] = []
        self._claiming = self._posting = self._woken = False
        self.leaving = False
        """Whether the Dask worker is to end, though tasks run."""
        self.stopped = False
        """Whether the client has stopped all."""
        self._tasks: dict[TaskId, TaskId] = {}  # number with the client → number in the pool
        self._coming: set[TaskId] = set()  # of parcels that are being claimed
        self._unwanted: set[TaskId] = set()  # of these, those that were cancelled meanwhile
        self._figures, self._looked = Figures(), 0.0
        self._background: set[asyncio.Task[None]] = set()  # an event loop holds its tasks weakly
        method: StartMethod = self._method or ("spawn" if sys.platform == "darwin" else "forkserver")
        shipment = Shipment(method, Job(function=None, threads=self._config.threads), self._job)
        self._pool = LocalEngine(None, self._config, self, bounded=False, shipment=shipment, delivery=_Unopened)
        self._pool.start()

    async def teardown(self, worker: Worker) -> None:
        if len(self._pool.pending()):
            self.leaving = True
            self._pool.stop(0.0)
        else:
            self._pool.close()
        limit = self._config.start_timeout + self._config.grace  # that is what finalizers have
        if not await asyncio.to_thread(self._pool.wait_stopped, limit):
            self._pool.stop(0.0)
            await asyncio.to_thread(self._pool.wait_stopped, 2.0)

    # A parcel comes

    async def run(self, key: str, parcel: Parcel) -> None:
        for known, data in parcel.functions.items():
            if known not in self._functions:
                self._functions[known] = Shipped(data)
        # Held from now on: others may have them dropped while this one waits.
        shipped = {n: self._functions[n] for _, _, n, _ in parcel.tasks if n is not None and n in self._functions}
        missing = {n for _, _, n, _ in parcel.tasks if n is not None and n not in shipped}
        if missing:
            await self._send(Answer(self._worker.address, (), {}, self._look(), missing=(key, sorted(missing))))
            return
        coming = {task for task, *_ in parcel.tasks}
        self._coming |= coming
        try:
            granted = await self._claim(key)
        finally:
            self._coming -= coming
            unwanted = self._unwanted & coming
            self._unwanted -= coming
        if not granted:
            return
        lease = _Lease(self, key, len(parcel.tasks))
        for task, payload, number, options in parcel.tasks:
            if task in unwanted:
                self.settle(lease, task, withdrawn())
                continue
            function = None
            if number is not None:
                function = shipped[number]
                if number in self._functions:
                    self._functions.move_to_end(number)
            try:
                self._tasks[task] = self._pool.accept(
                    payload, function, (), {}, options, _Ticket(lease, task), wait=False
                )
            except PoolBroken as error:
                self.settle(lease, task, Broken(error))
            except RuntimeError:  # closed: this machine is about to leave
                self.settle(lease, task, GivenBack())
        while len(self._functions) > _FUNCTIONS_MOST:
            self._functions.popitem(last=False)
        if len(parcel.tasks) > 1:
            try:
                await asyncio.wait_for(asyncio.shield(lease.ended), _SLICE_SECONDS)
            except asyncio.TimeoutError:
                lease.gives_back = True
                for task, *_ in parcel.tasks:
                    if task in self._tasks:
                        self._pool.cancel(self._tasks[task])
        await lease.ended

    async def _claim(self, key: str) -> bool:
        """Whether it is ours. What comes while one question is under way goes with the next one."""
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._claims.append((key, answer))
        if not self._claiming:
            self._claiming = True
            try:
                while self._claims:
                    asked, self._claims = self._claims, []
                    try:
                        ask = getattr(self._worker.scheduler, claim_op(self.name))
                        granted = set(await ask(keys=[key for key, _ in asked], machine=self._worker.address))
                    except BaseException as error:
                        asked, self._claims = asked + self._claims, []
                        for _, waiting in asked:
                            if not waiting.done():
                                waiting.set_exception(error)
                        raise
                    for key_asked, waiting in asked:
                        waiting.set_result(key_asked in granted)
            finally:
                self._claiming = False
        return await answer

    # Outcomes go

    def settle(self, lease: _Lease, task: TaskId, outcome: Outcome | GivenBack) -> None:
        """On any thread."""
        self._outcomes.append((lease, task, outcome))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._start_posting)

    def _start_posting(self) -> None:
        if not self._posting:
            self._posting = True
            self._spawn(self._post_all())

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _post_all(self) -> None:
        try:
            while True:
                if len(self._tasks) > len(self._outcomes):  # others are about to end
                    await asyncio.sleep(_COMPANY_SECONDS)
                self._woken = False
                outcomes, self._outcomes = self._outcomes, []
                if not outcomes:
                    return
                await self._post(outcomes)
        finally:
            self._posting = False

    async def _post(self, outcomes: Sequence[tuple[_Lease, TaskId, Outcome | GivenBack]]) -> None:
        over: dict[str, _Lease] = {}
        for lease, task, _ in outcomes:
            self._tasks.pop(task, None)
            lease.left -= 1
            if not lease.left:
                over[lease.key] = lease
        now = time.monotonic()
        ended = {key: (lease.size, now - lease.begun) for key, lease in over.items()}
        told = [(lease.key, task, outcome) for lease, task, outcome in outcomes]
        answer = Answer(self._worker.address, told, ended, self._look())
        broken = next((outcome.error for _, _, outcome in outcomes if isinstance(outcome, Broken)), None)
        if broken is not None:
            answer = answer._replace(broken=_told(broken))
        try:
            await self._send(answer)
        except Exception as error:  # the connection: nobody knows whether it was heard, so their parcels are lost
            for lease in {lease for lease, _, _ in outcomes}:
                if not lease.ended.done():
                    lease.ended.set_exception(error)
            return
        for lease in over.values():
            if not lease.ended.done():  # cancelled, when the Dask worker closes
                lease.ended.set_result(None)

    async def _send(self, answer: Answer) -> None:
        send = getattr(self._worker.scheduler, post_op(self.name))
        await send(data=answer.dump(), ended=list(answer.ended))

    def _look(self) -> Figures:
        now = time.monotonic()
        if now - self._looked > _FIGURES_SECONDS:
            stats = self._pool.stats()
            self._looked = now
            self._figures = Figures(
                stats.starts, stats.retried, stats.zombies, dict(stats.workers), dict(stats.crashes)
            )
        return self._figures

    # The pool's sink: all tasks have tickets

    def deliver(self, outcomes: Iterable[Delivered]) -> None:
        pass

    def end(self) -> None:
        broken = self._pool.broken
        if isinstance(broken, PoolBroken):
            answer = Answer(self._worker.address, (), {}, self._figures, broken=_told(broken))
            self._loop.call_soon_threadsafe(self._spawn, self._send(answer))

    # What the client asks, on the event loop

    def cancel(self, tasks: Sequence[TaskId]) -> None:
        for task in tasks:
            if task in self._tasks:
                self._pool.cancel(self._tasks[task])
            elif task in self._coming:
                self._unwanted.add(task)

    def stop(self) -> None:
        self.stopped = True
        self._pool.stop(0.0)

    def workers(self) -> list[WorkerInfo]:
        return self._pool.workers()

    def stacks(self) -> list[WorkerStacks]:
        return self._pool.stacks()

    def numbers(self) -> dict[TaskId, TaskId]:
        """Of the tasks: in the pool → with the client."""
        return {ours: theirs for theirs, ours in self._tasks.items()}


def _told(broken: PoolBroken) -> tuple[str, bytes | None]:
    return str(broken), None if broken.__cause__ is None else dump_error(broken.__cause__)


class _Lease:
    """A parcel that was claimed."""

    def __init__(self, machine: Machine, key: str, size: int) -> None:
        self.machine = machine
        self.key = key
        self.size = self.left = size
        self.begun = time.monotonic()
        self.gives_back = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Ticket:
    __slots__ = ("lease", "task")

    def __init__(self, lease: _Lease, task: TaskId) -> None:
        self.lease = lease
        self.task = task

    def settle(self, outcome: Outcome) -> None:
        machine = self.lease.machine
        if isinstance(outcome, Cancelled):
            if outcome.error.started and not machine.stopped:
                return  # lost with the machine, which leaves; the client hears of that
            if not outcome.error.started and (self.lease.gives_back or machine.leaving):
                machine.settle(self.lease, self.task, GivenBack())
                return
        machine.settle(self.lease, self.task, outcome)


class _Unopened(Delivery):
    """Hands results on as they came, and leaves room for the arguments in what is told of a task."""

    def put_results(self, results: Results) -> None:
        # Those that are open as the others: the client opens all of them in one way.
        super().put_results(
            [(task, (RETURNED, dump(data)) if kind in OPEN else (kind, data)) for task, (kind, data) in results]
        )

    def opened(self, kind: int, data: Any) -> tuple[Any, Failure | None]:
        data = bytes(data)  # a large one may be memory that doesn't travel
        return (data, None) if kind == RETURNED else (None, Raised(Sealed(data)))

    def who(self, task: TaskId) -> Who:
        record = self._records.get(task)
        ticket = None if record is None else ticket_of(record)
        return Who(ticket.task if isinstance(ticket, _Ticket) else task, ARGUMENTS)


# Run on machines by the client


def workers_of(name: str, dask_worker: Any) -> Any:
    machine = dask_worker.plugins.get(name)
    return ([], {}) if machine is None else (machine.workers(), machine.numbers())


async def stacks_of(name: str, dask_worker: Any) -> Any:
    machine = dask_worker.plugins.get(name)
    return [] if machine is None else await asyncio.to_thread(machine.stacks)


# For these two the client doesn't wait, which Dask allows with coroutines only.


async def cancel_at(name: str, tasks: list[TaskId], dask_worker: Any) -> None:
    machine = dask_worker.plugins.get(name)
    if machine is not None:
        machine.cancel(tasks)


async def stop_at(name: str, dask_worker: Any) -> None:
    machine = dask_worker.plugins.get(name)
    if machine is not None:
        machine.stop()
