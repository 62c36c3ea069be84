"""What is particular to the engine on Dask: evidence from other machines, functions, cancelling, what is refused."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

from mpms import MPMS, Executor, PoolBroken, RemoteTraceback, TaskTimeout, WorkerCrashed
from mpms.config import Hook
from mpms.dask import Capability, DaskEngine
from mpms.dask.engine import ClusterEngine
from mpms.dask.guard import Guard
from mpms.dask.machine import Machine
from mpms.dask.pace import Pace
from mpms.errors import TaskCancelled
from mpms.ids import TaskId, TaskOptions
from mpms.outcome import Cancelled, Crashed, Raised, Returned, TimedOut

from ..contract.conftest import PATIENCE, Gate, Make
from ..contract.test_engines import finish
from ..local.helpers import until
from . import tasks

NewGate = Callable[[], Gate]

# Evidence


def test_a_crash_on_a_machine_is_told_with_all_that_is_known_of_it(make: Make) -> None:
    engine, sink = make(tasks.fault)
    engine.submit(("boom",), {})
    finish(engine)
    [outcome] = sink.outcomes().values()
    assert isinstance(outcome, Crashed)
    error = outcome.error
    assert isinstance(error, WorkerCrashed)
    assert (error.task, error.arguments, error.signal, error.blamed) == (1, "('boom')", "SIGSEGV", True)
    assert "in fault" in error.stack
    assert "task 1 ('boom')" in str(error)
    assert error.worker is not None
    name, _, machine = error.worker.partition("@")
    assert name.startswith("mpms-contract-p")
    assert f"The machine was tcp://{machine}" in str(error)
    assert (error.done, error.oom_killed) == (0, False)
    assert (error.age or 0) > 0
    assert (error.peak_memory or 0) > 0
    assert error.pid not in (None, os.getpid())


def test_a_task_that_hangs_on_a_machine_times_out_with_its_stack(make: Make, gate: NewGate) -> None:
    engine, sink = make(tasks.hold, task_timeout=0.3)
    held = gate()
    engine.submit((held.path,), {})
    engine.submit((os.devnull, "fine"), {}, TaskOptions(timeout=PATIENCE))
    finish(engine)
    outcomes = sink.outcomes()
    outcome = outcomes[TaskId(1)]
    assert isinstance(outcome, TimedOut)
    assert isinstance(outcome.error, TaskTimeout)
    assert outcome.error.timeout == 0.3
    assert "in hold" in outcome.error.stack
    assert held.path in outcome.error.arguments
    assert outcomes[TaskId(2)] == Returned("fine")


def test_options_of_one_task_travel(make: Make, gate: NewGate) -> None:
    engine, sink = make(tasks.hold)
    engine.submit((gate().path,), {}, TaskOptions(timeout=0.2))
    finish(engine)
    [outcome] = sink.outcomes().values()
    assert isinstance(outcome, TimedOut)


def test_attempts_on_a_machine_are_told_too(make: Make) -> None:
    engine, sink = make(tasks.fault, retries=1)
    engine.submit(("again",), {})
    finish(engine)
    [outcome] = sink.outcomes().values()
    assert isinstance(outcome, Crashed)
    [first] = outcome.error.attempts
    assert isinstance(first, WorkerCrashed)
    assert first.arguments == "('again')"
    assert "\0" not in f"{outcome.error}{first}"
    assert engine.stats().retried == 1


def test_an_exception_keeps_what_it_was_raised_from(make: Make) -> None:
    engine, sink = make(tasks.raise_picky)
    engine.submit(("outer",), {})
    finish(engine)
    [outcome] = sink.outcomes().values()
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, tasks.Picky)
    assert outcome.error.detail == {"level": 3}
    assert isinstance(outcome.error.__cause__, RemoteTraceback)
    assert repr(outcome.error.__cause__.__cause__) == "KeyError('inner')"


def test_exceptions_of_the_user_that_are_retried_come_with_their_attempts(make: Make) -> None:
    engine, sink = make(tasks.raise_picky, retries=2, retry_on=(tasks.Picky,))
    engine.submit(("thrice",), {})
    finish(engine)
    [outcome] = sink.outcomes().values()
    assert isinstance(outcome, Raised)
    assert [type(error) for error in outcome.error.attempts] == [tasks.Picky] * 2  # type: ignore[attr-defined]


def test_the_users_classes_are_not_loaded_by_the_dask_worker(make: Make, client: Client) -> None:
    # Whoever asked it something before may have had it load this module, and so that one.
    client.run(lambda: bool(__import__("sys").modules.pop("tests.dask.tasks", None)))
    engine, sink = make(tasks.raise_picky, process_initializer=Hook(tasks.note, (os.devnull, "x")))
    engine.submit(("text",), {})
    engine.submit((tasks.Picky("an argument"),), {})
    finish(engine)
    assert len(sink.outcomes()) == 2
    [loaded] = client.run(lambda: "tests.dask.tasks" in __import__("sys").modules).values()
    assert not loaded


def test_the_stacks_of_a_machine_are_shown(make: Make, gate: NewGate) -> None:
    engine, _ = make(tasks.hold, processes=1, threads=1)
    held = gate()
    engine.submit((held.path,), {})
    held.wait_for_task()
    [stacks] = engine.stacks()
    assert stacks.name.startswith("mpms-contract-p1@")
    assert "in hold" in str(stacks)
    held.open()
    finish(engine)
    assert engine.stacks() == []


# Functions, futures, chunks


def test_an_executor_runs_over_it(make: Make) -> None:
    offset = 40
    with Executor(2, threads=2, **make.for_mpms()) as executor:
        future = executor.submit(lambda number: number + offset, 2)
        assert future.result(PATIENCE) == 42
        assert list(executor.map(lambda number: number * 2, range(500))) == [number * 2 for number in range(500)]
        assert list(executor.map(pow, [2, 3], [3, 2], chunksize=2)) == [8, 9]
        with pytest.raises(tasks.Picky):
            list(executor.map(tasks.raise_picky, ["a", "b"]))


def test_a_large_function_goes_to_a_machine_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpms.dask.link import Link

    sent: list[int] = []
    submit = Link.submit

    def spy(self: Any, keys: Any, parcels: Any) -> Any:
        sent.extend(map(len, parcels))
        return submit(self, keys, parcels)

    monkeypatch.setattr(Link, "submit", spy)
    ballast = os.urandom(200_000)
    with Executor(1, **make.for_mpms()) as executor:

        def measure() -> int:
            return len(ballast)

        assert [executor.submit(measure).result(PATIENCE) for _ in range(4)] == [200_000] * 4
    assert len([size for size in sent if size > 200_000]) == 1


def test_more_functions_than_a_machine_keeps(make: Make) -> None:
    with Executor(1, threads=4, **make.for_mpms()) as executor:
        futures = [executor.submit(functools.partial(pow, number), 2) for number in range(2000)]
        assert [future.result(PATIENCE) for future in futures] == [number**2 for number in range(2000)]


def test_an_answer_that_does_not_get_through_costs_its_tasks_and_no_others(make: Make, client: Client) -> None:
    engine, sink = make(_same)
    engine.submit((0,), {})
    until(lambda: sink.delivered)
    client.run(_refuse_one_answer)
    engine.submit((1,), {})
    until(lambda: len(sink.delivered) == 2)
    assert isinstance(sink.outcomes()[TaskId(2)], Crashed)
    engine.submit((2,), {})
    finish(engine)
    assert sink.outcomes()[TaskId(3)] == Returned(2)


def _refuse_one_answer() -> None:
    send = Machine._send

    async def refuse(machine: Machine, answer: Any) -> None:
        Machine._send = send  # type: ignore[method-assign]
        raise OSError("the connection was lost")

    Machine._send = refuse  # type: ignore[method-assign]


def test_a_connection_that_was_lost_and_made_again_breaks_the_pool(make: Make, client: Client) -> None:
    """The scheduler has let go of what the pool had there."""
    with Client(client.scheduler.address, set_as_default=False) as other:
        with Executor(1, engine=DaskEngine(other)) as executor:
            assert executor.submit(_same, 1).result(PATIENCE) == 1
            before = other.scheduler_comm
            other.loop.add_callback(before.comm.abort)
            until(lambda: other.status == "running" and other.scheduler_comm not in (before, None))
            assert isinstance(executor.submit(_same, 2).exception(PATIENCE), PoolBroken)


def test_a_dask_worker_that_knows_itself_by_name_may_claim() -> None:
    there = SimpleNamespace(processing_on=SimpleNamespace(address="tcp://127.0.0.1:1"))
    guard = Guard("pool", "client")
    guard._scheduler = SimpleNamespace(
        tasks={"a": there}, coerce_address=lambda address: address.replace("localhost", "127.0.0.1")
    )
    assert guard.claim(["a"], "tcp://localhost:1") == ["a"]


def test_a_large_argument_and_a_large_result_travel_without_a_warning(make: Make, recwarn: Any) -> None:
    engine, sink = make(_same)
    data = os.urandom(12_000_000)
    engine.submit((data,), {})
    finish(engine)
    assert sink.outcomes() == {1: Returned(data)}
    assert not [warning for warning in recwarn if "large" in str(warning.message)]


def _same(value: Any) -> Any:
    return value


# Cancelling


def test_what_waits_is_cancelled_and_what_runs_is_not(make: Make, gate: NewGate) -> None:
    engine, sink = make(tasks.hold, processes=1, threads=1)
    held = gate()
    engine.submit((held.path, "ran"), {})
    held.wait_for_task()
    waiting = [engine.submit((os.devnull,), {}) for _ in range(3)]
    assert engine.cancel(waiting[0], PATIENCE)
    assert not engine.cancel(TaskId(1), 0.3)
    engine.cancel_all()
    held.open()
    finish(engine)
    outcomes = sink.outcomes()
    assert outcomes[TaskId(1)] == Returned("ran")
    errors = [outcomes[task].error for task in waiting]  # type: ignore[union-attr]
    assert [type(error) for error in errors] == [TaskCancelled] * 3
    assert engine.unfinished() == []
    assert not engine.cancel(waiting[0], 1.0)


def test_what_waits_on_a_machine_is_cancelled_there(
    make: Make, gate: NewGate, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Pace, "room", lambda self, machines, parcels, tasks: 6 - tasks)
    engine, sink = make(_hold_or_same, processes=1, threads=1)
    held = gate()
    first = engine.submit((held.path,), {})
    held.wait_for_task()
    behind = [engine.submit((number,), {}) for number in range(5)]
    until(lambda: sum(client.run(_tasks_there).values()) == 4)  # as many as Dask has threads; two are with Dask
    cancelled = [task for task in behind if engine.cancel(task, PATIENCE)]
    held.open()
    finish(engine)
    outcomes = sink.outcomes()
    assert len(outcomes) == 6
    assert cancelled == behind
    assert all(isinstance(outcomes[task], Cancelled) for task in cancelled)
    assert outcomes[first] == Returned(held.path)
    assert refused_by_dask(caplog) == []


def test_what_is_cancelled_while_a_machine_claims_it_never_runs(make: Make, gate: NewGate, client: Client) -> None:
    engine, sink = make(_hold_or_same, processes=1, threads=1)
    claimed = gate()
    client.run(_hold_claims, claimed.path)
    try:
        task = engine.submit((1,), {})
        claimed.wait_for_task()
        answers: list[bool] = []
        canceller = threading.Thread(target=lambda: answers.append(engine.cancel(task, PATIENCE)))
        canceller.start()
        until(lambda: sum(client.run(_unwanted_there).values()) == 1)
        claimed.open()
        canceller.join(PATIENCE)
        accepted = sum(client.run(_accepted_there).values())
    finally:
        client.run(_hold_claims, None)
    finish(engine)
    assert answers == [True]
    assert accepted == 0  # a pool that had it might start it
    assert isinstance(sink.outcomes()[task], Cancelled)


def _hold_claims(path: str | None) -> None:
    """Have machines wait with what they have claimed."""

    async def claim(machine: Machine, key: str) -> bool:
        granted = await claim_at_once(machine, key)
        await asyncio.to_thread(tasks.hold, path)
        return granted

    claim_at_once = getattr(Machine._claim, "claim_at_once", Machine._claim)
    claim.claim_at_once = claim_at_once  # type: ignore[attr-defined]
    Machine._claim = claim if path else claim_at_once  # type: ignore[method-assign]


def _unwanted_there(dask_worker: Any) -> int:
    return sum(len(plugin._unwanted) for plugin in dask_worker.plugins.values() if isinstance(plugin, Machine))


def _accepted_there(dask_worker: Any) -> int:
    pools = [plugin._pool for plugin in dask_worker.plugins.values() if isinstance(plugin, Machine)]
    return sum(pool.stats().submitted for pool in pools)


def test_at_a_stop_machines_are_told_to_kill_what_runs(
    make: Make, gate: NewGate, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    engine, sink = make(tasks.hold, processes=1, threads=1)
    held = gate()
    task = engine.submit((held.path,), {})
    held.wait_for_task()
    engine.stop(0.0)
    assert engine.wait_stopped(PATIENCE)
    outcome = sink.outcomes()[task]
    assert isinstance(outcome, Cancelled)
    assert outcome.error.started
    assert refused_by_dask(caplog) == []


def test_a_machine_that_is_slow_to_end_leaves_nothing_on_the_scheduler(
    make: Make, gate: NewGate, client: Client
) -> None:
    engine, _ = make(_same)
    engine.submit((1,), {})
    assert engine.wait_queued(PATIENCE)
    ends = gate()
    client.run(_hold_teardown, ends.path)
    try:
        engine.stop(0.0)
        assert engine.wait_stopped(PATIENCE)
        assert pools_on_scheduler(client) != []
        ends.open()
        until(lambda: pools_on_scheduler(client) == [])
    finally:
        client.run(_hold_teardown, None)


def _hold_teardown(path: str | None) -> None:
    """Have machines wait before they end their pools."""

    async def teardown(machine: Machine, worker: Any) -> None:
        await asyncio.to_thread(tasks.hold, path)
        await teardown_at_once(machine, worker)

    teardown_at_once = getattr(Machine.teardown, "teardown_at_once", Machine.teardown)
    teardown.teardown_at_once = teardown_at_once  # type: ignore[attr-defined]
    Machine.teardown = teardown if path else teardown_at_once  # type: ignore[method-assign]


def pools_on_scheduler(client: Client) -> list[str]:
    return [name for name in client.run_on_scheduler(_plugins_of_scheduler) if name.startswith("mpms")]


def refused_by_dask(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What machines were asked to run, and Dask has not taken."""
    return [text for text in caplog.messages if text.startswith("broadcast to") and " failed" in text]


