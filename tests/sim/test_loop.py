"""The loop meets one case at a time. Workers are numbered from 1; a task runs until the test says that it ends."""

from __future__ import annotations

import errno
import logging
import pickle
from collections.abc import Callable, Iterator

import pytest

from mpms.core.limits import Limits
from mpms.core.machine import Ended
from mpms.core.messages import AbandonedTask, Crash, LostCause, Timeout
from mpms.core.policy import DUMP_SECONDS
from mpms.ids import Seq, TaskId, WorkerId
from mpms.local.link import Link
from mpms.outcome import Crashed, TimedOut
from mpms.wire.messages import RESULTS, RETURNED

from .habits import NEVER, Habits
from .processes import Process
from .world import World, owned

NewPool = Callable[..., World]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mpms")  # so that every line is made, and read when a test fails


@pytest.fixture
def new_pool() -> Iterator[NewPool]:
    """One worker with one thread, if nothing else is asked for. After the test nothing of it is left."""
    before, worlds = owned(), list[World]()

    def new(habits: Habits | None = None, **limits: object) -> World:
        asked = Limits(**{"processes": 1, "threads": 1, **limits})  # type: ignore[arg-type]
        worlds.append(World(asked, habits))
        return worlds[-1]

    yield new
    for world in worlds:
        world.end()
        assert not world.sockets
        assert not world.alive()
    assert owned() == before


class Busy(Habits):
    """Tasks end by themselves."""

    def duration(self) -> float:
        return 0.002


class Narrow(Habits):
    """Little fits into a socket."""

    capacity = 100


def worker(world: World, number: int) -> Process:
    return world.processes[WorkerId(number)]


def up(world: World, tasks: int = 0, size: int = 0) -> World:
    """All workers serve, and have what they can have of so many tasks."""
    world.run(0.1)
    world.host.submit(tasks, size)
    world.run(0.001)
    return world


def end(world: World) -> None:
    world.host.close()
    world.run(30.0)
    assert isinstance(world.machine.mode, Ended)
    assert not world.loop.links


# The good


def test_an_idle_pool_waits_for_nothing(new_pool: NewPool) -> None:
    world = up(new_pool(Busy(), processes=2, threads=2, task_timeout=1.0, lifecycle_duration=9.0), 9)
    world.run()  # until there is nothing that it waits for
    assert len(world.host.results) == 9
    assert world.machine.next_deadline() is None
    end(world)


def test_what_did_not_fit_of_a_task_that_its_caller_sends_is_sent_when_there_is_room(new_pool: NewPool) -> None:
    class BusyAndNarrow(Busy, Narrow):
        pass

    world = up(new_pool(BusyAndNarrow()))
    world.after(0.01, lambda: world.host.submit(1, size=3 * Narrow.capacity))
    world.run()
    assert world.reached["an offer was taken"] == 1
    assert world.reached["partial write"]
    assert list(world.host.results) == [1]


class Brisk(Habits):
    """A task is over in no time, and so is all that it takes to send it and its result."""

    seconds = 0.00001

    def duration(self) -> float:
        return self.seconds

    def latency(self) -> float:
        return 0.00001


class Lone:
    """Tasks that are submitted when the one before is over, and the loop asleep."""

    def __init__(self, world: World, habits: Brisk) -> None:
        self._world = world
        self._habits = habits
        self._count = 0

    def __call__(self, seconds: float) -> list[float]:
        """When the core heard of something, counted from the submission, of one that takes so many seconds."""
        self._habits.seconds = seconds
        self._count += 1
        world, count, times = self._world, self._count, list[float]()
        began, decided = world.now + 0.00001, world.host.decided
        world.after(began - world.now, lambda: world.host.submit(1))
        world.host.decided = lambda: times.append(world.now - began)  # type: ignore[method-assign]
        assert world.run(5.0, until=lambda: len(world.host.results) == count)
        world.host.decided = decided  # type: ignore[method-assign]
        return times


def test_the_result_of_a_brisk_worker_is_looked_out_for(new_pool: NewPool) -> None:
    lone = Lone(world := up(new_pool(habits := Brisk())), habits)
    assert len(lone(0.00001)) == 2  # nothing was known of the worker, and the task was told at once
    assert [len(lone(0.00001)) for _ in range(3)] == [1, 1, 1]
    assert world.reached["something came while it was looked out for"] == 3


