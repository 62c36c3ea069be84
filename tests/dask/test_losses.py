"""Whatever is lost, each task has one outcome in bounded time, and none is silently run again."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from mpms import PoolBroken, TaskCancelled, WorkerCrashed
from mpms.config import PoolConfig
from mpms.dask import DaskEngine
from mpms.engine import Engine
from mpms.ids import TaskId
from mpms.outcome import Broken, Cancelled, Crashed, Outcome, Returned

from ..contract.conftest import PATIENCE, Gate, Recorder
from . import tasks
from .clusters import ROOT, Commands, Process, thorough

NewGate = Callable[[], Gate]


@pytest.fixture
def cluster() -> Iterator[Commands]:
    """Without a machine, at first. After the test no process is left."""
    before = set(psutil.Process().children(recursive=True))
    with Commands() as cluster:
        yield cluster
        below = set(psutil.Process().children(recursive=True)) - before
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []


@pytest.fixture
def gate(tmp_path: Path, cluster: Commands) -> Iterator[NewGate]:
    """As that of tests/contract. Tasks that still wait there end with the cluster."""
    gates: list[Gate] = []

    def new() -> Gate:
        gates.append(Gate(tmp_path / f"gate{len(gates)}"))
        return gates[-1]

    yield new
    for each in gates:
        if each._fd is not None:
            os.close(each._fd)


class Pool:
    """An engine with its sink, and a file in which tasks note their starts."""

    def __init__(self, where: Client | str, function: Callable[..., Any], notes: Path, **options: Any) -> None:
        machines_timeout = options.pop("machines_timeout", PATIENCE)
        config = PoolConfig(**{"processes": 1, "threads": 2, "name": "losses"} | options)
        self.sink = Recorder()
        self.notes = notes
        dask = DaskEngine(where, machines_timeout=machines_timeout)
        self.engine: Engine = dask(function, config, self.sink)
        self.engine.start()

    def started(self) -> Counter[str]:
        return Counter(self.notes.read_text().split() if self.notes.exists() else ())

    def outcomes(self) -> dict[TaskId, Outcome]:
        """Of all tasks, when they have them."""
        self.engine.close()
        assert self.engine.wait_stopped(PATIENCE)
        assert len(self.engine.pending()) == 0
        return self.sink.outcomes()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def new(where: Client | str, function: Callable[..., Any], **options: Any) -> Pool:
        made.append(Pool(where, function, tmp_path / "notes", **options))
        return made[-1]

    yield new
    for each in made:
        each.engine.stop(0.0)
        assert each.engine.wait_stopped(PATIENCE)


def dask_worker_of(machine: Process) -> psutil.Process:
    """The process below the nanny."""
    [worker] = [
        child for child in psutil.Process(machine.pid).children() if "resource_tracker" not in " ".join(child.cmdline())
    ]
    return worker


def is_lost(outcome: Outcome) -> bool:
    if not isinstance(outcome, Crashed):
        return False
    assert outcome.error.blamed is False
    assert "the machine" in str(outcome.error)
    return True


def test_a_dask_worker_that_is_killed_costs_what_it_had_started_and_nothing_else(
    cluster: Commands, pool: Callable[..., Pool], gate: NewGate, tmp_path: Path
) -> None:
    machine = cluster.add_machine(threads=2)
    one = pool(cluster.address, tasks.note_and_hold)
    gates = [gate() for _ in range(6)]
    for number, each in enumerate(gates):
        one.engine.submit((str(one.notes), str(number), each.path), {})
    for each in gates[:2]:
        each.wait_for_task()
    dask_worker_of(machine).kill()
    for each in gates[2:]:  # under the Dask worker that the nanny starts
        each.open()
    outcomes = one.outcomes()
    assert [is_lost(outcomes[TaskId(task)]) for task in range(1, 7)] == [True] * 2 + [False] * 4
    assert [outcomes[TaskId(task)] for task in range(3, 7)] == [Returned(str(number)) for number in range(2, 6)]
    assert one.started() == Counter(map(str, range(6)))
    error = outcomes[TaskId(1)].error  # type: ignore[union-attr]
    assert isinstance(error, WorkerCrashed)
    assert (error.task, error.exitcode) == (1, None)
    assert gates[0].path in error.arguments
    assert one.engine.stats().crashes["machine lost"] == 1


@thorough
def test_a_machine_that_is_killed_leaves_its_work_to_the_others(
    cluster: Commands, pool: Callable[..., Pool], gate: NewGate
) -> None:
    machines = [cluster.add_machine(threads=1) for _ in range(2)]
    one = pool(cluster.address, tasks.note_and_hold, threads=1)
    gates = [gate() for _ in range(6)]
    for number, each in enumerate(gates):
        one.engine.submit((str(one.notes), str(number), each.path), {})
    for each in gates[:2]:
        each.wait_for_task()
    machines[0].kill(signal.SIGKILL)
    dead = wait_for_death(*gates[:2])
    for each in gates:
        if each is not dead:
            each.open()
    outcomes = one.outcomes()
    assert Counter(is_lost(outcome) for outcome in outcomes.values()) == {True: 1, False: 5}
    assert one.started() == Counter(map(str, range(6)))


def wait_for_death(*gates: Gate) -> Gate:
    """Until one of the tasks at these gates is dead."""
    poll = select.poll()
    by_fd = {}
    for each in gates:
        assert each._fd is not None
        by_fd[each._fd] = each
        poll.register(each._fd, 0)  # errors only: nobody reads there any more
    [(fd, _), *_] = poll.poll(PATIENCE * 1000)
    os.close(fd)
    by_fd[fd]._fd = None
    return by_fd[fd]


def test_with_retries_what_was_lost_is_run_again(cluster: Commands, pool: Callable[..., Pool], gate: NewGate) -> None:
    machine = cluster.add_machine(threads=2)
    one = pool(cluster.address, tasks.note_and_hold, retries=1)
    held = gate()
    one.engine.submit((str(one.notes), "it", held.path), {})
    held.wait_for_task()
    dask_worker_of(machine).kill()
    wait_for_death(held)
    held.open()  # the second time
    assert one.outcomes() == {1: Returned("it")}
    assert one.started() == {"it": 2}
    assert one.engine.stats().retried == 1


@thorough
def test_a_machine_that_retires_is_not_waited_for_and_nothing_runs_twice(
    cluster: Commands, pool: Callable[..., Pool], gate: NewGate
) -> None:
    cluster.add_machine(threads=1)
    with Client(cluster.address, set_as_default=False) as client:
        one = pool(client, tasks.note_and_hold, threads=1)
        gates = [gate() for _ in range(3)]
        for number, each in enumerate(gates):
            one.engine.submit((str(one.notes), str(number), each.path), {})
        gates[0].wait_for_task()
        [address] = client.scheduler_info()["workers"]
        cluster.add_machine(threads=1)
        gates[1].wait_for_task()
        client.retire_workers([address])
        for each in gates[1:]:
            each.open()
        outcomes = one.outcomes()
        assert [is_lost(outcomes[TaskId(task)]) for task in (1, 2, 3)] == [True, False, False]
        assert one.started() == {"0": 1, "1": 1, "2": 1}


@thorough
def test_without_any_machine_the_pool_breaks_after_the_time_that_it_was_given(
    cluster: Commands, pool: Callable[..., Pool], gate: NewGate
) -> None:
    machine = cluster.add_machine("--no-nanny", threads=1)
    one = pool(cluster.address, tasks.note_and_hold, threads=1, machines_timeout=0.5)
    gates = [gate() for _ in range(3)]
    calls = [(str(one.notes), str(number), each.path) for number, each in enumerate(gates)]
    for args in calls:
        one.engine.submit(args, {})
    gates[0].wait_for_task()
    machine.kill(signal.SIGKILL)
    outcomes = one.outcomes()
    assert is_lost(outcomes[TaskId(1)])
    assert [type(outcomes[TaskId(task)]) for task in (2, 3)] == [Broken, Broken]
    assert "no machine for 0.5 s" in str(one.engine.broken)
    assert one.engine.unfinished() == [(args, {}) for args in calls[1:]]


@pytest.mark.parametrize("by", ["SIGKILL", pytest.param("SIGTERM", marks=thorough)])
def test_a_scheduler_that_is_gone_breaks_the_pool(
    cluster: Commands, pool: Callable[..., Pool], gate: NewGate, by: str
) -> None:
    cluster.add_machine(threads=1)
    one = pool(cluster.address, tasks.note_and_hold, threads=1)
    gates = [gate() for _ in range(3)]
    calls = [(str(one.notes), str(number), each.path) for number, each in enumerate(gates)]
    for args in calls:
        one.engine.submit(args, {})
    gates[0].wait_for_task()
    began = time.monotonic()
    cluster.scheduler.kill(signal.Signals[by])
    assert one.engine.wait_stopped(PATIENCE)  # without a close
    assert time.monotonic() - began < 20
    outcomes = one.outcomes()
    assert [type(outcome) for outcome in outcomes.values()] == [Broken] * 3
    assert f"lost the connection to the scheduler {cluster.address}" in str(one.engine.broken)
    assert one.engine.unfinished() == [(args, {}) for args in calls]
    with pytest.raises(PoolBroken):
        one.engine.submit(calls[0], {})


@thorough
def test_a_scheduler_that_is_gone_while_nothing_runs_is_noticed_at_the_next_task(
    cluster: Commands, pool: Callable[..., Pool]
) -> None:
    cluster.add_machine(threads=1)
    one = pool(cluster.address, tasks.pid, threads=1)
    one.engine.submit((), {})
    assert one.engine.wait_queued(PATIENCE)
    cluster.scheduler.kill(signal.SIGKILL)
    try:
        one.engine.submit((), {})
    except PoolBroken:
        pass
    one.outcomes()
    assert isinstance(one.engine.broken, PoolBroken)


def test_a_client_that_its_user_closes_breaks_the_pool(
    cluster: Commands, pool: Callable[..., Pool], gate: NewGate
) -> None:
    cluster.add_machine(threads=1)
    client = Client(cluster.address, set_as_default=False)
    one = pool(client, tasks.note_and_hold, threads=1)
    held = gate()
    one.engine.submit((str(one.notes), "it", held.path), {})
    held.wait_for_task()
    client.close()
    [outcome] = one.outcomes().values()
    assert isinstance(outcome, Broken)
    assert "lost the connection" in str(one.engine.broken)


def test_a_client_that_is_closed_while_nothing_runs_breaks_the_pool_too(
    cluster: Commands, pool: Callable[..., Pool]
) -> None:
    client = Client(cluster.address, set_as_default=False)
    one = pool(client, tasks.pid, threads=1)
    client.close()
    try:
        one.engine.submit((), {})
    except PoolBroken:
        pass
    one.outcomes()
    assert isinstance(one.engine.broken, PoolBroken)


def test_no_process_is_left_on_the_machines_when_the_client_is_killed(
    cluster: Commands, gate: NewGate, tmp_path: Path
) -> None:
    machine = cluster.add_machine(threads=1)
    held = gate()
    program = (
        "from mpms import MPMS\n"
        "from tests.dask import tasks\n"
        f"pool = MPMS(tasks.hold, processes=1, threads=1, engine={cluster.address.replace('tcp', 'dask')!r})\n"
        f"pool.put({held.path!r})\n"
        "pool.join()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as client:
        held.wait_for_task()
        below = dask_worker_of(machine).children(recursive=True)
        assert below
        client.kill()
    gone, alive = psutil.wait_procs(below, timeout=PATIENCE)
    assert (len(gone), alive) == (len(below), [])


def test_stop_cancels_within_half_a_second_though_a_machine_is_stopped(
    cluster: Commands, pool: Callable[..., Pool], gate: NewGate
) -> None:
    machine = cluster.add_machine(threads=1)
    one = pool(cluster.address, tasks.note_and_hold, threads=1)
    gates = [gate() for _ in range(2)]
    for number, each in enumerate(gates):
        one.engine.submit((str(one.notes), str(number), each.path), {})
    gates[0].wait_for_task()
    worker = dask_worker_of(machine)
    worker.suspend()
    try:
        one.engine.stop(0.0)
        settled = threading.Event()

        def look() -> None:
            while len(one.engine.pending()):
                one.engine.wait_stopped(0.01)
            settled.set()

        threading.Thread(target=look, daemon=True).start()
        assert settled.wait(5.0)  # 0.35 s, on a machine that isn't busy
        outcomes = one.sink.outcomes()
        assert all(isinstance(outcome, Cancelled) for outcome in outcomes.values())
        errors = [outcome.error for outcome in outcomes.values() if isinstance(outcome, Cancelled)]
        assert [(type(error), error.started) for error in errors] in (
            [(TaskCancelled, True), (TaskCancelled, False)],
            [(TaskCancelled, False), (TaskCancelled, True)],
        )
    finally:
        worker.resume()


@thorough
def test_kill_after_kill_each_task_starts_once_and_has_one_outcome(
    cluster: Commands, pool: Callable[..., Pool]
) -> None:
    machines = [cluster.add_machine(threads=2) for _ in range(2)]
    one = pool(cluster.address, tasks.note_and_work)
    number = 600
    for each in range(number):
        one.engine.submit((str(one.notes), each), {})
    for machine in (machines[0], machines[1], machines[0]):
        _wait_for_progress(one, 40)
        dask_worker_of(machine).kill()
    outcomes = one.outcomes()
    assert len(outcomes) == number
    started = one.started()
    assert set(started.values()) == {1}
    lost = {task for task, outcome in outcomes.items() if is_lost(outcome)}
    assert all(outcomes[task] == Returned(task - 1) for task in outcomes if task not in lost)
    assert set(map(int, started)) >= {task - 1 for task in outcomes if task not in lost}
    assert len(lost) < 200


@thorough
def test_nothing_runs_twice_where_dask_workers_have_a_lifetime(cluster: Commands, pool: Callable[..., Pool]) -> None:
    """Dask alone runs again what such a worker had begun."""
    for _ in range(2):
        cluster.add_machine("--lifetime", "4s", "--lifetime-stagger", "1s", "--lifetime-restart", threads=2)
    one = pool(cluster.address, tasks.note_and_nap)
    for number in range(60):
        one.engine.submit((str(one.notes), number), {})
    outcomes = one.outcomes()
    started = one.started()
    assert max(started.values()) == 1
    # What a machine had claimed and not begun when it left is lost with it, too.
    assert all(is_lost(outcomes[TaskId(number + 1)]) for number in range(60) if str(number) not in started)
    assert any(map(is_lost, outcomes.values()))
    others = {task: it for task, it in outcomes.items() if not is_lost(it) and it != Returned(task - 1)}
    assert others == {}


def _wait_for_progress(one: Pool, tasks: int) -> None:
    before = len(one.sink.delivered)
    until = time.monotonic() + PATIENCE
    while len(one.sink.delivered) < before + tasks:
        assert time.monotonic() < until
        one.engine.wait_queued(0.01)
