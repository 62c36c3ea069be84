"""What can travel does, by value where it must; what can't is said by an error that always can."""

from __future__ import annotations

import inspect
import multiprocessing
import multiprocessing.context
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpms import errors
from mpms.ids import TaskId
from mpms.wire.failures import dump_error, load_error, unsendable
from mpms.wire.frames import Marked
from mpms.wire.pickling import _NAMELESS, dump, dump_call, dump_for_child, load

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values | st.just("the word __main__ in a text"))
def test_plain_values_come_back(value: Any) -> None:
    assert load(dump(value)) == value


def test_lambdas_and_local_classes_go_by_cloudpickle() -> None:
    class Local:
        def __init__(self, number: int) -> None:
            self.number = number

    offset = 2
    function, value = load(dump((lambda x: x + offset, Local(3))))
    assert function(40) == 42
    assert value.number == 3


def test_what_is_defined_in_main_goes_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from mpms.wire.pickling import dump\n"
        "class Point:\n"
        "    x = 1\n"
        "    def double(self): return self.x * 2\n"
        "point = Point()\n"
        "point.x = 21\n"
        "sys.stdout.buffer.write(dump((point, Point)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, check=True, timeout=60)
    point, cls = load(done.stdout)
    assert point.double() == 42
    assert type(point) is cls
    assert not hasattr(sys.modules["__main__"], "Point")


def test_what_neither_can_pickle_raises() -> None:
    with pytest.raises(TypeError):
        dump(threading.Lock())


# Errors of mpms

EARLIER = errors.WorkerCrashed("earlier", exitcode=3)

EXAMPLES: dict[str, BaseException] = {
    "MpmsError": errors.MpmsError("text"),
    "PoolBroken": errors.PoolBroken("text"),
    "WorkerCrashed": errors.WorkerCrashed(
        "text",
        exitcode=-9,
        blamed=True,
        exit_call="a.py:1 in f",
        age=1.5,
        done=7,
        peak_memory=30_000_000,
        oom_killed=True,
        task=TaskId(5),
        arguments="(1)",
        worker="w",
        pid=4,
        stack="File",
        attempts=(EARLIER,),
    ),
    "TaskTimeout": errors.TaskTimeout(
        "text",
        timeout=1.5,
        task=TaskId(5),
        arguments="(1)",
        worker="w",
        pid=4,
        stack="File",
        attempts=(EARLIER,),
    ),
    "TaskCancelled": errors.TaskCancelled("text", started=True),
    "RemoteWorkerError": errors.RemoteWorkerError("kind", "detail", "tb"),
    "RemoteTraceback": errors.RemoteTraceback("tb"),
    "WorkerGracefulDie": errors.WorkerGracefulDie("text", 2),
}