def _hold_or_same(value: Any) -> Any:
    if isinstance(value, str):
        tasks.hold(value)
    return value


def test_priorities_count(
    make: Make, gate: NewGate, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "learn", lambda self, tasks, seconds: None)  # one task at a time is with Dask
    engine, _ = make(_call, processes=1, threads=1)
    held = gate()
    engine.submit((tasks.hold, held.path), {})
    held.wait_for_task()
    path = str(tmp_path / "notes")
    for number in range(4):
        engine.submit((tasks.note, path, str(number)), {}, TaskOptions(priority=number))
    assert isinstance(engine, ClusterEngine)
    until(lambda: sum(client.run(_tasks_there).values()) + engine._courier.waiting == 5)  # none is on its way
    held.open()
    finish(engine)
    assert Path(path).read_text().split() == ["3", "2", "1", "0"]


def _tasks_there(dask_worker: Any) -> int:
    return sum(len(plugin._tasks) for plugin in dask_worker.plugins.values() if isinstance(plugin, Machine))


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def test_stop_on_counts_the_failures_of_all_machines(make: Make) -> None:
    engine, sink = make(tasks.raise_picky, start=False, processes=1, threads=1, stop_on=3)
    for number in range(100):
        engine.submit((str(number),), {})
    engine.start()  # now: after three failures it accepts no more
    assert engine.wait_stopped(PATIENCE)  # without a close
    outcomes = sink.outcomes().values()
    assert len(outcomes) == 100
    assert 3 <= sum(isinstance(outcome, Raised) for outcome in outcomes) < 100
    assert engine.unfinished()


