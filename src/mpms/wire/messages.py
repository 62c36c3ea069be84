"""What crosses the sockets between the processes: the kinds of messages, and what a worker is told.

parent ── data ──▶ worker      TASKS, TASK, FUNCTION, SELECT, FORGET
parent ── control ▶ worker     RETIRE, RECALL, INTERRUPT
worker ── data ──▶ parent      RESULTS, RETURNED, RAISED, RETRY, READY, GIVEN_BACK, DUE, DYING, LOG, ...
parent ───────────▶ server     BEAR, KILL, ASK, DUMP
server ───────────▶ parent     LOADED, BORN, GONE, LOAD_FAILED
"""

from __future__ import annotations

import io
import pickle
import signal
import struct
from collections.abc import Callable, Mapping, Sequence

from ..record import Record
from ..typed import Any, TypeAlias

__all__ = [
    "ASK",
    "ASK_SIGNAL",
    "BEAR",
    "BORN",
    "BYTES",
    "DUE",
    "DUMP",
    "DUMP_SIGNAL",
    "DYING",
    "EXIT",
    "FORGET",
    "FUNCTION",
    "GIVEN_BACK",
    "GONE",
    "INTERRUPT",
    "KILL",
    "LIMIT",
    "LOADED",
    "LOAD_FAILED",
    "LOG",
    "LOGS_DROPPED",
    "OPEN",
    "PLAIN",
    "RAISED",
    "READY",
    "RECALL",
    "RESULTS",
    "RETIRE",
    "RETRY",
    "RETURNED",
    "SELECT",
    "SMALL",
    "STACKS_BEGIN",
    "STACKS_END",
    "START_FAILED",
    "TASK",
    "TASKS",
    "THREAD_FRAME",
    "Birth",
    "Call",
    "Job",
    "Result",
    "Setup",
    "pack_results",
    "pack_task",
    "pack_tasks",
    "unpack_results",
    "unpack_tasks",
]

TASK = 1  # number: dispatch; payload: see wire.pickling.dump_call
TASKS = 5  # number: the first dispatch; payload: see pack_tasks
FUNCTION = 2  # number: function; payload: it, pickled. The tasks that follow are of it.
SELECT = 3  # number: a function that was sent before, or 0: the job's own. The tasks that follow are of it.
FORGET = 4  # number: function

RETIRE = 10
RECALL = 11  # number: the last dispatch that it concerns
INTERRUPT = 12  # number: dispatch; payload: LIMIT

RETURNED = 20  # number: dispatch; payload: the pickled value
PLAIN = 24  # as RETURNED, of a plain value, that is the payload itself; in RESULTS only
BYTES = 25  # as RETURNED, of large bytes, that are the payload itself; in RESULTS only, and by the ring
RAISED = 21  # number: dispatch; payload: the pickled (exception, traceback as text)
RETRY = 22  # as RAISED, of an error that asks for another attempt
RESULTS = 23  # number: how many; payload: see pack_results
READY = 30
START_FAILED = 31  # payload: as of RAISED
GIVEN_BACK = 32  # number: the lowest dispatch that is given back
DUE = 33  # number: threads that still take tasks
DYING = 34
LOGS_DROPPED = 36  # number: how many
LOG = 35  # number: dispatch, or 0; payload: the pickled attributes of a log record

BEAR = 41  # number: worker; payload: the pickled Birth; with the worker's four descriptors
KILL = 42  # number: worker
DUMP = 43  # number: worker, that is sent the signal of that name
ASK = 44  # likewise

GONE = 50  # number: worker; payload: EXIT
LOADED = 51
LOAD_FAILED = 52  # payload: as of RAISED
BORN = 53  # number: worker; payload: the pid, as EXIT has the exit code

_IS_REALTIME = hasattr(signal, "SIGRTMAX")  # programs use the signals with names

ASK_SIGNAL = int(signal.SIGRTMAX) - 5 if _IS_REALTIME else int(getattr(signal, "SIGINFO", signal.SIGUSR1))
"""Makes a worker's main thread write where its threads are, as soon as it has the GIL, between these two lines."""

STACKS_BEGIN, STACKS_END = "\nStacks:\n", "\nEnd of stacks.\n"