def test_a_result_is_looked_out_for_for_a_moment_only(new_pool: NewPool) -> None:
    """Then the core hears of the task, and so its deadlines hold."""
    lone = Lone(up(new_pool(habits := Brisk())), habits)
    lone(0.00001)
    told, over = lone(0.5)
    assert 0.00004 < told < 0.0001
    assert over > 0.5


@pytest.mark.parametrize("seconds", [0.001, 0.5])
def test_nothing_is_looked_out_for_after_a_task_that_took_longer(new_pool: NewPool, seconds: float) -> None:
    lone = Lone(world := up(new_pool(habits := Brisk())), habits)
    lone(0.00001)
    lone(seconds)
    before = world.reached["something came while it was looked out for"]
    assert len(lone(0.00001)) == 2
    assert world.reached["something came while it was looked out for"] == before
    assert len(lone(0.00001)) == 1  # as that one was short


def test_nothing_is_looked_out_for_of_a_worker_while_another_one_is_at_the_last_task(new_pool: NewPool) -> None:
    world = up(new_pool(habits := Brisk(), processes=2))
    for seconds in (1.0, 0.00001):
        habits.seconds = seconds
        world.after(0.00001, lambda: world.host.submit(1))
        world.run(0.0001)
    assert world.reached["an offer was taken"] == 2
    assert list(world.host.results) == [2]
    assert not world.reached["something came while it was looked out for"]


def test_an_order_that_comes_as_the_loop_falls_asleep_wakes_it(new_pool: NewPool) -> None:
    world = up(new_pool(Busy()))

    class LateCaller:
        calls = 0

        def __call__(self, *, tasks: bool) -> bool:
            self.calls += 1
            if self.calls == 1:
                world.host.submit(1)  # after it was asked, before it sleeps
                return False
            return asked(tasks=tasks)

    asked, world.host.has_orders = world.host.has_orders, LateCaller()  # type: ignore[method-assign]
    world.run(0.1)
    assert len(world.host.results) == 1


def test_tasks_behind_a_long_one_go_to_the_worker_that_is_idle(new_pool: NewPool) -> None:
    habits = Busy()
    world = up(new_pool(habits, processes=2), 0)
    habits.duration = lambda: 0.0001  # type: ignore[method-assign]
    world.host.submit(2000)
    world.run(0.03)
    habits.duration = lambda: None  # type: ignore[method-assign,assignment,return-value]
    world.run(0.01)
    assert len(worker(world, 1).running) == len(worker(world, 2).running) == 1
    habits.duration = lambda: 0.0001  # type: ignore[method-assign]
    (slow,) = worker(world, 1).running
    for seq in list(worker(world, 2).running):
        worker(world, 2).finish(seq)
    world.run(5.0)
    assert len(world.host.results) == 1999
    worker(world, 1).finish(slow)
    end(world)


def test_ready_after_retire_is_ignored(new_pool: NewPool) -> None:
    world = new_pool()
    world.run(until=lambda: bool(world.alive()))
    world.passes(0.004)  # its main thread is about to listen
    end(world)
    assert worker(world, 1).ready
    assert worker(world, 1).exitcode == 0
    assert world.reached["ready after it was retired"]


def test_a_result_that_does_not_fit_into_the_socket_arrives_in_parts(new_pool: NewPool) -> None:
    habits = Narrow()
    habits.result_size = lambda: 5000  # type: ignore[method-assign]
    world = up(new_pool(habits), 1)
    worker(world, 1).finish(Seq(1))
    world.run(1.0)
    assert world.host.results == {1: RETURNED}


# Ends of workers


def test_results_that_arrive_after_the_death_report_are_heard_before_the_tasks_are_judged(new_pool: NewPool) -> None:
    world = up(new_pool(threads=2), 2)
    worker(world, 1).finish(Seq(1))
    world.passes(0.01)
    worker(world, 1).kill()
    world.passes(0.01)  # the report waits to be read as well, and is read first
    world.run(0.001)
    assert world.host.results == {1: RETURNED}
    assert world.host.verdicts == {2: Crash(WorkerId(1), None, 1)}


