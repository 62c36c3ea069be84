"""What ``pickle`` alone can't do, by ``cloudpickle``: lambdas, closures, what is defined in ``__main__``. Loaded by the
first who needs it."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import threading
import types
import weakref
from collections import ChainMap
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import cloudpickle
from cloudpickle import cloudpickle as _by_value

from ..typed import Any, ClassVar
from . import pickling
from .failures import is_of_tblib

if "__mp_main__" in sys.modules:  # the script, in a process that multiprocessing has spawned: nobody else has it
    cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])

__all__ = ["dump", "dump_for_child", "dump_function", "load", "number"]


def dump(value: Any) -> bytes:
    return _dump(value, _Pickler)


def dump_function(function: object) -> bytes:
    return _dump(function, _FunctionPickler)


def _dump(value: Any, pickler: type[_Pickler]) -> bytes:
    buffer = io.BytesIO()
    pickler(buffer, 5).dump(value)
    return buffer.getvalue()


def load(data: bytes | memoryview) -> Any:
    """A class that is known here, since it came or went before, is that one and stays as it is.

    ``cloudpickle`` alone would give it the state that it has over there: every result would replace the methods and
    the counters of the script's own classes, while they are in use.
    """
    return _Unpickler(io.BytesIO(data)).load()


def number(cls: type) -> None:
    """Have this process, and those forked from it, know the class by one number."""
    try:
        _by_value._get_or_create_tracker_id(cls)
    except TypeError:
        pass  # a class without a hash or weak references: it can't be sent anyway


def dump_for_child(value: Any) -> tuple[bytes, list[int]]:
    return pickling.dump_spawning(_ChildPickler, value)


_unfinished: weakref.WeakSet[Any] = weakref.WeakSet()  # classes that came and have no state yet


def _maker(make: Callable[..., Any]) -> Callable[..., Any]:
    def make_unless_known(*args: Any) -> Any:
        *parts, number, extra = args
        known = _by_value._DYNAMIC_CLASS_TRACKER_BY_ID.get(number)
        if known is None:
            fresh = make(*parts, None, extra)
            _unfinished.add(fresh)  # before another thread can find it
            known = _by_value._lookup_class_or_track(number, fresh)
        return known

    return make_unless_known


def _set_state_of_class(cls: Any, state: Any) -> Any:
    if cls in _unfinished:
        _by_value._class_setstate(cls, state)
        _unfinished.discard(cls)
    return cls


class _Unpickler(pickle.Unpickler):
    _OURS: ClassVar[dict[str, Callable[..., Any]]] = {
        "_make_skeleton_class": _maker(_by_value._make_skeleton_class),
        "_make_skeleton_enum": _maker(_by_value._make_skeleton_enum),
        "_class_setstate": _set_state_of_class,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "cloudpickle.cloudpickle" and name in self._OURS:
            return self._OURS[name]
        return super().find_class(module, name)


def _code_with_its_file(code: types.CodeType) -> tuple[Any, ...]:
    """As cloudpickle does it, but with the file's name, which its newer versions leave out: tracebacks need it."""
    rebuild, parts = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    unnamed = "<dynamic-code>"
    return rebuild, tuple(code.co_filename if isinstance(part, str) and part == unnamed else part for part in parts)


def _new_local(_: threading.local) -> tuple[type[threading.local], tuple[()]]:
    return threading.local, ()


_Cached = type(functools.lru_cache(len))


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """With a cache of its own, empty."""
    return functools.lru_cache(**parameters)(function)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException) and is_of_tblib(type(obj)):
            return obj.__reduce_ex__(5)
        if type(obj) is _Cached and _by_value._lookup_module_and_qualname(obj) is None:
            # Scripts decorate their functions so. It reduces to its name, which nobody else can look up.
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        reduced = super().reducer_override(obj)
        if type(reduced) is tuple and reduced[0] is _by_value._make_skeleton_class:
            slots = vars(obj).get("__slots__")
            if slots:  # empty ones make no difference but to NamedTuple, which refuses them
                # cloudpickle sets the slots when the class is made already, and its instances, which then have a
                # __dict__ too, can't come back: those of a dataclass with slots.
                reduced[1][3]["__slots__"] = slots
        return reduced


class _FunctionPickler(_Pickler):
    # A thread-local is empty for a thread that has not set it: so is a new one. Scripts have them beside functions.
    dispatch_table: ClassVar[Any] = ChainMap(
        {threading.local: _new_local, types.CodeType: _code_with_its_file}, cloudpickle.Pickler.dispatch_table
    )


class _ChildPickler(_Pickler):
    dispatch_table: ClassVar[Any] = ChainMap(
        ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
        _FunctionPickler.dispatch_table,
    )

    def reducer_override(self, obj: Any) -> Any:
        pickling.refuse_inherited(obj)
        return super().reducer_override(obj)
