"""The side of the engine on Dask that runs on the client's event loop: what is ready goes in parcels, and comes back.

    inbox ─▶ ready ─▶ parcel ─▶ Dask ─▶ a machine ─▶ answer ─▶ delivery

- It never waits for the user, and unpickles nothing of the user's.
- Few parcels are with Dask at a time (see ``pace``). The rest waits here, in the order of priority and age.
- A parcel that no machine has claimed has not started (see ``guard``). What a machine had claimed is lost with it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass

from distributed import Client, Future, KilledWorker

from ..config import PoolConfig
from ..errors import PoolBroken, WorkerCrashed
from ..ids import TaskId, TaskOptions
from ..local.delivery import Delivery
from ..local.records import Record, shown, ticket_of
from ..local.verdicts import Maker
from ..outcome import Broken, Cancelled, Outcome, Raised, Returned
from ..typed import Any, cast
from ..wire.failures import load_error
from ..wire.messages import RAISED, RETURNED
from . import guard, telling
from .hosts import Cancel, Close, Counts, Host, Order, Stop
from .link import ASK_SECONDS, Link
from .machine import Machine, cancel_at, stop_at
from .messages import Answer, GivenBack, Parcel, Sealed, answer_from
from .pace import Pace

__all__ = ["Courier"]

_LOGGER = logging.getLogger("mpms")

_PARCEL_BYTES = 1 << 20

_SMALL_FUNCTION = 1 << 14
"""Bytes of a function that goes with every parcel. A larger one goes when a machine asks for it."""

_ODD_ENDS_MOST = 5
"""Parcels in a row that Dask could not run at all, after which the pool is broken."""

_FRESH_SECONDS = 0.1
"""After so long a parcel doesn't count as one that is on its way: see ``machine._SLICE_SECONDS``."""

_HALT_SECONDS = 0.15  # that the scheduler has to say what was claimed
_KILL_SECONDS = 0.2  # that machines then have to kill what runs, and to say so
_BACKOFF_MOST = 60.0


@dataclass(eq=False)
class _Sent:
    """A parcel that is with Dask, and those of its tasks that have no outcome."""

    key: str
    tasks: set[TaskId]
    fresh: bool = True
    """Whether it may still be on its way. Later, what had not started was given back, and the rest holds threads."""


