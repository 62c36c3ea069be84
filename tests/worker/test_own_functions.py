"""Tasks that bring a function along, and those that are many calls in one, in the threads of a worker."""

from __future__ import annotations

import gc
import math
import pickle
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpms import TaskTimeout, WorkerGracefulDie
from mpms.wire import chunks
from mpms.wire.chunks import Chunk, Each, pack
from mpms.wire.failures import load_error
from mpms.wire.frames import encode
from mpms.wire.messages import (
    DUE,
    DYING,
    FORGET,
    FUNCTION,
    GIVEN_BACK,
    RAISED,
    RETURNED,
    SELECT,
    TASK,
    TASKS,
    pack_tasks,
)
from mpms.wire.pickling import dump_call, load

from .stage import PATIENCE, Held, NewStage, Stage, values

# Functions that are found when they are loaded, so that tests see when that is.

known: dict[str, Callable[[], Callable[..., Any]]] = {}
loads: list[str] = []


@pytest.fixture(autouse=True)
def nothing_is_known() -> Iterator[None]:
    yield
    known.clear()
    loads.clear()


@pytest.fixture(autouse=True)
def chunks_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly they run: else a chunk comes back after 0.05 s with what it has by then."""
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", math.inf)


def find(name: str) -> Callable[..., Any]:
    loads.append(name)
    return known[name]()


class Reference:
    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return find, (self._name,)


def shipped(name: str, made: Callable[..., Any] | None = None) -> bytes:
    """The function as it is sent: it says its name with its argument, if it isn't ``made`` otherwise."""
    known.setdefault(name, lambda: made or (lambda number: f"{name}{number}"))
    return pickle.dumps(Reference(name), 5)


def task(seq: int, *args: Any) -> bytes:
    return encode(TASK, seq, dump_call(args or (seq,), {}))


# Whose function it is


def test_tasks_are_of_the_function_that_was_named_last(stage: NewStage) -> None:
    slots = stage(lambda number: f"own{number}").ready()
    slots.send_raw(
        task(1)
        + encode(FUNCTION, 7, shipped("a"))
        + task(2)
        + task(3)
        + encode(FUNCTION, 9, shipped("b"))
        + task(4)
        + encode(SELECT, 7)
        + task(5)
        + encode(SELECT, 0)
        + task(6)
    )
    assert values(slots.collect(RETURNED, 6)) == {1: "own1", 2: "a2", 3: "a3", 4: "b4", 5: "a5", 6: "own6"}


def test_the_choice_lasts_from_one_message_to_the_next(stage: NewStage) -> None:
    slots = stage(abs).ready()
    slots.send_raw(encode(FUNCTION, 7, shipped("a")))
    for seq in (1, 2):
        slots.send(seq)
        assert values([slots.next()]) == {seq: f"a{seq}"}


def test_tasks_in_a_batch_are_all_of_the_function_before_it(stage: NewStage) -> None:
    slots = stage(abs).ready()
    batch = [dump_call((number,), {}) for number in (1, 2, 3)]
    slots.send_raw(
        encode(FUNCTION, 7, shipped("a")) + encode(TASKS, 1, pack_tasks(batch)) + encode(SELECT, 0) + task(4)
    )
    assert values(slots.collect(RETURNED, 4)) == {1: "a1", 2: "a2", 3: "a3", 4: 4}


def test_a_worker_without_a_function_of_its_own_runs_those_that_come(stage: NewStage) -> None:
    slots = stage(None).ready()
    slots.send_raw(encode(FUNCTION, 1, shipped("a")) + task(1))
    assert values([slots.next()]) == {1: "a1"}


def test_a_task_that_waits_keeps_a_function_that_is_forgotten_meanwhile(stage: NewStage) -> None:
    held = Held()
    slots = stage(held).ready()
    slots.send_raw(task(1) + encode(FUNCTION, 7, shipped("a")) + task(2) + encode(FORGET, 7))
    held.wait_for(1)
    held.let_go(1)
    assert values(slots.collect(RETURNED, 2)) == {1: 1, 2: "a2"}