THREAD_FRAME = "task-thread-"
"""The name of a frame, with the number of its thread from 0 on, at the bottom of each thread that runs tasks: without a
GIL faulthandler shows the stack of a crash and not whose it is."""

DUMP_SIGNAL = int(signal.SIGRTMAX) - 4 if _IS_REALTIME else int(signal.SIGUSR2)
"""Makes a worker write the same at once, whoever has the GIL. If threads run Python code meanwhile, their frames change
while they are read, which may crash the worker: it is sent only when nobody has answered to the other."""

LIMIT = struct.Struct("<d")  # seconds

EXIT = struct.Struct("<qq")  # exit code as in multiprocessing (-9: killed by signal 9), peak memory in bytes

SMALL = 1 << 12
"""Up to so many bytes a payload goes with others in one message; a larger one in one of its own, for it is copied."""

OPEN = (PLAIN, BYTES)
"""Kinds of results whose payload is the value itself."""

VALUES = (RETURNED, *OPEN)

Plain: TypeAlias = tuple[Any, ...]
"""The arguments of a call, if all of them are plain: see ``wire.plain``."""

Result: TypeAlias = tuple[int, int, Any]
"""Dispatch, kind (RETURNED, PLAIN, BYTES, RAISED, RETRY), payload."""

# Lists of numbers, bytes and plain values go through pickle. Measured, for each of 50 small payloads: 40 ns to pack and
# 45 to unpack, where a header for each takes 130 and 320, and arrays of lengths 65 and 135. Nothing else is in it, so
# no code of anybody's runs when it is loaded; and none does when a worker has lost its mind.


def pack_task(payload: Any) -> bytes:
    """The payload of a task that goes alone."""
    return pickle.dumps(payload, 5) if type(payload) is tuple else payload


def pack_tasks(payloads: Sequence[Any]) -> bytes:
    """The payloads of tasks whose dispatches follow one another, or where they are in the ring."""
    return pickle.dumps(payloads, 5)


def unpack_tasks(data: Any) -> list[Any]:
    """A batch that is unpacked already is returned as it is. Raises anything for what is none."""
    payloads: list[Any] = data if type(data) is list else _Unpickler(io.BytesIO(data)).load()
    return payloads


def pack_results(results: list[Result]) -> bytes:
    return pickle.dumps(tuple(zip(*results, strict=True)), 5)


def unpack_results(data: Any) -> tuple[tuple[int, ...], tuple[int, ...], Sequence[Any]]:
    """The dispatches, their kinds, their payloads. A batch that is unpacked already is returned as it is. Raises
    anything for what :func:`pack_results` has not made."""
    if type(data) is tuple:
        return data
    columns: tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]] = _Unpickler(io.BytesIO(data)).load()
    seqs, kinds, payloads = columns
    if not len(seqs) == len(kinds) == len(payloads):
        raise pickle.UnpicklingError("a batch of results has columns of different lengths")
    return columns


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch")


Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of the user with its arguments."""


class Job(Record, kw_only=True):
    """What all workers of a pool do; shipped once. Without a ``function`` every task comes with one of its own."""

    function: Callable[..., Any] | None
    threads: int
    lifecycle: int | None = None
    die_exceptions: tuple[type[BaseException], ...] = ()
    retry_on: tuple[type[BaseException], ...] | Callable[[BaseException], bool] = ()
    timeout_raises: bool = False
    native_threads: int | None = None
    preload: Callable[[], Any] | None = None
    process_initializer: Call | None = None
    thread_initializer: Call | None = None
    process_finalizer: Call | None = None
    thread_finalizer: Call | None = None
    log_levels: Mapping[str, int] | None = None  # of the parent's loggers: logs go to it; the root's name is empty
    kept_memory: int = 0  # bytes, of large results, whose memory a worker keeps for the next ones


class Setup(Record, kw_only=True):
    """What a fork server is told at its start. ``job`` is pickled: its imports come after ``path`` is in place."""

    flags: list[str]
    path: list[str]
    argv: list[str]
    directory: str | None
    authkey: bytes
    spawn: bool
    mp_method: str | None
    native_threads: int | None
    job: bytes


class Birth(Record, kw_only=True):
    """What is particular to one worker. Environment and directory are those of the parent when it is started."""

    name: str
    environ: dict[str, str]
    directory: str | None
