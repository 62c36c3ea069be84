"""What a task may have of its own, on every engine: its function, a ticket, many items; and that it is cancelled."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpms import PoolBroken, RemoteTraceback, RemoteWorkerError, TaskCancelled
from mpms.config import Hook
from mpms.engine import Delivered, Engine
from mpms.ids import TaskId
from mpms.outcome import Broken, Cancelled, Outcome, Raised, Returned
from mpms.wire.chunks import Chunk, Packed, pack

from . import tasks
from .conftest import PATIENCE, Gate, Make, Recorder, Slip

NewGate = Callable[[], Gate]


def finish(engine: Engine) -> None:
    engine.close()
    assert engine.wait_stopped(PATIENCE)


# Functions


def closure(base: int) -> Callable[[int], int]:
    return lambda number: base + number


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (tasks.add, 4),
        (abs, 4),
        (lambda number: number * 2, 8),
        (closure(10), 14),
        (functools.partial(tasks.add, b=5), 9),
        (functools.partial(closure(20)), 24),
        (tasks.Counter(30), 34),
        (closure(40).__call__, 44),
        (complex, 4 + 0j),
    ],
    ids=["importable", "builtin", "lambda", "closure", "partial", "partial of a closure", "object", "method", "class"],
)
def test_a_task_is_of_its_own_function(make: Make, function: Callable[..., Any], expected: object) -> None:
    engine, sink = make(tasks.give)
    engine.submit((4,), {}, function=function)
    engine.submit((5,), {})
    finish(engine)
    assert sink.outcomes() == {1: Returned(expected), 2: Returned(5)}


def test_tasks_of_many_functions_in_any_order_are_each_of_their_own(make: Make) -> None:
    engine, sink = make(tasks.give)
    functions = [None, tasks.add, *(closure(base) for base in (1000, 2000, 3000))]
    expected = {}
    for number in range(400):
        at = number * number % 7 % 5
        task = engine.submit((number,), {}, function=functions[at])
        expected[task] = Returned(number + (at - 1) * 1000 if at > 1 else number)
    finish(engine)
    assert sink.outcomes() == expected


def test_keyword_arguments_are_for_its_own_function(make: Make) -> None:
    engine, sink = make(tasks.give)
    engine.submit((1,), {"b": 41}, function=tasks.add)
    finish(engine)
    assert sink.outcomes() == {1: Returned(42)}


def test_an_engine_without_a_function_takes_tasks_that_bring_one(make: Make) -> None:
    engine, sink = make(None)
    for each in (False, True):
        with pytest.raises(TypeError, match="needs a function"):
            engine.submit((1,), {}, each=each)
    assert engine.submit((1,), {"b": 2}, function=tasks.add) == 1
    finish(engine)
    assert sink.outcomes() == {1: Returned(3)}


def test_a_bound_method_is_sent_with_its_object_as_it_is_at_each_submit(make: Make) -> None:
    engine, sink = make(tasks.give)
    counter = tasks.Counter()
    for count in (1, 2, 2, 1):
        counter.count = count
        engine.submit((), {}, function=counter.get)
    finish(engine)
    values = [outcome.value for outcome in sink.outcomes().values() if isinstance(outcome, Returned)]
    assert sorted(values) == [1, 1, 2, 2] or not make.can("ship")
    if make.can("ship"):
        assert [sink.outcomes()[TaskId(n)] for n in (1, 2, 3, 4)] == [Returned(n) for n in (1, 2, 2, 1)]


def test_a_function_that_cannot_be_pickled_raises_in_submit_and_is_not_accepted(make: Make) -> None:
    engine, sink = make(tasks.give)
    lock = threading.Lock()
    if make.can("ship"):
        with pytest.raises(TypeError, match="pickle"):
            engine.submit((), {}, function=lambda: lock)
        with pytest.raises(ArithmeticError, match="I stay here"):
            engine.submit((), {}, function=functools.partial(tasks.give, tasks.Stubborn()))
    assert (engine.submitted, len(engine.pending())) == (0, 0)
    engine.submit((1,), {})
    finish(engine)
    assert sink.outcomes() == {1: Returned(1)}


def test_a_function_that_cannot_be_loaded_is_the_error_of_each_of_its_tasks(make: Make) -> None:
    engine, sink = make(tasks.give)
    for _ in range(3):
        engine.submit((1,), {}, function=tasks.HomesickFunction())
        engine.submit((1,), {})
    finish(engine)
    outcomes = sink.outcomes()
    assert [outcomes.pop(TaskId(n)) for n in (2, 4, 6)] == [Returned(1)] * 3
    for outcome in outcomes.values():
        if make.can("ship"):
            assert isinstance(outcome, Raised)
            assert repr(outcome.error) == "OSError('not in this process')"
        else:
            assert outcome == Returned(1)


def test_what_its_own_function_raises_has_its_traceback(make: Make) -> None:
    engine, sink = make(tasks.give)
    engine.submit((7,), {}, function=tasks.fail_deep)
    finish(engine)
    [outcome] = sink.outcomes().values()
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error.__cause__, RemoteTraceback)
    assert "in fail_deep" in str(outcome.error.__cause__)


# Tickets


def test_a_ticket_gets_the_outcome_and_the_sink_does_not(make: Make) -> None:
    engine, sink = make(tasks.give)
    slips = [Slip() for _ in range(3)]
    engine.submit((1,), {}, ticket=slips[0])
    engine.submit((2,), {})
    engine.submit((3,), {}, function=tasks.fail_deep, ticket=slips[1])
    engine.submit((), {}, function=tasks.return_stubborn, ticket=slips[2])
    finish(engine)
    assert sink.outcomes() == {2: Returned(2)}
    assert slips[0].outcome() == Returned(1)
    failed, stubborn = slips[1].outcome(), slips[2].outcome()
    assert isinstance(failed, Raised)
    assert repr(failed.error) == "LookupError('nothing at', 3)"
    assert isinstance(stubborn, Raised)
    assert isinstance(stubborn.error, RemoteWorkerError)
    assert len(engine.pending()) == 0


def test_tickets_are_settled_on_the_thread_of_the_sink(make: Make) -> None:
    engine, sink = make(tasks.give)
    slip = Slip()
    engine.submit((1,), {}, ticket=slip)
    engine.submit((2,), {})
    finish(engine)
    assert {slip.thread} == sink.threads


def test_tasks_with_tickets_do_not_count_as_submitted_and_are_in_the_figures(make: Make) -> None:
    engine, _ = make(tasks.give)
    slips = [Slip() for _ in range(5)]
    for slip in slips:
        engine.submit((1,), {}, ticket=slip)
    engine.submit((2,), {})
    finish(engine)
    assert engine.submitted == 1
    stats = engine.stats()
    assert (stats.submitted, stats.done, stats.failed, stats.undelivered) == (6, 6, 0, 0)


def test_a_ticket_that_raises_loses_nothing(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Outcome) -> None:
        raise SystemExit("a broken ticket")

    engine, sink = make(tasks.give)
    last = Slip()
    engine.submit((1,), {}, ticket=Slip(fail))
    engine.submit((2,), {})
    engine.submit((3,), {}, ticket=last)
    finish(engine)
    assert sink.outcomes() == {2: Returned(2)}
    assert last.outcome() == Returned(3)
    assert "a broken ticket" in caplog.text


def test_a_ticket_may_submit_the_next_task(make: Make) -> None:
    """As a future with a callback does; and at the bound it doesn't wait for itself."""
    engine, _ = make(tasks.give, max_pending=1)
    last = Slip()
    first = Slip(lambda _: [engine.submit((n,), {}, ticket=last if n == 9 else None) for n in range(10)] and None)
    engine.submit((1,), {}, ticket=first)
    assert last.outcome() == Returned(9)
    finish(engine)