def test_a_forgotten_function_that_comes_again_is_the_one_that_came(stage: NewStage) -> None:
    slots = stage(abs).ready()
    slots.send_raw(encode(FUNCTION, 7, shipped("a")) + task(1) + encode(FORGET, 7))
    slots.send_raw(encode(SELECT, 0) + task(2) + encode(FUNCTION, 7, shipped("b")) + task(3))
    assert values(slots.collect(RETURNED, 3)) == {1: "a1", 2: 2, 3: "b3"}


def test_a_forgotten_function_is_let_go_of(stage: NewStage) -> None:
    made: list[weakref.ref[Any]] = []

    def make() -> Callable[..., Any]:
        def function(number: int) -> int:
            return number

        made.append(weakref.ref(function))
        return function

    known["a"] = make
    slots = stage(abs).ready()
    slots.send_raw(encode(FUNCTION, 7, shipped("a")) + task(1) + encode(SELECT, 0) + task(2))
    slots.collect(RETURNED, 2)
    assert made[0]() is not None
    slots.send_raw(encode(FORGET, 7) + task(3))
    slots.collect(RETURNED)
    gc.collect()
    assert made[0]() is None


def test_a_function_of_a_task_that_was_recalled_is_known_for_others(stage: NewStage) -> None:
    held = Held()
    slots = stage(held).ready()
    slots.send(1)
    held.wait_for(1)
    slots.send_raw(encode(FUNCTION, 7, shipped("a")) + task(2))  # still in the socket: nobody reads
    slots.slots.recall(2)
    assert slots.next()[:2] == (GIVEN_BACK, 2)
    slots.send_raw(encode(SELECT, 0) + task(3) + encode(SELECT, 7) + task(4))
    held.let_go(1, 3)
    assert values(slots.collect(RETURNED, 3)) == {1: 1, 3: 3, 4: "a4"}
    assert loads == ["a"]


@pytest.mark.parametrize("threads", [1, 3])
def test_each_task_runs_with_its_function_whatever_is_recalled(stage: NewStage, threads: int) -> None:
    chance = random.Random(threads)
    slots = stage(lambda number: f"own{number}", threads=threads).ready()
    names = ["own", "a", "b", "c"]
    has = set[str]()
    expected: dict[int, str] = {}
    last, back, done = 0, set[int](), dict[int, str]()
    for _ in range(200):
        data = b""
        for _ in range(chance.randint(1, 6)):
            last, name = last + 1, chance.choice(names)
            if name == "own" or name in has:
                data += encode(SELECT, names.index(name))
            else:
                data += encode(FUNCTION, names.index(name), shipped(name))
                has.add(name)
            data += task(last)
            expected[last] = f"{name}{last}"
        if has and chance.random() < 0.3:
            gone = has.pop()
            data += encode(SELECT, 0) + encode(FORGET, names.index(gone))
        slots.send_raw(data)
        if chance.random() < 0.5:
            slots.slots.recall(last)
            got = slots.collect(GIVEN_BACK)
            done |= values(got)
            back |= {seq for seq in expected if seq >= got[-1][1] and seq not in back}
    while len(done) + len(back) < last:
        done |= values([slots.next()])
    assert done == {seq: value for seq, value in expected.items() if seq not in back}
    assert back, "no recall came in time"


# Loading


def test_a_function_is_loaded_by_the_first_task_that_needs_it_and_once(stage: NewStage) -> None:
    slots = stage(abs).ready()
    slots.send_raw(encode(FUNCTION, 7, shipped("a")) + encode(FUNCTION, 8, shipped("b")) + encode(SELECT, 0) + task(1))
    slots.next()
    assert loads == []
    slots.send_raw(encode(SELECT, 8) + task(2) + task(3) + task(4))
    slots.collect(RETURNED, 3)
    assert loads == ["b"]


