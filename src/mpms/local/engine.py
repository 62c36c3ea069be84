"""The engine of this machine: pickles what is submitted, and holds the threads together.

   submit ─▶ admission ─▶ supervisor (loop) ─▶ workers ─▶ supervisor ─▶ delivery ─▶ sink

The supervisor never waits for the delivery thread, nor for a caller.
"""

from __future__ import annotations

import math
import selectors
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ..config import PoolConfig
from ..core.messages import StopRequested
from ..engine import Pending, Sink, Ticket, Unopened, WorkerHandle, let_go
from ..ids import TaskId, TaskOptions, WorkerId
from ..outcome import Broken
from ..typed import TYPE_CHECKING, Any
from ..wire.plain import are_plain
from . import exits
from .admission import Admission
from .launching import launch
from .records import shown
from .wakeup import WakeUp

if TYPE_CHECKING:
    from ..core.machine import PoolMachine
    from ..figures import Stats, WorkerInfo, WorkerStacks
    from .delivery import Delivery
    from .figures import Figures
    from .launcher import Launcher
    from .link import Link
    from .loop import Loop
    from .packing import Packing
    from .reports import Reporter
    from .settling import Settling
    from .shipment import Shipment

__all__ = ["LocalEngine"]

_KEPT = 1 << 24
"""Bytes: of what is freed twice as much is kept in each thread. A program frees what is large by the many, when results
come. Measured, with 128 and 256 KiB to a worker and back: a third more tasks a second than with a quarter of it, and 25
to 50 pages less from the kernel for each; twice of it is no better."""

_ANSWER_SECONDS = 2.0
"""How long ``unfinished`` waits for a supervisor that should have answered all, on a machine that is too busy."""


class _Late:
    """Is made at the start, or for who asks before. (By ``__getattr__`` every attribute would be looked up by Python's
    slow way: half a microsecond for each task.)"""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, engine: LocalEngine, _: type[LocalEngine]) -> Any:
        engine._furnish()
        return engine.__dict__[self._name]


