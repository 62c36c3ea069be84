"""The threads of a worker, over a real socket, in this process."""

from __future__ import annotations

import pickle
import random
import select
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest

from mpms import RemoteWorkerError, WorkerGracefulDie
from mpms.wire import chunks
from mpms.wire.chunks import Each
from mpms.wire.failures import load_error
from mpms.wire.frames import Decoder, Message, encode
from mpms.wire.lookout import LookOut
from mpms.wire.messages import DUE, DYING, GIVEN_BACK, RAISED, RESULTS, RETURNED, SELECT, START_FAILED, TASK
from mpms.wire.pickling import dump_call, load
from mpms.worker import ends, outbox

from .conftest import Ends
from .stage import PATIENCE, Held, NewStage, Watched, values

# Running


def test_it_is_ready_when_the_last_thread_is_initialised(stage: NewStage) -> None:
    turns = threading.Semaphore(0)
    slots = stage(abs, threads=3, thread_initializer=(turns.acquire, ()))
    assert not select.select([slots._ours], [], [], 0.02)[0]
    turns.release(3)
    slots.ready()
    slots.send(1)
    assert slots.next()[:2] == (RETURNED, 1)


def test_tasks_are_taken_first_in_first_out(stage: NewStage) -> None:
    seen: list[int] = []
    slots = stage(seen.append).ready()
    slots.send(*range(1, 20))
    for seq in range(20, 40):
        slots.send(seq)
    got = slots.collect(RETURNED, 39)
    assert [seq for _, seq, _ in got] == list(range(1, 40))
    assert seen == list(range(1, 40))