def test_tasks_that_need_a_function_at_the_same_time_load_it_once_and_others_go_on(stage: NewStage) -> None:
    arrived, may_go = threading.Event(), threading.Event()

    def slowly() -> Callable[..., Any]:
        arrived.set()
        assert may_go.wait(PATIENCE)
        return lambda number: f"a{number}"

    known["a"] = slowly
    slots = stage(abs, threads=4).ready()
    slots.send_raw(encode(FUNCTION, 7, shipped("a")) + task(1) + task(2) + task(3))
    assert arrived.wait(PATIENCE)
    slots.send_raw(encode(SELECT, 0) + task(4))
    assert values(slots.collect(RETURNED)) == {4: 4}  # the fourth thread is the only one that is free
    assert sorted(slot.seq for slot in slots.board.running()) == [1, 2, 3]  # loading is in the task's time
    may_go.set()
    assert values(slots.collect(RETURNED, 3)) == {1: "a1", 2: "a2", 3: "a3"}
    assert loads == ["a"]


@pytest.mark.parametrize("error", [ImportError("no such module"), SystemExit(3), KeyboardInterrupt()])
def test_what_loading_raises_is_the_error_of_the_task_and_of_no_other(stage: NewStage, error: BaseException) -> None:
    def fail() -> Callable[..., Any]:
        raise error

    known["bad"] = fail
    slots = stage(abs).ready()
    slots.send_raw(
        encode(FUNCTION, 7, shipped("bad")) + task(1) + task(2) + encode(FUNCTION, 8, shipped("a")) + task(3)
    )
    got = slots.collect(RETURNED)
    assert [(kind, seq) for kind, seq, _ in got] == [(RAISED, 1), (RAISED, 2), (RETURNED, 3)]
    assert [repr(load_error(payload)) for kind, _, payload in got if kind == RAISED] == [repr(error)] * 2
    assert slots.board.done() >= 2


def test_a_function_that_could_not_be_loaded_is_tried_again_by_the_next_task(stage: NewStage) -> None:
    def fail_once() -> Callable[..., Any]:
        if len(loads) == 1:
            raise ImportError("not yet")
        return lambda number: f"a{number}"

    known["a"] = fail_once
    slots = stage(abs).ready()
    slots.send_raw(encode(FUNCTION, 7, shipped("a")) + task(1) + task(2) + task(3))
    assert values(slots.collect(RETURNED, 2)) == {2: "a2", 3: "a3"}
    assert loads == ["a", "a"]


def test_a_load_that_asks_for_the_end_of_the_process_has_it(stage: NewStage) -> None:
    def fail() -> Callable[..., Any]:
        raise WorkerGracefulDie("this process is spoilt")

    known["bad"] = fail
    slots = stage(abs, die_exceptions=(WorkerGracefulDie,)).ready()
    slots.send_raw(encode(FUNCTION, 7, shipped("bad")) + task(1) + task(2))
    assert [(kind, seq) for kind, seq, _ in slots.collect(DYING)] == [(RAISED, 1), (GIVEN_BACK, 2), (DYING, 0)]


# Chunks


def send_chunk(slots: Stage, seq: int, items: list[Any], *, exact: bool = True) -> None:
    """To a worker whose function is for chunks."""
    packed, problems, _ = pack(items, star=False, exact=exact)
    assert not problems
    slots.send(seq, args=packed)


def chunk(message: tuple[int, int, bytes]) -> Chunk:
    kind, _, payload = message
    assert kind == RETURNED
    found = load(payload)
    assert isinstance(found, Chunk)
    return found