class Courier:
    """``machines_timeout``: seconds that tasks wait while there is no machine, before the pool is broken."""

    def __init__(
        self,
        host: Host,
        name: str,
        config: PoolConfig,
        records: Mapping[TaskId, Record],
        delivery: Delivery,
        machines_timeout: float | None,
    ) -> None:
        self.counts = Counts()
        self.story: deque[str] = deque(maxlen=200)
        self.unfinished: dict[TaskId, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
        self.broken: PoolBroken | None = None
        self.finishing = False  # the cluster is being left
        self._host = host
        self._name = name
        self._config = config
        self._records = records
        self._delivery = delivery
        self._machines_timeout = machines_timeout
        self._pace = Pace(config.processes * config.threads)
        self._open: set[TaskId] = set()  # without an outcome
        self._ready: list[tuple[int, TaskId]] = []  # a heap: priority, age
        self._resting: set[TaskId] = set()  # before a retry
        self._sent: dict[str, _Sent] = {}
        self._futures: dict[str, Future] = {}
        self._out: dict[TaskId, str] = {}  # what is with Dask, and under which key
        self._cancelled: set[TaskId] = set()  # what was asked for, of what is open
        self._losses: dict[TaskId, int] = {}  # how often a task was lost with its machine
        self._failures: list[tuple[TaskId, Maker]] = []  # of this step
        self._results: list[tuple[TaskId, tuple[int, bytes]]] = []
        self._known: set[int] = set()  # large functions that a machine has asked for
        self._numbers = 0
        self._odd_ends = 0
        self._set_up_or_broken = self._halted = self._closing = False
        self._deadline: asyncio.TimerHandle | None = None
        self._no_machine: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._background: set[asyncio.Future[Any]] = set()  # an event loop holds its tasks weakly

    @property
    def waiting(self) -> int:
        """How many tasks wait here."""
        return len(self._ready) + len(self._resting)

    def start(self, client: Client, machine: Machine, *, own_client: bool) -> asyncio.AbstractEventLoop:
        """Called once, on any thread. The event loop on which all below is to be called."""
        self.link = Link(client, self._name, self._hear, self.story.append)
        self._own_client = own_client
        self._loop = self.link.loop
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._live(machine)))
        return self._loop

    async def _live(self, machine: Machine) -> None:
        """As long as the pool. When the client is closed meanwhile, its event loop cancels this."""
        try:
            await self._set_up(machine)
            await self._over.wait()
        except asyncio.CancelledError:
            self._lose_connection(None)
            self.finishing = True
            self._host.ended()
            raise

    async def _set_up(self, machine: Machine) -> None:
        try:
            await self.link.set_up(machine)
        except Exception as error:  # whatever importing mpms over there raises
            self._break(PoolBroken(f"the pool {self._config.name} can't be set up on the cluster: {error}"), error)
        self._set_up_or_broken = True
        self.step()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Future[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            problem = task.exception()
            assert problem is not None
            self._internal_error(problem)

    def step(self) -> None:
        try:
            self._host.awake()
            inbox = self._host.inbox
            while inbox:
                item = inbox[0]
                if isinstance(item, int):
                    self._open.add(item)
                    self._enqueue(item)
                else:
                    self._obey(item)
                inbox.popleft()  # now: who waits for an empty queue sees a task here or there
            if self._set_up_or_broken and not self.finishing:
                self._send()
                self._watch_machines()
            self._hand_over()
            if self._closing and self._set_up_or_broken and not (self._open or inbox or self.finishing):
                self.finishing = True
                self._spawn(self._finish())
        except Exception as error:  # our own: without this nothing would ever be answered
            self._internal_error(error)

    def _obey(self, order: Order) -> None:
        match order:
            case Close():
                self._closing = True
            case Stop(deadline):
                self._closing = True
                at = self._loop.time() + max(0.0, deadline - time.monotonic())
                if self._deadline is None or self._deadline.when() > at:
                    if self._deadline is not None:
                        self._deadline.cancel()
                    self._deadline = self._loop.call_at(at, self._stop_now)
            case Cancel(task):
                self._cancel(sorted(self._open) if task is None else [task])

    def _enqueue(self, task: TaskId) -> None:
        if self.broken is not None:
            self._settle(task, Broken(self.broken))
        elif self._halted:
            self._settle(task, telling.cancelled(started=False))
        else:
            options = self._host.options.get(task)
            heapq.heappush(self._ready, (-options.priority if options is not None else 0, task))

    # Parcels go

    def _send(self) -> None:
        if self._halted:
            return
        parcels: list[tuple[_Sent, bytes]] = []
        fresh = sum(sent.fresh for sent in self._sent.values())
        while self._ready:
            room = self._pace.room(self.counts.machines, fresh + len(parcels), len(self._out))
            if room <= 0:
                break
            parcels.append(self._pack(self._take(min(room, self._pace.size))))
        if not parcels:
            return
        if not self.link.is_up:
            self._lose_connection(None)
            return
        futures = self.link.submit([sent.key for sent, _ in parcels], [data for _, data in parcels])
        for (sent, _), future in zip(parcels, futures, strict=True):
            self._futures[sent.key] = future
            self._spawn(self._watch(sent, future))
            self._loop.call_later(_FRESH_SECONDS, self._set_aside, sent)

    def _set_aside(self, sent: _Sent) -> None:
        """Slow tasks among quick ones are not to keep others from going."""
        sent.fresh = False
        if self._ready and self._is_open(sent):
            self.step()

    def _take(self, most: int) -> list[TaskId]:
        tasks, size = list[TaskId](), 0
        while self._ready and len(tasks) < most and size < _PARCEL_BYTES:
            _, task = heapq.heappop(self._ready)
            tasks.append(task)
            size += len(self._records[task][0])
        return tasks

    def _pack(self, tasks: list[TaskId]) -> tuple[_Sent, bytes]:
        self._numbers += 1
        sent = _Sent(f"{self._name}-{self._numbers}", set(tasks))
        functions, given = dict[int, bytes](), []
        now = time.monotonic()
        for task in tasks:
            payload, shipped, *_ = self._records[task]
            number = None
            if shipped is not None:
                number = shipped.number
                if len(shipped.data) <= _SMALL_FUNCTION or number in self._known:
                    functions[number] = shipped.data
            given.append((task, cast(bytes, payload), number, self._options_of(task)))  # no files: see ClusterEngine
            self._out[task] = sent.key
            self.counts.out_since[task] = now
        self._known.difference_update(functions)
        self._sent[sent.key] = sent
        return sent, Parcel(functions, given).dump()

    def _options_of(self, task: TaskId) -> TaskOptions | None:
        options, losses = self._host.options.get(task), self._losses.get(task, 0)
        if not losses:
            return options
        options = options or TaskOptions()
        retries = self._config.retries if options.retries is None else options.retries
        return TaskOptions(timeout=options.timeout, retries=max(0, retries - losses), priority=options.priority)

    def _watch_machines(self) -> None:
        """While tasks wait and there is no machine, the time runs."""
        waiting = bool(self._out or self._ready) and not self.counts.machines and not self._halted
        if waiting and self._no_machine is None and self._machines_timeout is not None:
            self._no_machine = self._loop.call_later(self._machines_timeout, self._give_up_on_machines)
        elif not waiting and self._no_machine is not None:
            self._no_machine.cancel()
            self._no_machine = None

    def _give_up_on_machines(self) -> None:
        text = f"the pool {self._config.name} has had no machine for {self._machines_timeout:g} s: no Dask worker is up"
        self._break(PoolBroken(text), None)

    # Answers come

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """What the scheduler tells."""
        try:
            note = event[1]
            if note["op"] == "answer":
                self._take_answer(answer_from(note["data"]))
            elif note["op"] == "lost":
                self._lose(note["machine"], note["keys"])
            else:
                self._take_machines(note["machines"])
        except Exception as error:  # our own; Dask would log it and go on
            self._internal_error(error)
        self.step()

    def _take_machines(self, machines: Mapping[str, int]) -> None:
        known, each = self.counts.machines, self._config.processes * self._config.threads
        for address in known.keys() - machines.keys():
            self.story.append(f"the machine {address} has left")
            self.counts.figures.pop(address, None)
        for address in machines.keys() - known.keys():
            self.story.append(f"the machine {address} has come, with {machines[address]} threads")
            if machines[address] < each:
                _LOGGER.warning(
                    "mpms %s: the Dask worker %s has %d threads, and the pool on it %d: give it --nthreads %d",
                    self._config.name,
                    address,
                    machines[address],
                    each,
                    each,
                )
        self.counts.machines = dict(machines)

    def _take_answer(self, answer: Answer) -> None:
        if answer.machine in self.counts.machines:
            self.counts.figures[answer.machine] = answer.figures
        if answer.broken is not None:
            text, cause = answer.broken
            error = PoolBroken(f"{text} (on the machine {answer.machine})")
            self._break(error, None if cause is None else load_error(cause))
            return
        if answer.missing is not None:
            key, numbers = answer.missing
            self._known.update(numbers)
            self._requeue(key)
            return
        self._odd_ends = 0
        for key, task, outcome in answer.outcomes:
            if task not in self._out or (isinstance(outcome, GivenBack) and self._out[task] != key):
                continue  # its machine was taken for lost: it has its outcome, or is with another one
            if not isinstance(outcome, GivenBack):
                self._settle(task, outcome, answer.machine)
            elif self._halted:
                self._settle(task, telling.cancelled(started=False))
            else:
                self._take_back(task)
        for key, (size, seconds) in answer.ended.items():
            self._sent.pop(key, None)
            self._pace.learn(size, seconds)

    async def _watch(self, sent: _Sent, future: Future) -> None:
        """Of what Dask tells about the parcel only odd ends count: outcomes come by answers, and before this."""
        status, error = await self.link.done(future)
        self._futures.pop(sent.key, None)
        if not self._is_open(sent):
            return
        if not self.link.is_up:
            self._lose_connection(None)
            self.step()
            return
        withdrawn = await self.link.on_scheduler(guard.withdraw, [sent.key], ASK_SECONDS * 10)
        if not self._is_open(sent):
            return  # settled meanwhile
        self.story.append(f"{sent.key}: {status} {'' if error is None else type(error).__name__}")
        if sent.key not in withdrawn:
            self._lose("unknown", [sent.key])
        elif error is None or isinstance(error, KilledWorker) or self._odd_ends < _ODD_ENDS_MOST:
            self._odd_ends += error is not None and not isinstance(error, KilledWorker)
            self._requeue(sent.key)
        else:
            text = f"the pool {self._config.name} can't run on the cluster: {type(error).__name__}: {error}"
            self._break(PoolBroken(text), error)
        self.step()

    def _is_open(self, sent: _Sent) -> bool:
        return self._sent.get(sent.key) is sent and bool(sent.tasks) and not self.finishing

    def _requeue(self, key: str) -> None:
        """No machine has started the parcel, and none will."""
        sent = self._sent.pop(key, None)
        for task in sorted(sent.tasks) if sent is not None else ():
            self._take_back(task)

    def _take_back(self, task: TaskId) -> None:
        self._forget_sent(task)
        if task in self._cancelled:
            self._settle(task, telling.withdrawn())
        else:
            self._enqueue(task)

    def _forget_sent(self, task: TaskId) -> None:
        key = self._out.pop(task, None)
        self.counts.out_since.pop(task, None)
        sent = None if key is None else self._sent.get(key)
        if sent is not None:
            sent.tasks.discard(task)

    # Losses

    def _lose(self, machine: str, keys: Sequence[str]) -> None:
        """The machine had claimed these parcels. It is gone, or cut off."""
        lost = [sent for key in keys if (sent := self._sent.pop(key, None)) is not None]
        futures = [future for key in keys if (future := self._futures.get(key)) is not None]
        if futures:
            self._spawn(self.link.release(futures))
        tasks = sorted(task for sent in lost for task in sent.tasks)
        if tasks:
            self.counts.lost_machines += 1
            self.story.append(f"the machine {machine} was lost with {len(tasks)} tasks")
            _LOGGER.warning("mpms %s: the machine %s was lost, with %d tasks", self._config.name, machine, len(tasks))
        for task in tasks:
            if self._halted:
                self._settle(task, telling.cancelled(started=True))
                continue
            make = telling.lost(machine)
            losses = self._losses[task] = self._losses.get(task, 0) + 1
            if self._config.retries_after(WorkerCrashed) and losses <= self._retries_of(task):
                self.counts.retried += 1
                self._delivery.put_attempt(task, make)
                self._forget_sent(task)
                self._retry_later(task, losses)
            else:
                self._failures.append((task, make))
                self._count(task, None)

    def _retries_of(self, task: TaskId) -> int:
        options = self._host.options.get(task)
        return self._config.retries if options is None or options.retries is None else options.retries

    def _retry_later(self, task: TaskId, losses: int) -> None:
        if not self._config.retry_backoff:
            self._enqueue(task)
            return
        self._resting.add(task)
        pause = min(self._config.retry_backoff * 2 ** (losses - 1), _BACKOFF_MOST)
        self._loop.call_later(pause, self._end_rest, task)

    def _end_rest(self, task: TaskId) -> None:
        if task in self._resting:
            self._resting.discard(task)
            self._enqueue(task)
            self.step()

    def _lose_connection(self, cause: BaseException | None) -> None:
        text = f"the pool {self._config.name} has lost the connection to the scheduler {self.link.address}"
        self._break(PoolBroken(text), cause)

    def _break(self, error: PoolBroken, cause: BaseException | None) -> None:
        if self.broken is not None or self.finishing:
            return
        error.__cause__ = cause
        self.story.append(f"broken: {error}")
        self.broken = error
        self._host.refuse()
        self._closing = self._set_up_or_broken = True
        for task in sorted(self._open):
            self._settle(task, Broken(error))
        self._forget_all()
        self.step()

    def _forget_all(self) -> None:
        self._ready.clear()
        self._resting.clear()
        if self.broken is not None:
            self._sent.clear()

    def _internal_error(self, problem: BaseException) -> None:
        where = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__))
        _LOGGER.critical("mpms %s: internal error\n%s", self._config.name, where)
        self._break(PoolBroken(f"the pool {self._config.name} broke by an internal error: {problem!r}"), problem)

    # Cancelling and stopping

    def _cancel(self, tasks: Sequence[TaskId]) -> None:
        keys: dict[str, list[TaskId]] = {}
        for task in tasks:
            key = self._out.get(task)
            if key is not None:
                keys.setdefault(key, []).append(task)
        self._cancelled.update(task for task in tasks if task in self._open)
        waiting = ({task for _, task in self._ready} | self._resting) & set(tasks)
        if waiting:
            self._resting -= waiting
            self._ready = [entry for entry in self._ready if entry[1] not in waiting]
            heapq.heapify(self._ready)
            for task in sorted(waiting):
                self._settle(task, telling.withdrawn())
        if keys:
            self._spawn(self._cancel_sent(keys))
        for task in tasks:
            if task not in self._open:
                self._host.answered(task, cancelled=False)

    async def _cancel_sent(self, keys: Mapping[str, list[TaskId]]) -> None:
        withdrawn = await self.link.on_scheduler(guard.withdraw, list(keys), ASK_SECONDS)
        futures = [future for key in withdrawn if (future := self._futures.get(key)) is not None]
        for key in withdrawn:
            self._requeue(key)
        self.step()
        if futures:
            await self.link.release(futures)
        tasks = [task for key in keys.keys() - set(withdrawn) for task in keys[key]]
        if tasks:
            await self.link.on_machines(cancel_at, tasks)

    def _stop_now(self) -> None:
        """The deadline of a stop."""
        if not self.finishing and not self._halted:
            self._halted = True
            for task in sorted(self._open - self._out.keys()):
                self._settle(task, telling.cancelled(started=task in self._losses))
            self._forget_all()
            self._spawn(self._halt())
            self.step()

    async def _halt(self) -> None:
        if self._sent:
            for key in await self.link.on_scheduler(guard.halt, list(self._sent), _HALT_SECONDS):
                sent = self._sent.pop(key, None)
                for task in list(sent.tasks) if sent is not None else ():
                    self._settle(task, telling.cancelled(started=False))
            self.step()
        if self._out:
            self._loop.call_later(_KILL_SECONDS, self._give_up_on_answers)
            await self.link.on_machines(stop_at)

    def _give_up_on_answers(self) -> None:
        for task in list(self._out):
            self._settle(task, telling.cancelled(started=True))
        self.step()

    # Outcomes

    def _settle(self, task: TaskId, outcome: Outcome, machine: str = "") -> None:
        if task not in self._open:
            return
        if isinstance(outcome, Returned):
            self._results.append((task, (RETURNED, outcome.value)))
        elif isinstance(outcome, Raised) and isinstance(outcome.error, Sealed) and not outcome.error.attempts:
            self._results.append((task, (RAISED, outcome.error.data)))
        else:
            self._failures.append((task, lambda who: telling.opened(outcome, who, machine)))
            if isinstance(outcome, Cancelled | Broken) and task not in self._cancelled:
                self._abandon(task)
        self._count(task, outcome)

    def _count(self, task: TaskId, outcome: Outcome | None) -> None:
        """``None``: lost."""
        self._forget_sent(task)
        self._open.discard(task)
        self._cancelled.discard(task)
        self._losses.pop(task, None)
        self._host.options.pop(task, None)
        self._host.answered(task, cancelled=isinstance(outcome, Cancelled) and not outcome.error.started)
        if isinstance(outcome, Returned):
            self.counts.done += 1
        else:
            self.counts.failed += 1
            if not self._halted and self.broken is None and self._fails_too_often():
                self._host.refuse()
                self._closing = True
                self._loop.call_soon(self._stop_now)

    def _fails_too_often(self) -> bool:
        """See the option ``stop_on``."""
        number, percent = self._config.stop_after
        done, failed = self.counts.done, self.counts.failed
        if number is not None and failed >= number:
            return True
        return percent is not None and failed >= 3 and failed * 100 >= percent * (done + failed)

    def _abandon(self, task: TaskId) -> None:
        record = self._records[task]
        if ticket_of(record) is None:  # else whoever has it knows what it is about
            _, args, kwargs, _ = shown(task, record)
            self.unfinished[task] = args, kwargs

    def _hand_over(self) -> None:
        if self._results:
            self._delivery.put_results(self._results)
            self._results = []
        if self._failures:
            self._delivery.put_failures(self._failures)
            self._failures = []
        self._host.notify()

    async def _finish(self) -> None:
        for timer in (self._deadline, self._no_machine):
            if timer is not None:
                timer.cancel()
        if self._futures:
            await self.link.release(list(self._futures.values()))
        # Finalizers have as long as this. After a stop nobody waits for them.
        long = self._config.start_timeout + self._config.grace + ASK_SECONDS
        await self.link.tear_down(_HALT_SECONDS + _KILL_SECONDS if self._halted else long)
        self._over.set()
        if self._own_client:
            threading.Thread(target=self._close_client, name=f"mpms-{self._config.name}-close", daemon=True).start()
        else:
            self._host.ended()

    def _close_client(self) -> None:
        self.link.close()
        self._host.ended()