# Quick tasks


@pytest.mark.alone  # two times are compared, and each of them has its own neighbours
def test_quick_tasks_go_in_parcels_and_are_no_slower_than_those_of_the_client_itself(
    make: Make, client: Client
) -> None:
    number = 1500
    began = time.monotonic()
    client.gather(client.map(_same, range(number), pure=False))
    theirs = time.monotonic() - began
    engine, sink = make(_same)
    engine.submit((0,), {})
    assert engine.wait_queued(PATIENCE)
    began = time.monotonic()
    for each in range(number):
        engine.submit((each,), {})
    finish(engine)
    ours = time.monotonic() - began
    assert len(sink.outcomes()) == number + 1
    assert ours < theirs


def test_a_slow_task_does_not_hold_up_the_outcomes_of_its_parcel(make: Make, gate: NewGate) -> None:
    engine, sink = make(_hold_or_same, processes=1, threads=2)
    for number in range(300):
        engine.submit((number,), {})
    held = gate()
    slow = engine.submit((held.path,), {})
    for number in range(300):
        engine.submit((number,), {})
    assert engine.wait_queued(PATIENCE)
    until = time.monotonic() + PATIENCE
    while len(engine.pending()) > 1 and time.monotonic() < until:
        engine.wait_stopped(0.01)
    assert list(engine.pending()) == [slow]
    held.open()
    finish(engine)
    assert len(sink.outcomes()) == 601