def test_a_result_that_waits_in_a_stream_that_does_not_end_is_heard_too(new_pool: NewPool) -> None:
    habits = Habits()
    habits.heir = lambda: NEVER  # type: ignore[method-assign]
    world = up(new_pool(habits), 1)
    worker(world, 1).finish(Seq(1))
    world.passes(0.01)
    worker(world, 1).kill()
    world.passes(0.01)
    world.run(0.1)
    assert world.host.results == {1: RETURNED}
    assert worker(world, 2).ready


def test_a_torn_tail_is_no_error(new_pool: NewPool) -> None:
    world = up(new_pool(threads=2), 2)
    first = worker(world, 1)
    first.finish(Seq(1))
    world.run(0.01)
    first.doom = 20
    first.finish(Seq(2))
    world.run(0.01)
    assert world.reached["torn frame at death"]
    assert world.host.results == {1: RETURNED}
    assert world.host.verdicts == {2: Crash(WorkerId(1), None, 1)}


def test_what_had_not_started_is_run_by_the_replacement(new_pool: NewPool) -> None:
    world = up(new_pool(processes=1), 0)
    worker(world, 1).freeze()
    world.host.submit(1)
    world.run(0.01)
    worker(world, 1).kill()
    world.run(0.1)
    assert worker(world, 2).begun == {Seq(2)}
    assert not world.host.verdicts


def test_the_crash_is_blamed_on_the_task_that_did_it_and_has_its_stack(new_pool: NewPool) -> None:
    world = up(new_pool(threads=2), 2)
    worker(world, 1).die(-11, culprit=Seq(2))
    world.run(0.1)
    world.host.deliver()
    assert world.host.verdicts == {1: Crash(WorkerId(1), False, 1), 2: Crash(WorkerId(1), True, 1)}
    outcome = world.host.errors[TaskId(2)]
    assert isinstance(outcome, Crashed)
    assert "SIGSEGV" in str(outcome.error)
    assert 'File "task.py", line 7 in task' in outcome.error.stack
    assert outcome.error.blamed


def test_a_task_that_hangs_times_out_with_its_stack_and_its_worker_is_replaced(new_pool: NewPool) -> None:
    world = up(new_pool(task_timeout=1.0, grace=0.5), 1)
    world.run(2.0)
    world.host.deliver()
    assert world.host.verdicts == {1: Timeout(WorkerId(1), 1.0, 1)}
    outcome = world.host.errors[TaskId(1)]
    assert isinstance(outcome, TimedOut)
    assert "line 7 in task" in outcome.error.stack
    assert worker(world, 1).killed
    assert worker(world, 2).ready
    assert world.loop.crashes == {"timeout": 1}


def test_a_stopped_workers_socket_fills_up_and_nobody_else_waits(new_pool: NewPool) -> None:
    class Slow(Narrow):
        def duration(self) -> float:
            return 0.002

    world = up(new_pool(Slow(), processes=2))
    worker(world, 1).freeze()
    world.host.submit(10, size=300)
    world.run(1.0)
    assert world.reached["no room"]
    assert len(world.host.results) == 9
    worker(world, 1).thaw()
    world.run(1.0)
    assert len(world.host.results) == 10


def test_a_worker_that_has_read_its_fill_may_end_before_the_rest_is_written(new_pool: NewPool) -> None:
    habits = Narrow()
    habits.heir = lambda: NEVER  # type: ignore[method-assign]
    world = up(new_pool(habits))
    worker(world, 1).freeze()
    world.host.submit(1, size=300)
    world.run(0.1)
    worker(world, 1).thaw()
    world.passes(0.001)  # it has read: there is room for more
    worker(world, 1).kill()
    world.passes(0.001)  # in the same pass are heard: its death, and that its socket has room
    world.run(0.1)
    assert worker(world, 2).begun == {Seq(2)}


