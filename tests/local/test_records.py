"""What is kept of a task, who is told of it, and what of it is cancelled."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import pytest

from mpms import MPMS
from mpms.local.records import record_of, shown, ticket_of

from .helpers import at_full_strength, meet, meeting, until


def test_a_record_has_what_is_shown_of_a_task() -> None:
    record = record_of(b"pickled", None, (1, "a"), {"key": 2.5}, None)
    task, args, kwargs, time = shown(7, record)  # type: ignore[arg-type]
    assert (task, args, kwargs) == (7, (1, "a"), {"key": 2.5})
    assert time > 1e9
    assert record[0] == b"pickled"
    assert ticket_of(record) is None
    assert shown(7, record_of(b"", None, (), {}, None))[1:3] == ((), {})  # type: ignore[arg-type]


def test_a_record_has_plain_arguments_once() -> None:
    args = (1, "a")
    record = record_of(args, None, args, {}, None)
    assert record[0] is None
    assert shown(7, record)[:3] == (7, (1, "a"), {})  # type: ignore[arg-type]
    assert record_of((), None, (), {}, None)[0] is None


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="its collector has no such lists")
@pytest.mark.parametrize("args", [(1, "a", None, 2.5), (1, "a" * 1000, 10**30)], ids=["plain", "pickled"])
def test_the_collector_forgets_what_waits_at_its_first_look(any_method: Any, args: tuple[Any, ...]) -> None:
    """A million tasks that wait would have it look at each again and again."""
    with meeting() as place, MPMS(meet_first, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(place.address)
        guest = place.arrive()
        engine: Any = pool._engine
        for _ in range(20):
            pool.put("", *args)
            gc.collect(0)
            assert not gc.is_tracked(engine._records[pool.total_count])
        guest.release()


def meet_first(address: str, *_: object) -> None:
    if address:
        meet(address)


def test_tasks_that_have_to_wait_wake_nobody(any_method: Any) -> None:
    with (
        meeting() as place,
        MPMS(meet, processes=1, threads=1, start_method=any_method, task_queue_maxsize=500) as pool,
    ):
        pool.put(place.address)
        guest = place.arrive()
        pool.put(place.address)
        until(lambda: pool.stats().queued == 1)
        at_full_strength(pool)  # word of a birth wakes it, too, and may be late
        before = len(pool.story())
        for _ in range(20):
            pool.put(place.address)
            threading.Event().wait(0.002)  # in which the supervisor would take it in
        assert pool.stats().queued == 21
        assert len(pool.story()) <= before + 1  # it may just have been falling asleep
        guest.release()
        for _ in range(21):
            place.arrive().release()


def test_the_supervisor_takes_in_what_waits_now_and_then(any_method: Any) -> None:
    """A million at once would keep it from all else for a tenth of a second."""
    options: dict[str, Any] = {"processes": 1, "threads": 1, "task_queue_maxsize": 100_000, "start_method": any_method}
    with meeting() as place, MPMS(meet, **options) as pool:
        for _ in range(2):
            pool.put(place.address)
        guest = place.arrive()
        until(lambda: pool.stats().queued == 1)
        before = len(pool.story())
        for _ in range(40):  # it may be busy at the very task that would wake it: then at another one
            for _ in range(2000):
                pool.put(place.address)
            threading.Event().wait(0.01)
            if len(pool.story()) > before:
                break
        assert len(pool.story()) > before
        pool.graceful_shutdown(0.0)
        guest.release()


def fail_or_meet(address: str) -> None:
    if not address:
        raise ValueError("the first")
    meet(address)


def test_an_error_of_map_cancels_the_rest_though_its_iterator_is_kept(any_method: Any) -> None:
    options: dict[str, Any] = {"processes": 1, "threads": 1, "start_method": any_method}
    with meeting() as place, MPMS(fail_or_meet, **options) as pool:
        values = pool.map(None, ["", *[place.address] * 3], chunksize=1)
        with pytest.raises(ValueError, match="the first"):
            next(values)
        # The second may have started already: that one is not cancelled.
        until(lambda: not pool.stats().queued and (not pool.stats().running or pool.workers()[0].running))
        if pool.stats().running:
            place.arrive().release()
        assert list(values) == []