def test_slow_tasks_in_each_of_some_parcels_do_not_keep_the_others_from_going(
    make: Make, gate: NewGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "learn", lambda self, tasks, seconds: setattr(self, "size", 10))
    engine, sink = make(_hold_or_same, processes=1, threads=4)
    for number in range(300):
        engine.submit((number,), {})
    held, slow = [gate() for _ in range(3)], []
    for each in held:
        slow.append(engine.submit((each.path,), {}))
        for number in range(300):
            engine.submit((number,), {})
    until(lambda: list(engine.pending()) == slow)
    for each in held:
        each.open()
    finish(engine)
    assert len(sink.outcomes()) == 1203


# Several pools, and clusters of its own


def test_several_pools_share_a_cluster(make: Make, client: Client) -> None:
    engines = [make(_same, name=f"pool{number}", processes=1, threads=1) for number in range(3)]
    for engine, _ in engines:
        for number in range(20):
            engine.submit((number,), {})
    for engine, sink in engines:
        finish(engine)
        assert sink.outcomes() == {number + 1: Returned(number) for number in range(20)}
    assert [name for plugins in client.run(_plugins).values() for name in plugins if name.startswith("mpms")] == []
    assert pools_on_scheduler(client) == []


def _plugins(dask_worker: Any) -> list[str]:
    return list(dask_worker.plugins)