def test_the_board_says_how_far_a_chunk_may_have_come_and_since_when(stage: NewStage) -> None:
    held = Held()
    slots = stage(Each(held)).ready()
    send_chunk(slots, 1, [10, 11, 12])
    held.wait_for(10)
    [first] = slots.board.running()
    assert (first.seq, first.items) == (1, 1)
    held.let_go(10)
    held.wait_for(11)
    [second] = slots.board.running()
    assert (second.seq, second.items) == (1, 2)
    assert second.start > first.start
    held.let_go(11, 12)
    assert chunk(slots.next()).values == [10, 11, 12]
    assert slots.board.running() == []
    assert slots.board.done() == 1


def test_after_a_chunk_a_task_that_is_none_has_no_items(stage: NewStage) -> None:
    held = Held(1)
    slots = stage(held).ready()
    each = encode(FUNCTION, 7, shipped("each", Each(held)))
    slots.send_raw(each + encode(TASK, 1, dump_call(([1], False, False, False), {})) + encode(SELECT, 0) + task(2))
    held.wait_for(2)
    assert [(slot.seq, slot.items) for slot in slots.board.running()] == [(2, 0)]
    held.let_go(2)
    slots.collect(RETURNED, 2)


def test_chunks_on_several_threads_are_counted_apart(stage: NewStage) -> None:
    held = Held(1, 11, 12)
    slots = stage(Each(held), threads=2).ready()
    send_chunk(slots, 1, [1, 2])
    send_chunk(slots, 2, [11, 12, 13])
    held.wait_for(2, 13)
    assert {slot.seq: slot.items for slot in slots.board.running()} == {1: 2, 2: 3}
    held.let_go(2, 13)
    assert sorted(chunk(message).values for message in slots.collect(RETURNED, 2)) == [[1, 2], [11, 12, 13]]


def test_a_thread_runs_no_more_items_than_its_share_and_says_that_it_is_through(stage: NewStage) -> None:
    ran: list[int] = []
    all_sent = threading.Event()

    def run(number: int) -> None:
        assert all_sent.wait(PATIENCE)
        ran.append(number)

    slots = stage(Each(run), lifecycle=5).ready()
    send_chunk(slots, 1, [1, 2, 3])
    send_chunk(slots, 2, [4, 5, 6])
    send_chunk(slots, 3, [7])
    all_sent.set()  # when it is through it reads no more
    got = slots.collect(DUE)
    assert [len(chunk(message).values) for message in got[:2]] == [3, 2]
    assert got[2][:2] == (DUE, 0)
    slots.join()
    assert ran == [1, 2, 3, 4, 5]
    assert slots.next()[:2] == (GIVEN_BACK, 3)


def test_single_tasks_and_items_count_alike(stage: NewStage) -> None:
    slots = stage(abs, lifecycle=5).ready()
    each = encode(FUNCTION, 7, shipped("each", Each(abs)))
    slots.send_raw(task(1) + each + encode(TASK, 2, dump_call(([-1, -2], False, False, False), {})))
    slots.send_raw(encode(SELECT, 0) + task(3) + task(4) + task(5))
    got = slots.collect(DUE)
    assert [(kind, seq) for kind, seq, _ in got] == [*((RETURNED, seq) for seq in (1, 2, 3, 4)), (DUE, 0)]


def test_an_empty_chunk_counts_as_a_task(stage: NewStage) -> None:
    slots = stage(Each(abs), lifecycle=2).ready()
    send_chunk(slots, 1, [])
    send_chunk(slots, 2, [])
    assert [kind for kind, _, _ in slots.collect(DUE)] == [RETURNED, RETURNED, DUE]


def test_an_item_that_asks_for_the_end_of_the_process_ends_its_chunk_early(stage: NewStage) -> None:
    ran: list[int] = []

    def work(number: int) -> int:
        ran.append(number)
        if number == 3:
            raise WorkerGracefulDie("enough")
        return number

    slots = stage(Each(work), die_exceptions=(WorkerGracefulDie,)).ready()
    slots.send_raw(
        b"".join(
            encode(TASK, seq, dump_call((items, False, False, False), {}))
            for seq, items in ((1, [1, 2, 3, 4]), (2, [5]))
        )
    )
    got = slots.collect(DYING)
    assert [(kind, seq) for kind, seq, _ in got] == [(RETURNED, 1), (GIVEN_BACK, 2), (DYING, 0)]
    values_, errors = chunk(got[0]).load()
    assert values_ == [1, 2, None]
    assert repr(errors[2][0]) == "WorkerGracefulDie('enough')"
    assert slots.woken.wait(PATIENCE)
    assert ran == [1, 2, 3]


