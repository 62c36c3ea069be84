"""Nothing that was added is lost, torn or reordered, however little a write takes and whoever writes."""

from __future__ import annotations

import errno
import os
import pickle
import random
import socket
import sys
import tempfile
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpms.testing import FakeClock
from mpms.wire.board import RINGS_SIZE, Board, board_size
from mpms.wire.frames import Decoder, Marked, Message, encode
from mpms.wire.messages import BYTES, DUE, PLAIN, RAISED, RESULTS, RETURNED, SMALL, Result, unpack_results
from mpms.wire.pickling import load
from mpms.wire.receiver import Receiver
from mpms.wire.shelf import Shelf
from mpms.worker import ends, outbox
from mpms.worker.outbox import LINGER, Outbox

from ..wire.single import single
from .conftest import Ends
from .stage import Watched

needs_populate = pytest.mark.skipif(sys.platform != "linux", reason="there is no ring there")


class Reader(threading.Thread):
    """Reads messages until the end of the stream, in pieces of odd sizes."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.messages: list[Message] = []
        self._sock = sock

    def run(self) -> None:
        decoder, chance = Decoder(), random.Random(1)
        while data := self._sock.recv(chance.choice((1, 100, 5_000, 1 << 16))):
            self.messages += decoder.feed(data)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The worker's end and the parent's, with the smallest buffer that the system gives."""
    theirs, ours = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with theirs, ours:
        yield theirs, ours


def _never() -> None:
    pytest.fail("the main thread was woken")