def test_at_a_stop_tickets_are_cancelled_and_not_listed(make: Make, gate: NewGate) -> None:
    engine, sink = make(tasks.hold, processes=1, threads=1)
    running, waiting, place = Slip(), Slip(), gate()
    engine.submit((place.path,), {}, ticket=running)
    place.wait_for_task()
    engine.submit(("never opened",), {}, ticket=waiting)
    engine.submit(("never opened",), {})
    engine.stop(0.0)
    if not make.can("kill"):
        place.open()
    assert engine.wait_stopped(PATIENCE)
    for slip, started in ((running, True), (waiting, False)):
        outcome = slip.outcome()
        assert isinstance(outcome, Cancelled)
        assert outcome.error.started is started
    assert list(sink.outcomes()) == [3]
    assert [args for args, _ in engine.unfinished()] == [("never opened",)]


def test_when_the_pool_breaks_tickets_hear_of_it(make: Make, gate: NewGate) -> None:
    place = gate()
    engine, _ = make(tasks.give, process_initializer=Hook(tasks.refuse_later, (place.path, "no")), max_start_failures=1)
    slip = Slip()
    engine.submit((1,), {}, ticket=slip)
    place.open()
    outcome = slip.outcome()
    assert isinstance(outcome, Broken)
    assert isinstance(outcome.error, PoolBroken)
    assert engine.wait_stopped(PATIENCE)
    assert engine.unfinished() == []


