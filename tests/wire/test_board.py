"""The status board: one side writes, the other reads, in the same memory."""

from __future__ import annotations

import mmap
import struct
import tempfile
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpms.wire.board import Board, Slot, board_size

NewBoards = Callable[[int], tuple[Board, Board]]


@pytest.fixture
def boards() -> Iterator[NewBoards]:
    """Makes two views of one memory: the worker's and the parent's."""
    made: list[Board] = []

    def new(threads: int) -> tuple[Board, Board]:
        made.extend(_two_views(threads))
        return made[-2], made[-1]

    yield new
    for board in made:
        board.close()


def _two_views(threads: int) -> tuple[Board, Board]:
    with tempfile.TemporaryFile() as file:
        file.truncate(board_size(threads))
        return Board(file.fileno(), threads), Board(file.fileno(), threads)


@pytest.mark.parametrize("threads", [1, 2, 127, 128, 129, 1000, 5000])
def test_the_size_is_whole_pages_that_hold_all_slots(threads: int) -> None:
    size = board_size(threads)
    assert size % mmap.PAGESIZE == 0
    assert threads * 40 <= size < threads * 40 + mmap.PAGESIZE


def test_a_new_board_is_empty(boards: NewBoards) -> None:
    _, parent = boards(3)
    assert (parent.watermark(), parent.running(), parent.done()) == (0, [], 0)


def test_the_parent_sees_what_runs_and_since_when(boards: NewBoards) -> None:
    worker, parent = boards(3)
    worker.set_ident(1, 0x7F0000001234)
    worker.begin(1, 7, 12.5)
    assert parent.running() == [Slot(thread=1, seq=7, start=12.5, ident=0x7F0000001234)]
    worker.set_ident(2, 9)
    worker.begin(2, 8, 13.0)
    assert parent.running() == [Slot(1, 7, 12.5, 0x7F0000001234), Slot(2, 8, 13.0, 9)]
    worker.end(1)
    assert parent.running() == [Slot(2, 8, 13.0, 9)]
    assert parent.done() == 1


def test_the_watermark_stays_when_tasks_are_over(boards: NewBoards) -> None:
    worker, parent = boards(2)
    worker.begin(0, 5, 1.0)
    worker.begin(1, 6, 1.0)
    worker.end(1)
    worker.end(0)
    assert parent.watermark() == 6
    worker.begin(0, 9, 2.0)
    assert parent.watermark() == 9


def test_the_parent_sees_how_many_items_of_a_chunk_may_have_started_and_since_when_the_last(boards: NewBoards) -> None:
    worker, parent = boards(2)
    worker.begin(1, 7, 12.5)
    worker.go_on(1, 1, 12.75)
    assert parent.running() == [Slot(1, 7, 12.75, 0, items=1)]
    worker.go_on(1, 40, 13.0)
    assert parent.running() == [Slot(1, 7, 13.0, 0, items=40)]
    assert (parent.watermark(), parent.done()) == (7, 0)  # the chunk is one task


def test_a_task_does_not_inherit_the_items_of_the_last_one(boards: NewBoards) -> None:
    worker, parent = boards(1)
    worker.begin(0, 1, 1.0)
    worker.go_on(0, 100, 1.5)
    worker.end(0)
    assert parent.running() == []
    worker.begin(0, 2, 2.0)
    assert parent.running() == [Slot(0, 2, 2.0, 0, items=0)]


def test_a_start_without_a_number_is_not_running_yet(boards: NewBoards) -> None:
    # As the parent may see it between the two stores of the first task.
    worker, parent = boards(1)
    worker.begin(0, 0, 1.0)
    assert (parent.running(), parent.watermark()) == ([], 0)


def test_the_layout_is_five_words_to_a_slot() -> None:
    # Other programs read it by way of /proc/PID/fd.
    with tempfile.TemporaryFile() as file:
        file.truncate(board_size(200))
        board = Board(file.fileno(), 200)
        board.set_ident(199, 77)
        board.begin(199, 2**63, 1234.0)
        board.go_on(199, 12, 1234.5)
        board.end(0)
        board.end(0)
        board.close()
        file.seek(0)
        data = file.read()
    assert struct.unpack_from("<QdQQQ", data, 199 * 40) == (2**63, 1234.5, 77, 0, 12)
    assert struct.unpack_from("<QdQQQ", data, 0) == (0, 0.0, 0, 2, 0)
    assert not any(data[40 : 199 * 40])


@given(st.integers(1, 150), st.data())
def test_it_agrees_with_a_model(threads: int, data: st.DataObject) -> None:
    worker, parent = _two_views(threads)
    running: dict[int, tuple[int, float, int]] = {}
    seq = done = 0
    steps = st.tuples(st.integers(0, threads - 1), st.integers(0, 2**40))
    for slot, items in data.draw(st.lists(steps, max_size=40)):
        if slot in running and items % 2:
            worker.go_on(slot, items, float(seq) + 0.5)
            running[slot] = running[slot][0], float(seq) + 0.5, items
        elif slot in running:
            worker.end(slot)
            del running[slot]
            done += 1
        else:
            seq += 1
            worker.begin(slot, seq, float(seq))
            running[slot] = seq, float(seq), 0
        assert {s.thread: (s.seq, s.start, s.items) for s in parent.running()} == running
        assert parent.watermark() == seq
        assert parent.done() == done
    worker.close()
    parent.close()


def test_a_closed_board_refuses_to_be_read(boards: NewBoards) -> None:
    board, _ = _two_views(1)
    board.close()
    with pytest.raises(ValueError):
        board.running()
