"""Who looks out sees what comes, gives way meanwhile, and ends in time."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator

import pytest

from mpms.testing import FakeClock
from mpms.wire import lookout
from mpms.wire.lookout import has_company, look_out


def test_what_comes_is_seen_and_whoever_wants_the_processor_has_it_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(lookout, "give_way", lambda: steps.append("give way"))

    def look() -> list[int]:
        steps.append("look")
        return [7] if len(steps) > 4 else []

    assert look_out(look, 1.0, lambda: 0.0) == [7]
    assert steps == ["look", "give way", "look", "give way", "look"]


def test_it_ends_in_time() -> None:
    clock = FakeClock()
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        clock.advance(0.25)
        return False

    assert not look_out(look, clock() + 1.0, clock)
    assert looks == 4


def test_what_is_there_is_seen_though_the_time_is_over() -> None:
    assert look_out(lambda: "it", 1.0, lambda: 2.0) == "it"


@pytest.mark.parametrize(("processors", "company"), [({3}, False), ({0, 5}, True)])
def test_who_may_use_one_processor_has_no_company(
    monkeypatch: pytest.MonkeyPatch, processors: set[int], company: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: processors, raising=False)
    assert has_company() is company


@pytest.mark.parametrize(("count", "company"), [(None, False), (1, False), (8, True)])
def test_where_nobody_says_which_one_may_use_all_count(
    monkeypatch: pytest.MonkeyPatch, count: int | None, company: bool
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert has_company() is company


@pytest.fixture
def without_yield(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.delattr(os, "sched_yield", raising=False)
        importlib.reload(lookout)
        yield
    importlib.reload(lookout)


@pytest.mark.usefixtures("without_yield")
def test_where_there_is_no_yield_a_sleep_of_no_time_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    lookout.give_way()
    assert sleeps == [0]
