"""What is interrupted while it starts, or fails then: nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from mpms import MPMS, Executor
from mpms.local import exits
from mpms.local.delivery import Delivery
from mpms.local.engine import LocalEngine
from mpms.local.launcher import Launcher
from mpms.local.loop import Loop
from mpms.local.reports import Reporter
from mpms.local.wakeup import WakeUp

from ..striking import Struck
from .helpers import PATIENCE, program, results

STEPS = [
    (Launcher, "__init__"),
    (Launcher, "_open"),
    (Launcher, "open"),
    (Loop, "__init__"),
    (Delivery, "start"),
    (Reporter, "start"),
    (exits, "watch"),  # the last one
    (LocalEngine, "start"),
]

WAYS: list[Callable[[Any], None]] = [lambda pool: pool.start(), lambda pool: pool.put(1)]


def same(number: int) -> int:
    return number


class Step(NamedTuple):
    patch: pytest.MonkeyPatch
    is_harmless: bool  # it may be started again: it wasn't yet, or it was


@pytest.fixture(params=STEPS, ids=[f"{owner.__name__}.{name}" for owner, name in STEPS])
def step(request: pytest.FixtureRequest) -> Iterator[Step]:
    """An exception comes right after it."""
    owner, name = request.param
    real = getattr(owner, name)

    def struck(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise Struck

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, struck)
        yield Step(patch, owner in (Launcher, LocalEngine))


@pytest.mark.parametrize("way", WAYS, ids=["start", "put"])
def test_a_start_that_is_interrupted_leaves_nothing_and_says_so(
    any_method: Any, step: Step, way: Callable[[Any], None]
) -> None:
    pool = MPMS(same, processes=1, threads=2, start_method=any_method)
    with pytest.raises(Struck):
        way(pool)
    step.patch.undo()
    if step.is_harmless:
        pool.put(2)
        pool.close()
        assert results(pool) == {2: 2}
    else:
        with pytest.raises(RuntimeError, match="make a new one"):
            pool.put(2)
    pool.join()


def test_an_executor_whose_start_was_interrupted_leaves_nothing(method: Any, step: Step) -> None:
    executor = Executor(1, start_method=method)
    with pytest.raises(Struck):
        executor.submit(same, 1)
    step.patch.undo()
    if step.is_harmless:
        assert executor.submit(same, 2).result() == 2
    else:
        with pytest.raises(RuntimeError, match="make a new one"):
            executor.submit(same, 2)
    executor.shutdown()


def test_a_start_for_which_there_are_no_descriptors_leaves_nothing(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: WakeUp) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(WakeUp, "__init__", none_left)
    pool = MPMS(same, start_method=method)
    with pytest.raises(OSError, match="Too many open files"):
        pool.start()
    with pytest.raises(RuntimeError, match="make a new one"):
        pool.start()
    pool.join()


STRUCK_IN_A_FORK = """
    import psutil
    from functools import partial

    this, where = os.getpid(), sys.argv[1]

    def struck(*_: object) -> None:
        if this == {"parent": os.getpid(), "child": os.getppid()}[where]:  # and not in the workers
            raise KeyboardInterrupt

    signal.signal(signal.SIGUSR1, struck)
    with MPMS(abs, processes=1, threads=1, start_method="fork") as pool:
        pool.put(1)  # now all is imported that has hooks, written in Python, for what is forked
    strike = partial(getattr(ctypes.CDLL(None), "raise"), signal.SIGUSR1)  # heard when the interpreter goes on
    os.register_at_fork(**{f"after_in_{where}": strike})
    pool = MPMS(abs, processes=1, threads=1, start_method="fork")
    try:
        pool.start()
    except KeyboardInterrupt:
        say("interrupted")
    say(psutil.Process().children())
"""


@pytest.mark.parametrize(("where", "says"), [("parent", ["interrupted", "[]"]), ("child", [])])
def test_who_is_interrupted_in_the_fork_of_a_clone_is_not_two(where: str, says: list[str]) -> None:
    with program(STRUCK_IN_A_FORK, where) as running:
        code, out, err = running.ends(PATIENCE)
    assert (code, out.split("\n")[: len(says)]) == (0, says), err
    assert out.count("interrupted") == len(says) // 2
    assert out.count("[") == 1  # it came there once


STRUCK_IN_POPEN = """
    import psutil, subprocess
    from tests.local.helpers import until

    def struck(*_: object) -> None:
        raise KeyboardInterrupt

    def popen(*args, **options):
        process = real(*args, **options)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        return process

    signal.signal(signal.SIGUSR1, struck)
    real, subprocess.Popen = subprocess.Popen, popen
    pool = MPMS(abs, processes=1, threads=1, start_method=sys.argv[1])
    try:
        pool.start()
    except KeyboardInterrupt:
        say("interrupted")
    until(lambda: not psutil.Process().children())  # who is struck in ``join`` doesn't know when the thread has ended
"""


@pytest.mark.parametrize("spawning", ["forkserver", "spawn"])
def test_who_is_interrupted_when_the_fork_server_begins_leaves_no_process(spawning: str) -> None:
    with program(STRUCK_IN_POPEN, spawning) as running:
        code, out, err = running.ends(PATIENCE)
    assert (code, out) == (0, "interrupted\n"), err
