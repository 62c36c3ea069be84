"""Every engine, behind one factory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from mpms.config import PoolConfig
from mpms.engine import Delivered, Engine
from mpms.ids import TaskId
from mpms.local.engine import LocalEngine
from mpms.outcome import Outcome, Returned
from mpms.testing import InlineEngine

from ..local.conftest import nothing_is_left

__all__ = ["nothing_is_left"]

ENGINES = ("inline", "forkserver", "fork", "spawn")

# What an engine can't do by its design. A test that asks for it says what it expects instead.
CANT: dict[str, set[str]] = {
    "inline": {
        "kill",  # a task that runs goes on after the deadline of a stop; its outcome is the same
        "parallel",  # tasks run one after the other
        "handles",  # there is no process to show
        "ship",  # functions are called as they are, and as they are then
    },
    "forkserver": set(),
    "fork": set(),
    "spawn": set(),
}

PATIENCE = 60.0
"""Seconds that a test waits for what must come; a busy machine takes some."""


class Recorder:
    """A sink that remembers. ``then`` is called with each batch, on the delivery thread."""

    def __init__(self, then: Callable[[Sequence[Delivered]], None] | None = None) -> None:
        self.delivered: list[Delivered] = []
        self.threads: set[int] = set()
        self.ends = 0
        self._then = then

    def deliver(self, outcomes: Iterable[Delivered]) -> None:
        assert not self.ends
        self.threads.add(threading.get_ident())
        batch = list(outcomes)
        self.delivered += batch
        if self._then is not None:
            self._then(batch)

    def end(self) -> None:
        self.threads.add(threading.get_ident())
        self.ends += 1

    def outcomes(self) -> dict[TaskId, Outcome]:
        """By task; fails if one has two."""
        ids = [task for task, *_ in self.delivered]
        assert len(ids) == len(set(ids))
        return {task: failure or Returned(value) for task, _, _, value, failure in self.delivered}


class Slip:
    """A ticket that remembers. ``then`` is called with the outcome, on the delivery thread."""

    def __init__(self, then: Callable[[Outcome], None] | None = None) -> None:
        self.outcomes: list[Outcome] = []
        self.thread: int | None = None
        self._came = threading.Event()
        self._then = then

    def settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.thread = threading.get_ident()
        self._came.set()
        if self._then is not None:
            self._then(outcome)

    def outcome(self) -> Outcome:
        """The one that it has got; waits."""
        assert self._came.wait(PATIENCE), "no outcome came"
        [only] = self.outcomes
        return only


class Make(Protocol):
    """Makes an engine that is started, with its sink. It is stopped after the test, if the test hasn't."""

    name: str

    def __call__(
        self,
        function: Callable[..., Any] | None,
        *,
        sink: Recorder | None = None,
        start: bool = True,
        **options: Any,
    ) -> tuple[Engine, Recorder]: ...

    def can(self, what: str) -> bool: ...

    def for_mpms(self) -> dict[str, Any]: ...


class NewEngines:
    def __init__(self, name: str) -> None:
        self.name = name
        self._engines: list[Engine] = []

    def __call__(
        self,
        function: Callable[..., Any] | None,
        *,
        sink: Recorder | None = None,
        start: bool = True,
        **options: Any,
    ) -> tuple[Engine, Recorder]:
        options = {"processes": 2, "threads": 2, "name": "contract"} | options
        sink = sink or Recorder()
        engine: Engine
        if self.name == "inline":
            engine = InlineEngine(function, PoolConfig(**options), sink)
        else:
            engine = LocalEngine(function, PoolConfig(start_method=self.name, **options), sink)  # type: ignore[arg-type]
        if start:
            engine.start()
            self._engines.append(engine)
        return engine, sink

    def can(self, what: str) -> bool:
        return what not in CANT[self.name]

    def for_mpms(self) -> dict[str, Any]:
        """The options that give an MPMS this engine."""
        return {"engine": InlineEngine} if self.name == "inline" else {"start_method": self.name}

    def stop(self) -> None:
        for engine in self._engines:
            engine.stop(0.0)
        for engine in self._engines:
            assert engine.wait_stopped(PATIENCE)


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, nothing_is_left: None) -> Iterator[Make]:
    made = NewEngines(request.param)
    yield made
    made.stop()


class Gate:
    """A task that runs ``tasks.hold(path)`` waits here."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd: int | None = None

    def wait_for_task(self) -> None:
        """Until a task is at the gate; a FIFO opens for both sides at once."""
        opened = threading.Event()

        def open_it() -> None:
            self._fd = os.open(self.path, os.O_WRONLY)
            opened.set()

        # In a thread of its own, so that a test fails rather than hangs when no task comes.
        threading.Thread(target=open_it, daemon=True).start()
        assert opened.wait(PATIENCE), "no task came"

    def open(self) -> None:
        """Let it go."""
        if self._fd is None:
            self.wait_for_task()
        assert self._fd is not None
        os.close(self._fd)
        self._fd = None


@pytest.fixture
def gate(tmp_path: Path, nothing_is_left: None) -> Iterator[Callable[[], Gate]]:
    """Makes gates; those at which a task waits are opened after the test, so that it ends."""
    gates: list[Gate] = []

    def new() -> Gate:
        gates.append(Gate(tmp_path / f"gate{len(gates)}"))
        return gates[-1]

    yield new
    for each in gates:
        if each._fd is not None:
            each.open()


@pytest.fixture
def settled(make: Make) -> Callable[..., dict[TaskId, Outcome]]:
    """Runs a function over arguments to the end, and returns the outcomes."""

    def run(function: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> dict[TaskId, Outcome]:
        engine, sink = make(function, **options)
        for args in calls:
            engine.submit(args, {})
        engine.close()
        assert engine.wait_stopped(PATIENCE)
        return sink.outcomes()

    return run
