"""The side of the engine on Dask that runs on the client's event loop: what is ready goes in parcels, and comes back.

    inbox ─▶ ready ─▶ parcel ─▶ Dask ─▶ a machine ─▶ answer ─▶ delivery

- It never waits for the user, and unpickles nothing of the user's.
- Few parcels are with Dask at a time (see ``pace``). The rest waits here, in the order of priority and age.
- A parcel that no machine has claimed has not started (see ``guard``). What a machine had claimed is lost with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence

from distributed import Client, Future, KilledWorker

from ..config import PoolConfig
from ..errors import PoolBroken, WorkerCrashed
from ..ids import TaskId
from ..local.delivery import Delivery
from ..local.records import Record
from ..outcome import Broken
from ..typed import Any
from ..wire.failures import load_error
from . import guard, telling
from .hosts import Cancel, Close, Counts, Host, Order, Stop
from .link import ASK_SECONDS, Link
from .machine import Machine, cancel_at, stop_at
from .messages import Answer, GivenBack, answer_from
from .pace import Pace
from .parcels import Parcels, Sent
from .settling import Settling

__all__ = ["Courier"]

_LOGGER = logging.getLogger("mpms")

_ODD_ENDS_MOST = 5
"""Parcels in a row that Dask could not run at all, after which the pool is broken."""

_FRESH_SECONDS = 0.1
"""After so long a parcel doesn't count as one that is on its way: see ``machine._SLICE_SECONDS``."""

