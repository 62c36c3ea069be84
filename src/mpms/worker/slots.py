"""The threads of a worker, and what they share.

    socket ─▶ leader: recv, decode ─▶ deque ─▶ a thread: board, call, pickle ─▶ outbox ─▶ socket

An idle thread that holds the leadership blocks in ``read``; it takes the first task for itself, leaves the others of
the frame in the deque, hands the leadership on, and runs. The others wait for the leadership. So a single task has no
hand-off between threads, and there is no thread that only feeds others.

 - Tasks are taken first in, first out, and the board is written before one runs, under one lock: the highest number
   on the board is a watermark above which nothing has started.
 - What is given back was not taken and never will be.
"""

from __future__ import annotations

import ctypes
import logging
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic

from ..typed import Any, TypeAlias
from ..wire import chunks
from ..wire.board import Board
from ..wire.chunks import here
from ..wire.failures import dump_error, unsendable
from ..wire.frames import Message, encode
from ..wire.lookout import LookOut
from ..wire.messages import (
    BYTES,
    DUE,
    DYING,
    FORGET,
    FUNCTION,
    GIVEN_BACK,
    PLAIN,
    RAISED,
    READY,
    RETRY,
    RETURNED,
    SELECT,
    SMALL,
    START_FAILED,
    TASK,
    TASKS,
    THREAD_FRAME,
    Job,
    unpack_tasks,
)
from ..wire.pickling import dump, load
from ..wire.plain import is_plain
from ..wire.receiver import Receiver
from ..wire.shelf import LEAST as FILE_LEAST
from ..wire.shelf import Shelf
from . import ends, hooks, logs
from .functions import Function, Functions
from .interrupts import Interrupts
from .outbox import Outbox
from .places import WorkersPlace
from .titles import set_thread_title

__all__ = ["Slots"]

_Task: TypeAlias = tuple[int, Any, Function]
"""Its dispatch, its arguments, plain or pickled, and what is called with them."""

_LOGGER = logging.getLogger("mpms")

_BRISK = 0.0004
"""Seconds for which the leader looks out for the next task, if the last one came within them and alone: as from who
waits for each result before he has the next task. Measured, one at a time: 0.6 of the time that each takes, and no
more processor time in all. Not after several at once, nor while others run: the processors have enough to do then."""


