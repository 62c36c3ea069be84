"""What every engine promises, under every start method: see the protocol in ``mpms.engine``."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpms import (
    MPMS,
    PoolBroken,
    RemoteTraceback,
    RemoteWorkerError,
    TaskCancelled,
    WorkerGracefulDie,
)
from mpms.config import Hook
from mpms.engine import Delivered, Engine, Refused
from mpms.ids import TaskId
from mpms.outcome import Broken, Cancelled, Outcome, Raised, Returned

from ..local.helpers import until
from . import tasks
from .conftest import PATIENCE, Gate, Make, Recorder

Settled = Callable[..., dict[TaskId, Outcome]]
NewGate = Callable[[], Gate]


def finish(engine: Engine) -> None:
    engine.close()
    assert engine.wait_stopped(PATIENCE)


# Outcomes


def test_every_task_has_one_outcome(make: Make) -> None:
    engine, sink = make(tasks.add)
    given = {engine.submit((number,), {"b": 1}): number for number in range(300)}
    finish(engine)
    assert sink.outcomes() == {task: Returned(number + 1) for task, number in given.items()}
    assert len(engine.pending()) == 0
    assert engine.unfinished() == []
    assert engine.broken is None


def test_ids_are_the_order_of_acceptance(make: Make) -> None:
    engine, _ = make(tasks.give)
    assert [engine.submit((number,), {}) for number in range(20)] == list(range(1, 21))
    assert engine.submitted == 20
    finish(engine)


def test_what_is_submitted_before_the_start_runs_after_it(make: Make) -> None:
    engine, sink = make(tasks.add, start=False)
    engine.submit((1, 2), {})
    engine.start()
    finish(engine)
    assert sink.outcomes() == {1: Returned(3)}


def test_the_arguments_are_delivered_as_they_were_given(make: Make) -> None:
    engine, sink = make(tasks.add)
    number = 10**20
    engine.submit((number,), {"b": 22})
    finish(engine)
    [(task, args, kwargs, value, failure)] = sink.delivered
    assert (task, value, failure) == (1, number + 22, None)
    assert args == (number,)
    assert args[0] is number
    assert kwargs == {"b": 22}


def test_a_task_does_not_change_the_arguments_of_its_caller(make: Make, settled: Settled) -> None:
    numbers = [1, 2]
    assert settled(tasks.spoil, (numbers,)) == {1: Returned([1, 2, 0])}
    assert numbers == [1, 2]


def test_bytes_of_any_size_are_bytes_there_and_back(make: Make) -> None:
    engine, sink = make(tasks.give_with_type)
    sizes = [0, 400, 600, 4_096, 4_097, 8_191, 8_192, 16_384, 65_536, 300_000, 786_431, 786_432, 2_000_000]
    given = [bytes([number % 256]) * size for size in sizes for number in range(3)]
    pairs = {engine.submit((one,), {}): (one, "bytes") for one in given}
    pairs |= {engine.submit((one, kind), {}): (one, kind) for kind in ("", None) for one in given}
    finish(engine)
    outcomes = sink.outcomes()
    for task, (one, kind) in pairs.items():
        outcome = outcomes[task]
        assert isinstance(outcome, Returned)
        value = outcome.value if kind is None else outcome.value[0]
        assert (type(value), len(value), value == one) == (bytes, len(one), True)
        assert kind is None or outcome.value[1] == "bytes"


def test_a_value_stays_a_value(settled: Settled) -> None:
    [outcome] = settled(tasks.exception_as_value, ("fine",)).values()
    assert isinstance(outcome, Returned)
    assert repr(outcome.value) == "ValueError('fine')"
    assert outcome.value.__cause__ is None


def test_an_exception_has_the_remote_traceback_as_its_cause(settled: Settled) -> None:
    [outcome] = settled(tasks.fail_deep, (7,)).values()
    assert isinstance(outcome, Raised)
    assert repr(outcome.error) == "LookupError('nothing at', 7)"
    assert isinstance(outcome.error.__cause__, RemoteTraceback)
    text = str(outcome.error.__cause__)
    assert "in fail_deep" in text
    assert "in inner" in text
    assert "LookupError: ('nothing at', 7)" in text


def test_exits_and_interrupts_are_outcomes_as_any_other(make: Make) -> None:
    engine, sink = make(_call)
    engine.submit((tasks.raise_exit,), {})
    engine.submit((tasks.raise_interrupt,), {})
    engine.submit((tasks.add, 1, 2), {})
    finish(engine)
    exited, interrupted, fine = (sink.outcomes()[TaskId(task)] for task in (1, 2, 3))
    assert isinstance(exited, Raised)
    assert isinstance(exited.error, SystemExit)
    assert exited.error.code == 3
    assert isinstance(interrupted, Raised)
    assert isinstance(interrupted.error, KeyboardInterrupt)
    assert fine == Returned(3)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def test_a_graceful_die_is_the_outcome_of_its_task_only(settled: Settled) -> None:
    outcomes = settled(tasks.die_gracefully, *((number,) for number in range(10)))
    died = outcomes.pop(TaskId(4))
    assert isinstance(died, Raised)
    assert repr(died.error) == "WorkerGracefulDie('replace me')"
    assert isinstance(died.error, WorkerGracefulDie)
    assert outcomes == {task: Returned(task - 1) for task in outcomes}
    assert len(outcomes) == 9


# What can't be pickled


@pytest.mark.parametrize(("argument", "error"), [(tasks.Stubborn(), ArithmeticError), (threading.Lock(), TypeError)])
def test_an_argument_that_cannot_be_pickled_raises_in_submit_and_is_not_accepted(
    make: Make, argument: object, error: type[Exception]
) -> None:
    engine, sink = make(tasks.give)
    with pytest.raises(error):
        engine.submit((argument,), {})
    with pytest.raises(error):
        engine.submit((), {"value": argument})
    assert (engine.submitted, len(engine.pending())) == (0, 0)
    assert engine.submit(("next",), {}) == 1
    finish(engine)
    assert sink.outcomes() == {1: Returned("next")}


def test_lambdas_and_closures_travel_both_ways(make: Make) -> None:
    engine, sink = make(lambda f: lambda: f() + 1)
    number = 41
    engine.submit((lambda: number,), {})
    finish(engine)
    [outcome] = sink.outcomes().values()
    assert isinstance(outcome, Returned)
    assert outcome.value() == 42


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (tasks.return_stubborn, "type=Stubborn, error=ArithmeticError: I stay here"),
        (tasks.return_homesick, "could not be unpickled: OSError: not in this process"),
        (tasks.raise_stubborn, "type=StubbornError, error=ArithmeticError: I stay here"),
        (tasks.raise_two_words, "type=TwoWords, error=TypeError"),
    ],
)
def test_what_cannot_travel_back_arrives_as_an_error_that_says_so(
    settled: Settled, function: Callable[..., Any], words: str
) -> None:
    [outcome] = settled(function, ()).values()
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, RemoteWorkerError)
    assert outcome.error.kind == "mpms_unpickleable_result"
    assert words in outcome.error.detail
    if function is tasks.raise_stubborn:
        assert "in raise_stubborn" in str(outcome.error.tb)


# Closing


def test_nothing_is_accepted_after_close(make: Make) -> None:
    engine, sink = make(tasks.give)
    engine.submit((1,), {})
    engine.close()
    with pytest.raises(Refused, match="closed"):
        engine.submit((2,), {})
    engine.close()  # again: no effect
    finish(engine)
    assert engine.submitted == 1
    assert sink.outcomes() == {1: Returned(1)}


def test_the_end_may_be_waited_for_in_the_middle_of_a_submit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, sink = make(tasks.give)
    engine.submit((1,), {})
    accepts = getattr(type(engine), "accept", type(engine).submit)
    module = sys.modules[accepts.__module__]
    name = "_Record" if hasattr(module, "_Record") else "record_of"
    make_record = getattr(module, name)

    def interrupted(*args: Any) -> Any:  # by the handler of a signal, while the lock of admission is held
        finish(engine)
        return make_record(*args)

    monkeypatch.setattr(module, name, interrupted)
    refused = threading.Event()

    def submit() -> None:
        try:
            engine.submit((2,), {})
        except Refused:
            refused.set()

    threading.Thread(target=submit, daemon=True).start()
    assert refused.wait(PATIENCE)
    assert sink.outcomes() == {TaskId(1): Returned(1)}
    assert len(engine.pending()) == 0
    stats = engine.stats()
    assert (engine.submitted, stats.submitted, stats.queued, stats.running) == (1, 1, 0, 0)


def test_what_is_pending_at_close_gets_its_outcome(make: Make, gate: NewGate) -> None:
    engine, sink = make(tasks.hold, processes=1, threads=1)
    gates = [gate() for _ in range(3)]
    for number, each in enumerate(gates):
        engine.submit((each.path, number), {})
    gates[0].wait_for_task()
    engine.close()
    assert list(engine.pending()) == [1, 2, 3]
    for each in gates:
        each.open()
    finish(engine)
    assert sink.outcomes() == {1: Returned(0), 2: Returned(1), 3: Returned(2)}


def test_a_pool_without_tasks_closes(make: Make) -> None:
    engine, sink = make(tasks.give)
    finish(engine)
    assert (sink.delivered, sink.ends) == ([], 1)


def test_stop_cancels_what_runs_and_what_waits_and_lists_it_in_order(make: Make, gate: NewGate) -> None:
    engine, sink = make(tasks.hold, processes=1, threads=1)
    held = gate()
    engine.submit((held.path,), {"value": "held"})
    held.wait_for_task()
    waiting = [(gate().path, number) for number in range(5)]
    for args in waiting:
        engine.submit(args, {})
    engine.stop(0.0)
    with pytest.raises(Refused, match="closed"):
        engine.submit((), {})
    if not make.can("kill"):
        assert not engine.wait_stopped(0.05)
        assert [args for args, _ in engine.unfinished()] == [(held.path,), *waiting]  # already
        held.open()
    assert engine.wait_stopped(PATIENCE)
    assert engine.unfinished() == [((held.path,), {"value": "held"}), *((args, {}) for args in waiting)]
    outcomes = sink.outcomes()
    assert len(outcomes) == 6
    errors = [outcome.error for outcome in outcomes.values() if isinstance(outcome, Cancelled)]
    assert len(errors) == 6
    started = {task for task, outcome in outcomes.items() if outcome.error.started}  # type: ignore[union-attr]
    assert started == {1}
    assert all(isinstance(error, TaskCancelled) for error in errors)


def test_stop_with_enough_time_loses_nothing(make: Make) -> None:
    engine, sink = make(tasks.give)
    for number in range(50):
        engine.submit((number,), {})
    engine.stop(PATIENCE)
    assert engine.wait_stopped(PATIENCE)
    assert sink.outcomes() == {number + 1: Returned(number) for number in range(50)}
    assert engine.unfinished() == []


def test_an_earlier_deadline_of_stop_counts_and_a_later_one_does_not(make: Make, gate: NewGate) -> None:
    engine, sink = make(tasks.hold, processes=1, threads=1)
    held = gate()
    engine.submit((held.path,), {})
    held.wait_for_task()
    for timeout in (PATIENCE, 0.0, PATIENCE):
        engine.stop(timeout)
    if not make.can("kill"):
        held.open()
    assert engine.wait_stopped(PATIENCE)
    [outcome] = sink.outcomes().values()
    assert isinstance(outcome, Cancelled)


# Figures


def test_the_figures_add_up_at_every_moment(make: Make) -> None:
    seen: list[Any] = []
    engine, sink = make(_odd_fails, sink=Recorder(lambda _: seen.append(engine.stats())))
    for number in range(200):
        engine.submit((number,), {})
        if number % 10 == 0:
            seen.append(engine.stats())
    finish(engine)
    last = engine.stats()
    for stats in [*seen, last]:
        assert stats.submitted == stats.done + stats.failed + stats.queued + stats.running
        assert min(stats.done, stats.failed, stats.queued, stats.running, stats.undelivered) >= 0
    assert (last.submitted, last.done, last.failed) == (200, 100, 100)
    assert (last.queued, last.running, last.undelivered) == (0, 0, 0)
    assert last.starts >= 1
    assert last.throughput == pytest.approx(200 / last.uptime)
    assert sum(last.workers.values()) == 0
    time.sleep(0.01)
    assert engine.stats().uptime == last.uptime  # it has ended
    assert len(sink.delivered) == 200


def _odd_fails(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number


def test_a_running_task_is_seen_in_workers_and_in_the_figures(make: Make, gate: NewGate) -> None:
    engine, _ = make(tasks.hold, processes=1, threads=1)
    held = gate()
    engine.submit((held.path,), {})
    held.wait_for_task()
    if make.can("handles"):  # a worker may get its task before the word of its birth, with its pid, has come
        until(lambda: engine.workers()[0].pid is not None)
    [worker] = engine.workers()
    assert worker.name.partition("@")[0] == "mpms-contract-p1"  # with the machine behind it, if there are several
    assert worker.phase == "serving"
    assert [(running.thread, running.task) for running in worker.running] == [(1, 1)]
    stats = engine.stats()
    assert (stats.oldest_task, stats.running, stats.queued) == (1, 1, 0)
    assert stats.oldest is not None
    assert 0 <= worker.running[0].seconds <= stats.oldest <= stats.uptime
    if make.can("handles"):
        [(name, handle)] = engine.handles().items()
        assert (name, handle.name, handle.pid) == (worker.name, worker.name, worker.pid)
        assert handle.is_alive()
        assert handle.pid not in (None, os.getpid())
        assert handle.exitcode is None
    else:
        assert engine.handles() == {}
        assert worker.pid is None
    held.open()
    finish(engine)
    assert engine.workers() == []
    assert engine.handles() == {}
    assert len(engine.story()) > 0


def test_pending_is_a_live_view(make: Make, gate: NewGate) -> None:
    engine, _ = make(tasks.hold, processes=1, threads=1)
    pending, held = engine.pending(), gate()
    assert dict(pending) == {}
    before = time.time()
    engine.submit((held.path,), {"value": 1})
    task, args, kwargs, when = pending[TaskId(1)]
    assert (task, args, kwargs) == (1, (held.path,), {"value": 1})
    assert before <= when <= time.time()
    held.open()
    finish(engine)
    assert dict(pending) == {}


# Delivery


def test_the_sink_is_called_from_one_thread_and_its_end_comes_once_and_last(make: Make) -> None:
    engine, sink = make(tasks.give)
    for number in range(100):
        engine.submit((number,), {})
    finish(engine)
    assert len(sink.threads) == 1
    assert sink.threads != {threading.get_ident()}
    assert sink.ends == 1


def test_a_sink_that_raises_loses_nothing(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def raise_exit(_: Sequence[Delivered]) -> None:
        raise SystemExit("of the collector")

    engine, sink = make(tasks.give, sink=Recorder(raise_exit))
    for number in range(10):
        engine.submit((number,), {})
    finish(engine)
    assert len(sink.outcomes()) == 10
    assert "delivery" in caplog.text
    assert engine.stats().undelivered == 0


def test_submit_never_blocks_on_the_delivery_thread(make: Make) -> None:
    submitted = threading.Event()

    def submit_more(outcomes: Sequence[Delivered]) -> None:
        if outcomes[0][0] == 1:
            for number in range(50):
                engine.submit((number,), {})
            submitted.set()

    engine, sink = make(tasks.give, sink=Recorder(submit_more), processes=1, threads=1, max_pending=1)
    engine.submit(("first",), {})
    assert submitted.wait(PATIENCE)
    finish(engine)
    assert len(sink.outcomes()) == 51


@pytest.mark.parametrize("how", ["room", "close", "stop"])
def test_submit_blocks_at_the_bound_until_there_is_room_or_nothing_is_accepted(
    make: Make, gate: NewGate, how: str
) -> None:
    held = gate()
    engine, sink = make(tasks.hold, processes=1, threads=1, max_pending=1)
    engine.submit((held.path,), {})
    held.wait_for_task()
    engine.submit((os.devnull,), {})
    refusals: list[BaseException] = []

    def submit() -> None:
        try:
            engine.submit((os.devnull,), {})
        except RuntimeError as error:
            refusals.append(error)

    blocked = threading.Thread(target=submit)
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    if how == "room":
        held.open()
    elif how == "close":
        engine.close()
    else:
        engine.stop(PATIENCE)
    blocked.join(PATIENCE)
    assert not blocked.is_alive()
    assert len(refusals) == (how != "room")
    if how != "room":
        held.open()
    finish(engine)
    assert len(sink.outcomes()) == (3 if how == "room" else 2)


def test_submit_goes_on_as_soon_as_there_is_room_for_one(make: Make, gate: NewGate) -> None:
    first, second = gate(), gate()
    engine, sink = make(tasks.hold, processes=1, threads=1, max_pending=3)
    engine.submit((first.path,), {})
    first.wait_for_task()
    for path in (second.path, os.devnull, os.devnull):
        engine.submit((path,), {})
    blocked = threading.Thread(target=engine.submit, args=((os.devnull,), {}), daemon=True)
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    first.open()
    blocked.join(PATIENCE)
    assert not blocked.is_alive()  # though others wait, behind the second one
    second.open()
    finish(engine)
    assert len(sink.outcomes()) == 5


# Initializers and finalizers


def test_initializers_and_finalizers_run_once_in_each_process_and_thread(
    make: Make, gate: NewGate, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")
    hooks = ("process_initializer", "thread_initializer", "thread_finalizer", "process_finalizer")
    engine, _ = make(_call, **{name: Hook(tasks.note, (path, name)) for name in hooks})
    processes, threads = (2, 4) if make.can("parallel") else (1, 1)
    gates = [gate() for _ in range(threads)]
    for each in gates:  # one in every thread, so that all of them come up
        engine.submit((tasks.hold, each.path), {})
    for each in gates:
        each.wait_for_task()
    for _ in range(50):
        engine.submit((tasks.note, path, "task"), {})
    for each in gates:
        each.open()
    finish(engine)
    words = Path(path).read_text().split()
    assert Counter(words) == {
        "process_initializer": processes,
        "thread_initializer": threads,
        "task": 50,
        "thread_finalizer": threads,
        "process_finalizer": processes,
    }
    assert words[0] == "process_initializer"
    assert words[-1] == "process_finalizer"


@pytest.mark.parametrize("hook", ["process_initializer", "thread_initializer"])
def test_an_initializer_that_fails_breaks_the_pool_and_everybody_hears_of_it(make: Make, hook: str) -> None:
    engine, sink = make(tasks.give, start=False, max_start_failures=2, **{hook: Hook(tasks.refuse, ("no licence",))})
    for number in range(3):
        engine.submit((number,), {})
    engine.start()
    assert engine.wait_queued(PATIENCE)
    assert engine.wait_stopped(PATIENCE)  # without a close
    outcomes = sink.outcomes()
    assert len(outcomes) == 3
    errors = [outcome.error for outcome in outcomes.values() if isinstance(outcome, Broken)]
    with pytest.raises(PoolBroken) as refused:
        engine.submit((4,), {})
    assert isinstance(engine.broken, PoolBroken)
    for error in [*errors, refused.value, engine.broken]:
        assert "contract can't start workers: ValueError: no licence" in str(error)
        assert repr(error.__cause__) == "ValueError('no licence')"
        assert isinstance(error.__cause__, BaseException)
        assert "in refuse" in str(error.__cause__.__cause__)
    assert len(errors) == 3
    assert engine.unfinished() == [((number,), {}) for number in range(3)]
    assert sink.ends == 1
    assert (engine.stats().failed, engine.stats().queued) == (3, 0)


def test_a_finalizer_that_fails_is_logged_and_loses_nothing(make: Make) -> None:
    engine, sink = make(tasks.give, thread_finalizer=Hook(tasks.refuse, ("late",)))
    engine.submit((1,), {})
    finish(engine)
    assert sink.outcomes() == {1: Returned(1)}
    assert engine.broken is None


# Waiting


def test_waits_end_at_their_timeout(make: Make, gate: NewGate) -> None:
    engine, _ = make(tasks.hold, processes=1, threads=1)
    first, second = gate(), gate()
    engine.submit((first.path,), {})
    first.wait_for_task()
    assert engine.wait_queued(0.0)
    engine.submit((second.path,), {})
    assert not engine.wait_queued(0.05)
    engine.close()
    assert not engine.wait_stopped(0.0)
    assert not engine.wait_stopped(0.05)
    first.open()
    second.wait_for_task()
    assert engine.wait_queued(PATIENCE)
    second.open()
    assert engine.wait_stopped()
    assert engine.wait_stopped(0.0)
    assert engine.wait_queued(0.0)


def test_the_delivery_thread_cannot_wait_for_its_own_end(make: Make) -> None:
    errors: list[BaseException] = []

    def wait(_: Sequence[Delivered]) -> None:
        try:
            engine.wait_stopped(PATIENCE)
        except RuntimeError as error:
            errors.append(error)

    engine, _ = make(tasks.give, sink=Recorder(wait))
    engine.submit((1,), {})
    finish(engine)
    assert len(errors) == 1


# Behind the face


def test_an_mpms_collects_over_it(make: Make) -> None:
    got: list[tuple[TaskId | None, tuple[Any, ...], Any]] = []
    with MPMS(
        tasks.die_gracefully,
        lambda meta, result: got.append((meta.taskid, meta.args, result)),
        1,
        **make.for_mpms(),
    ) as pool:
        for number in range(6):
            pool.put(number)
    assert len(pool) == 0
    assert (pool.total_count, pool.finish_count) == (6, 6)
    failed = [entry for entry in got if isinstance(entry[2], WorkerGracefulDie)]
    assert [(task, args) for task, args, _ in failed] == [(4, (3,))]
    assert sorted(entry for entry in got if entry not in failed) == [
        (number + 1, (number,), number) for number in range(6) if number != 3
    ]


def test_an_mpms_is_iterated_over_it(make: Make) -> None:
    pool = MPMS(tasks.add, processes=1, **make.for_mpms())
    for number in range(5):
        pool.put(number, b=1)
    pool.close()
    results = {meta.args[0]: (dict(meta.kwargs), result) for meta, result in pool.iter_results()}
    pool.join()
    assert results == {number: ({"b": 1}, number + 1) for number in range(5)}


def test_an_mpms_that_is_broken_says_so_at_its_end(make: Make, gate: NewGate) -> None:
    got: list[Any] = []
    held = gate()
    pool = MPMS(
        tasks.give,
        lambda meta, result: got.append(result),
        processes=1,
        threads=1,
        thread_initializer=tasks.refuse_later,
        thread_initargs=(held.path, "no licence"),
        max_start_failures=1,
        **make.for_mpms(),
    )
    pool.put(1)
    held.open()
    with pytest.raises(PoolBroken, match="no licence"):
        pool.join()
    assert [type(result) for result in got] == [PoolBroken]
    assert pool.unfinished() == [((1,), {})]


def test_an_mpms_that_is_left_by_an_exception_stops(make: Make, gate: NewGate) -> None:
    held = gate()

    def leave() -> None:
        with MPMS(tasks.hold, lambda meta, result: None, 1, 1, **make.for_mpms()) as pool:
            pools.append(pool)
            pool.put(held.path)
            held.wait_for_task()
            pool.put(held.path, 1)
            raise LookupError("of the user")

    pools: list[MPMS] = []
    with pytest.raises(LookupError):
        leave()
    unfinished = [((held.path,), {}), ((held.path, 1), {})]
    if not make.can("kill"):
        assert pools[0].unfinished() == unfinished  # already
        held.open()
    pools[0].join()  # the stop waits for half a second only
    assert pools[0].unfinished() == unfinished


SMALL_VALUES = [
    *(None, True, False, 0, 1, -1, 2**63, 2**64, -(2**64), 10**30, 0.0, -0.0, float("inf"), 0.1, 1j),
    *("", "text", "é" * 500, "x" * 501, "\ud800", "a\0b", b"", b"\0\xff", b"x" * 501, bytearray(b"x")),
    *((), (1, "two", None), [], [1], {}, {"a": 1}, tasks.Colour.RED, tasks.Text("text"), tasks.Number(5)),
]


def test_values_come_as_what_they_are_with_others_and_alone(make: Make) -> None:
    """Small ones of plain types go together, and whatever is of a class of the user's or may change does not."""
    engine, sink = make(tasks.give)
    values = SMALL_VALUES * 3
    for value in values:
        engine.submit((value,), {})
    until(lambda: len(sink.delivered) == len(values))
    for value in SMALL_VALUES:
        engine.submit((value,), {})
        values.append(value)
        until(lambda: len(sink.delivered) == len(values))
    finish(engine)
    outcomes = [sink.outcomes()[TaskId(n)] for n in range(1, len(values) + 1)]
    got = [outcome.value for outcome in outcomes if isinstance(outcome, Returned)]
    assert [repr(value) for value in got] == [repr(value) for value in values]
    assert [*map(type, got)] == [*map(type, values)]