# Many items in one task


def packed(items: Sequence[Any], *, star: bool = False) -> Packed:
    chunk, problems, _ = pack(list(items), star=star, exact=False)
    assert not problems
    return chunk


def chunk_of(outcome: Outcome) -> Chunk:
    assert isinstance(outcome, Returned)
    assert isinstance(outcome.value, Chunk)
    return outcome.value


def submit_items(
    engine: Engine, items: Sequence[Any], *, star: bool = False, **options: Any
) -> Callable[[], tuple[list[Any], dict[int, tuple[BaseException, bool]]]]:
    """As one chunk. What is returned waits for the values and errors of all: what a chunk that took its 50 ms has not
    started goes into another one."""

    def submit(begin: int) -> Slip:
        slip = Slip()
        engine.submit(packed(items[begin:], star=star), {}, each=True, ticket=slip, **options)
        return slip

    first = submit(0)

    def load() -> tuple[list[Any], dict[int, tuple[BaseException, bool]]]:
        values, errors = chunk_of(first.outcome()).load()
        while (done := len(values)) < len(items):
            more, failed = chunk_of(submit(done).outcome()).load()
            assert more
            values += more
            errors |= {done + at: error for at, error in failed.items()}
        return values, errors

    return load


def test_each_item_of_a_chunk_is_a_call(make: Make) -> None:
    engine, sink = make(tasks.invert)
    chunks = [
        submit_items(engine, [1, 2, 4]),
        submit_items(engine, [(1, 2), (3, 4)], star=True, function=tasks.add),
        submit_items(engine, ["a", "b"], function=lambda text: text * 2),
    ]
    engine.submit((4,), {})
    assert [load() for load in chunks] == [([1.0, 0.5, 0.25], {}), ([3, 7], {}), (["aa", "bb"], {})]
    finish(engine)
    assert sink.outcomes() == {4: Returned(0.25)}


def test_one_function_serves_for_chunks_and_for_single_tasks(make: Make) -> None:
    engine, sink = make(tasks.give)

    def double(number: int) -> int:
        return number * 2

    chunks, singles = [], {}
    for number in range(20):
        singles[engine.submit((number,), {}, function=double)] = Returned(2 * number)
        chunks.append(submit_items(engine, [number, number + 1], function=double))
    assert [load() for load in chunks] == [([2 * number, 2 * number + 2], {}) for number in range(20)]
    finish(engine)
    assert sink.outcomes() == singles


