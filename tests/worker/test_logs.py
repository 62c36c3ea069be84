"""What a task logs goes by the same socket as the results of all: whatever happens to that task, they are not lost."""

from __future__ import annotations

import gc
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from mpms.wire.chunks import Place, here
from mpms.wire.messages import LOG, RETURNED
from mpms.worker.interrupts import Interrupted, Interrupts, _set_async_exception
from mpms.worker.logs import _Forward
from mpms.worker.outbox import Outbox

from ..wire.single import single
from .stage import PATIENCE, NewStage
from .test_outbox import Reader


def record_of(message: object) -> logging.LogRecord:
    return logging.LogRecord("app", logging.WARNING, __file__, 1, message, None, None)


def test_a_recursion_that_logs_to_its_end_loses_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    theirs, ours = socket.socketpair()
    reader = Reader(ours)
    reader.start()
    box = Outbox(theirs, lambda: None)
    handler, record = _Forward(box), record_of("deep")

    def descend(calls: int) -> None:
        if calls:
            descend(calls - 1)
        else:
            handler.emit(record)

    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    added, failed = list[int](), 0
    for spare in range(100):
        for size in (1, 1, 100_000):  # those that go together, and one that does not
            added.append(len(added))
            box.add_result(added[-1], RETURNED, b"x" * size)
        try:
            descend(sys.getrecursionlimit() - depth - spare)
        except RecursionError:
            failed += 1
    assert 0 < failed < 100
    box.flush()
    theirs.shutdown(socket.SHUT_WR)
    reader.join(PATIENCE)
    messages = list(single(reader.messages))
    assert sorted(seq for kind, seq, _ in messages if kind == RETURNED) == added
    assert {kind for kind, _, _ in messages} == {RETURNED, LOG}
    theirs.close()
    ours.close()


def test_a_task_is_not_interrupted_while_it_sends(stage: NewStage) -> None:
    free = list[bool]()

    class Box:
        def add_log(self, _: bytes) -> None:
            pass

        def flush(self) -> None:
            lock = interrupts._locks[0]
            other = threading.Thread(target=lambda: free.append(lock.acquire(blocking=False)))
            other.start()
            other.join()

    box: Any = Box()
    slots = stage(lambda _: _Forward(box).emit(record_of("word")), timeout_raises=True).ready()
    interrupts = slots.slots._interrupts
    assert interrupts is not None
    slots.send(1)
    assert slots.next()[:2] == (RETURNED, 1)
    assert free == [False]  # the lock without which nobody strikes


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No callback of the collector's, of which hypothesis has one, is struck in place of what is tested."""
    gc.disable()
    yield
    gc.enable()


def test_who_is_struck_before_it_sends_does_not_begin_to(uncollected: None) -> None:
    interrupts, logging_, flushed, raised = Interrupts(1), threading.Event(), list[str](), list[BaseException]()

    class Here(Place):
        def unstruck(self) -> AbstractContextManager[object]:
            return interrupts.unstruck(0)

    class Box:
        def add_log(self, _: bytes) -> None:
            pass

        def flush(self) -> None:
            flushed.append("begun")

    class Text:
        def __str__(self) -> str:
            logging_.set()
            return "text"

    box: Any = Box()

    def work() -> None:
        here.place = Here()
        try:
            _Forward(box).emit(record_of(Text()))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    with interrupts.unstruck(0):  # as who strikes has it
        thread.start()
        assert logging_.wait(PATIENCE)
        assert thread.ident is not None
        _set_async_exception(thread.ident, Interrupted)
    thread.join(PATIENCE)
    assert [type(error) for error in raised] == [Interrupted]
    assert flushed == []
    with interrupts.unstruck(0):
        pass  # it was let go of