def test_tasks_of_no_time_that_came_together_are_answered_together(
    stage: NewStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LINGER", PATIENCE)
    it = stage(lambda number: number).ready().at_rest()
    it.slots._outbox._sent_at = -PATIENCE  # nothing was sent for long
    it.send(1, 2, 3)
    assert select.select([it._ours], [], [], PATIENCE)[0]
    [(kind, count, _)] = Decoder().feed(it._ours.recv(1 << 16))
    assert (kind, count) == (RESULTS, 3)


def test_several_threads_share_a_frame_and_the_watermark_is_exact(stage: NewStage) -> None:
    held = Held()
    slots = stage(held, threads=3).ready()
    slots.send(*range(1, 8))
    held.wait_for(1, 2, 3)
    assert slots.board.watermark() == 3
    running = slots.board.running()
    assert sorted(slot.seq for slot in running) == [1, 2, 3]
    assert {slot.ident for slot in running} == {thread.ident for thread in slots.threads}
    held.let_go(2)
    held.wait_for(4)
    assert sorted(held.began) == [1, 2, 3, 4]
    assert slots.board.watermark() == 4
    assert slots.board.done() == 1
    held.let_go(*range(1, 8))
    assert values(slots.collect(RETURNED, 7)) == {seq: seq for seq in range(1, 8)}
    assert slots.board.running() == []
    assert slots.board.watermark() == 7


def test_an_idle_thread_keeps_nothing_of_the_task_that_it_had(stage: NewStage) -> None:
    """What its arguments came in may be large."""
    slots = stage(len).ready().at_rest()
    gone = threading.Event()
    payload = memoryview(dump_call((bytes(100_000),), {}))
    weakref.finalize(payload, gone.set)
    slots.slots._hear(TASK, 1, cast(bytes, payload))
    del payload
    slots.send_raw(encode(SELECT, 0))  # wakes the leader
    assert values(slots.collect(RETURNED)) == {1: 100_000}
    slots.at_rest()
    assert gone.wait(1)


def test_arguments_that_cannot_be_unpickled_are_that_tasks_outcome(stage: NewStage) -> None:
    slots = stage(abs).ready()
    slots.send_raw(encode(TASK, 1, b"no pickle"))
    slots.send(2)
    kind, seq, payload = slots.next()
    assert (kind, seq) == (RAISED, 1)
    assert isinstance(load_error(payload), pickle.UnpicklingError)
    assert slots.next()[:2] == (RETURNED, 2)


def test_a_value_that_cannot_be_pickled_is_told_of(stage: NewStage) -> None:
    slots = stage(lambda _: threading.Lock()).ready()
    slots.send(1)
    kind, _, payload = slots.next()
    assert kind == RAISED
    assert isinstance(load_error(payload), RemoteWorkerError)


def test_an_exit_is_an_outcome_and_the_thread_lives(stage: NewStage) -> None:
    def leave(number: int) -> None:
        raise SystemExit(number)

    slots = stage(leave).ready()
    slots.send(1, 2)
    assert [kind for kind, _, _ in slots.collect(RAISED, 2)] == [RAISED, RAISED]


# Recall


def test_what_was_not_taken_is_given_back_and_never_run(stage: NewStage) -> None:
    held = Held()
    slots = stage(held).ready()
    slots.send(1, 2, 3)  # taken, and behind it
    held.wait_for(1)
    slots.send(4, 5)  # still in the socket: nobody reads
    slots.slots.recall(5)
    assert slots.next()[:2] == (GIVEN_BACK, 2)
    slots.send(6, 7)
    held.let_go(*range(1, 8))
    assert list(values(slots.collect(RETURNED, 3))) == [1, 6, 7]
    assert held.began == [1, 6, 7]


def test_a_recall_that_comes_too_late_gives_back_nothing(stage: NewStage) -> None:
    slots = stage(abs).ready()
    slots.send(1, 2)
    slots.collect(RETURNED, 2)
    slots.slots.recall(2)
    assert slots.next()[:2] == (GIVEN_BACK, 3)
    slots.send(3)
    assert slots.next()[:2] == (RETURNED, 3)


def test_recalls_may_follow_each_other(stage: NewStage) -> None:
    held = Held()
    slots = stage(held).ready()
    slots.send(1)
    held.wait_for(1)
    for upto in (4, 7, 10):
        slots.send(*range(upto - 2, upto + 1))
        slots.slots.recall(upto)
        assert slots.next()[:2] == (GIVEN_BACK, 2)
    slots.send(11)
    held.let_go(1, *range(2, 12))
    slots.collect(RETURNED, 2)
    assert held.began == [1, 11]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_task_either_runs_or_is_given_back(stage: NewStage, threads: int) -> None:
    """Recalls at random moments: what was given back has not run, and everything else has."""
    ran: list[int] = []
    slots = stage(ran.append, threads=threads).ready()
    chance = random.Random(threads)
    open_, back, done, last = set[int](), set[int](), set[int](), 0
    for _ in range(300):
        seqs = range(last + 1, last + 1 + chance.randint(1, 12))
        last = seqs[-1]
        open_ |= set(seqs)
        slots.send(*seqs)
        if chance.random() < 0.5:
            slots.slots.recall(last)
            got = slots.collect(GIVEN_BACK)
            done |= {seq for kind, seq, _ in got if kind == RETURNED}
            floor = got[-1][1]
            back |= {seq for seq in open_ - done if seq >= floor}
            open_ -= back
    while not open_ <= done:
        done.add(slots.next()[1])
    assert done == open_
    assert Counter(ran) == Counter(done)
    assert done.isdisjoint(back)
    assert back, "no recall came in time"


# Retirement


def test_who_retires_gives_back_what_was_not_taken_and_finishes_what_was(stage: NewStage) -> None:
    held = Held()
    finalized: list[str] = []
    slots = stage(
        held, threads=2, thread_finalizer=(lambda: finalized.append(threading.current_thread().name), ())
    ).ready()
    slots.send(1, 2, 3, 4)
    held.wait_for(1, 2)
    slots.send(5)
    slots.slots.retire()
    assert slots.next()[:2] == (GIVEN_BACK, 3)
    assert not slots.slots.ended
    held.let_go(*range(1, 6))
    assert sorted(values(slots.collect(RETURNED, 2))) == [1, 2]
    assert slots.woken.wait(PATIENCE)
    assert slots.slots.ended
    assert sorted(held.began) == [1, 2]
    assert sorted(finalized) == ["stage#t1", "stage#t2"]


def test_tasks_that_are_read_while_it_retires_are_not_run(stage: NewStage, monkeypatch: pytest.MonkeyPatch) -> None:
    # The race: the leader has read them already, and the main thread gives them back before they are in the deque.
    held = Held(2, 3, 4)
    slots = stage(held, threads=2).ready()
    slots.send(1)
    held.wait_for(1)

    receiver = slots.slots._receiver
    read_now = receiver.read

    def read() -> tuple[list[Message], bool | None]:
        found = read_now()
        slots.slots.retire()
        return found

    monkeypatch.setattr(receiver, "read", read)
    # It may be one read late: the leader is in the real one by now.
    slots.send(2)
    assert slots.next()[:2] in {(RETURNED, 2), (GIVEN_BACK, 2)}
    if 2 in held.began:
        slots.send(3, 4)
        assert slots.next()[:2] == (GIVEN_BACK, 3)
    held.let_go(1)
    assert slots.next()[:2] == (RETURNED, 1)
    assert slots.woken.wait(PATIENCE)
    assert set(held.began) <= {1, 2}


def test_idle_threads_retire_at_once(stage: NewStage) -> None:
    slots = stage(abs, threads=5).ready()
    slots.slots.retire()
    assert slots.next()[:2] == (GIVEN_BACK, 1)
    assert slots.woken.wait(PATIENCE)
    slots.slots.retire()  # again
    assert slots.next()[:2] == (GIVEN_BACK, 1)


def test_a_finalizer_that_fails_does_not_keep_the_end_from_coming(
    stage: NewStage, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("late")

    slots = stage(abs, thread_finalizer=(fail, ())).ready()
    slots.slots.retire()
    assert slots.woken.wait(PATIENCE)
    assert "stage#t1: its finalizer failed" in caplog.text


# Rotation


def test_no_thread_runs_more_than_its_share_and_each_says_when_it_is_through(stage: NewStage) -> None:
    by_thread: Counter[int] = Counter()
    slots = stage(lambda _: by_thread.update([threading.get_ident()]), threads=2, lifecycle=3).ready()
    slots.send(*range(1, 9))
    got = slots.collect(DUE, 2)
    assert [number for kind, number, _ in got if kind == DUE] == [1, 0]
    slots.join()
    assert sorted(by_thread.values()) == [3, 3]
    rest = slots.collect(GIVEN_BACK)  # unasked: nobody is left to take it
    assert rest[-1][:2] == (GIVEN_BACK, 7)
    assert sorted(seq for kind, seq, _ in [*got, *rest] if kind == RETURNED) == list(range(1, 7))


def test_a_worn_worker_gives_back_what_comes_late_before_it_runs_finalizers(stage: NewStage) -> None:
    last, end = threading.Event(), threading.Event()
    slots = stage(abs, lifecycle=1, thread_finalizer=(lambda: (last.set(), end.wait(PATIENCE)), ()))
    slots.ready()
    slots.send(1)
    assert [message[:2] for message in slots.collect(GIVEN_BACK)] == [(RETURNED, 1), (DUE, 0), (GIVEN_BACK, 2)]
    assert last.wait(PATIENCE)
    with pytest.raises(BrokenPipeError):
        slots.send(2)  # it is not taken for read: the parent has it back already
    end.set()
    slots.join()


def test_a_result_that_asks_for_the_end_gives_back_the_rest_and_then_says_so(stage: NewStage) -> None:
    held = Held()

    def work(number: int) -> int:
        if number == 2:
            raise WorkerGracefulDie("enough")
        return held(number)

    slots = stage(work, threads=2, die_exceptions=(WorkerGracefulDie,))
    slots.ready()
    slots.send(1)
    held.wait_for(1)
    slots.send(2, 3, 4)
    got = slots.collect(DYING)
    kinds = [(kind, seq) for kind, seq, _ in got]
    assert kinds == [(RAISED, 2), (GIVEN_BACK, 3), (DYING, 0)]
    assert repr(load_error(got[0][2])) == "WorkerGracefulDie('enough')"
    held.let_go(1)
    assert slots.next()[:2] == (RETURNED, 1)
    assert slots.woken.wait(PATIENCE)
    assert held.began == [1]


# Ends that are not orderly


def test_an_initializer_that_fails_is_reported_and_ends_the_process(stage: NewStage, worker_ends: Ends) -> None:
    def fail() -> None:
        raise ValueError("no licence")

    slots = stage(abs, threads=1, thread_initializer=(fail, ()))
    kind, _, payload = slots.next()
    slots.join()
    assert kind == START_FAILED
    error = load_error(payload)
    assert repr(error) == "ValueError('no licence')"
    assert "in fail" in str(error.__cause__)
    assert worker_ends.take() == [("real_exit", ends.START_FAILED)]


def test_an_initializer_that_fails_is_reported_though_somebody_is_sending(stage: NewStage, worker_ends: Ends) -> None:
    ready, waiting = threading.Event(), threading.Event()

    def fail() -> None:
        assert ready.wait(PATIENCE)
        raise ValueError("no licence")

    slots = stage(abs, thread_initializer=(fail, ()))
    writing = Watched(waiting.set)
    slots.slots._outbox._writing = writing  # type: ignore[assignment]
    with writing:
        ready.set()
        assert waiting.wait(PATIENCE)
        assert worker_ends.calls == []
    assert slots.next()[0] == START_FAILED
    slots.join()
    assert worker_ends.take() == [("real_exit", ends.START_FAILED)]


def test_the_end_of_the_parent_ends_the_process(stage: NewStage, worker_ends: Ends) -> None:
    slots = stage(abs).ready()
    slots._ours.shutdown(socket.SHUT_WR)
    slots.join()
    assert worker_ends.take() == [("parent_gone",)]


# Chunks


def test_what_is_behind_a_slow_item_of_a_chunk_comes_back(stage: NewStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though quick ones before it have made the step long."""
    monkeypatch.setattr(chunks, "_STEP_SECONDS", 3600.0)  # however slow this machine is
    held = Held(*(number for number in range(100) if number != 40))
    slots = stage(Each(held)).ready()
    slots.send(1, args=(list(range(100)), False, False, False))
    held.wait_for(40)
    assert slots.woken.is_set()  # the main thread: it is to look at it from now on
    assert slots.slots.tend() == chunks.CHUNK_SECONDS
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", 0.0)
    slots.slots.tend()
    held.let_go(40)
    [(_, _, payload)] = slots.collect(RETURNED)
    assert load(payload).values == [*range(41)]
    assert slots.slots.tend() is None  # nothing is left to look at


def test_the_main_thread_is_woken_again_by_the_next_chunk(stage: NewStage) -> None:
    slots = stage(Each(abs)).ready()
    for seq in (1, 2):
        slots.woken.clear()
        slots.send(seq, args=([1, 2, 3], False, False, False))
        slots.collect(RETURNED)
        assert slots.woken.is_set()
        assert slots.slots.tend() is None
    slots.send(3)
    slots.collect(RAISED)


def test_a_chunk_that_begins_while_the_main_thread_goes_to_sleep_is_watched(
    stage: NewStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race: it finds none; one begins and wakes nobody, for it is watched; then it would sleep."""
    slots = stage(abs).ready()
    slots.slots._watched = True
    looks = iter([False, True])
    monkeypatch.setattr(slots.slots, "_has_chunks", lambda: next(looks))
    assert slots.slots.tend() == chunks.CHUNK_SECONDS


# Looking out for the next task


class Looks:
    """When threads looked out, and whether they saw something."""

    def __init__(self) -> None:
        self.seen: list[bool] = []
        self.began = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.in_vain = False
        self.is_alone: Callable[[], bool] = lambda: False
        self._real = LookOut(time.monotonic)

    def __call__(self, look: Callable[[], Any], since: float, seconds: float) -> Any:
        self.began.release()
        seen = self._real(look, since, -1.0 if self.in_vain else seconds)
        self.seen.append(bool(seen))
        self.ended.release()
        return seen


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Any wait is a short one, and there is more than one processor."""
    monkeypatch.setattr("mpms.wire.lookout._processors", lambda: 2)
    looks = Looks()

    def new(_: object, is_alone: Callable[[], bool]) -> Looks:
        looks.is_alone = is_alone
        return looks

    monkeypatch.setattr("mpms.worker.slots.LookOut", new)
    monkeypatch.setattr("mpms.worker.slots._BRISK", PATIENCE)
    return looks


@pytest.mark.parametrize("threads", [1, 3])
def test_the_next_task_is_looked_out_for_when_the_last_one_came_soon(
    stage: NewStage, looks: Looks, threads: int
) -> None:
    slots = stage(abs, threads=threads).ready().at_rest()
    for seq in range(1, 6):
        slots.send(seq)
        assert slots.next()[:2] == (RETURNED, seq)
        assert looks.began.acquire(timeout=PATIENCE)  # nobody sleeps when the next one is sent
    assert looks.seen == [True] * 4
    slots.slots.retire()
    slots.join()
    assert looks.seen == [True] * 5  # of which it heard at once, too


def test_nothing_is_looked_out_for_when_the_last_one_was_long_in_coming(
    stage: NewStage, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.worker.slots._BRISK", 0.0)
    slots = stage(abs).ready()
    for seq in range(1, 4):
        slots.send(seq)
        assert slots.next()[:2] == (RETURNED, seq)
    slots.slots.retire()
    slots.join()
    assert looks.seen == []


def test_who_looks_out_in_vain_sleeps_until_something_comes(stage: NewStage, looks: Looks) -> None:
    looks.in_vain = True
    slots = stage(abs).ready()
    slots.send(1)
    assert slots.next()[:2] == (RETURNED, 1)
    assert looks.ended.acquire(timeout=PATIENCE)
    assert looks.seen == [False]
    slots.send(2)
    assert slots.next()[:2] == (RETURNED, 2)


def test_nothing_is_looked_out_for_after_several_at_once(stage: NewStage, looks: Looks) -> None:
    slots = stage(abs).ready()
    for _ in range(3):
        slots.send(1, 2)
        slots.collect(RETURNED, 2)
    assert looks.seen == []


def test_nothing_is_looked_out_for_while_others_run(stage: NewStage, looks: Looks) -> None:
    """But one, from whom the leader has just taken over."""
    held = Held()
    slots = stage(held, threads=3).ready().at_rest()
    slots.send(1)
    held.wait_for(1)
    assert looks.began.acquire(timeout=PATIENCE)
    for seq in (2, 3):
        slots.send(seq)
        held.wait_for(seq)
    assert looks.seen == [True]
    assert not looks.began.acquire(blocking=False)
    held.let_go(1, 2, 3)
    slots.collect(RETURNED, 3)


def test_who_looks_out_is_alone_while_no_other_thread_runs(stage: NewStage, looks: Looks) -> None:
    held = Held()
    slots = stage(held, threads=2).ready().at_rest()
    assert looks.is_alone()
    slots.send(1)
    held.wait_for(1)
    assert not looks.is_alone()
    held.let_go(1)
    slots.collect(RETURNED)
    slots.at_rest()
    assert looks.is_alone()