def _plugins_of_scheduler(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.plugins)


def test_an_address_is_enough(client: Client) -> None:
    address = client.scheduler.address.replace("tcp://", "dask://")
    with MPMS(tasks.pid, processes=1, engine=address) as pool:
        pool.put()
    assert [type(result) for _, result in pool.iter_results()] == [int]
    assert client.status == "running"


def test_the_demo_runs_on_a_cluster(client: Client, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"m{number}.py").write_text("def f(): pass\n")
    address = client.scheduler.address.replace("tcp://", "dask://")
    command = [
        sys.executable,
        "-m",
        "mpms",
        "demo",
        "-p",
        "2",
        "-t",
        "2",
        "--engine",
        address,
        "--paths",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^functions +20$", done.stdout, re.MULTILINE)


def test_a_cluster_is_made_for_trying_it() -> None:
    with DaskEngine.local(machines=2) as dask:
        for _ in range(2):  # pools, one after the other
            with Executor(1, threads=2, engine=dask) as executor:
                machines = {future.result(PATIENCE) for future in [executor.submit(_where_slowly) for _ in range(20)]}
                assert len(machines) == 2
    dask.close()


def _where_slowly() -> str:
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        pass
    return tasks.where()


# What is refused


@pytest.mark.parametrize(
    ("options", "capability"),
    [
        ({"start_method": "fork"}, Capability.FORK),
        ({"max_rate": 5}, Capability.RATE),
        ({"forward_logs": True}, Capability.LOGS),
    ],
    ids=lambda value: value.name if isinstance(value, Capability) else "",
)
def test_what_cannot_be_done_is_refused_by_name(
    client: Client, options: dict[str, Any], capability: Capability
) -> None:
    [name] = options
    with pytest.raises(ValueError, match=rf"^{name}=.* can't be had on Dask \({capability.name}\)"):
        MPMS(_same, engine=DaskEngine(client), **options)


def test_what_cannot_be_sent_is_refused_at_the_start(make: Make) -> None:
    import threading

    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"can't be sent to another machine: TypeError: cannot pickle"):
        make(lambda: lock)