def test_nothing_is_sent_before_a_flush_and_all_of_it_after(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = pair
    ours.setblocking(False)
    box = Outbox(theirs, _never)
    box.add(b"one ")
    box.add(b"two")
    with pytest.raises(BlockingIOError):
        ours.recv(100)
    box.flush()
    assert ours.recv(100) == b"one two"
    box.flush()  # nothing there: nothing sent
    with pytest.raises(BlockingIOError):
        ours.recv(100)


def test_plain_results_go_as_they_are_with_others_and_pickled_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    box = Outbox(theirs, _never)
    for seq, value in enumerate((None, 5, "text"), 1):
        box.add_result(seq, PLAIN, value)
    box.flush()
    [(kind, count, payload)] = Decoder().feed(ours.recv(1000))
    assert (kind, count) == (RESULTS, 3)
    assert unpack_results(payload) == ((1, 2, 3), (PLAIN, PLAIN, PLAIN), (None, 5, "text"))
    box.add_result(4, PLAIN, 7)
    box.flush()
    [(kind, seq, payload)] = Decoder().feed(ours.recv(1000))
    assert (kind, seq, pickle.loads(payload)) == (RETURNED, 4, 7)


def test_plain_results_and_large_ones_go_together(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    reader = Reader(ours)
    reader.start()
    box = Outbox(theirs, _never)
    large = os.urandom(SMALL + 1)
    results: list[tuple[int, Any]] = [(PLAIN, 5), (RETURNED, large), (PLAIN, "text"), (RAISED, b"small")]
    for seq, (kind, value) in enumerate([*results, (RETURNED, Marked(b"mark", large))], 1):
        box.add_result(seq, kind, value)
    box.flush()
    theirs.close()
    reader.join(10)
    [(kind, count, payload), *alone] = reader.messages
    assert (kind, count) == (RESULTS, 3)
    assert unpack_results(payload) == ((1, 3, 4), (PLAIN, PLAIN, RAISED), (5, "text", b"small"))
    assert alone == [(RETURNED, 2, large), (RETURNED, 5, b"mark" + large)]


def test_large_messages_go_through_a_small_buffer(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    reader = Reader(ours)
    reader.start()
    box = Outbox(theirs, _never)
    sent = [(1, number, os.urandom(size)) for number, size in enumerate((0, 3, 70_000, 5_000_000, 1, 65_000))]
    for message in sent:
        box.add(encode(*message))
    box.flush()
    theirs.shutdown(socket.SHUT_WR)
    reader.join(60)
    assert reader.messages == sent


def test_what_several_threads_add_is_whole_and_in_their_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = pair
    reader = Reader(ours)
    reader.start()
    box = Outbox(theirs, lambda: None)

    def write(thread: int) -> None:
        chance = random.Random(thread)
        for number in range(400):
            size = chance.choice((0, 5, 200, 3_000, 40_000 if number % 50 == 0 else 10))
            box.add(encode(thread, number, bytes([thread]) * size))
            if chance.random() < 0.5:
                box.flush()
        box.flush()

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    box.flush()
    theirs.shutdown(socket.SHUT_WR)
    reader.join(60)
    by_thread: dict[int, list[int]] = defaultdict(list)
    for kind, number, payload in reader.messages:
        assert set(payload) <= {kind}
        by_thread[kind].append(number)
    assert by_thread == {thread: list(range(400)) for thread in range(6)}


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_writes_that_take_a_part_only_lose_nothing(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    # A blocking socket takes all, but for signals; so the system is made to take less.
    taken = bytearray()

    def sendmsg(views: list[memoryview]) -> int:
        part = b"".join(views)[:most]
        taken.extend(part)
        return len(part)

    sock: Any = SimpleNamespace(send=lambda data: sendmsg([memoryview(data)]), sendmsg=sendmsg)
    box = Outbox(sock, _never)
    small = [bytes([number]) * number for number in range(40)]
    for part in small:
        box.add(part)
    box.flush()
    assert bytes(taken) == b"".join(small)
    taken.clear()
    monkeypatch.setattr(outbox, "_JOIN_MOST", 10)  # now as a vector
    for part in small:
        box.add(part)
    box.flush()
    assert bytes(taken) == b"".join(small)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there is no memfd here")
@pytest.mark.parametrize("refused", [False, True])
def test_results_in_files_are_sent_with_the_others(
    pair: tuple[socket.socket, socket.socket], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the system has too many descriptors under way to take these."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    if refused:
        monkeypatch.setattr(outbox, "send_file", refuse)
    theirs, ours = pair
    box = Outbox(theirs, _never)
    contents = {1: b"small", 2: os.urandom(1 << 20), 3: os.urandom(SMALL + 1), 4: os.urandom(1 << 18)}
    for seq, content in contents.items():
        box.add_result(seq, RETURNED, Shelf(0).pack([content]))
    sender = threading.Thread(target=lambda: (box.flush(), theirs.shutdown(socket.SHUT_WR)))
    sender.start()
    receiver, got, goes_on = Receiver(ours), dict[int, bytes](), True
    while goes_on is not None:
        messages, goes_on = receiver.read()
        for kind, seq, payload in single(messages):
            assert kind == RETURNED
            got[seq] = bytes(payload)
    sender.join()
    assert got == contents


def test_a_vector_is_no_longer_than_the_kernel_takes(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    reader = Reader(ours)
    reader.start()
    box = Outbox(theirs, _never)
    for number in range(5_000):  # over 64 KiB, so not joined; over 1,024 parts
        box.add(encode(1, number, b"x" * 20))
    box.flush()
    theirs.shutdown(socket.SHUT_WR)
    reader.join(60)
    assert [number for _, number, _ in reader.messages] == list(range(5_000))


def test_who_finds_another_one_writing_leaves_it_to_him() -> None:
    writing, go_on = threading.Event(), threading.Event()
    taken: list[bytes] = []

    def send(data: bytes) -> int:
        writing.set()
        assert go_on.wait(60)
        taken.append(data)
        return len(data)

    sock: Any = SimpleNamespace(send=send)
    box = Outbox(sock, _never)
    box.add(b"first")
    writer = threading.Thread(target=box.flush)
    writer.start()
    assert writing.wait(60)
    box.add(b"second")
    box.flush()  # returns at once, though the socket is full
    assert taken == []
    go_on.set()
    writer.join(60)
    assert taken == [b"first", b"second"]


# Lingering


class Lingering:
    """An outbox on a fake clock, and what became of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.taken: list[bytes] = []
        self.woken = 0
        monkeypatch.setattr(outbox, "monotonic", self.clock)
        sock: Any = SimpleNamespace(send=self._send)
        self.box = Outbox(sock, self._wake)
        self.box.add_result(1, RETURNED, b"just now")
        self.box.flush()
        self.taken.clear()

    def _send(self, data: bytes) -> int:
        self.taken.append(b"".join(payload for _, _, payload in single(Decoder().feed(data))))
        return len(data)

    def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch) -> Lingering:
    return Lingering(monkeypatch)


def test_a_result_that_comes_alone_is_sent_at_once(lingering: Lingering) -> None:
    """It would only wait: for company that doesn't come, and then for the main thread, that is woken for it."""
    box = lingering.box
    for turn in range(3):
        lingering.clock.advance(LINGER + 1e-9)
        box.add_result(1, RETURNED, b"alone")
        box.flush_if_due()
        assert (lingering.taken, lingering.woken) == ([b"alone"] * (turn + 1), 0)


def test_a_result_that_comes_soon_waits_for_company_and_the_main_thread_hears_of_it_once(lingering: Lingering) -> None:
    box = lingering.box
    box.add_result(1, RETURNED, b"a")
    box.flush_if_due()
    assert (lingering.taken, lingering.woken) == ([], 1)
    lingering.clock.advance(LINGER / 2)
    box.add_result(1, RETURNED, b"b")
    box.flush_if_due()
    assert (lingering.taken, lingering.woken) == ([], 1)
    lingering.clock.advance(LINGER / 2 + 1e-9)
    box.add_result(1, RETURNED, b"c")
    box.flush_if_due()  # by now nothing was sent for long enough
    assert (lingering.taken, lingering.woken) == ([b"abc"], 1)


def test_the_first_result_of_what_was_just_heard_waits_for_company_too(lingering: Lingering) -> None:
    box = lingering.box
    lingering.clock.advance(100 * LINGER)
    box.heard()
    box.add_result(1, RETURNED, b"a")
    box.flush_if_due()
    assert (lingering.taken, lingering.woken) == ([], 1)
    lingering.clock.advance(LINGER / 2)
    box.heard()  # by which it doesn't wait longer
    lingering.clock.advance(LINGER / 2 + 1e-9)
    box.add_result(1, RETURNED, b"b")
    box.flush_if_due()
    assert lingering.taken == [b"ab"]


def test_the_main_thread_sends_what_a_thread_left_behind(lingering: Lingering) -> None:
    box = lingering.box
    box.add_result(1, RETURNED, b"left behind")
    box.flush_if_due()
    assert lingering.woken == 1
    assert box.tend() == LINGER  # not yet: look again
    assert lingering.taken == []
    lingering.clock.advance(LINGER + 1e-9)
    assert box.tend() == LINGER
    assert lingering.taken == [b"left behind"]
    assert box.tend() is None  # nothing there: not before a wake-up
    box.add_result(1, RETURNED, b"next")
    box.flush_if_due()
    assert lingering.woken == 2


def test_the_main_thread_is_not_woken_while_it_tends(lingering: Lingering) -> None:
    box = lingering.box
    for _ in range(3):
        box.add_result(1, RETURNED, b"x")
        box.flush_if_due()
        assert box.tend() == LINGER
    assert lingering.woken == 1


def test_a_result_that_is_added_while_the_main_thread_goes_to_sleep_is_tended(lingering: Lingering) -> None:
    # The race: it finds nothing; a thread adds, and wakes nobody, for it is tended; then it would sleep.
    box = lingering.box

    class Lying(deque[Result]):
        looks = 0

        def __bool__(self) -> bool:
            self.looks += 1
            if self.looks == 1:
                self.append((1, RETURNED, b"just added"))
                return False
            return len(self) > 0

    box._tended = True
    box._results = Lying()
    assert box.tend() == LINGER
    lingering.clock.advance(LINGER + 1e-9)
    assert box.tend() == LINGER
    assert lingering.taken == [b"just added"]


# Results


def test_results_go_together_and_large_ones_alone_in_their_order_before_the_rest(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = pair
    reader = Reader(ours)
    reader.start()
    box = Outbox(theirs, _never)
    box.add(encode(DUE, 1))
    sizes = [0, 10, SMALL, SMALL + 1, 3, 100_000]
    sent = [(RETURNED if seq % 2 else RAISED, seq, bytes([seq]) * size) for seq, size in enumerate(sizes, 1)]
    for kind, seq, payload in sent:
        box.add_result(seq, kind, payload)
    box.flush()
    theirs.shutdown(socket.SHUT_WR)
    reader.join(60)
    assert [kind for kind, _, _ in reader.messages] == [RESULTS, RAISED, RAISED, DUE]
    assert sorted(single(reader.messages)) == sorted([*sent, (DUE, 1, b"")])


def test_many_results_are_sent_though_one_message_does_not_take_them_all(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = pair
    reader = Reader(ours)
    reader.start()
    box = Outbox(theirs, _never)
    for seq in range(1_000):
        box.add_result(seq, RETURNED, b"x" * (5_000 if seq % 3 == 0 else 5))
    box.flush()
    theirs.shutdown(socket.SHUT_WR)
    reader.join(60)
    assert sorted(seq for _, seq, _ in single(reader.messages)) == list(range(1_000))


def test_results_for_which_there_is_no_memory_now_are_sent_later(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: list[Result]) -> bytes:
        raise MemoryError

    theirs, ours = pair
    box = Outbox(theirs, _never)
    sent = [(RETURNED, seq, b"x") for seq in range(3)]
    for kind, seq, payload in sent:
        box.add_result(seq, kind, payload)
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "pack_results", no_memory)
        with pytest.raises(MemoryError):
            box.flush()
    box.flush()
    assert list(single(Decoder().feed(ours.recv(1 << 16)))) == sent


# By the ring


@pytest.fixture
def rings(pair: tuple[socket.socket, socket.socket]) -> Iterator[tuple[Board, Board]]:
    """The worker's and the parent's view of the memory that they share."""
    with tempfile.TemporaryFile() as file:
        file.truncate(board_size(1) + RINGS_SIZE)
        boards = Board(file.fileno(), 1), Board(file.fileno(), 1)
    yield boards
    for board in boards:
        board.close()


@needs_populate
def test_what_is_in_the_ring_goes_in_the_batch_with_the_rest(
    pair: tuple[socket.socket, socket.socket], rings: tuple[Board, Board]
) -> None:
    theirs, ours = pair
    worker, parent = rings
    box = Outbox(theirs, _never, worker.up)
    value, pickled = os.urandom(60_000), os.urandom(50_000)
    sent: list[Result] = [(1, PLAIN, 5), (2, BYTES, value), (3, RETURNED, pickled), (4, RAISED, b"small")]
    sent.append((5, RETURNED, Marked(b"mark", value)))
    for result in sent:
        box.add_result(*result)
    box.flush()
    [(kind, count, (seqs, kinds, payloads))], _ = Receiver(ours, parent.up).read()
    assert (kind, count) == (RESULTS, 5)
    got = dict(zip(seqs, zip(kinds, payloads, strict=True), strict=True))
    assert bytes(got.pop(5)[1]) == b"mark" + value
    assert got == {seq: (kind, payload) for seq, kind, payload in sent[:4]}
    assert (type(got[2][1]), type(got[3][1])) == (bytes, bytearray)
    box.add_result(6, BYTES, value)
    box.flush()
    assert Receiver(ours, parent.up).read()[0] == [(RESULTS, 1, ((6,), (BYTES,), [value]))]


@pytest.mark.parametrize("has_ring", [True, False])
def test_large_values_for_which_the_ring_has_no_room_arrive_all_the_same(
    pair: tuple[socket.socket, socket.socket], rings: tuple[Board, Board], has_ring: bool
) -> None:
    theirs, ours = pair
    worker, parent = rings
    box = Outbox(theirs, _never, worker.up if has_ring else None)
    values = [os.urandom(size) for size in (SMALL + 1, 600_000, 600_000, 600_000, 600_000, 600_000, 600_000, 600_000)]
    for seq, value in enumerate(values):
        box.add_result(seq, BYTES, value)
    sender = threading.Thread(target=box.flush, daemon=True)
    sender.start()
    receiver = Receiver(ours, parent.up)
    messages = list[Message]()
    while len(messages) < len(values):
        messages += single(receiver.read()[0])
    sender.join(60)
    got = {seq: payload if kind == BYTES else load(payload) for kind, seq, payload in messages}
    assert got == dict(enumerate(values))
    assert {type(value) for value in got.values()} == {bytes}


@needs_populate
def test_what_was_put_in_the_ring_and_not_told_of_is_put_there_again(
    pair: tuple[socket.socket, socket.socket], rings: tuple[Board, Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: list[Result]) -> bytes:
        raise MemoryError

    theirs, ours = pair
    worker, parent = rings
    box = Outbox(theirs, _never, worker.up)
    receiver = Receiver(ours, parent.up)
    for turn in range(20):  # more than there is room for, if what was lost were never free again
        value = os.urandom(700_000)
        box.add_result(turn, BYTES, value)
        with monkeypatch.context() as patched:
            patched.setattr(outbox, "pack_results", no_memory)
            with pytest.raises(MemoryError):
                box.flush()
        box.flush()
        assert receiver.read()[0] == [(RESULTS, 1, ((turn,), (BYTES,), [value]))]


# Ends


def test_who_ends_waits_for_who_is_sending() -> None:
    writing, go_on = threading.Event(), threading.Event()
    taken: list[bytes] = []

    def send(data: bytes) -> int:
        writing.set()
        assert go_on.wait(60)
        taken.append(data)
        return len(data)

    sock: Any = SimpleNamespace(send=send)
    box = Outbox(sock, _never)
    box._writing = Watched(go_on.set)  # type: ignore[assignment]
    box.add(b"first")
    writer = threading.Thread(target=box.flush)
    writer.start()
    assert writing.wait(60)
    box.add(b"second")
    box.finish()
    assert taken == [b"first", b"second"]
    writer.join(60)


def test_a_send_that_fails_half_way_ends_the_worker(worker_ends: Ends) -> None:
    def send(_: bytes) -> int:
        raise MemoryError

    sock: Any = SimpleNamespace(send=send)
    box = Outbox(sock, _never)
    box.add_result(1, RETURNED, b"x")
    with pytest.raises(SystemExit):
        box.flush()
    [(name, code, _)] = worker_ends.take()
    assert (name, code) == ("die", ends.INTERNAL)


def test_a_parent_that_is_gone_ends_the_worker(pair: tuple[socket.socket, socket.socket], worker_ends: Ends) -> None:
    theirs, ours = pair
    ours.close()
    box = Outbox(theirs, _never)
    box.add(b"nobody hears it")
    with pytest.raises(SystemExit):
        box.flush()
    assert worker_ends.take() == [("parent_gone",)]


@pytest.mark.parametrize("number", ["is nobody's", "is another file's"])
def test_a_descriptor_that_a_task_has_closed_ends_the_worker(worker_ends: Ends, tmp_path: Path, number: str) -> None:
    theirs, ours = socket.socketpair()
    ours.close()
    box = Outbox(theirs, _never)
    if number == "is another file's":
        file = os.open(tmp_path / "theirs", os.O_RDWR | os.O_CREAT)
        os.dup2(file, theirs.fileno())
        os.close(file)
    else:
        os.close(theirs.fileno())
    box.add(b"where to?")
    with pytest.raises(SystemExit):
        box.flush()
    [(name, code, text)] = worker_ends.take()
    assert (name, code) == ("die", ends.LOST_DESCRIPTORS)
    assert "can't write to its socket" in text
    if number == "is another file's":
        assert (tmp_path / "theirs").read_bytes() == b""
        os.close(theirs.fileno())
    theirs.detach()