def test_what_is_unsent_to_a_worker_that_reads_no_more_is_dropped(new_pool: NewPool) -> None:
    world = up(new_pool(Narrow(), threads=2, task_timeout=1.0, grace=60.0))
    world.host.submit(1)
    world.run(0.5)
    worker(world, 1).freeze()
    world.host.submit(1, size=300)
    world.run(0.6)  # the first one is over its time: the worker retires as soon as it goes on
    worker(world, 1).thaw()
    world.run(DUMP_SECONDS)  # within which its stacks are to be written
    assert world.reached["broken pipe"]
    assert worker(world, 2).begun == {Seq(3)}
    assert worker(world, 1).gone  # nobody was left in it but the one that was late


def test_a_mute_worker_whose_stream_ended_without_a_death_is_killed_after_the_silence(new_pool: NewPool) -> None:
    world = up(new_pool(), 1)
    worker(world, 1).close_its_descriptors()
    world.run(0.9)
    assert not worker(world, 1).gone
    world.run(0.2)
    assert worker(world, 1).killed
    assert world.host.verdicts == {1: Crash(WorkerId(1), False, 1)}
    assert worker(world, 2).ready
    assert world.loop.crashes == {"link lost": 1}


def test_a_worker_whose_stream_ends_before_its_death_is_told_is_not_taken_for_mute(new_pool: NewPool) -> None:
    world = up(new_pool(), 1)
    assert world.server is not None
    world.server.frozen = True  # it reaps later
    worker(world, 1).kill()
    world.run(0.9)
    assert not world.host.verdicts
    world.server.frozen = False
    world.run(0.1)
    assert world.host.verdicts == {1: Crash(WorkerId(1), None, 1)}
    assert world.loop.crashes == {"SIGKILL": 1}


# The fork server


def test_a_kill_of_an_unborn_worker_while_the_server_loads_kills_the_server(new_pool: NewPool) -> None:
    habits = Habits()
    habits.load_fate = lambda: "hangs"  # type: ignore[method-assign]
    world = new_pool(habits, start_timeout=2.0)
    first = world.server
    world.host.submit(1)
    world.run(1.9)
    habits.load_fate = lambda: "ready"  # type: ignore[method-assign]
    assert first is world.server
    world.run(1.0)
    assert world.server is not first
    assert world.reached["fork server killed while it loads"] == 1
    assert worker(world, 2).begun == {Seq(1)}


def test_a_fork_server_that_hangs_whenever_it_loads_breaks_the_pool(new_pool: NewPool) -> None:
    habits = Habits()
    habits.load_fate = lambda: "hangs"  # type: ignore[method-assign]
    world = new_pool(habits, start_timeout=2.0, max_start_failures=3)
    world.host.submit(1)
    world.run(20.0)
    assert world.loop.stopped
    assert world.host.verdicts == {1: LostCause()}


def test_what_can_not_be_loaded_breaks_the_pool_with_the_cause(new_pool: NewPool) -> None:
    habits = Habits()
    habits.load_fate = lambda: "fails"  # type: ignore[method-assign]
    world = new_pool(habits)
    world.host.submit(2)
    world.run(5.0)
    assert world.loop.stopped
    assert world.host.verdicts == {1: LostCause(), 2: LostCause()}
    assert world.host.broken is not None
    assert isinstance(world.host.broken.__cause__, ImportError)


def test_initializers_that_fail_break_the_pool_with_the_cause(new_pool: NewPool) -> None:
    habits = Habits()
    habits.fate = lambda: "fails"  # type: ignore[method-assign]
    world = new_pool(habits, max_start_failures=2)
    world.host.submit(1)
    world.run(5.0)
    assert world.loop.stopped
    assert world.host.broken is not None
    assert isinstance(world.host.broken.__cause__, ValueError)
    assert world.loop.crashes == {"exit 1": 2}


def test_a_fork_that_fails_is_tried_again(new_pool: NewPool) -> None:
    habits = Habits()
    habits.fate = lambda: "unborn"  # type: ignore[method-assign]
    world = new_pool(habits)
    world.run(0.05)
    habits.fate = lambda: "ready"  # type: ignore[method-assign]
    world.run(1.0)
    assert worker(world, 1).pid is None
    assert worker(world, 2).ready