def test_resizing_is_left_to_the_cluster(make: Make) -> None:
    engine, _ = make(_same)
    with pytest.raises(RuntimeError, match="cluster"):
        engine.resize(3)


@pytest.mark.parametrize(
    ("engine", "error"), [("dask://", ValueError), ("ray://host", ValueError), ("", ValueError), (3, TypeError)]
)
def test_an_engine_that_is_none_is_refused(engine: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="engine must be"):
        MPMS(_same, engine=engine)


def test_a_wrong_client_is_refused() -> None:
    with pytest.raises(TypeError, match="client must be"):
        DaskEngine(3)  # type: ignore[arg-type]


def test_a_scheduler_that_is_not_there_raises_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}):
        pool = MPMS(_same, engine="dask://127.0.0.1:9")
        with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
            pool.put(1)


def test_machines_that_cannot_load_the_function_break_the_pool(make: Make) -> None:
    engine, sink = make(_NotThere(), start=False, max_start_failures=1)
    engine.submit((), {})
    engine.start()  # now: broken, it accepts none
    assert engine.wait_stopped(PATIENCE)
    assert isinstance(engine.broken, PoolBroken)
    assert "no_such_module" in str(engine.broken)
    assert len(sink.outcomes()) == 1


class _NotThere:
    """Can be loaded here only."""

    def __call__(self) -> None: ...

    def __reduce__(self) -> Any:
        return __import__, ("no_such_module",)


def test_a_worker_process_that_somebody_kills_is_replaced(make: Make, gate: NewGate) -> None:
    engine, sink = make(_call, processes=1, threads=1)
    engine.submit((tasks.pid,), {})
    held = gate()
    engine.submit((tasks.hold, held.path), {})
    held.wait_for_task()
    until(lambda: sink.delivered)
    [first] = [outcome.value for outcome in sink.outcomes().values() if isinstance(outcome, Returned)]
    os.kill(first, signal.SIGKILL)
    engine.submit((tasks.pid,), {})
    finish(engine)
    outcomes = sink.outcomes()
    assert isinstance(outcomes[TaskId(2)], Crashed)
    assert isinstance(outcomes[TaskId(3)], Returned)
