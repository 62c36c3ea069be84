"""Objects to bytes: ``pickle`` where it does, ``cloudpickle`` where it does not."""

from __future__ import annotations

import io
import multiprocessing.context
import pickle
import struct
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import ForkingPickler

from ..typed import Any, TypeAlias, TypeVar, overload
from .frames import Marked
from .messages import SMALL
from .plain import PLAIN_MOST, are_plain

__all__ = [
    "ALONE",
    "SOLE",
    "dump",
    "dump_by_value",
    "dump_call",
    "dump_for_child",
    "dump_function",
    "load",
    "number_classes",
]


_Parts: TypeAlias = Sequence[bytes | memoryview]
_P = TypeVar("_P")


@overload
def dump(value: Any) -> bytes: ...
@overload
def dump(value: Any, pack: Callable[[_Parts], _P]) -> bytes | _P: ...
def dump(value: Any, pack: Callable[[_Parts], Any] = b"".join) -> Any:
    """``value`` for :func:`load`. What is of ``__main__`` goes by value. ``pack`` makes one of the parts of what
    isn't short."""
    if type(value) is bytes and len(value) > SMALL:
        return pack([SOLE, value])
    if type(value) is tuple and _place_of_bytes(value) is not None:
        return dump_call(value, {}, pack)
    try:
        data = pickle.dumps(value, 5, buffer_callback=_stop_at_large)
    except _Large:
        return pack(_parts_of(value))
    except Exception:  # the reducers of the user's objects raise anything
        return pack([dump_by_value(value)])
    if len(data) > _SHORT:
        atomic = type(value) in _ATOMS
        return pack([data if atomic or data.find(_MAIN) < 0 else dump_by_value(value)])
    return data if len(data) < _NAMELESS or data.find(_MAIN) < 0 else dump_by_value(value)


@overload
def dump_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes: ...
@overload
def dump_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], pack: Callable[[_Parts], _P]) -> bytes | _P: ...
def dump_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], pack: Callable[[_Parts], Any] = b"".join) -> Any:
    """As :func:`dump`, of the arguments of a call: of ``args`` if that is all, else of a list of both. Measured, with
    what it takes to load them: an empty dict for each task costs 0.2 µs."""
    given = [args, kwargs] if kwargs else args
    at = _place_of_bytes(args)
    if at is not None and not kwargs:
        return pack([_mark_among(args, at), args[at]])
    try:
        data = pickle.dumps(given, 5, buffer_callback=_stop_at_large)
    except _Large:
        return pack(_parts_of(given))
    except Exception:
        return pack([dump_by_value(given)])
    if len(data) > _SHORT:
        atomic = not kwargs and _ATOMS.issuperset(map(type, args))
        return pack([data if atomic or data.find(_MAIN) < 0 else dump_by_value(given)])
    return data if len(data) < _NAMELESS or data.find(_MAIN) < 0 else dump_by_value(given)


# Large buffers, of arrays, go beside the pickle, by protocol 5 (PEP 574): they are copied once here, and not at all
# where they arrive. Measured with the decoder's part of it: 16 MiB there and back took 90 ms, and take 25.


class _Large(Exception):
    """There is one."""


def _stop_at_large(buffer: pickle.PickleBuffer) -> bool:
    # Asked of buffers only, so what has none pays nothing for it, and what has a large one begins anew: up to here
    # nothing large was copied.
    if buffer.raw().nbytes >= _LARGE:
        raise _Large
    return True  # with the rest


def _parts_of(value: Any) -> _Parts:
    buffers = list[memoryview]()

    def beside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= _LARGE:
            buffers.append(raw)
        return raw.nbytes < _LARGE

    try:
        data = pickle.dumps(value, 5, buffer_callback=beside)
    except Exception:  # as in `dump`
        return [dump_by_value(value)]
    if data.find(_MAIN) >= 0:
        return [dump_by_value(value)]
    parts: list[bytes | memoryview] = [_BESIDE]
    at = len(_BESIDE)
    all_of_it: list[bytes | memoryview] = [data, *buffers, b""]
    for part in all_of_it:
        pad = -(at + _SIZE.size) % _ALIGNED
        parts += [bytes(pad), _SIZE.pack(len(part)), part]
        at += pad + _SIZE.size + len(part)
    return parts


def _load_beside(data: bytes | bytearray | memoryview) -> Any:
    """What is loaded has its buffers in ``data`` itself, if that can be written to."""
    whole = memoryview(data)
    if whole.readonly:
        whole = memoryview(bytearray(data))
    parts, at = list[memoryview](), len(_BESIDE)
    while True:
        at += -(at + _SIZE.size) % _ALIGNED
        (size,) = _SIZE.unpack_from(whole, at)
        if not size:
            break
        at += _SIZE.size
        parts.append(whole[at : at + size])
        at += size
    pickled, *buffers = parts
    # One of several has its own memory, unless it is most of it: who keeps it would keep all.
    kept = [part if 2 * len(part) > len(whole) else bytearray(part) for part in buffers]
    return pickle.loads(pickled, buffers=kept)


# Large bytes that are the value, or in a tuple of a few that are plain but for them, go as they are: pickled they would
# be copied once more. Measured, 64 KiB there and back: 1.3 times as many tasks a second; 16 MiB: twice.
SOLE, _AMONG = b"b", b"a"  # their marks; and that of a tuple of nothing but them:
_PLACE = struct.Struct("<BQ")  # theirs in the tuple, and the size of the rest, which is next
_NOTHING = pickle.dumps((), 5)
ALONE = _AMONG + _PLACE.pack(0, len(_NOTHING)) + _NOTHING


def _place_of_bytes(values: tuple[Any, ...]) -> int | None:
    if len(values) <= PLAIN_MOST:
        for at, value in enumerate(values):
            if type(value) is bytes and len(value) > SMALL:
                return at if are_plain(values[:at] + values[at + 1 :]) else None
    return None


