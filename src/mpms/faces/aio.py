"""Calls that are awaited: under asyncio, and under trio.

    delivery thread: settle ─▶ mailbox ─(one wake-up of the loop for all that is in it)─▶ drain ─▶ who awaits

- No thread per call: outcomes come on the engine's delivery thread, and wait for the loop in a mailbox.
- What blocks, starting and ending a pool, has a thread of its own for as long as it takes.
- A loop that has ended gets no mail, and nobody complains.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from time import monotonic

from ..engine import Delivered
from ..locks import Lock
from ..outcome import Outcome, Returned
from ..typed import Any, Generic, Protocol, TypeVar, cast
from .calls import Calls
from .meta import Meta
from .sinks import IteratorSink

__all__ = ["AsyncResults", "enter", "leave", "run"]

R = TypeVar("R")

_TURN_SECONDS = 0.005
"""How long an iteration over results that are all there keeps the loop from anything else."""


async def run(calls: Calls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """See :meth:`Calls.run`."""
    await begin(calls)
    call = _Call(_Parking())
    task = calls._engine.submit(args, kwargs, function=function, ticket=call, wait=False)
    try:
        await call.parking.wait()
    except BaseException:  # it was cancelled: nobody wants the outcome
        if call.outcome is None:
            calls._engine.cancel(task)
        raise
    outcome = call.outcome
    assert outcome is not None
    if isinstance(outcome, Returned):
        return outcome.value
    try:
        raise outcome.error
    finally:
        del outcome, call  # the error holds this frame, and is not to hold itself by it


class _Call:
    """The ticket of one."""

    __slots__ = ("outcome", "parking")

    def __init__(self, parking: _Parking) -> None:
        self.parking = parking
        self.outcome: Outcome | None = None

    def settle(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.parking.release()


# Beginning and end


async def begin(calls: Calls) -> None:
    """Start the engine unless that was done, off the loop. Raises when it takes no more tasks."""
    if not calls._begun:
        parking, thread = _Parking(), None
        with _beginning:
            waiters = _begins.get(calls)
            if waiters is None:
                _begins[calls] = waiters = []
                thread = _thread("start", lambda: _begin_for_all(calls))
            waiters.append(parking)
        if thread is not None:
            try:
                thread.start()
            except BaseException:  # there are too many
                _release_all(calls)
                raise
        await parking.wait()
    calls._begin()  # begun: it takes no time; or it failed, and is to say so here


def _begin_for_all(calls: Calls) -> None:
    """For all that ask meanwhile; one thread does it, however many there are."""
    try:
        calls._begin()
    except BaseException:
        pass  # raised again for each of them
    _release_all(calls)


def _release_all(calls: Calls) -> None:
    with _beginning:
        waiters = _begins.pop(calls)
    for parking in waiters:
        parking.release()


_beginning = Lock()  # guards the next one
_begins: dict[Calls, list[_Parking]] = {}


async def enter(calls: Calls) -> None:
    """The beginning of ``async with``: who is cancelled meanwhile leaves nothing running."""
    try:
        await begin(calls)
    except BaseException as error:
        if not isinstance(error, Exception):  # it was cancelled; else there is nothing to stop
            await _stop(calls, type(error))
        raise


async def leave(calls: Calls, kind: type[BaseException] | None) -> None:
    """The end of ``async with``: all is done first; or, after an exception or when cancelled meanwhile, it stops."""
    if kind is None:
        try:
            await _off_the_loop("join", calls._join)
            return
        except BaseException as error:
            await _stop(calls, type(error))
            raise
    await _stop(calls, kind)


async def _stop(calls: Calls, kind: type[BaseException]) -> None:
    def stop() -> None:
        try:
            calls._begin()  # after the start that may be under way
        except Exception:
            pass  # it failed, or the pool was closed
        calls._stop(kind)

    if issubclass(kind, GeneratorExit):  # the coroutine is thrown away, and may not wait any more
        stop()
        return
    with _shield():
        await _off_the_loop("stop", stop)


async def _off_the_loop(what: str, function: Callable[[], object]) -> None:
    parking, errors = _Parking(), list[BaseException]()

    def perform() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)
        parking.release()

    thread = _thread(what, perform)
    thread.start()
    await parking.wait()
    thread.join()  # it is at its end, and nobody is to see it who looks for what was left
    if errors:
        raise errors.pop()  # in no variable: its traceback has this frame


def _thread(what: str, function: Callable[[], object]) -> threading.Thread:
    # Of its own: a user's executor may be full, and a join may take days. It doesn't keep the interpreter from its end.
    return threading.Thread(target=function, name=f"mpms-async-{what}", daemon=True)


# Results


class AsyncResults(AsyncIterator[tuple[Meta, R | BaseException]], Generic[R]):
    """``(meta, result)`` of one outcome after the other; it goes on after an error that it raised."""

    def __init__(
        self,
        sink: IteratorSink,
        opened: Callable[..., tuple[Meta, R | BaseException]],
        at_end: Callable[[], None],
        *,
        raise_errors: bool,
    ) -> None:
        self._sink = sink
        self._opened = opened
        self._at_end = at_end
        self._raise_errors = raise_errors
        self._turn_ends = 0.0

    async def __anext__(self) -> tuple[Meta, R | BaseException]:
        if monotonic() > self._turn_ends:
            await _pause()
            self._turn_ends = monotonic() + _TURN_SECONDS
        found = self._sink.poll()
        while not found:
            if found is None:
                self._at_end()
                raise StopAsyncIteration
            found = await self._arrival()
        [delivered] = found
        try:
            return self._opened(delivered, raise_errors=self._raise_errors)
        finally:
            del found, delivered  # an error that it raises holds this frame, and is not to hold itself by it

    async def _arrival(self) -> list[Delivered] | None:
        parking = _Parking()
        found = self._sink.poll(parking.release)
        if found == []:
            try:
                await parking.wait()
            except BaseException:  # it was cancelled; on an idle pool nothing else would take it away
                self._sink.forget(parking.release)
                raise
            self._turn_ends = monotonic() + _TURN_SECONDS
            return self._sink.poll()
        return found


# Loops


class _Event(Protocol):
    def set(self) -> object: ...

    async def wait(self) -> object: ...


class _Parking:
    """Where a coroutine waits until another thread releases it. Belongs to the loop in which it was made."""

    __slots__ = ("_event", "_mailbox")

    def __init__(self) -> None:
        if _is_trio():
            import trio

            self._mailbox = _mailbox_of(trio.lowlevel.current_trio_token(), _post_to_trio)
            self._event: _Event = trio.Event()
        else:
            import asyncio

            loop = asyncio.get_running_loop()
            self._mailbox = _mailbox_of(loop, _post_to_asyncio)
            self._event = _AsyncioEvent(loop.create_future())

    async def wait(self) -> None:
        await self._event.wait()

    def release(self) -> None:
        """By any thread, once."""
        self._mailbox.put(self._event.set)


class _AsyncioEvent:
    """A tenth of the cost of ``asyncio.Event``, for one that waits."""

    __slots__ = ("_future",)

    def __init__(self, future: Any) -> None:
        self._future = future

    def set(self) -> None:
        if not self._future.done():  # cancelled
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future


class _Mailbox:
    """Functions that a loop is to call. However many come while it is busy, it is woken up once."""

    __slots__ = ("__weakref__", "_announced", "_loop", "_post", "_waiting")

    def __init__(self, loop: Any, post: Callable[[Any, Callable[[], None]], bool]) -> None:
        self._loop = weakref.ref(loop)  # which is the key to this in a weak dictionary
        self._post = post
        self._waiting: deque[Callable[[], object]] = deque()
        self._announced = False

    def put(self, function: Callable[[], object]) -> None:
        # In this order, and `drain` in the other one, so that none is left: who sees that a drain is announced has put
        # in before it begins. That two announce one is no harm.
        self._waiting.append(function)
        if self._announced:
            return
        self._announced = True
        loop = self._loop()
        if loop is None or not self._post(loop, self._drain):  # nobody is there any more
            self._waiting.clear()
            self._announced = False

    def _drain(self) -> None:
        self._announced = False
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()


_mailboxes: weakref.WeakKeyDictionary[Any, _Mailbox] = weakref.WeakKeyDictionary()


def _mailbox_of(loop: Any, post: Callable[[Any, Callable[[], None]], bool]) -> _Mailbox:
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        mailbox = _mailboxes.setdefault(loop, _Mailbox(loop, post))
    return mailbox


def _post_to_asyncio(loop: Any, drain: Callable[[], None]) -> bool:
    """Whether it will be called."""
    try:
        loop.call_soon_threadsafe(drain)
    except RuntimeError:  # it is closed
        return False
    return True


def _post_to_trio(token: Any, drain: Callable[[], None]) -> bool:
    import trio

    try:
        token.run_sync_soon(drain)
    except trio.RunFinishedError:
        return False
    return True


def _is_trio() -> bool:
    if "trio" not in sys.modules:
        return False
    import sniffio

    try:
        return bool(sniffio.current_async_library() == "trio")
    except sniffio.AsyncLibraryNotFoundError:
        return False


async def _pause() -> None:
    """Let others have their turn."""
    if _is_trio():
        import trio

        await trio.lowlevel.checkpoint()
    else:
        import asyncio

        await asyncio.sleep(0)


def _shield() -> contextlib.AbstractContextManager[object]:
    """In which a cancellation that has come doesn't come again at each ``await``, as it does in trio."""
    if _is_trio():
        import trio

        return cast("contextlib.AbstractContextManager[object]", trio.CancelScope(shield=True))
    return contextlib.nullcontext()
