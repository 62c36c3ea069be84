"""How an ``Executor`` ends: by its methods, with its program, dropped; and where it may live."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from mpms import Executor, TaskCancelled, WorkerCrashed

from .helpers import PATIENCE, Stopwatch, kill, meeting, program, promised, still_alive, until
from .stage import Stage

# As users do it: in a process that has threads, of which Python warns, from 3.15 on so that the filters see it.
forks_with_threads = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def executor(method: Any) -> Iterator[Executor]:
    with Executor(2, threads=2, start_method=method) as one:
        yield one


@pytest.fixture
def single(method: Any) -> Iterator[Executor]:
    """One process, one thread."""
    with Executor(1, start_method=method) as one:
        yield one


def square(number: int) -> int:
    return number * number


def workers_of(executor: Executor) -> list[int]:
    return [worker.pid for worker in executor.workers() if worker.pid is not None]


# shutdown


def test_a_shutdown_waits_until_all_is_done_and_nothing_is_left(executor: Executor) -> None:
    futures, mapped = [executor.submit(square, number) for number in range(100)], executor.map(square, range(100))
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert executor.workers() == []
    assert [*mapped] == [future.result() for future in futures] == [*map(square, range(100))]
    executor.shutdown()  # again
    executor.shutdown(cancel_futures=True)


def test_a_shutdown_that_does_not_wait_returns_at_once_and_all_is_done(single: Executor, stage: Stage) -> None:
    held, waiting = single.submit(stage.say_and_wait, "held"), single.submit(square, 3)
    mapped = single.map(square, range(1000), chunksize=3)
    stage.hear()
    single.shutdown(wait=False)
    assert not held.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        single.submit(square, 3)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        single.map(square, [3])
    stage.open()
    assert held.result(PATIENCE) == "held"
    assert waiting.result(PATIENCE) == 9
    assert [*mapped] == [*map(square, range(1000))]


def test_a_shutdown_may_cancel_what_has_not_started(single: Executor, stage: Stage) -> None:
    held = single.submit(stage.say_and_wait, "held")
    stage.hear()
    waiting = [single.submit(stage.note, number) for number in range(20)]
    single.shutdown(wait=False, cancel_futures=True)
    done, _ = concurrent.futures.wait(waiting, PATIENCE)
    assert len(done) == 20
    assert all(future.cancelled() for future in waiting)
    assert not held.done()
    stage.open()
    assert held.result(PATIENCE) == "held"
    single.shutdown()
    assert stage.words() == []


@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
@pytest.mark.parametrize("buffersize", [None, 30])
def test_a_shutdown_that_cancels_ends_a_map_that_is_under_way(
    single: Executor, stage: Stage, chunksize: Any, buffersize: int | None
) -> None:
    def function(item: int) -> int:
        if item == 10:
            stage.say_and_wait()
        stage.note(item)
        return item

    values = single.map(function, range(1000), chunksize=chunksize, buffersize=buffersize)
    taking = threading.Thread(target=lambda: got.extend(take_all(values)))
    got: list[Any] = []
    taking.start()
    stage.hear()
    single.shutdown(wait=False, cancel_futures=True)
    until(lambda: (single.stats().running, single.stats().queued) == (1, 0))  # the others were called back
    done = single.stats().done
    stage.open()
    taking.join(PATIENCE)
    assert not taking.is_alive()
    *items, error = got
    assert items == [*range(len(items))]
    assert isinstance(error, concurrent.futures.CancelledError if buffersize is None else Exception)
    single.shutdown()
    assert single.stats().done == done + 1  # the chunk in hand, and no other
    assert len(stage.words()) < 1000


def take_all(values: Iterator[Any]) -> Iterator[Any]:
    """What comes, and the error that ends it."""
    try:
        yield from values
    except BaseException as error:
        yield error


def test_leaving_by_an_exception_waits_too(method: Any) -> None:
    futures: list[concurrent.futures.Future[int]] = []

    def leave() -> None:
        with Executor(1, start_method=method) as executor:
            futures.append(executor.submit(square, 3))
            raise LookupError

    with pytest.raises(LookupError):
        leave()
    assert [future.result(0) for future in futures] == [9]


def test_one_that_was_not_used_ends_without_having_started_anything() -> None:
    for end in (
        lambda one: one.shutdown(),
        lambda one: one.shutdown(wait=False, cancel_futures=True),
        lambda one: one.terminate_workers(),
        lambda one: one.kill_workers(),
    ):
        one = Executor(2)
        end(one)
        one.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            one.submit(square, 3)
        assert one.stats().starts == 0


def test_threads_may_submit_while_another_shuts_down(executor: Executor) -> None:
    results: list[int] = []
    begun = threading.Barrier(4)

    def submit() -> None:
        begun.wait()
        try:
            for number in itertools.count():
                results.append(executor.submit(square, number).result(PATIENCE) - number * number)
        except RuntimeError as error:
            assert "cannot schedule new futures after shutdown" in str(error)  # noqa: PT017

    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(submit) for _ in range(3)]
        begun.wait()
        until(lambda: len(results) > 20)
        executor.shutdown()
        for future in futures:
            future.result(PATIENCE)
    assert {*results} == {0}


# terminate_workers and kill_workers


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_workers_may_be_ended_with_what_they_run(executor: Executor, stage: Stage, how: str) -> None:
    running = [executor.submit(stage.say_and_wait) for _ in range(4)]
    stage.hear(4)
    waiting = [executor.submit(stage.note, number) for number in range(10)]
    mapped = executor.map(stage.note, range(10))
    # They may have worked before word of their birth is read.
    pids = until(lambda: len(pids := workers_of(executor)) == 2 and pids)
    with Stopwatch() as watch:
        getattr(executor, how)()
    assert watch.seconds < promised(1)
    assert still_alive(pids, PATIENCE) == []
    for future in running:
        assert isinstance(future.exception(PATIENCE), TaskCancelled | WorkerCrashed)
    concurrent.futures.wait(waiting, PATIENCE)
    for future in waiting:
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(0)
    with pytest.raises(concurrent.futures.CancelledError):
        next(mapped)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 3)
    getattr(executor, how)()  # again
    executor.shutdown()
    assert stage.words() == []


def test_a_worker_that_ignores_sigterm_is_killed(method: Any, stage: Stage) -> None:
    with Executor(1, start_method=method, initializer=signal.signal, initargs=(signal.SIGTERM, signal.SIG_IGN)) as one:
        running = one.submit(stage.say_and_wait)
        stage.hear()
        with Stopwatch() as watch:
            one.terminate_workers()
            assert isinstance(running.exception(PATIENCE), TaskCancelled)
            one.shutdown()
        assert 0.5 < watch.seconds < PATIENCE


def test_workers_that_have_ended_already_are_no_problem(executor: Executor) -> None:
    assert executor.submit(square, 3).result(PATIENCE) == 9
    for pid in workers_of(executor):
        os.kill(pid, signal.SIGKILL)
    executor.terminate_workers()
    executor.shutdown()


# The end of the program


def test_a_program_ends_when_all_that_was_submitted_is_done(method: str) -> None:
    with program(
        """
        from mpms import Executor
        executor = Executor(1, start_method=sys.argv[1])
        work = lambda number: say(f"did {number}")
        executor.submit(work, 0)
        executor.map(work, range(1, 4), chunksize=1)
        """,
        method,
    ) as script:
        code, out, err = script.ends(PATIENCE)
        assert (code, err) == (0, "")
        assert out.split("\n") == ["did 0", "did 1", "did 2", "did 3", ""]
        assert script.left_after(PATIENCE) == []


def test_a_program_may_end_in_the_middle_of_a_shutdown_that_does_not_wait(method: str) -> None:
    with program(
        """
        from mpms import Executor
        executor = Executor(1, start_method=sys.argv[1])
        future = executor.submit(lambda: say("did it"))
        future.add_done_callback(lambda future: say("called back"))
        executor.shutdown(wait=False)
        """,
        method,
    ) as script:
        assert script.ends(PATIENCE) == (0, "did it\ncalled back\n", "")


def test_at_the_end_of_the_program_nothing_more_is_accepted(method: str) -> None:
    with program(
        """
        import atexit
        @atexit.register
        def too_late():
            try:
                executor.submit(int)
            except RuntimeError as error:
                say(error)
        from mpms import Executor
        executor = Executor(1, start_method=sys.argv[1])
        say(executor.submit(int).result())
        """,
        method,
    ) as script:
        assert script.ends(PATIENCE) == (0, "0\ncannot schedule new futures after interpreter shutdown\n", "")


def test_at_the_end_of_a_program_workers_that_crash_are_replaced(method: str, stage: Stage) -> None:
    with program(
        """
        from mpms import Executor
        def work(path, number):
            with open(path, "a") as file:
                if not file.tell():
                    file.write("tried")
                    file.flush()
                    os._exit(3)
            return number
        executor = Executor(1, start_method=sys.argv[1], retries=1)
        for number in range(3):
            executor.submit(work, sys.argv[2], number).add_done_callback(lambda future: say(future.result()))
        """,
        method,
        f"{stage.path}/log",
    ) as script:
        code, out, _ = script.ends(PATIENCE)
        assert (code, sorted(out)) == (0, sorted("0\n1\n2\n"))


def test_a_program_that_is_killed_leaves_no_worker(method: str) -> None:
    with (
        meeting() as place,
        program(
            """
        from mpms import Executor
        executor = Executor(2, start_method=sys.argv[2])
        for _ in range(2):
            executor.submit(meet, sys.argv[1])
        signal.pause()
        """,
            place.address,
            method,
        ) as script,
    ):
        guests = place.arrivals(2)
        os.kill(script.pid, signal.SIGKILL)
        assert all(guest.is_gone(5) for guest in guests)
        assert script.left_after(5) == []


# Dropped


def test_one_that_is_dropped_does_what_was_submitted_and_ends(method: Any, stage: Stage) -> None:
    executor = Executor(1, start_method=method)
    futures = [executor.submit(stage.say_and_wait, "held"), executor.submit(square, 3)]
    mapped = executor.map(square, range(1000))
    stage.hear()
    pids, gone = workers_of(executor), weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    stage.open()
    assert [future.result(PATIENCE) for future in futures] == ["held", 9]
    assert [*mapped] == [*map(square, range(1000))]
    assert still_alive(pids, PATIENCE) == []
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("mpms-executor")])


# Where it may live


def test_a_future_of_what_did_not_pickle_keeps_no_executor(method: str) -> None:
    executor = Executor(1, start_method=method)
    future = executor.submit(abs, threading.Lock())  # type: ignore[arg-type]
    gone = weakref.ref(executor)
    del executor
    assert gone() is None
    with pytest.raises(TypeError, match="pickle"):
        future.result()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("mpms-executor")])


def with_an_executor(method: Any, count: int) -> int:
    with Executor(1, threads=2, start_method=method) as executor:
        return sum(executor.map(square, range(count))) + executor.submit(square, 0).result(PATIENCE)


def sum_of_squares(count: int) -> int:
    return sum(map(square, range(count)))


def test_tasks_may_have_executors_of_their_own(executor: Executor, method: Any) -> None:
    futures = [executor.submit(with_an_executor, method, count) for count in (10, 20, 30)]
    assert [future.result(60) for future in futures] == [sum_of_squares(count) for count in (10, 20, 30)]


def test_a_task_may_have_an_executor_that_it_does_not_shut_down(executor: Executor, method: Any) -> None:
    assert executor.submit(lambda: Executor(1, start_method=method).submit(square, 3).result(PATIENCE)).result(60) == 9


def test_several_executors_in_several_threads_do_not_disturb_each_other(method: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(with_an_executor, method, count) for count in (10, 20, 30)]
        assert [future.result(60) for future in futures] == [sum_of_squares(count) for count in (10, 20, 30)]


@forks_with_threads
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_daemonic_child_of_multiprocessing_may_have_one(method: Any, way: str) -> None:
    context = multiprocessing.get_context(way)
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(writer, method, 10), daemon=True)  # type: ignore[attr-defined]
    child.start()
    writer.close()
    with reader:
        assert reader.poll(60)
        assert reader.recv() == sum_of_squares(10)
    child.join(PATIENCE)
    child.close()


def _send(writer: Any, method: Any, count: int) -> None:
    writer.send(with_an_executor(method, count))
    writer.close()


@forks_with_threads
@pytest.mark.parametrize("started", [False, True])
def test_the_parent_goes_on_after_the_user_has_forked(executor: Executor, started: bool) -> None:
    if started:
        assert executor.submit(square, 2).result(PATIENCE) == 4
    pid = os.fork()
    if not pid:
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert executor.submit(square, 3).result(PATIENCE) == 9
    assert [*executor.map(square, range(10))] == [*map(square, range(10))]


def test_in_a_fork_of_the_users_a_started_one_refuses_and_its_end_harms_nobody(method: str) -> None:
    with program(
        """
        from mpms import Executor
        executor = Executor(1, start_method=sys.argv[1])
        say(executor.submit(int).result())
        if not os.fork():
            try:
                executor.submit(int, "1")
            except RuntimeError:
                say("refused")
            sys.exit(0)  # by the orderly way: all that is registered for the exit runs
        os.wait()
        say(executor.submit(int, "2").result())
        """,
        method,
        PYTHONWARNINGS="ignore::DeprecationWarning",  # that the program has threads: so it is meant here
    ) as script:
        assert script.ends(PATIENCE) == (0, "0\nrefused\n2\n", "")


def test_a_fork_of_the_users_in_the_middle_of_a_map_ends(method: str) -> None:
    with (
        meeting() as place,
        program(
            """
        from mpms import Executor
        with Executor(1, start_method=sys.argv[2]) as executor:
            values = executor.map(lambda item: meet(sys.argv[1], item), range(3))
            child = os.fork()
            if not child:
                sys.exit(7)  # by way of the shutdown, and of what is registered for the exit
            say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            say(list(values))
        """,
            place.address,
            method,
            PYTHONWARNINGS="ignore::DeprecationWarning",  # as above
        ) as script,
    ):
        script.says("7")
        for _ in range(3):
            place.arrive().release()
        assert script.ends(PATIENCE) == (0, "[0, 1, 2]\n", "")


def test_in_a_fork_of_the_users_one_that_was_not_started_can_be_used(method: str) -> None:
    with program(
        """
        from mpms import Executor
        executor = Executor(1, start_method=sys.argv[1])
        if not os.fork():
            say(executor.submit(int, "1").result(20))
            executor.shutdown()
            os._exit(0)
        os.wait()
        say(executor.submit(int, "2").result(20))
        """,
        method,
        PYTHONWARNINGS="ignore::DeprecationWarning",  # that the program has threads: so it is meant here
    ) as script:
        assert script.ends(PATIENCE) == (0, "1\n2\n", "")


# All of it at once


def test_whatever_dies_every_future_and_every_item_has_one_outcome(method: Any) -> None:
    over = threading.Event()

    def kill_some(executor: Executor) -> int:
        killed = 0
        while not over.wait(0.1):
            # Those that serve: a pool of which each worker dies while it comes up breaks.
            serving = [worker.pid for worker in executor.workers() if worker.phase == "serving" and worker.pid]
            for pid in serving[:1]:
                kill(pid)
                killed += 1
        return killed

    def work(number: int) -> int:
        threading.Event().wait(0.002)
        return number * number

    with Executor(2, threads=4, start_method=method, retries=50) as executor:
        executor.submit(square, 1).result(PATIENCE)
        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            killing = threads.submit(kill_some, executor)
            mapped = threads.submit(lambda: [*executor.map(work, range(1000))])
            bounded = threads.submit(lambda: [*executor.map(work, range(500), buffersize=40, chunksize=3)])
            futures = [executor.submit(work, number) for number in range(500)]
            cancelled = {number for number in range(0, 500, 7) if futures[number].cancel()}
            try:
                for number, future in enumerate(futures):
                    if number in cancelled:
                        assert future.cancelled()
                    else:
                        assert future.result(60) == number * number
                assert mapped.result(60) == [*map(square, range(1000))]
                assert bounded.result(60) == [*map(square, range(500))]
            finally:
                over.set()
            assert killing.result(PATIENCE) > 2
