"""Who looks out sees what comes, gives way meanwhile, ends in time, and leaves it where processors are wanted."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator

import pytest

from mpms.testing import FakeClock
from mpms.wire import lookout
from mpms.wire.lookout import LookOut, _processors

QUICK, LONG = 0.000002, 0.00005  # from one look to the next


class Street:
    """What is looked at: nothing, until so many looks; each one takes some time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.steps: list[str] = []
        self.step = QUICK
        self.empty_looks = 2
        self._looks = 0
        monkeypatch.setattr(lookout, "_give_way", self._give_way)
        monkeypatch.setattr(lookout, "_processors", lambda: 2)

    def _give_way(self) -> None:
        self.steps.append("give way")
        self.clock.advance(self.step)

    def look(self) -> list[int]:
        self.steps.append("look")
        self._looks += 1
        return [7] if self._looks > self.empty_looks else []

    def at(self, look_out: LookOut, step: float = QUICK, seconds: float = 0.0004) -> list[int] | None:
        self._looks, self.step = 0, step
        self.steps.clear()
        return look_out(self.look, self.clock(), seconds)


@pytest.fixture
def street(monkeypatch: pytest.MonkeyPatch) -> Street:
    return Street(monkeypatch)


def test_what_comes_is_seen_and_whoever_wants_the_processor_has_it_meanwhile(street: Street) -> None:
    assert street.at(LookOut(street.clock)) == [7]
    assert street.steps == ["look", "give way", "look", "give way", "look"]


def test_it_ends_in_time(street: Street) -> None:
    street.empty_looks = 10_000
    began = street.clock()
    assert street.at(LookOut(street.clock), seconds=0.00002) is None
    assert 0.00002 <= street.clock() - began < 0.00003


def test_what_is_there_is_seen_though_the_time_is_over(street: Street) -> None:
    assert LookOut(street.clock)(lambda: "it", street.clock() - 5.0, 1.0) == "it"


def is_paused(street: Street, look_out: LookOut) -> bool:
    assert street.at(look_out) in (None, [7])
    return not street.steps


def crowd(street: Street, look_out: LookOut) -> None:
    street.at(look_out, step=LONG)


def wait_in_vain(street: Street, look_out: LookOut) -> None:
    before, street.empty_looks = street.empty_looks, 10_000
    street.at(look_out)
    street.empty_looks = before


@pytest.mark.parametrize("trouble", [crowd, wait_in_vain])
def test_after_enough_of_what_speaks_against_it_it_is_left_for_a_while(
    street: Street, trouble: Callable[[Street, LookOut], None]
) -> None:
    """Somebody else had the processor meanwhile; or nothing came."""
    look_out = LookOut(street.clock)
    for _ in ("once", "and again"):
        for _ in range(15):
            assert not is_paused(street, look_out)  # which speaks for it
            trouble(street, look_out)
            trouble(street, look_out)
        assert is_paused(street, look_out)
        street.clock.advance(0.045)
        assert is_paused(street, look_out)
        street.clock.advance(0.01)
    assert not is_paused(street, look_out)


def test_it_goes_on_where_that_is_not_more_than_every_other_time(street: Street) -> None:
    look_out = LookOut(street.clock)
    for _ in range(100):
        crowd(street, look_out)
        assert not is_paused(street, look_out)


def test_the_turns_of_the_others_in_the_process_do_not_speak_against_it(street: Street) -> None:
    look_out = LookOut(street.clock, lambda: False)
    for _ in range(100):
        crowd(street, look_out)
    assert not is_paused(street, look_out)


def test_nor_does_a_turn_that_ends_within_a_look(street: Street) -> None:
    """Another one has the interpreter, and a look waits for it."""
    is_alone, looks = False, 0
    look_out = LookOut(street.clock, lambda: is_alone)

    def look() -> bool:
        nonlocal is_alone, looks
        looks += 1
        if not is_alone:
            street.clock.advance(LONG)
            is_alone = True
            return False
        return True

    for _ in range(100):
        is_alone = False
        assert look_out(look, street.clock(), 0.0004)
    assert looks == 200


def test_who_is_alone_after_the_first_look_sees_what_speaks_against_it(street: Street) -> None:
    look_out = LookOut(street.clock, lambda: "look" in street.steps)
    for _ in range(16):
        crowd(street, look_out)
    assert is_paused(street, look_out)


@pytest.mark.parametrize(("processors", "looks"), [({3}, 0), ({0, 5}, 3)])
def test_nobody_looks_out_who_may_use_one_processor_only(
    street: Street, monkeypatch: pytest.MonkeyPatch, processors: set[int], looks: int
) -> None:
    monkeypatch.setattr(lookout, "_processors", _processors)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: processors, raising=False)
    street.at(LookOut(street.clock))
    assert street.steps.count("look") == looks


@pytest.mark.parametrize(("count", "looks"), [(None, 0), (1, 0), (8, 3)])
def test_where_nobody_says_which_one_may_use_all_count(
    street: Street, monkeypatch: pytest.MonkeyPatch, count: int | None, looks: int
) -> None:
    monkeypatch.setattr(lookout, "_processors", _processors)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    street.at(LookOut(street.clock))
    assert street.steps.count("look") == looks


@pytest.fixture
def _without_yield(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.delattr(os, "sched_yield", raising=False)
        importlib.reload(lookout)
        yield
    importlib.reload(lookout)


@pytest.mark.usefixtures("_without_yield")
def test_where_there_is_no_yield_a_sleep_of_no_time_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    lookout._give_way()
    assert sleeps == [0]