class LocalEngine(Admission):
    """See :class:`mpms.engine.Engine`. ``bounded``: the sink takes outcomes at once, so those that wait are bounded.

    An engine that carries tasks to other machines has one of these on each, with the ``shipment`` that it has made
    elsewhere and its own kind of ``delivery``, and submits by :meth:`accept`.
    """

    def __init__(
        self,
        function: Callable[..., Any] | None,
        config: PoolConfig,
        sink: Sink,
        *,
        bounded: bool = True,
        shipment: Shipment | None = None,
        delivery: type[Delivery] | None = None,
    ) -> None:
        super().__init__(config.max_pending)
        self._config = config
        self._function = function
        self._bounded = bounded
        self._sink, self._kind = sink, delivery
        self._stop_due = math.inf  # when all is to be answered, whatever hangs
        self._answered = threading.Event()  # all is
        self._shipment = shipment
        self._supervisor = self._new_supervisor()
        self._loop: Loop | None = None
        self._links: dict[WorkerId, Link] = {}
        self._ended: float | None = None
        self._supervised = False  # all that was begun is the supervisor's to end; guarded by the lock, as is this:
        self._given_up = False  # the start has failed before

    # Starting

    _machine: PoolMachine
    _packing: Packing
    _delivery: Delivery
    _settling: Settling
    _reporter: Reporter
    _figures: Figures

    def _furnish(self) -> None:
        # Not before it is needed: the fork server comes up while all this is imported.
        from ..core.machine import PoolMachine
        from .delivery import Delivery
        from .figures import Figures
        from .options import limits
        from .packing import Packing
        from .reports import Reporter
        from .settling import Settling

        with self._lock:
            if "_machine" in self.__dict__:
                return
            name = self._config.name
            make = self._kind or Delivery
            self._figures = Figures(machine := PoolMachine(limits(self._config)), self._links)
            self._reporter = Reporter(name)
            self._packing = Packing(self._function)
            self._delivery = make(self._sink, self._records, self._delivered, f"mpms-{name}-collector")
            bound = self._bound if self._bounded else None
            self._settling = Settling(self._records, self._delivery, self._answers, bound=bound)
            self._machine = machine

    def start(self) -> None:
        if self._given_up:
            raise RuntimeError("the start of the pool has failed or was interrupted; make a new one")
        if self._started:
            return  # who has started it was interrupted right after it, by Ctrl-C, and doesn't know
        launcher = launch(self._function, self._config, self._shipment)
        try:
            self._start(launcher)
        except BaseException:  # Ctrl-C; or there is no descriptor or thread left
            self._give_up(launcher)
            raise

    def _start(self, launcher: Launcher) -> None:
        self._furnish()
        from ..wire.frames import keep_memory
        from .loop import Loop
        from .options import memory_limits

        self._wakeup = WakeUp()
        self._loop = Loop(
            self._machine,
            self._links,
            launcher,
            selectors.DefaultSelector(),
            self._wakeup,
            self,
            self._settling,
            time.monotonic,
            name=self._config.name,
            memory=memory_limits(self._config),
            forward_logs=self._config.forward_logs,
        )
        self._started = time.monotonic()
        keep_memory(_KEPT)
        self._delivery.start()
        self._reporter.start()
        self._supervisor = self._new_supervisor()  # as the two above
        self._supervisor.start()
        exits.watch(self)

    def _give_up(self, launcher: Launcher) -> None:
        """Nothing is left of the start."""
        with self._lock:
            self._given_up = self._closed = True
        if self._supervised:  # and never from now on
            self.stop(0.0)
            self.wait_stopped(exits.SECONDS)
            return
        loop, wakeup, self._loop, self._wakeup = self._loop, self._wakeup, None, None
        if loop is not None:
            loop.close()
        else:
            launcher.close()
        if wakeup is not None:
            wakeup.close()
        self._delivery.end()
        self._reporter.end()
        for thread in (self._delivery.thread, self._reporter.thread):
            if thread.is_alive():
                thread.join(exits.SECONDS)

    def _new_supervisor(self) -> threading.Thread:
        return threading.Thread(target=self._supervise, name=f"mpms-{self._config.name}-supervisor", daemon=True)

    # The callers' side: see Admission, too

    def submit(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: TaskOptions | None = None,
        function: Callable[..., Any] | None = None,  # from here on by name; to say so takes Python 0.05 µs
        each: bool = False,
        ticket: Ticket | None = None,
        wait: bool = True,
    ) -> TaskId:
        payload = args if not kwargs and are_plain(args) else self._packing.pack(args, kwargs)
        own = self._function is not None and function is None and not each
        shipped = None if own else self._packing.ship(function, each=each)
        return self.accept(payload, shipped, args, kwargs, options, ticket, wait)

    def expect(self, task: TaskId, take: Callable[[Unopened], bool] | None) -> None:
        self._settling.expect(task, take)

    def stop(self, timeout: float) -> None:
        due = time.monotonic() + timeout
        self._stop_due = min(self._stop_due, due)
        self._order(StopRequested(due), closes=True)

    def wait_stopped(self, timeout: float | None = None) -> bool:
        if threading.current_thread() is self._delivery.thread:
            raise RuntimeError("a collector can't wait for its own pool to end")
        until = math.inf if timeout is None else time.monotonic() + timeout
        threads = (self._supervisor, self._delivery.thread)
        with let_go(self._changed):
            for thread in threads:
                left = None if until == math.inf else max(0.0, min(until - time.monotonic(), threading.TIMEOUT_MAX))
                thread.join(left)
            self._reporter.wait(until)
        return not any(thread.is_alive() for thread in threads)

    def pending(self) -> Mapping[TaskId, tuple[Any, ...]]:
        return Pending(self._records, shown)

    def unfinished(self) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        if time.monotonic() >= self._stop_due:
            self._answered.wait(_ANSWER_SECONDS)
        return self._settling.unfinished()

    def stats(self) -> Stats:
        from ..figures import Stats

        oldest = max(((r.seconds, r.task) for info in self.workers() for r in info.running), default=None)
        now = time.monotonic()
        uptime = (self._ended or now) - self._started if self._started else 0.0
        settling = self._settling
        taken = settling.taken  # first: what is delivered meanwhile was settled before
        done, failed, queued, submitted = settling.done, settling.failed_count, self._queued(), self._last
        queued = min(queued, submitted - done - failed)
        return Stats(
            submitted=submitted,
            done=done,
            failed=failed,
            queued=queued,
            running=max(0, submitted - done - failed - queued),
            undelivered=done + failed - taken,
            retried=self._machine.ledger.retried,
            starts=self._machine.fleet.starts,
            zombies=self._figures.zombies(),
            workers=self._figures.phases(),
            crashes=dict(self._loop.crashes) if self._loop is not None else {},
            oldest=None if oldest is None else oldest[0],
            oldest_task=None if oldest is None else oldest[1],
            uptime=uptime,
            throughput=(done + failed) / uptime if uptime else 0.0,
        )

    def workers(self) -> list[WorkerInfo]:
        return self._figures.workers()

    def stacks(self) -> list[WorkerStacks]:
        return self._figures.stacks()

    def handles(self) -> Mapping[str, WorkerHandle]:
        return self._figures.handles()

    def story(self) -> Sequence[str]:
        return self._machine.story.lines()

    # The supervisor's side: see hosts.Host, and Admission

    def logged(self, worker: str, task: TaskId | None, payload: bytes) -> None:
        self._reporter.forward(worker, task, payload)

    def say(self, level: int, message: str, *args: object) -> None:
        self._reporter.say(level, message, *args)

    def passed(self) -> None:
        super().passed()
        self._settling.hand_over()

    def _delivered(self, count: int) -> None:
        """On the delivery thread."""
        self._settling.delivered(count)
        self._notify()

    def _supervise(self) -> None:
        with self._lock:
            if self._given_up:
                return
            self._supervised = True
        loop, wakeup = self._loop, self._wakeup
        assert loop is not None
        assert wakeup is not None
        try:
            loop.run()
            while not self._seal():  # accepted while it was ending: each of them is answered
                loop.step()
        except BaseException as error:  # our own: without this thread nothing would ever be answered
            self._internal_error(error)
        finally:
            self._ended = time.monotonic()
            self._answered.set()
            self._let_go(loop.close)
            self._let_go(wakeup.close)
            self._packing.close()
            self._answers.end()
            self._delivery.end()
            self._reporter.end()
            self._notify()

    def _let_go(self, close: Callable[[], None]) -> None:
        try:
            close()
        except OSError as error:  # the user's program has closed descriptors that weren't its own
            import logging  # loaded at the start: see `errors.__getattr__`

            self.say(logging.ERROR, "mpms %s can't close all that it had open: %s", self._config.name, error)

    def _internal_error(self, problem: BaseException) -> None:
        import logging  # as above
        import traceback

        from ..errors import PoolBroken
        from .verdicts import Breakage

        steps = "\n".join(self.story()[-20:])
        where = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__))
        name = self._config.name
        self.say(logging.CRITICAL, "mpms %s: internal error; the last steps were:\n%s\n%s", name, steps, where)
        breakage = Breakage.by(PoolBroken(f"the pool {name} broke by an internal error: {problem!r}"), problem)
        self._break(breakage)
        self._settling.hand_over()
        rest = list(self._records)
        for task in rest:
            self._settling.abandon(task)
        # Those of them that wait for delivery have their own outcome before this one comes.
        self._delivery.put_failures([(task, lambda _: Broken(breakage.error)) for task in rest])

    def disown(self) -> None:
        super().disown()
        self._answered = threading.Event()
        self._answered.set()


for _name in LocalEngine.__annotations__:
    setattr(LocalEngine, _name, _Late(_name))