def test_there_is_an_example_of_every_error_with_every_field() -> None:
    assert set(EXAMPLES) == set(errors.__all__)
    for name, error in EXAMPLES.items():
        own = vars(type(error)).get("__init__")
        for parameter in inspect.signature(own).parameters.values() if own else ():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert getattr(error, parameter.name) != parameter.default, (name, parameter.name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_error_pickles_with_all_that_it_carries(name: str) -> None:
    error = EXAMPLES[name]
    for copy in (pickle.loads(pickle.dumps(error)), load_error(dump_error(error))):
        assert type(copy) is type(error)
        assert copy.args == error.args
        # An exception is equal to itself only: those of earlier attempts are compared by what is in them.
        assert _comparable(copy) == _comparable(error)
        assert str(copy) == str(error)


def _comparable(error: BaseException) -> dict[str, Any]:
    values = dict(vars(error))
    values["attempts"] = [(type(each), each.args, vars(each)) for each in values.get("attempts", ())]
    return values


# Errors of the user


class Reduced(Exception):
    """``how`` is what its ``__reduce__`` returns or raises."""

    def __init__(self, how: Any) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        if isinstance(self.how, BaseException):
            raise self.how
        return self.how

    def __repr__(self) -> str:
        return "Reduced(...)"


class TwoWords(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class Unspeakable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("no")

    def __repr__(self) -> str:
        raise SystemExit("no repr either")

    __str__ = __repr__


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_error_comes_back_with_its_traceback_as_its_cause() -> None:
    error = load_error(dump_error(_raised(KeyError("a key"))))
    assert repr(error) == "KeyError('a key')"
    assert isinstance(error.__cause__, errors.RemoteTraceback)
    assert "in _raised" in error.__cause__.tb
    assert error.__cause__.tb.endswith("KeyError: 'a key'\n")


def test_the_chain_of_an_error_is_in_its_traceback() -> None:
    try:
        try:
            {}["inner"]
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as outer:
        error = load_error(dump_error(outer))
    text = str(error.__cause__)
    assert text.index("KeyError: 'inner'") < text.index("direct cause") < text.index("ValueError: outer")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (Reduced(ArithmeticError("I stay")), "ArithmeticError: I stay"),
        (Reduced(SystemExit("I leave")), "SystemExit: I leave"),
        (Reduced((int, ("x",))), "ValueError: invalid literal"),
        (Reduced((int, ("7",))), "TypeError: it unpickles to a int"),
        (TwoWords("one", "two"), "TypeError: "),
        (ValueError(threading.Lock()), "TypeError: cannot pickle"),
        (Unspeakable(), "TypeError: no"),
    ],
    ids=["raises", "exits", "unloadable", "another type", "arguments", "a lock", "no repr"],
)
def test_an_error_that_cannot_travel_is_told_of_by_one_that_can(error: BaseException, problem: str) -> None:
    loaded = load_error(dump_error(_raised(error)))
    assert isinstance(loaded, errors.RemoteWorkerError)
    assert loaded.kind == "mpms_unpickleable_result"
    assert f"type={type(error).__qualname__}, error={problem}" in loaded.detail
    assert "in _raised" in str(loaded.tb)
    if isinstance(error, Unspeakable):
        assert loaded.detail.endswith("repr=<no repr: SystemExit>")


class Loose(Exception):
    """Has whatever attribute it is asked for, or fails in a way that nobody expects."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


def test_an_error_whose_attributes_can_t_be_looked_up_travels_with_where_it_was_raised() -> None:
    loaded = load_error(dump_error(_raised(Loose("word"))))
    assert "in _raised" in str(loaded.__cause__)
    assert "Loose: " in str(loaded.__cause__)


def test_notes_that_are_none_do_no_harm() -> None:
    error = ValueError("word")
    error.__notes__ = 5  # type: ignore[attr-defined,unused-ignore]
    assert "in _raised" in str(load_error(dump_error(_raised(error))).__cause__)


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} can't be set")

    def __reduce__(self) -> Any:
        return Frozen, self.args


def test_an_error_that_refuses_attributes_travels_with_its_causes_and_notes() -> None:
    inner, outer = Frozen("inner"), Frozen("outer")
    BaseException.__setattr__(outer, "__notes__", ["a note"])
    try:
        try:
            raise inner
        except Frozen as cause:
            raise KeyError("between") from cause
    except KeyError as cause:
        BaseException.__setattr__(outer, "__cause__", cause)
    loaded = load_error(dump_error(_raised(outer)))
    assert repr(loaded) == "Frozen('outer')"
    assert loaded.__notes__ == ["a note"]  # type: ignore[attr-defined,unused-ignore]
    assert loaded.__cause__ is not None
    between = loaded.__cause__.__cause__
    assert between is not None
    assert (repr(between), repr(between.__cause__)) == ("KeyError('between')", "Frozen('inner')")


def test_a_problem_that_has_no_text_is_named() -> None:
    assert "error=Unspeakable: <no text: SystemExit>" in unsendable(1, Unspeakable()).detail


def test_what_is_told_of_a_huge_value_is_short() -> None:
    error = unsendable("x" * 1_000_000, ValueError("too large"), "t" * 1_000_000)
    assert len(error.detail) < 10_000
    assert len(str(error.tb)) < 10_000


# For a new process


def test_a_thread_local_beside_a_function_travels_empty() -> None:
    mine = threading.local()
    mine.number = 1
    data, descriptors = dump_for_child(lambda: mine)
    copy = pickle.loads(data)()
    assert type(copy) is threading.local
    assert vars(copy) == {}
    assert descriptors == []


class Cache(threading.local):
    """A subclass is no plain thread-local: how it is copied is its own business."""

    def __reduce__(self) -> Any:
        return Cache, ()


def test_a_subclass_of_thread_local_keeps_its_own_way() -> None:
    copy = pickle.loads(dump_for_child(Cache())[0])
    assert type(copy) is Cache


def test_a_queue_and_a_lock_of_the_spawn_context_reach_the_new_process() -> None:
    context = multiprocessing.get_context("spawn")
    queue, lock = context.Queue(), context.Lock()
    data, descriptors = dump_for_child((queue, lock, lambda x: x * 2))
    assert len(descriptors) == 2  # the two ends of the queue's pipe
    program = (
        "import pickle, sys\n"
        "queue, lock, double = pickle.loads(sys.stdin.buffer.read())\n"
        "with lock: queue.put(double(21))\n"
        "queue.close(); queue.join_thread()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=data, pass_fds=descriptors, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert queue.get(timeout=10) == 42
    queue.close()
    queue.join_thread()


@pytest.mark.parametrize("value", [(), threading.Lock()], ids=["fine", "unpicklable"])
def test_the_context_of_multiprocessing_is_as_it_was(value: object) -> None:
    try:
        dump_for_child(value)
    except TypeError:
        pass
    assert multiprocessing.context.get_spawning_popen() is None


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "Condition", "Event", "Queue", "SimpleQueue"])
def test_what_belongs_to_the_fork_context_cannot_be_shipped(kind: str) -> None:
    thing = getattr(multiprocessing.get_context("fork"), kind)()
    with pytest.raises(RuntimeError, match="fork"):
        dump_for_child(lambda: thing)
    if kind == "Queue":
        thing.close()


def test_errors_travel_as_ever_where_a_library_pickles_exceptions_its_own_way(tmp_path: Path) -> None:
    pytest.importorskip("tblib")
    script = tmp_path / "script.py"
    script.write_text(
        "import tblib.pickling_support\n"
        "class TwoWords(Exception):\n"
        "    def __init__(self, one, two): super().__init__(one + two)\n"
        "tblib.pickling_support.install()\n"
        "from mpms.wire.failures import dump_error, load_error\n"
        "print(load_error(dump_error(SystemExit(3))).code)\n"
        "print(load_error(dump_error(TwoWords('good', 'bye'))).kind)\n"
        "try:\n"
        "    try: raise OSError(lambda: 0)\n"  # doesn't pickle
        "    except OSError as error: raise KeyError('key') from error\n"
        "except KeyError as error: print(repr(load_error(dump_error(error))))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["3", "mpms_unpickleable_result", "KeyError('key')"]


class Buffered:
    """As an array: its memory is a buffer of its own."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Buffered, (pickle.PickleBuffer(self.memory),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Buffered) and bytes(self.memory) == bytes(other.memory)


