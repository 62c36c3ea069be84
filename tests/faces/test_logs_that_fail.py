"""Handlers and filters of the user's that raise: neither a result nor a thread is lost by it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from mpms import MPMS, Executor
from mpms.faces.sinks import IteratorSink
from mpms.ids import TaskId
from mpms.local.reports import Reporter
from mpms.testing import InlineEngine

from ..local.helpers import PATIENCE, until
from ..local.stage import Stage


@pytest.fixture(autouse=True)
def failing() -> Iterator[list[str]]:
    """What was to be logged."""
    asked: list[str] = []

    def refuse(record: logging.LogRecord) -> bool:
        asked.append(record.getMessage())
        raise LookupError("no such context variable")

    logger = logging.getLogger("mpms")
    logger.addFilter(refuse)
    yield asked
    logger.removeFilter(refuse)


@pytest.fixture(params=["inline", "local"])
def options(request: pytest.FixtureRequest, method: str) -> dict[str, Any]:
    how: dict[str, Any] = {"engine": InlineEngine} if request.param == "inline" else {"start_method": method}
    return how


def invert(number: int) -> float:
    return 1 / number


def test_a_collector_that_raises_gets_all_results(options: dict[str, Any], failing: list[str]) -> None:
    seen: list[Any] = []

    def collect(_: object, result: object) -> None:
        seen.append(result)
        raise ValueError("mine")

    pool = MPMS(invert, collect, processes=1, threads=1, **options)
    for number in range(20):
        pool.put(number)
    pool.close()
    assert pool._engine.wait_stopped(PATIENCE)
    assert len(seen) == 20
    assert len([text for text in failing if "collector" in text]) == 20


def test_a_future_whose_callback_raises_keeps_nobody_from_the_rest(options: dict[str, Any], stage: Stage) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    with Executor(1, **options) as executor:
        executor.submit(stage.wait)
        futures = [executor.submit(invert, number + 1) for number in range(20)]
        for future in futures:
            future.add_done_callback(leave)
        stage.open()
        assert [future.result(PATIENCE) for future in futures] == [1 / (number + 1) for number in range(20)]


def test_a_sink_that_raises_is_called_for_the_rest(
    options: dict[str, Any], failing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = MPMS(invert, processes=1, threads=1, **options)
    deliver = pool._sink.deliver

    def fail(outcomes: Any) -> None:
        deliver(outcomes)
        raise ValueError("ours")

    monkeypatch.setattr(pool._sink, "deliver", fail)
    for number in range(20):
        pool.put(number)
    pool.close()
    assert pool._engine.wait_stopped(PATIENCE)
    assert len([*pool.iter_results()]) == 20
    assert any("delivery" in text for text in failing)


def test_a_finalizer_that_raises_lets_the_pool_end(failing: list[str]) -> None:
    pool = MPMS(invert, thread_finalizer=invert, thread_finargs=(0,), engine=InlineEngine)
    pool.put(1)
    pool.join()
    assert [result for _, result in pool.iter_results()] == [1.0]
    assert any("finalizer" in text for text in failing)


def test_the_backlog_of_results_is_no_error(failing: list[str]) -> None:
    sink = IteratorSink("test")
    sink._warn_at = 1
    sink.deliver([(TaskId(1), (), {}, 1, None)])
    assert sink.poll() == [(TaskId(1), (), {}, 1, None)]
    assert failing == ["mpms test: 1 results wait for iter_results"]


def test_the_thread_that_logs_goes_on(failing: list[str]) -> None:
    reporter = Reporter("test")
    reporter.start()
    reporter.say(logging.ERROR, "first")
    until(lambda: "first" in failing)
    reporter.say(logging.ERROR, "second")
    reporter.end()
    reporter.thread.join(PATIENCE)
    assert not reporter.thread.is_alive()
    assert failing == ["first", "mpms test: a log record was lost", "second", "mpms test: a log record was lost"]