def test_what_comes_of_the_items_of_a_chunk_is_apart(make: Make) -> None:
    engine, sink = make(tasks.picky)
    values, errors = submit_items(engine, range(6))()
    finish(engine)
    assert sink.delivered == []
    assert [values[at] for at in (0, 5)] == [[0], [5]]
    assert {at: type(error) for at, (error, _) in errors.items()} == {
        1: LookupError,
        2: StopIteration,
        3: RemoteWorkerError,
        4: SystemExit,
    }
    assert "in picky" in str(errors[1][0].__cause__)


def test_an_empty_chunk_is_one_too(make: Make) -> None:
    engine, sink = make(tasks.give)
    engine.submit(packed([]), {}, each=True)
    engine.submit(packed([1]), {}, each=True)
    finish(engine)
    assert [chunk_of(sink.outcomes()[TaskId(n)]).values for n in (1, 2)] == [[], [1]]


# Cancel


def cancelled(outcome: Outcome) -> bool:
    if not isinstance(outcome, Cancelled):
        return False
    assert isinstance(outcome.error, TaskCancelled)
    return not outcome.error.started


class Busy:
    """An engine whose only thread is held at a gate by its first task; the others wait."""

    def __init__(self, make: Make, gate: NewGate, **options: Any) -> None:
        self.place = gate()
        self.engine, self.sink = make(tasks.give, **{"processes": 1, "threads": 1, **options})
        self.first = self.engine.submit((self.place.path, "first"), {}, function=tasks.hold)
        self.place.wait_for_task()

    def outcomes(self) -> dict[TaskId, Outcome]:
        """Of all, at the end."""
        self.place.open()
        finish(self.engine)
        return self.sink.outcomes()


def test_a_waiting_task_is_cancelled_and_never_runs(make: Make, gate: NewGate, tmp_path: Path) -> None:
    busy, log = Busy(make, gate), str(tmp_path / "log")
    ids = [busy.engine.submit((log, str(n)), {}, function=tasks.note) for n in range(4)]
    assert busy.engine.cancel(ids[1], PATIENCE) is True
    assert busy.engine.cancel(ids[3], PATIENCE) is True
    outcomes = busy.outcomes()
    assert cancelled(outcomes[ids[1]])
    assert cancelled(outcomes[ids[3]])
    assert [outcomes[task] for task in (busy.first, ids[0], ids[2])] == [
        Returned("first"),
        Returned(None),
        Returned(None),
    ]
    assert Path(log).read_text().split() == ["0", "2"]
    assert busy.engine.unfinished() == []


def test_without_a_timeout_it_is_not_waited_for_and_happens_all_the_same(make: Make, gate: NewGate) -> None:
    busy = Busy(make, gate)
    task = busy.engine.submit((1,), {})
    assert busy.engine.cancel(task) is False
    assert cancelled(busy.outcomes()[task])


def test_a_task_that_runs_is_not_cancelled_and_goes_on(make: Make, gate: NewGate) -> None:
    busy = Busy(make, gate)
    assert busy.engine.cancel(busy.first, PATIENCE) is False
    assert busy.engine.cancel(busy.first) is False
    assert busy.outcomes() == {busy.first: Returned("first")}


def test_a_task_that_is_over_is_not_cancelled(make: Make) -> None:
    engine, sink = make(tasks.give)
    slip = Slip()
    task = engine.submit((1,), {}, ticket=slip)
    slip.outcome()
    assert engine.cancel(task, PATIENCE) is False
    assert engine.cancel(TaskId(4711), PATIENCE) is False
    engine.submit((2,), {})
    finish(engine)
    assert engine.cancel(task, PATIENCE) is False
    assert sink.outcomes() == {2: Returned(2)}


def test_a_task_is_cancelled_once(make: Make, gate: NewGate) -> None:
    busy = Busy(make, gate)
    slip = Slip()
    task = busy.engine.submit((1,), {}, ticket=slip)
    assert busy.engine.cancel(task, PATIENCE) is True
    assert busy.engine.cancel(task, PATIENCE) is False
    busy.outcomes()
    assert cancelled(slip.outcome())