def test_when_the_fork_server_is_lost_its_workers_count_as_crashed_when_their_streams_have_ended(
    new_pool: NewPool,
) -> None:
    habits = Habits()
    world = up(new_pool(habits), 1)
    habits.heir = lambda: 0.5  # type: ignore[method-assign]
    assert world.server is not None
    world.server.dies()
    world.run(0.4)
    assert worker(world, 1).gone
    assert not world.host.verdicts
    world.run(0.3)
    assert world.host.verdicts == {1: Crash(WorkerId(1), None, 1)}
    assert worker(world, 2).ready


def test_a_stream_that_does_not_end_after_the_fork_server_is_waited_for_no_longer_than_a_second(
    new_pool: NewPool,
) -> None:
    habits = Habits()
    world = up(new_pool(habits), 1)
    habits.heir = lambda: NEVER  # type: ignore[method-assign]
    assert world.server is not None
    world.server.dies()
    world.run(1.1)
    assert world.host.verdicts == {1: Crash(WorkerId(1), None, 1)}


def test_a_mute_worker_does_not_outlive_the_fork_server(new_pool: NewPool) -> None:
    habits = Habits()
    world = up(new_pool(habits), 1)
    worker(world, 1).close_its_descriptors()
    world.run(0.1)
    habits.latency = lambda: 9.0  # type: ignore[method-assign]  # the kernel doesn't kill it: not every one does
    assert world.server is not None
    world.server.dies()
    world.run(0.1)
    assert worker(world, 1).killed
    assert world.host.verdicts == {1: Crash(WorkerId(1), None, 1)}


def test_a_worker_whose_birth_was_not_told_when_the_fork_server_was_lost_is_waited_for(new_pool: NewPool) -> None:
    habits = Habits()
    world = new_pool(habits)
    while not world.alive():
        world.run(0.00002)
    assert world.server is not None
    world.server.frozen = True  # before it tells
    world.run(0.1)
    first = worker(world, 1)
    first.freeze()
    world.host.submit(1)
    world.run(0.1)
    assert world.loop.links[first.id].pid is None
    habits.latency = lambda: 0.01  # type: ignore[method-assign]
    world.server.dies()
    habits.latency = lambda: 0.0001  # type: ignore[method-assign]
    world.step()
    first.thaw()  # it lives a moment longer, and begins the task
    world.run(0.1)
    assert world.host.verdicts == {1: Crash(WorkerId(1), None, 1)}
    assert worker(world, 2).ready


def test_workers_of_a_lost_fork_server_need_no_other_kill(new_pool: NewPool) -> None:
    habits = Habits()
    world = up(new_pool(habits, task_timeout=1.0), 1)
    world.run(0.9)
    habits.heir = lambda: 0.9  # type: ignore[method-assign]
    assert world.server is not None
    world.server.dies()
    world.run(0.2)  # its time is over meanwhile: its stacks are asked for
    world.host.stop(0.1)  # and then it is to be killed
    world.run(2.0)
    assert world.loop.stopped
    assert set(world.host.verdicts) == {1}


def test_a_kill_of_a_worker_of_the_lost_server_does_not_end_the_new_one_that_loads(new_pool: NewPool) -> None:
    habits = Habits()
    world = up(new_pool(habits, processes=2, task_timeout=0.2, grace=0.05), 2)
    assert world.server is not None
    habits.heir = iter([0.0, 0.9]).__next__  # type: ignore[method-assign]
    habits.load = lambda: 60.0  # type: ignore[method-assign]
    world.server.dies()
    world.run(0.1)
    assert set(world.loop.links) == {2, 3}
    second = world.server
    world.run(0.4)
    assert world.host.verdicts == {1: Crash(WorkerId(1), None, 1), 2: Timeout(WorkerId(2), 0.2, 1)}
    assert second is world.server
    assert not world.reached["fork server killed while it loads"]
    habits.heir = Habits().heir  # type: ignore[method-assign]


# The end


def test_a_stop_cancels_what_runs_and_what_waits(new_pool: NewPool) -> None:
    world = up(new_pool(), 2)
    world.host.stop(0.5)
    world.run(0.4)
    assert not world.host.verdicts
    world.run(0.2)
    assert world.host.verdicts == {1: AbandonedTask(started=True), 2: AbandonedTask(started=False)}
    assert world.loop.stopped


