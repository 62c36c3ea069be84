"""Errors are not results: they may go a way of their own, and none is silent when they don't."""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Any

import pytest

from mpms import MPMS, Meta, PoolBroken, TaskCancelled, TaskTimeout, WorkerCrashed

from .helpers import HAS_GIL, hold_the_gil, meet, meeting


def go(word: object, how: str = "") -> object:
    if how == "raises":
        raise ValueError(word)
    if how == "leaves":
        os._exit(3)
    if how == "hangs":
        hold_the_gil()
    if how == "returns an error":
        return KeyError(word)
    return word


WAYS = {"raises": ValueError, "leaves": WorkerCrashed, "hangs": TaskTimeout}


class Seen:
    """A collector and its ``on_error``."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}
        self.errors: dict[Any, BaseException] = {}

    def value(self, meta: Meta, result: Any) -> None:
        assert meta.args[0] not in self.values
        self.values[meta.args[0]] = result

    def error(self, meta: Meta, error: BaseException) -> None:
        assert meta.args[0] not in self.errors
        assert meta.kwargs == {}
        self.errors[meta.args[0]] = error


def options(method: str) -> dict[str, Any]:
    return {
        "processes": 1,
        "threads": 1,
        "start_method": method,
        "worker_graceful_die_timeout": 0.1,
    }


def put_all(pool: MPMS) -> None:
    for word, how in enumerate(["", *WAYS, "returns an error", ""]):
        pool.put_with((word, how), timeout=0.4 if how == "hangs" else None)  # the word of an exit may take longer


@pytest.mark.parametrize("collects", [True, False])
def test_errors_go_to_on_error_and_values_to_the_collector(any_method: str, collects: bool) -> None:
    seen = Seen()
    collector = seen.value if collects else None
    with MPMS(go, collector, on_error=seen.error, **options(any_method)) as pool:
        put_all(pool)
    assert {word: type(error) for word, error in seen.errors.items()} == {
        word + 1: kind for word, kind in enumerate(WAYS.values())
    }
    if collects:
        assert {word: type(value) for word, value in seen.values.items()} == {0: int, 4: KeyError, 5: int}
    assert pool.finish_count == 6
    assert len(pool) == 0


def test_a_pool_with_on_error_only_has_nothing_to_iterate() -> None:
    pool = MPMS(go, on_error=lambda meta, error: None, processes=1, threads=1)
    with pool, pytest.raises(RuntimeError, match="iter_results"):
        pool.iter_results()


def test_what_was_cancelled_goes_to_on_error_too(method: str) -> None:
    seen = Seen()
    with meeting() as place:
        pool = MPMS(meet_as, seen.value, on_error=seen.error, processes=1, threads=1, start_method=method)
        for word in range(3):
            pool.put(word, place.address)
        place.arrive()
        pool.graceful_shutdown(0)
        pool.join()  # on_error may be called later than that returns
    assert {word: (type(error), error.started) for word, error in seen.errors.items()} == {  # type: ignore[attr-defined]
        0: (TaskCancelled, True),
        1: (TaskCancelled, False),
        2: (TaskCancelled, False),
    }


def meet_as(word: object, address: str) -> object:
    return meet(address, word)


def refuse(address: str) -> None:
    meet(address)
    raise OSError("not today")


def test_what_a_broken_pool_lost_goes_to_on_error_too(method: str) -> None:
    seen = Seen()
    with meeting() as place:
        pool = MPMS(
            go,
            on_error=seen.error,
            processes=1,
            threads=1,
            start_method=method,
            process_initializer=refuse,
            process_initargs=(place.address,),
            max_start_failures=1,
        )
        pool.put(1)
        place.arrive().release()
        with pytest.raises(PoolBroken):
            pool.join()
    assert type(seen.errors[1]) is PoolBroken
    assert type(seen.errors[1].__cause__) is OSError


def test_an_on_error_that_fails_is_logged_with_the_tasks_own_traceback_and_the_next_ones_follow(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()

    def on_error(meta: Meta, error: BaseException) -> None:
        if meta.args[0] == 1:
            raise SystemExit("on_error leaves")
        seen.error(meta, error)

    with MPMS(go, seen.value, on_error=on_error, **options(method)) as pool:
        for word in range(4):
            pool.put(word, "raises")
    assert set(seen.errors) == {0, 2, 3}
    (record,) = [record for record in caplog.records if "an error occurs in collector" in record.message]
    assert "in go" in record.message
    assert "ValueError: 1" in record.message
    assert record.exc_info is not None
    assert record.exc_info[0] is SystemExit


def test_an_error_that_the_collector_chokes_on_is_logged_with_the_tasks_own_traceback(
    method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.core.policy.DUMP_SECONDS", 2.0)  # a busy machine may take longer to write the stacks
    total = []

    def collect(meta: Meta, result: Any) -> None:
        total.append(result + 1)  # whoever forgets isinstance

    with caplog.at_level(logging.ERROR, "mpms"), MPMS(go, collect, **options(method)) as pool:
        put_all(pool)
    assert sorted(total) == [1, 6]
    records = sorted(
        (record for record in caplog.records if record.message.startswith("an error occurs in collector")),
        key=lambda record: record.message,
    )
    assert len(records) == 4
    assert all(record.exc_info and record.exc_info[0] is TypeError for record in records)
    raised, crashed, hung, returned = (record.message for record in records)
    assert raised.startswith("an error occurs in collector, task: 2, which failed with\n")
    assert "raise ValueError(word)" in raised
    assert "ValueError: 1" in raised
    assert "was ended by os._exit(3) at " in crashed
    assert ("in hold_the_gil" in hung) is HAS_GIL
    assert returned == "an error occurs in collector, task: 5"  # it is a value, and of no other place


# Iterating


def test_raise_errors_raises_and_goes_on_with_the_next_one(any_method: str) -> None:
    with MPMS(go, **options(any_method)) as pool:
        put_all(pool)
        pool.close()
        values, errors = [], []
        iterator = pool.iter_results(raise_errors=True)
        while True:
            try:
                _, result = next(iterator)
            except StopIteration:
                break
            except Exception as error:
                errors.append(type(error))
            else:
                values.append(type(result))
    assert Counter(values) == Counter([int, KeyError, int])
    assert Counter(errors) == Counter(WAYS.values())


def test_a_loop_over_raise_errors_stops_at_the_first_one_with_its_traceback(method: str) -> None:
    with MPMS(go, **options(method)) as pool:
        for word in range(5):
            pool.put(word, "raises" if word == 2 else "")
        pool.close()
        got = []
        caught = None
        try:
            for _, result in pool.iter_results(raise_errors=True):
                got.append(result)
        except ValueError as error:
            caught = error
        assert str(caught) == "2"
        assert caught is not None
        assert "in go" in str(caught.__cause__)
        assert got == [0, 1]
        got += [result for _, result in pool.iter_results(raise_errors=True)]
        assert got == [0, 1, 3, 4]


def test_without_raise_errors_they_are_yielded(method: str) -> None:
    with MPMS(go, **options(method)) as pool:
        pool.put(1, "raises")
        pool.close()
        assert [(meta.args, type(result)) for meta, result in pool.iter_results()] == [((1, "raises"), ValueError)]