def test_a_cancelled_task_with_a_ticket_has_its_outcome_there(make: Make, gate: NewGate) -> None:
    busy = Busy(make, gate)
    slip = Slip()
    busy.engine.cancel(busy.engine.submit((1,), {}, ticket=slip))
    assert list(busy.outcomes()) == [busy.first]
    assert cancelled(slip.outcome())


def test_all_that_wait_are_cancelled_and_what_runs_goes_on(make: Make, gate: NewGate) -> None:
    busy = Busy(make, gate)
    slips = [Slip() for _ in range(20)]
    for n, slip in enumerate(slips):
        busy.engine.submit((n,), {}, ticket=slip)
    plain = busy.engine.submit((1,), {})
    busy.engine.cancel_all()
    assert busy.engine.cancel(busy.first, PATIENCE) is False  # and with this answer all have theirs
    after = busy.engine.submit((2,), {})
    outcomes = busy.outcomes()
    assert cancelled(outcomes.pop(plain))
    assert outcomes == {busy.first: Returned("first"), after: Returned(2)}
    assert all(cancelled(slip.outcome()) for slip in slips)
    assert busy.engine.unfinished() == []


def test_a_closed_engine_ends_when_its_last_tasks_are_cancelled(make: Make, gate: NewGate) -> None:
    busy = Busy(make, gate)
    busy.engine.submit((1,), {})
    busy.engine.submit((2,), {})
    busy.engine.close()
    busy.engine.cancel_all()
    assert [cancelled(outcome) for outcome in busy.outcomes().values()].count(True) == 2


def test_cancelled_tasks_are_in_the_figures(make: Make, gate: NewGate) -> None:
    busy = Busy(make, gate)
    for _ in range(5):
        busy.engine.cancel(busy.engine.submit((1,), {}))
    busy.engine.submit((1,), {})
    busy.outcomes()
    stats = busy.engine.stats()
    assert (stats.submitted, stats.done, stats.failed, stats.queued, stats.running) == (7, 2, 5, 0, 0)


def test_who_is_at_the_delivery_may_cancel_and_wait_for_it(make: Make, gate: NewGate) -> None:
    answers: list[bool] = []
    place, late = gate(), gate()

    def cancel_next(outcomes: Any) -> None:
        delivered: list[Delivered] = list(outcomes)
        if delivered[0][0] == 1:
            answers.append(engine.cancel(TaskId(4), PATIENCE))

    engine, sink = make(tasks.hold, sink=Recorder(cancel_next), processes=1, threads=1)
    first = engine.submit((place.path,), {})
    place.wait_for_task()
    engine.submit((late.path,), {})
    engine.submit((1,), {}, function=tasks.give)
    engine.submit((1,), {}, function=tasks.give)
    place.open()
    late.open()
    finish(engine)
    assert answers == [cancelled(sink.outcomes()[TaskId(4)])]
    assert sink.outcomes()[first] == Returned(None)


def test_a_submit_that_waits_for_room_gets_that_of_a_cancelled_task(make: Make, gate: NewGate) -> None:
    busy = Busy(make, gate, max_pending=2)
    ids = [busy.engine.submit((n,), {}, wait=False) for n in range(2)]
    accepted: list[TaskId] = []
    submitter = threading.Thread(target=lambda: accepted.append(busy.engine.submit((9,), {})))
    submitter.start()
    for task in ids:
        busy.engine.cancel(task)
    if make.can("parallel"):  # else their outcomes come when the first one is over
        submitter.join(PATIENCE)
        assert accepted == [4]
    busy.place.open()
    submitter.join(PATIENCE)
    finish(busy.engine)
    assert busy.sink.outcomes()[TaskId(4)] == Returned(9)


def test_cancelling_after_the_end_does_nothing(make: Make) -> None:
    engine, _ = make(tasks.give)
    finish(engine)
    engine.cancel_all()
    assert engine.cancel(TaskId(1), PATIENCE) is False