# Large bytes

LARGE = os.urandom(5_000)


@pytest.mark.parametrize(
    "value",
    [
        LARGE,
        (LARGE,),
        ("name", LARGE),
        (LARGE, "name", None),
        (1, LARGE, 2, LARGE[::-1], 3),
        (LARGE, Buffered(bytearray(100_000))),
        (LARGE, ["changes"], tuple),
        ([LARGE], LARGE),
        (*range(20), LARGE),
        bytearray(LARGE),
        b"",
    ],
    ids=lambda value: f"{type(value).__name__}-{len(value)}",
)
@pytest.mark.parametrize("arrived_as", [bytes, bytearray, memoryview])
def test_large_bytes_come_back_wherever_they_are(value: Any, arrived_as: Callable[[bytes], Any]) -> None:
    got = load(arrived_as(dump(value)))
    assert got == value
    assert type(got) is type(value)
    if isinstance(value, tuple):
        assert [type(one) for one in got] == [type(one) for one in value]
        assert load(arrived_as(dump_call(value, {}))) == value
        call = load(arrived_as(dump_call(value, {"option": LARGE})))
        assert (call[0], call[1]) == (value, {"option": LARGE})


def marked(parts: Any) -> Any:
    return Marked(*parts) if len(parts) == 2 and type(parts[1]) is bytes else b"".join(parts)


@pytest.mark.parametrize("value", [LARGE, (LARGE,), ("name", LARGE), (LARGE, "name", None), (1, LARGE, b"3", 4.0)])
def test_large_bytes_that_come_with_their_mark_are_not_copied_again(value: Any) -> None:
    packed = dump(value, marked)
    assert isinstance(packed, Marked)
    arrived = Marked(packed.mark, bytes(bytearray(packed.data)))  # those of another process
    got = load(arrived)
    assert got == value
    assert any(one is arrived.data for one in (got if isinstance(got, tuple) else [got]))
    assert load(bytes(arrived)) == value


