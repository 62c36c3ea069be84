"""The hot functions alone, by pyperf: ``make bench-micro``. What they cost is paid once, or twice, for every task."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pyperf

from mpms.core.limits import Limits
from mpms.core.machine import PoolMachine
from mpms.core.messages import Dispatch, ResultsArrived, StartWorker, TasksSubmitted, WorkerReady
from mpms.ids import TaskId
from mpms.wire.board import Board, board_size
from mpms.wire.frames import Decoder, encode
from mpms.wire.pickling import dump, load

BATCH = 100
"""Messages, or tasks, that go in one pass of a busy pool."""


def main() -> None:
    runner = pyperf.Runner()
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((12345, "https://example.org/some/page"), {})
    payload = dump(arguments)
    frame = b"".join(encode(1, number, payload) for number in range(BATCH))

    runner.bench_func("dump, of a small task", dump, arguments)
    runner.bench_func("load, of a small task", load, payload)
    runner.bench_func("encode, of a message", encode, 1, 12345, payload)
    runner.bench_func("feed, of a message in a frame of 100", Decoder().feed, frame, inner_loops=BATCH)
    runner.bench_time_func("board: begin and end", _board)
    runner.bench_time_func("machine: a task, in batches of 100", _machine, inner_loops=BATCH)


def _timed(loops: int, once: Callable[[int], Any]) -> float:
    start = time.perf_counter()
    for number in range(loops):
        once(number)
    return time.perf_counter() - start


def _board(loops: int) -> float:
    with tempfile.TemporaryFile() as file:
        file.truncate(board_size(4))
        board = Board(os.dup(file.fileno()), 4)

        def once(number: int) -> None:
            board.begin(2, number, 1.0)
            board.end(2)

        elapsed = _timed(loops, once)
        board.close()
    return elapsed


def _machine(loops: int) -> float:
    """Each loop submits a batch, and answers what is dispatched until all of it is settled."""
    machine = PoolMachine(Limits(processes=2, threads=4))
    now = 1000.0
    effects = machine.handle([], now)
    machine.handle([WorkerReady(effect.worker) for effect in effects if isinstance(effect, StartWorker)], now)

    def once(number: int) -> None:
        nonlocal now
        first = number * BATCH + 1
        effects = machine.handle([TasksSubmitted([TaskId(n) for n in range(first, first + BATCH)])], now)
        while sent := [effect for effect in effects if isinstance(effect, Dispatch)]:
            now += 0.0001
            effects = machine.handle([ResultsArrived(d.worker, [seq for seq, _ in d.tasks]) for d in sent], now)

    elapsed = _timed(loops, once)
    assert not machine.ledger.outstanding, "the batches were not finished: the measurement is of something else"
    return elapsed


if __name__ == "__main__":
    main()
