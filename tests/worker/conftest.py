"""The worker's parts in this process, so that none of its ends may be taken for real."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpms.worker import ends

from .stage import NewStage, Stage


class Ends:
    """The ends that were called for, by name and arguments.

    The first one unwinds its thread. On its way out of ``Slots`` that calls for another one, which a process that has
    ended can't: it is not counted, and returns.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._mine = threading.local()

    def call(self, *what: Any) -> None:
        if not hasattr(self._mine, "ended"):
            self._mine.ended = True
            self.calls.append(what)
            raise SystemExit(what[0])

    def take(self) -> list[tuple[Any, ...]]:
        """Those so far, which the test expected."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture(autouse=True)
def worker_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    """Without it, `ends.parent_gone` would kill the tests with their process group."""
    made = Ends()
    for name in ("die", "parent_gone", "real_exit"):
        monkeypatch.setattr(ends, name, lambda *args, name=name: made.call(name, *args))
    yield made
    assert made.calls == []


@pytest.fixture
def stage() -> Iterator[NewStage]:
    stages: list[Stage] = []

    def new(function: Callable[..., Any] | None, **options: Any) -> Stage:
        stages.append(Stage(function, **options))
        return stages[-1]

    yield new
    for each in stages:
        each.close()