def test_large_bytes_are_not_copied_to_be_sent() -> None:
    def parts(value: Any) -> Any:
        return dump(value, tuple)

    assert parts(LARGE)[-1] is LARGE
    assert parts((LARGE,))[-1] is LARGE
    assert parts(("name", LARGE, 7))[-1] is LARGE
    assert dump_call((LARGE,), {}, tuple)[-1] is LARGE
    assert dump_call(("name", LARGE), {}, tuple)[-1] is LARGE


def test_a_large_buffer_beside_large_bytes_is_copied_once_all_the_same() -> None:
    """It may be larger than they are."""
    value = Buffered(bytearray(1 << 20))

    def memory(parts: Any) -> Any:
        return [part.obj for part in parts if isinstance(part, memoryview)]

    assert memory(dump((LARGE, value), tuple)) == [value.memory]
    assert memory(dump_call((LARGE, value), {}, tuple)) == [value.memory]
    assert memory(dump_call((LARGE,), {"value": value}, tuple)) == [value.memory]


# Large buffers


def buffered(*sizes: int) -> list[Buffered]:
    return [Buffered(bytearray(os.urandom(size))) for size in sizes]


@pytest.mark.parametrize(
    "sizes", [(1 << 16,), (65535,), (3, 1 << 16), (100_000, 70_000, 10), (1 << 16, 1 << 20), (200_001, 3, 199_999)]
)
@pytest.mark.parametrize("arrived_in_place", [True, False])
def test_large_buffers_come_back_and_can_be_written_to(sizes: tuple[int, ...], arrived_in_place: bool) -> None:
    values = buffered(*sizes)
    data = dump({"values": values, "more": "text"})
    got = load(bytearray(data) if arrived_in_place else data)
    assert got == {"values": values, "more": "text"}
    for value in got["values"]:
        value.memory[0] ^= 1
    assert got != {"values": values, "more": "text"}
    assert load(data) == {"values": values, "more": "text"}


def test_a_large_buffer_is_not_copied_where_it_arrives_and_two_of_them_do_not_keep_each_other() -> None:
    data = bytearray(dump(buffered(1 << 20)))
    [value] = load(data)
    before = bytes(data)
    value.memory[:5] = b"other"
    assert data != before
    value, other = load(bytearray(dump(buffered(1 << 20, 1 << 20))))
    assert isinstance(value.memory, bytearray)
    assert isinstance(other.memory, bytearray)


def test_the_shortest_names_of_a_script_go_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has another ``__main__``, so what names it must not travel by name, however short it is."""
    short = type("C", (), {"__module__": "__main__", "__qualname__": "C"})
    monkeypatch.setattr(sys.modules["__main__"], "C", short, raising=False)
    assert len(pickle.dumps(short, 5)) == _NAMELESS
    assert dump(short)[0] != 0x80
    assert dump_call((short,), {})[0] != 0x80


def test_large_buffers_are_as_they_were_when_they_were_pickled() -> None:
    [value] = buffered(1 << 20)
    data = dump_call((value,), {})
    before = bytes(value.memory)
    value.memory[:5] = b"later"
    (got,) = load(data)
    assert bytes(got.memory) == before


def test_a_large_buffer_that_can_t_be_written_to_stays_so() -> None:
    value = load(dump(Buffered(bytes(1 << 20))))
    assert memoryview(value.memory).readonly


def test_a_large_buffer_beside_what_goes_by_value_comes_back() -> None:
    offset = 2
    [value] = buffered(1 << 20)
    function, got = load(dump((lambda x: x + offset, value)))
    assert function(1) == 3
    assert got == value
    got, function = load(dump((value, lambda: offset)))
    assert function() == 2
    assert got == value


def test_large_arrays_of_numpy_are_aligned_and_their_own() -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(20_000.0), numpy.arange(100_000.0).reshape(100, 1000).T, numpy.arange(10)]
    got = load(bytearray(dump(arrays)))
    for array, there in zip(got, arrays, strict=True):
        assert (array == there).all()
        assert array.flags.aligned
        assert array.flags.writeable
        assert array.flags.f_contiguous == there.flags.f_contiguous