def test_arguments_come_as_what_they_are(settled: Settled) -> None:
    calls = [(value, other, None) for value in SMALL_VALUES for other in (7, "x" * 501)]
    outcomes = settled(tasks.count_and_show, *calls)
    assert outcomes == {TaskId(n): Returned((3, repr(call))) for n, call in enumerate(calls, 1)}


LARGE_VALUES = [
    *(b"ab" * 2_500, b"ab" * 50_000, b"ab" * 500_000, bytearray(b"ab" * 50_000), "ab" * 50_000),
    *((b"ab" * 50_000,), ("name", b"ab" * 50_000, None), (b"ab" * 2_500, b"cd" * 500_000), [b"ab" * 50_000]),
]


def test_large_values_come_as_what_they_are_among_small_ones(make: Make) -> None:
    """Large bytes take a way of their own, as do the largest ones."""
    engine, sink = make(tasks.give)
    values = [value for large in LARGE_VALUES for value in (1, large, "text")]
    for value in values:
        engine.submit((value,), {})
    finish(engine)
    outcomes = [sink.outcomes()[TaskId(n)] for n in range(1, len(values) + 1)]
    assert [outcome.value for outcome in outcomes if isinstance(outcome, Returned)] == values
    assert [type(outcome.value) for outcome in outcomes if isinstance(outcome, Returned)] == [*map(type, values)]


def test_large_arguments_come_as_what_they_are(settled: Settled) -> None:
    calls = [call for large in LARGE_VALUES for call in ((large,), (7, large), (large, "name", large))]
    outcomes = settled(tasks.count_and_hash, *calls)
    assert outcomes == {TaskId(n): Returned(tasks.count_and_hash(*call)) for n, call in enumerate(calls, 1)}