class Slots:
    """Threads that take tasks from ``sock`` until :meth:`retire`. ``wake_main`` is called when all have ended."""

    def __init__(
        self, job: Job, sock: socket.socket, board: Board, outbox: Outbox, name: str, wake_main: Callable[[], None]
    ) -> None:
        self._job = job
        self._fd = sock.fileno()
        self._board = board
        self._outbox = outbox
        self._name = name
        self._wake_main = wake_main
        self._pack = Shelf(job.kept_memory).pack
        self._receiver = Receiver(sock, board.down)  # the leader's, as the next one
        self._functions = Functions(job.function)
        self._leading = threading.Lock()
        arrivals = select.poll()
        arrivals.register(sock, select.POLLIN)
        self._has_arrived = partial(arrivals.poll, 0)
        self._look_out = LookOut(monotonic, lambda: len(self._idle) >= self._alive)
        self._brisk = False  # the last task came soon
        self._idle: list[None] = []  # as many as there are threads without a task
        self._tasks: deque[_Task] = deque()
        self._taken = 0  # the highest number that was taken
        self._voids: list[tuple[int, int]] = []  # given back, from and to; the rest of it is still in the socket
        self._closing = False
        self._taking = threading.Lock()  # guards the four above
        self._interrupts = Interrupts(job.threads) if job.timeout_raises else None
        self._places: list[WorkersPlace] = []
        self._watched = False  # the main thread knows that there is a chunk
        self._counting = threading.Lock()  # guards the three below
        self._starting = job.threads
        self._active = job.threads
        self._alive = job.threads

    @property
    def ended(self) -> bool:
        return not self._alive

    def start(self) -> None:
        """Start the threads. When the last one is initialised the worker is ready."""
        for number in range(self._job.threads):
            main = _in_a_named_frame(number, self._main)
            threading.Thread(target=main, name=f"{self._name}#t{number + 1}", daemon=True).start()

    # The main thread's side

    def retire(self) -> None:
        """Take no more, give back what was not taken, and let the threads end. May be called again."""
        with self._taking:
            self._closing = True
            self._tasks.clear()
            floor = self._taken + 1
        self._say(GIVEN_BACK, floor)
        # Wakes the leader: a blocked read sees the end of the stream. The writing side goes on.
        # Not by a socket object: to make one sets the descriptor, which threads are writing to, to non-blocking when a
        # task has called socket.setdefaulttimeout. An error says that the parent has closed it.
        ctypes.CDLL(None).shutdown(self._fd, socket.SHUT_RD)

    def recall(self, upto: int) -> None:
        """Give back what was not taken, of all up to ``upto``."""
        with self._taking:
            self._tasks.clear()
            floor = self._taken + 1
            if floor <= upto:
                self._voids.append((floor, upto))
        self._say(GIVEN_BACK, floor)

    def interrupt(self, seq: int, limit: float) -> None:
        """Raise ``TaskTimeout`` in the thread that runs this dispatch."""
        if self._interrupts is not None:
            self._interrupts.strike(seq, limit)

    def tend(self) -> float | None:
        """Take what slow chunks have not begun away from them. Seconds until the next call, ``None``: not before a
        wake-up."""
        now = monotonic()
        for place in self._places:
            place.let_go_if_slow(now)
        if not self._has_chunks():
            self._watched = False
            # Begun just now, by a thread that still saw it watched?
            if not self._has_chunks():
                return None
        return chunks.CHUNK_SECONDS

    def _has_chunks(self) -> bool:
        return any(place.items for place in self._places)

    # The threads' side

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            self._wake_main()

    def _main(self, slot: int) -> None:
        who = threading.current_thread().name
        try:
            self._board.set_ident(slot, threading.get_ident())
            here.place = place = WorkersPlace(
                self._board, slot, self._job, self._asks_for_retry, self._interrupts, self._name, self._watch
            )
            self._places.append(place)
            set_thread_title(who)
            try:
                hooks.initialize(self._job.thread_initializer)
            except BaseException as error:  # user code, SystemExit included
                self._start_failed(error)
            self._initialized()
            self._work(slot, place)
            self._outbox.flush()
            hooks.finalize(self._job.thread_finalizer, who)
            with self._counting:
                self._alive -= 1
                last = not self._alive
            if last:
                self._wake_main()
        except BaseException as error:  # of our own: a thread less would be a silent loss of strength
            ends.die(ends.INTERNAL, f"internal error in {who}: {type(error).__name__}: {error}")

    def _work(self, slot: int, place: WorkersPlace) -> None:
        # Measured, no-op tasks: 1.3 µs each, of which the outbox 0.3, to note its beginning and its end 0.2; one whose
        # arguments and result are pickled 1.9.
        tasks, taking, outbox, worn = self._tasks, self._taking, self._outbox, self._job.lifecycle is not None
        task: _Task | None
        now = monotonic()
        while True:
            task = payload = None  # what was large in it isn't kept while nothing comes
            if tasks:
                taking.acquire()  # with `with` it takes 0.1 µs more
                try:
                    if tasks and not self._closing:
                        task = self._take(slot, now)
                finally:
                    taking.release()
            if task is None:
                outbox.flush()  # nothing more to run, so nothing waits for company
                self._idle.append(None)
                task = self._lead(slot)
                self._idle.pop()
                if task is None:
                    return
            seq, payload, function = task
            dying = self._perform(slot, seq, payload, function)
            now = outbox.flush_if_due() if tasks else outbox.flush()
            if dying or place.is_dying:
                self.retire()
                self._say(DYING)
                return
            if worn and place.is_worn():
                with self._counting:
                    self._active -= 1
                    active = self._active
                    self._say(DUE, active)
                if not active:
                    # Nobody is left to take what is here; and RETIRE may be read too late, after long finalizers.
                    self.retire()
                return

    def _lead(self, slot: int) -> _Task | None:
        """The next task, on the board; blocks. ``None``: no more."""
        with self._leading:
            since = monotonic()
            while True:
                with self._taking:
                    if self._closing:
                        return None
                    if self._tasks:
                        now = monotonic()
                        task = self._take(slot, now)
                        self._brisk = now - since < _BRISK and not self._tasks
                        return task
                # One other may run: the thread from which this one has the lead, at the task that it took then.
                if self._brisk and len(self._idle) >= self._alive - 1:
                    self._look_out(self._has_arrived, since, _BRISK)
                messages = self._read()
                self._outbox.heard()
                with self._taking:
                    for kind, number, payload in messages:
                        self._hear(kind, number, payload)

    def _read(self) -> list[Message]:
        """What has come; blocks until there is something."""
        try:
            messages, goes_on = self._receiver.read()
            if self._receiver.broken is not None:
                raise self._receiver.broken
        except OSError as error:
            ends.die(ends.LOST_DESCRIPTORS, f"the worker can't read from its socket any more: {error}")
        if goes_on is None and not self._closing:
            ends.parent_gone()
        return messages

    def _hear(self, kind: int, number: int, payload: bytes) -> None:
        functions = self._functions
        if kind == TASKS:
            function = functions.selected
            several = [(seq, one, function) for seq, one in enumerate(unpack_tasks(payload), number)]
            if self._voids:
                several = [task for task in several if not self._is_void(task[0])]
            self._tasks.extend(several)
        elif kind == TASK:
            if not self._is_void(number):
                self._tasks.append((number, payload, functions.selected))
        elif kind == FUNCTION:
            functions.add(number, payload)
        elif kind == SELECT:
            functions.select(number)
        elif kind == FORGET:
            functions.forget(number)

    def _take(self, slot: int, now: float) -> _Task:
        task = self._tasks.popleft()
        self._taken = task[0]
        self._board.begin(slot, task[0], now)
        return task

    def _is_void(self, seq: int) -> bool:
        while self._voids and seq > self._voids[0][1]:
            del self._voids[0]
        return bool(self._voids) and seq >= self._voids[0][0]

    def _perform(self, slot: int, seq: int, payload: Any, function: Function) -> bool:
        """Run one task; whether it asks for the end of this process."""
        dying = False
        result: Any
        if self._job.log_levels is not None:
            logs.current.seq = seq
        try:
            if self._interrupts is None:
                call = function.call or function.load()
                given = payload if type(payload) is tuple else load(payload)  # see dump_call
                value = call(*given) if type(given) is tuple else call(*given[0], **given[1])
            else:
                value = self._interruptible(self._interrupts, slot, seq, payload, function)
        except BaseException as error:  # the user's: SystemExit and KeyboardInterrupt are outcomes too
            if ends.forked:
                ends.end_fork(error)
            dying = isinstance(error, self._job.die_exceptions)
            kind, result = RETRY if self._asks_for_retry(error) else RAISED, dump_error(error)
        else:
            if ends.forked:
                ends.end_fork(None)
            try:
                if is_plain(value):
                    kind, result = PLAIN, value
                elif type(value) is bytes and SMALL < len(value) < FILE_LEAST:
                    kind, result = BYTES, value  # as `dump` does it, in a sixth of the time
                else:
                    kind, result = RETURNED, dump(value, self._pack)
            except BaseException as problem:
                kind, result = RAISED, dump_error(unsendable(value, problem))
        self._board.end(slot)
        self._outbox.add_result(seq, kind, result)
        return dying

    def _interruptible(self, interrupts: Interrupts, slot: int, seq: int, payload: Any, function: Function) -> Any:
        interrupts.enter(slot, seq)
        try:
            try:
                call = function.call or function.load()
                given = payload if type(payload) is tuple else load(payload)
                return call(*given) if type(given) is tuple else call(*given[0], **given[1])
            finally:
                interrupts.leave(slot)
        except BaseException as error:
            interrupts.leave(slot)  # again: the first one may have been struck, and there is only one strike
            told = interrupts.told(slot, error, self._name)
            if told is error:
                raise
            raise told from None

    def _asks_for_retry(self, error: BaseException) -> bool:
        asked = self._job.retry_on
        if isinstance(asked, tuple):
            return isinstance(error, asked)
        try:
            return bool(asked(error))
        except BaseException:  # user code
            _LOGGER.exception("mpms %s: retry_on failed for %s; it is not retried", self._name, type(error).__name__)
            return False

    def _initialized(self) -> None:
        with self._counting:
            self._starting -= 1
            if not self._starting:
                self._say(READY)

    def _start_failed(self, error: BaseException) -> None:
        with self._counting:  # one is enough, and it must not be cut short by another one's exit
            self._outbox.add(encode(START_FAILED, 0, dump_error(error)))
            self._outbox.finish()
            ends.real_exit(ends.START_FAILED)

    def _say(self, kind: int, number: int = 0) -> None:
        self._outbox.add(encode(kind, number))
        self._outbox.flush()


def _in_a_named_frame(slot: int, main: Callable[[int], None]) -> Callable[[], None]:
    """See ``wire.messages.THREAD_FRAME``."""

    def run() -> None:
        main(slot)

    run.__code__ = run.__code__.replace(co_name=f"{THREAD_FRAME}{slot}")
    return run