def test_items_whose_errors_ask_for_another_attempt_are_marked(stage: NewStage) -> None:
    def work(error: str) -> None:
        raise {"lost": ConnectionError, "bad": ValueError}[error](error)

    slots = stage(Each(work), retry_on=(ConnectionError,)).ready()
    send_chunk(slots, 1, ["bad", "lost"])
    _, errors = chunk(slots.next()).load()
    assert {at: asks for at, (_, asks) in errors.items()} == {0: False, 1: True}


def test_a_thread_that_waits_for_its_chunk_to_be_recalled_runs_none_of_it(stage: NewStage) -> None:
    held = Held(2, 3)
    slots = stage(Each(held)).ready()
    send_chunk(slots, 1, [1])
    held.wait_for(1)
    send_chunk(slots, 2, [2, 3])
    slots.slots.recall(2)
    assert slots.next()[:2] == (GIVEN_BACK, 2)
    held.let_go(1)
    assert chunk(slots.next()).values == [1]
    assert held.began == [1]


# Chunks that are interrupted


class Loop:
    """Runs Python code until it is interrupted, for the items that are negative."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)

    def __call__(self, number: int) -> int:
        if number < 0:
            until = time.monotonic() + PATIENCE
            self.began.release()
            while time.monotonic() < until:
                pass
        return number


TINY = 1e-9
"""A limit that is over at once."""


def test_an_item_that_is_interrupted_has_its_timeout_and_the_others_their_values(stage: NewStage) -> None:
    loop = Loop()
    slots = stage(Each(loop), timeout_raises=True).ready()
    send_chunk(slots, 1, [1, -2, 3])
    assert loop.began.acquire(timeout=PATIENCE)
    slots.slots.interrupt(1, TINY)
    done, errors = chunk(slots.next()).load()
    assert done == [1, None, 3]
    assert list(errors) == [1]
    error = errors[1][0]
    assert type(error) is TaskTimeout
    assert error.timeout == TINY
    assert error.worker == "stage"
    assert "in __call__" in error.stack
    assert "chunks.py" not in error.stack
    slots.send(2, args=([5], False, False, False))
    assert chunk(slots.next()).values == [5]


def test_an_interrupt_that_is_about_an_item_before_does_not_meet_this_one(stage: NewStage) -> None:
    loop = Loop()
    slots = stage(Each(loop), timeout_raises=True).ready()
    send_chunk(slots, 1, [1, -2, 3])
    assert loop.began.acquire(timeout=PATIENCE)
    slots.slots.interrupt(1, PATIENCE)  # this one has time left
    slots.slots.interrupt(1, TINY)
    _, errors = chunk(slots.next()).load()
    error = errors[1][0]
    assert isinstance(error, TaskTimeout)
    assert error.timeout == TINY


def test_an_interrupt_while_a_chunk_is_unpacked_is_the_error_of_the_chunk(stage: NewStage) -> None:
    loop = Loop()
    known["a"] = lambda: loop(-1) and abs  # the function is loaded for ever
    slots = stage(None, timeout_raises=True).ready()
    slots.send_raw(encode(FUNCTION, 7, shipped("a")) + encode(TASK, 1, dump_call(([1], False, False, False), {})))
    assert loop.began.acquire(timeout=PATIENCE)
    slots.slots.interrupt(1, TINY)
    kind, seq, payload = slots.next()
    assert (kind, seq) == (RAISED, 1)
    assert type(load_error(payload)) is TaskTimeout