def _mark_among(values: tuple[Any, ...], at: int) -> bytes:
    if len(values) == 1:
        return ALONE
    rest = pickle.dumps(values[:at] + values[at + 1 :], 5)
    return _AMONG + _PLACE.pack(at, len(rest)) + rest


def _load_marked(mark: bytes | memoryview, data: bytes) -> Any:
    if mark == SOLE:
        return data
    if mark == ALONE:
        return (data,)
    at, _ = _PLACE.unpack_from(mark, 1)
    others = pickle.loads(mark[1 + _PLACE.size :])
    return (*others[:at], data, *others[at:])


def _load_among(data: memoryview) -> Any:
    _, size = _PLACE.unpack_from(data, 1)
    begin = 1 + _PLACE.size + size
    return _load_marked(data[:begin], bytes(data[begin:]))


_BESIDE = b"B"
_SIZE = struct.Struct("<Q")
_ALIGNED = 64  # as numpy has it; a buffer of malloc is so by 16
_LARGE = 1 << 16  # below, copies cost less than the rest


# Workers have another __main__, so that a pickle that names it won't do. False alarms cost time only. Measured: to find
# it takes 75 ns in a short one (`in` takes 140), and 20 µs in 64 KiB. So those too short for it are spared, and atoms.
_MAIN = b"_main__"  # of __main__, and of __mp_main__, as it is called in a process that multiprocessing has spawned
_NAMELESS = 29  # of a class there whose name has one letter
_ATOMS = {int, float, complex, bool, str, bytes, bytearray, types.NoneType}
_SHORT = 1000


def dump_function(function: object) -> bytes:
    """As :func:`dump`, for what is to be called over there, or holds what is."""
    try:
        data = pickle.dumps(function, 5)
    except Exception:
        return _dump_function_by_value(function)
    return data if data.find(_MAIN) < 0 else _dump_function_by_value(function)


def dump_for_child(value: Any) -> tuple[bytes, list[int]]:
    """As :func:`dump_function`, for what is shipped to a new process: queues and locks of ``multiprocessing`` may be in
    it. Also returned are the descriptors that the new process has to inherit, under the same numbers."""
    if not _is_asked_for_by_value():
        try:
            data, descriptors = dump_spawning(ChildPickler, value)
        except Exception:
            pass
        else:
            if data.find(_MAIN) < 0:
                return data, descriptors
    from . import by_value

    return by_value.dump_for_child(value)


def _is_asked_for_by_value() -> bool:
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle is not None and bool(cloudpickle.list_registry_pickle_by_value())


def dump_spawning(pickler: Callable[[io.BytesIO, int], Any], value: Any) -> tuple[bytes, list[int]]:
    buffer = io.BytesIO()
    before = multiprocessing.context.get_spawning_popen()
    spawning = _Spawning()
    multiprocessing.context.set_spawning_popen(spawning)  # type: ignore[arg-type]
    try:
        pickler(buffer, 5).dump(value)
    finally:
        multiprocessing.context.set_spawning_popen(before)
    return buffer.getvalue(), spawning.descriptors


class ChildPickler(ForkingPickler):
    def reducer_override(self, obj: Any) -> Any:
        refuse_inherited(obj)
        return NotImplemented


def refuse_inherited(obj: Any) -> None:
    """Without a name no other process can open it. Python says so itself, but 3.10 pickles the bare pointer."""
    if type(obj).__module__ == "multiprocessing.synchronize":
        semlock = getattr(obj, "_semlock", None)
        if semlock is not None and semlock.name is None:
            raise RuntimeError("a lock or queue of multiprocessing's fork context can only be inherited")


class _Inherited:
    """A descriptor of which a child has a copy under the same number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        return self.fd


class _Spawning:
    """What the reducers of ``multiprocessing`` ask, while a process is being spawned, of the one who spawns it."""

    DupFd = _Inherited

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.descriptors.append(fd)
        return fd


_BY_VALUE = b"V"
"""In front of what can't be loaded by ``pickle`` alone, for to look for a word in all takes longer. Pickles begin with
0x80."""

# Imported by who needs it: with cloudpickle it takes a tenth of the time to a first result.


def dump_by_value(value: Any) -> bytes:
    from . import by_value

    return _BY_VALUE + by_value.dump(value)


def _dump_function_by_value(function: object) -> bytes:
    from . import by_value

    return _BY_VALUE + by_value.dump_function(function)


_PYTHONS = ("ctypes", "_frozen_importlib")
"""Python's own modules of which everybody has classes within functions: nobody sends one of those."""


def number_classes() -> None:
    """Before a fork: number the classes that go by value, so that parent and child know them by the same numbers."""
    todo, seen = [object], {id(object)}
    while todo:
        for cls in type.__subclasses__(todo.pop()):
            if id(cls) in seen:
                continue
            seen.add(id(cls))
            todo.append(cls)
            of_script = cls.__module__ in ("__main__", "__mp_main__")
            if of_script or ("<locals>" in cls.__qualname__ and cls.__module__ not in _PYTHONS):
                from . import by_value

                by_value.number(cls)


def load(data: bytes | Marked) -> Any:
    """What :func:`dump` made. A class that is known here, since it came or went before, is that one."""
    if isinstance(data, Marked):
        return _load_marked(data.mark, data.data)
    if data[0] == 0x80:
        return pickle.loads(data)
    mark, rest = data[:1], memoryview(data)[1:]
    if mark == SOLE:
        return bytes(rest)
    if mark == _AMONG:
        return _load_among(memoryview(data))
    if mark == _BESIDE:
        return _load_beside(data)
    from . import by_value

    return by_value.load(rest)