def test_a_stop_does_not_wait_for_a_fork_server_that_was_stopped(new_pool: NewPool) -> None:
    world = up(new_pool(), 1)
    assert world.server is not None
    world.server.frozen = True
    world.host.stop(0.0)
    world.run(0.5)
    assert world.loop.stopped
    assert world.host.verdicts == {1: AbandonedTask(started=True)}


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x80\x05cos\nsystem\n.",
        pickle.dumps(5),
        pickle.dumps(((1, 2), (RETURNED, RETURNED), (b"",))),
        pickle.dumps((([1],), (RETURNED,), (b"",))),
        pickle.dumps(((1,), "R", (b"",))),
    ],
)
def test_a_worker_that_sends_nonsense_is_killed_and_costs_nobody_else(new_pool: NewPool, nonsense: bytes) -> None:
    world = up(new_pool(processes=2), tasks=2)
    mad, sane = worker(world, 1), worker(world, 2)
    mad.say(RESULTS, 1, nonsense)
    world.run(2.0)
    assert mad.gone
    assert sane.lives
    assert [process.id for process in world.alive()] == [2, 3]
    assert [type(verdict) for verdict in world.host.verdicts.values()] == [Crash]
    for process in world.alive():
        for seq in list(process.running):
            process.finish(seq)
    end(world)


def test_a_worker_that_was_killed_and_does_not_end_costs_nobody_else(new_pool: NewPool) -> None:
    world = up(new_pool(processes=2), tasks=2)
    stuck, other = worker(world, 1), worker(world, 2)
    stuck.stuck = True
    stuck.say(RESULTS, 1, b"nonsense")
    world.run(15.0)
    assert [type(verdict) for verdict in world.host.verdicts.values()] == [Crash]
    assert list(world.loop.links) == [2, 3]
    assert other.running
    stuck.come_back()  # to its end, of which the fork server tells then
    world.run(1.0)
    assert [process.id for process in world.alive()] == [2, 3]
    for seq in list(other.running):
        other.finish(seq)
    end(world)
    assert len(world.host.results) == 1


def test_workers_of_a_fork_server_that_was_stopped_are_replaced_with_it(new_pool: NewPool) -> None:
    """It reaps nobody and tells of no death: that is no worker which does not end, though its stream goes on."""
    habits = Habits()
    habits.heir = lambda: NEVER  # type: ignore[method-assign]
    world = up(new_pool(habits, processes=2), tasks=2)
    assert world.server is not None
    world.server.frozen = True
    worker(world, 1).say(RESULTS, 1, b"nonsense")
    world.run(15.0)
    assert [type(verdict) for verdict in world.host.verdicts.values()] == [Crash, Crash]
    assert [process.id for process in world.alive()] == [4, 5]  # 3 was asked for in vain
    end(world)


def test_a_worker_for_which_nothing_is_left_is_started_later(new_pool: NewPool) -> None:
    world = up(new_pool(processes=2, max_start_failures=1), tasks=2)
    before, errors = world.launcher.start, [OSError(errno.EMFILE, "no descriptor"), OSError(errno.ENOMEM, "no memory")]

    def start(worker: WorkerId, name: str) -> Link:
        if errors:
            raise errors.pop()
        return before(worker, name)

    world.launcher.start = start  # type: ignore[method-assign]
    worker(world, 1).die(-9)
    world.run(1.0)
    assert [process.id for process in world.alive()] == [2, 5]
    for process in world.alive():
        for seq in list(process.running):
            process.finish(seq)
    end(world)
    assert len(world.host.results) == 1


def test_who_runs_alone_when_the_fork_server_ends_is_not_blamed(new_pool: NewPool) -> None:
    world = up(new_pool(retries=1), 1)
    worker(world, 1).die(-9)
    assert world.run(10.0, until=lambda: len(world.attempts[TaskId(1)]) == 2)  # as a suspect
    assert world.server is not None
    world.server.dies()
    assert world.run(10.0, until=lambda: TaskId(1) in world.host.verdicts)
    verdict = world.host.verdicts[TaskId(1)]
    assert isinstance(verdict, Crash)
    assert (verdict.blamed, verdict.attempts) == (None, 2)
    end(world)