_HALT_SECONDS = 0.15  # that the scheduler has to say what was claimed
_KILL_SECONDS = 0.2  # that machines then have to kill what runs, and to say so
_BACKOFF_MOST = 60.0


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
        self.broken: PoolBroken | None = None
        self.finishing = False  # the cluster is being left
        self._host = host
        self._name = name
        self._config = config
        self._delivery = delivery
        self._machines_timeout = machines_timeout
        self._pace = Pace(config.processes * config.threads)
        self._parcels = Parcels(name, config, records, host.options, self.counts)
        self._settling = Settling(host, self._parcels, records, delivery, self.counts, config.stop_after)
        self._futures: dict[str, Future] = {}
        self._odd_ends = 0
        self._set_up_or_broken = self._halted = self._closing = False
        self._deadline: asyncio.TimerHandle | None = None
        self._no_machine: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._background: set[asyncio.Future[Any]] = set()  # an event loop holds its tasks weakly

    @property
    def waiting(self) -> int:
        """How many tasks wait here."""
        return self._parcels.waiting

    @property
    def unfinished(self) -> Mapping[TaskId, tuple[tuple[Any, ...], Mapping[str, Any]]]:
        return self._settling.unfinished

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
                    self._parcels.open.add(item)
                    self._enqueue(item)
                else:
                    self._obey(item)
                inbox.popleft()  # now: who waits for an empty queue sees a task here or there
            if self._settling.are_enough and not self._halted and self.broken is None:
                self._host.refuse()
                self._closing = True
                self._loop.call_soon(self._stop_now)
            if self._set_up_or_broken and not self.finishing:
                self._send()
                self._watch_machines()
            self._settling.hand_over()
            self._host.notify()
            if self._closing and self._set_up_or_broken and not (self._parcels.open or inbox or self.finishing):
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
                self._cancel(sorted(self._parcels.open) if task is None else [task])

    def _enqueue(self, task: TaskId) -> None:
        if self.broken is not None:
            self._settling.settle(task, Broken(self.broken))
        elif self._halted:
            self._settling.settle(task, telling.cancelled(started=False))
        else:
            self._parcels.make_ready(task)

    # Parcels go

    def _send(self) -> None:
        if self._halted:
            return
        parcels = self._parcels
        packed: list[tuple[Sent, bytes]] = []
        fresh = parcels.fresh
        while parcels.ready:
            room = self._pace.room(self.counts.machines, fresh + len(packed), len(parcels.out))
            if room <= 0:
                break
            packed.append(parcels.pack(min(room, self._pace.size)))
        if not packed:
            return
        if not self.link.is_up:
            self._lose_connection(None)
            return
        futures = self.link.submit([sent.key for sent, _ in packed], [data for _, data in packed])
        for (sent, _), future in zip(packed, futures, strict=True):
            self._futures[sent.key] = future
            self._spawn(self._watch(sent, future))
            self._loop.call_later(_FRESH_SECONDS, self._set_aside, sent)

    def _set_aside(self, sent: Sent) -> None:
        """Slow tasks among quick ones are not to keep others from going."""
        sent.fresh = False
        if self._parcels.ready and self._is_open(sent):
            self.step()

    def _watch_machines(self) -> None:
        """While tasks wait and there is no machine, the time runs."""
        waiting = bool(self._parcels.out or self._parcels.ready) and not self.counts.machines and not self._halted
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
            self._parcels.wants_functions(numbers)
            self._requeue(key)
            return
        self._odd_ends = 0
        out = self._parcels.out
        for key, task, outcome in answer.outcomes:
            if task not in out or (isinstance(outcome, GivenBack) and out[task] != key):
                continue  # its machine was taken for lost: it has its outcome, or is with another one
            if not isinstance(outcome, GivenBack):
                self._settling.settle(task, outcome, answer.machine)
            elif self._halted:
                self._settling.settle(task, telling.cancelled(started=False))
            else:
                self._take_back(task)
        for key, (size, seconds) in answer.ended.items():
            self._parcels.sent.pop(key, None)
            self._pace.learn(size, seconds)

    async def _watch(self, sent: Sent, future: Future) -> None:
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

    def _is_open(self, sent: Sent) -> bool:
        return self._parcels.is_open(sent) and not self.finishing

    def _requeue(self, key: str) -> None:
        """No machine has started the parcel, and none will."""
        for task in self._parcels.unpack([key]):
            self._take_back(task)

    def _take_back(self, task: TaskId) -> None:
        self._parcels.take_out(task)
        if task in self._parcels.unwanted:
            self._settling.settle(task, telling.withdrawn())
        else:
            self._enqueue(task)

    # Losses

    def _lose(self, machine: str, keys: Sequence[str]) -> None:
        """The machine had claimed these parcels. It is gone, or cut off."""
        tasks = self._parcels.unpack(keys)
        futures = [future for key in keys if (future := self._futures.get(key)) is not None]
        if futures:
            self._spawn(self.link.release(futures))
        if tasks:
            self.counts.lost_machines += 1
            self.story.append(f"the machine {machine} was lost with {len(tasks)} tasks")
            _LOGGER.warning("mpms %s: the machine %s was lost, with %d tasks", self._config.name, machine, len(tasks))
        for task in tasks:
            if self._halted:
                self._settling.settle(task, telling.cancelled(started=True))
                continue
            make = telling.lost(machine)
            losses = self._parcels.lose(task)
            if self._config.retries_after(WorkerCrashed) and losses <= self._parcels.retries(task):
                self.counts.retried += 1
                self._delivery.put_attempt(task, make)
                self._parcels.take_out(task)
                self._retry_later(task, losses)
            else:
                self._settling.lost(task, make)

    def _retry_later(self, task: TaskId, losses: int) -> None:
        if not self._config.retry_backoff:
            self._enqueue(task)
            return
        self._parcels.rest(task)
        pause = min(self._config.retry_backoff * 2 ** (losses - 1), _BACKOFF_MOST)
        self._loop.call_later(pause, self._end_rest, task)

    def _end_rest(self, task: TaskId) -> None:
        if self._parcels.rests(task):
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
        for task in sorted(self._parcels.open):
            self._settling.settle(task, Broken(error))
        self._parcels.withdraw_all()
        self._parcels.sent.clear()
        self.step()

    def _internal_error(self, problem: BaseException) -> None:
        where = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__))
        _LOGGER.critical("mpms %s: internal error\n%s", self._config.name, where)
        self._break(PoolBroken(f"the pool {self._config.name} broke by an internal error: {problem!r}"), problem)

    # Cancelling and stopping

    def _cancel(self, tasks: Sequence[TaskId]) -> None:
        parcels = self._parcels
        keys = parcels.keys_of(tasks)
        parcels.unwanted.update(task for task in tasks if task in parcels.open)
        for task in parcels.withdraw(tasks):
            self._settling.settle(task, telling.withdrawn())
        if keys:
            self._spawn(self._cancel_sent(keys))
        for task in tasks:
            if task not in parcels.open:
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
            parcels = self._parcels
            for task in sorted(parcels.open - parcels.out.keys()):
                self._settling.settle(task, telling.cancelled(started=parcels.was_lost(task)))
            parcels.withdraw_all()
            self._spawn(self._halt())
            self.step()

    async def _halt(self) -> None:
        parcels = self._parcels
        if parcels.sent:
            halted = await self.link.on_scheduler(guard.halt, list(parcels.sent), _HALT_SECONDS)
            for task in parcels.unpack(halted):
                self._settling.settle(task, telling.cancelled(started=False))
            self.step()
        if parcels.out:
            self._loop.call_later(_KILL_SECONDS, self._give_up_on_answers)
            await self.link.on_machines(stop_at)

    def _give_up_on_answers(self) -> None:
        for task in list(self._parcels.out):
            self._settling.settle(task, telling.cancelled(started=True))
        self.step()

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
