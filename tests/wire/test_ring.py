"""The ring: what one side puts in the other gets, whole; and what finds no room goes with its message."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import random
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mpms.wire import ring
from mpms.wire.board import RINGS_SIZE, Board, board_size, threads_of
from mpms.wire.frames import Marked, encode
from mpms.wire.messages import (
    BYTES,
    PLAIN,
    RAISED,
    RESULTS,
    RETRY,
    RETURNED,
    TASKS,
    pack_results,
    pack_tasks,
    unpack_results,
    unpack_tasks,
)
from mpms.wire.pickling import load
from mpms.wire.receiver import Receiver
from mpms.wire.ring import AS_IT_IS, LEAST, RING_SIZE, RINGED, Place, Ring

ROOM = RING_SIZE - mmap.PAGESIZE
START = 3 * mmap.PAGESIZE

ran: list[int] = []


def run() -> None:
    ran.append(1)


class Runs:
    """Code of somebody's, if it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return run, ()


EVIL = pickle.dumps(((1,), (2,), (Runs(),)))

needs_populate = pytest.mark.skipif(sys.platform != "linux", reason="there it goes with the messages")


class Sides:
    """The writer and the reader of one ring."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(START + RING_SIZE)
            self._memories = [mmap.mmap(file.fileno(), START + RING_SIZE) for _ in range(2)]
        self.writer, self.reader = (Ring(memory, START) for memory in self._memories)
        self.sent: deque[tuple[Place, bytes]] = deque()  # and what should be there

    def put(self, content: bytes) -> bool:
        """Whether it is in the ring."""
        place = self.writer.put(content)
        if place is not None:
            self.sent.append((place, content))
        return place is not None

    def get(self) -> None:
        place, content = self.sent.popleft()
        assert self.reader.get(place) == content

    def others(self) -> tuple[bytes, bytes]:
        """What is in front of the ring, and how much was read."""
        return self._memories[0][:START], self._memories[0][START : START + 8]

    def close(self) -> None:
        self.writer.close()
        self.reader.close()
        for memory in self._memories:
            memory.close()


@contextmanager
def opened() -> Iterator[Sides]:
    sides = Sides()
    try:
        yield sides
    finally:
        sides.close()


@pytest.fixture
def sides() -> Iterator[Sides]:
    with opened() as sides:
        yield sides


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@needs_populate
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(LEAST - 2, ROOM // 3)), max_size=60), st.randoms())
def test_all_that_is_put_is_gotten_in_order(sizes: list[int], chance: random.Random) -> None:
    with opened() as sides:
        waiting = refused = laps = 0
        last = -1
        for seed, size in enumerate(sizes):
            while sides.sent and chance.random() < 0.3:
                sides.get()
            if sides.put(content(size, seed)):
                assert size >= LEAST
                place = sides.sent[-1][0][0] % ROOM
                laps += place <= last
                last = place
                waiting = max(waiting, len(sides.sent))
            elif size >= LEAST:
                refused += 1
                # More than it has room for, but for what was left at the end since each is in one piece.
                there = [size, *(len(content) for _, content in sides.sent)]
                assert sum(there) + max(there) > ROOM - 64 * len(there)
        while sides.sent:
            sides.get()
        assert sides.put(content(ROOM // 3, 1))  # there is room again
        sides.get()
        assert not any(sides.others()[0])
        event(f"{min(laps, 3)} laps and more")
        event("some were refused" if refused else "none was refused")
        event("many waited" if waiting > 5 else "few waited")


@needs_populate
def test_a_lap_after_the_other(sides: Sides) -> None:
    chance = random.Random(1)
    for seed in range(1_000):
        while not sides.put(content(chance.randrange(LEAST, 1 << 18), seed)):
            sides.get()  # fails when there is nothing
        if chance.random() < 0.4:
            sides.get()


@needs_populate
def test_while_nobody_reads_it_fills_and_each_that_is_read_makes_room(sides: Sides) -> None:
    size = ROOM // 8
    assert [sides.put(content(size, seed)) for seed in range(10)] == [True] * 8 + [False] * 2
    for seed in range(100, 120):
        sides.get()
        assert sides.put(content(size, seed))
        assert not sides.put(content(size, seed))


@needs_populate
def test_what_was_read_has_room_for_as_much_and_no_more(sides: Sides) -> None:
    first = 64 * 300
    assert sides.put(content(first, 1))
    assert sides.put(content(ROOM - first, 2))
    sides.get()
    assert not sides.put(content(first + 1, 3))
    assert sides.put(content(first, 4))
    assert not sides.put(content(LEAST, 5))
    sides.get()
    sides.get()


@needs_populate
def test_one_at_a_time_needs_the_memory_of_one(sides: Sides) -> None:
    for seed in range(200):
        assert sides.put(content(100_000, seed))
        sides.get()
    assert sides.writer._populated == 1 << 18
    assert sides.put(content(ROOM, 1))  # and there is room for as much as there ever was
    sides.get()
    assert not sides.put(content(ROOM + 1, 1))


@needs_populate
def test_bytes_behind_a_mark_come_as_they_went(sides: Sides) -> None:
    for seed in range(100):
        data, mark = content(LEAST + seed, seed), b"mark" * (1 + seed)
        place = sides.writer.put(Marked(mark, data))
        assert place
        got = sides.reader.get(place)
        assert isinstance(got, Marked)
        assert (type(got.data), got.mark, got.data) == (bytes, mark, data)
        assert (len(got), bytes(got)) == (len(mark) + len(data), mark + data)


@needs_populate
def test_what_is_pickled_comes_so_that_it_can_be_written_to_and_bytes_as_bytes(sides: Sides) -> None:
    for mark, kind in ((None, bytearray), (AS_IT_IS, bytes)):
        place = sides.writer.put(content(LEAST, 1), mark)
        assert place
        got = sides.reader.get(place)
        assert (type(got), got) == (kind, content(LEAST, 1))


def test_what_is_small_goes_with_its_message(sides: Sides) -> None:
    assert not sides.put(content(LEAST - 1, 1))
    assert not any(b"".join(sides.others()))


@pytest.mark.parametrize("problem", [OSError(errno.ENOMEM, "no memory"), OSError(errno.EINVAL, "an older Linux"), None])
def test_without_memory_all_goes_with_its_message(
    problem: OSError | None, sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``None``: where the system can't be asked for it."""
    asked: list[int] = []

    class Memory:
        def madvise(self, *_: Any) -> None:
            asked.append(1)
            assert problem is not None
            raise problem

    monkeypatch.setattr(sides.writer, "_memory", Memory())
    if problem is None:
        monkeypatch.setattr(ring, "_POPULATE", None)
    assert not any(sides.put(content(LEAST, seed)) for seed in range(5))
    assert len(asked) == (problem is not None)  # once is enough


@needs_populate
def test_memory_that_ends_later_is_no_error_either(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sides.put(content(1 << 17, 1))
    memory = sides.writer._memory

    class Memory:
        def madvise(self, *_: Any) -> None:
            raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(sides.writer, "_memory", Memory())
    assert not sides.put(content(1 << 18, 2))
    sides.get()
    monkeypatch.setattr(sides.writer, "_memory", memory)
    assert not sides.put(content(LEAST, 3))  # for good


@needs_populate
@pytest.mark.parametrize("count", [1, 64, ROOM, 2**63, 2**64 - 1])
def test_a_reader_that_says_nonsense_does_no_harm(sides: Sides, count: int) -> None:
    """What it has not read may be lost to it; nothing is written beside the ring."""
    assert sides.put(content(100_000, 1))
    sides.reader._read[0] = count
    for seed in range(100):
        sides.put(content(1 << 17, seed))
    assert not any(sides.others()[0])


NOWHERE: list[Place] = [
    [],
    [0, 100],
    [0, 100, None, None],
    [0, ROOM + 1, None],
    [ROOM - 1, 2, AS_IT_IS],
    [ROOM - 1, 2, b"mark"],
    [2**64 - 64, 100, None],
    [2**64, 1, None],
    [2**64 - 1, 1, None],
    [0, -1, None],
    [-ROOM, 1, None],
    [0, 2**64 - 1, None],
    [0.0, 100, None],
    [0, 100.0, None],
    [b"0", 100, None],
    [0, "100", None],
    [0, 100, "mark"],
    [0, 100, 4],
]


@pytest.mark.parametrize("place", NOWHERE)
def test_a_place_that_is_none_is_refused(sides: Sides, place: Place) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        sides.reader.get(place)


# On a socket


def tasks(number: int, payloads: list[Any]) -> bytes:
    """A batch of them."""
    return encode(TASKS | RINGED, number, pack_tasks(payloads))


def results(payloads: list[Any], kinds: list[int]) -> bytes:
    batch = [(7 + at, kind, payload) for at, (kind, payload) in enumerate(zip(kinds, payloads, strict=True))]
    return encode(RESULTS | RINGED, len(batch), pack_results(batch))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@needs_populate
def test_payloads_come_in_their_order_wherever_they_are(
    sides: Sides, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    large = [content(LEAST + number, number) for number in range(4)]
    there = [sides.writer.put(one) for one in large]
    assert all(there)
    ours.sendall(
        encode(1, 1, b"small")
        + tasks(2, [there[0], b"pickled", ("plain", 2), there[1]])
        + encode(6)
        + results([there[2], 5, there[3]], [RAISED, PLAIN, RETURNED])
    )
    receiver = Receiver(theirs, sides.reader)
    messages, _ = receiver.read()
    assert receiver.broken is None
    assert messages == [
        (1, 1, b"small"),
        (TASKS, 2, [large[0], b"pickled", ("plain", 2), large[1]]),
        (6, 0, b""),
        (RESULTS, 3, ((7, 8, 9), (RAISED, PLAIN, RETURNED), [large[2], 5, large[3]])),
    ]
    assert unpack_tasks(messages[1][2]) is messages[1][2]
    assert unpack_results(messages[3][2]) is messages[3][2]


def lacking(ring: Ring, content: bytes) -> Callable[[Place], bytes | Marked]:
    """Its ``get``, in a process that has no memory for that."""
    get = ring.get

    def short_of_memory(place: Place) -> bytes | Marked:
        data = get(place)
        if data == content:
            raise MemoryError
        return data

    return short_of_memory


@needs_populate
def test_without_memory_for_one_it_is_told_when_it_is_loaded_and_the_next_one_arrives(
    sides: Sides, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    contents = [content(LEAST + number, number) for number in range(3)]
    ours.sendall(tasks(1, [sides.writer.put(one) for one in contents]))
    monkeypatch.setattr(sides.reader, "get", lacking(sides.reader, contents[1]))
    receiver = Receiver(theirs, sides.reader)
    [(_, _, (first, second, third))], _ = receiver.read()
    assert (first, third) == (contents[0], contents[2])
    with pytest.raises(MemoryError, match="no memory for the payload"):
        load(second)
    assert receiver.broken is None


@needs_populate
def test_without_memory_for_bytes_that_are_a_value_they_are_none(
    sides: Sides, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    contents = [content(LEAST + number, number) for number in range(3)]
    sent = [BYTES, BYTES, RETRY]
    ours.sendall(results([sides.writer.put(one, AS_IT_IS) for one in contents], sent))
    get = lacking(sides.reader, contents[1])
    monkeypatch.setattr(sides.reader, "get", get)
    receiver = Receiver(theirs, sides.reader)
    [(_, _, (seqs, kinds, payloads))], _ = receiver.read()
    assert (seqs, kinds) == ((7, 8, 9), (BYTES, RETURNED, RETRY))
    assert (payloads[0], payloads[2]) == (contents[0], contents[2])
    with pytest.raises(MemoryError, match="no memory for the payload"):
        load(payloads[1])
    assert receiver.broken is None


@pytest.mark.parametrize("batch", [tasks, lambda number, payloads: results(payloads, [RETURNED] * len(payloads))])
@pytest.mark.parametrize("place", NOWHERE)
def test_after_a_place_that_is_none_nothing_is_believed(
    sides: Sides, pair: tuple[socket.socket, socket.socket], place: Place, batch: Callable[[int, list[Any]], bytes]
) -> None:
    ours, theirs = pair
    ours.sendall(encode(1, 1, b"before") + batch(2, [b"", place]) + encode(3, 3, b"after"))
    receiver = Receiver(theirs, sides.reader)
    assert receiver.read()[0] == [(1, 1, b"before")]
    assert receiver.broken is not None
    assert receiver.broken.errno == errno.EBADMSG


@pytest.mark.parametrize("data", [b"", b"nonsense", pickle.dumps(5), EVIL, pickle.dumps((5, 6, 7))])
@pytest.mark.parametrize("kind", [RESULTS, TASKS, RETURNED])
def test_nor_after_a_batch_that_is_none(
    sides: Sides, pair: tuple[socket.socket, socket.socket], kind: int, data: bytes
) -> None:
    """Whatever it is, nothing of it runs."""
    ours, theirs = pair
    ours.sendall(encode(kind | RINGED, 2, data) + encode(3, 3, b"after"))
    receiver = Receiver(theirs, sides.reader)
    messages, _ = receiver.read()
    assert not ran
    if (kind, data) == (TASKS, pickle.dumps((5, 6, 7))):
        assert receiver.broken is None  # to the parent nobody sends tasks, and it takes none
    else:
        assert messages == []
        assert receiver.broken is not None


def test_nor_after_a_place_where_there_is_no_ring(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(tasks(2, [[0, 1, None]]))
    receiver = Receiver(theirs)
    assert receiver.read()[0] == []
    assert receiver.broken is not None


# Behind a board


def boards(size: int, threads: int) -> tuple[Board, Board]:
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        assert threads_of(size) == board_size(threads) // 40
        return Board(file.fileno(), threads), Board(file.fileno(), threads)


@pytest.mark.parametrize("threads", [1, 102, 103, 1000])
def test_two_rings_behind_a_board_are_apart(threads: int) -> None:
    parent, worker = boards(board_size(threads) + RINGS_SIZE, threads)
    try:
        assert parent.down
        assert parent.up
        assert worker.down
        assert worker.up
        for seq in range(threads):
            worker.begin(seq, 2**64 - 1 - seq, 1.0)
        got = list[tuple[bytes, bytes]]()
        for seed in range(50):
            for writer, reader in ((parent.down, worker.down), (worker.up, parent.up)):
                data = content(100_000, seed)
                place = writer.put(data)
                if place is not None:
                    got.append((data, bytes(reader.get(place))))
        assert len(got) == (100 if sys.platform == "linux" else 0)
        assert all(sent == received for sent, received in got)
        assert [slot.seq for slot in parent.running()] == [2**64 - 1 - seq for seq in range(threads)]
    finally:
        parent.close()
        worker.close()


def test_a_board_may_be_without() -> None:
    for board in boards(board_size(5), 5):
        assert board.down is board.up is None
        board.close()


# Between processes


@needs_populate
def test_another_process_that_reads_meanwhile_gets_all_of_it(pair: tuple[socket.socket, socket.socket]) -> None:
    """With no other word between the two than messages, the one way and the other."""
    ours, theirs = pair
    count, seeds = 3_000, random.Random(5)
    sizes = [seeds.choice([100, LEAST, 40_000, 65_536, 300_000]) for _ in range(count)]
    parent, worker = boards(board_size(1) + RINGS_SIZE, 1)
    pid = os.fork()
    if not pid:
        os._exit(_echo(ours, theirs, worker, count))
    theirs.close()
    receiver = Receiver(ours, parent.up)
    assert parent.down
    block = content(1 << 20, 1)
    sent = deque[bytes]()
    got = 0
    try:
        for number, size in enumerate(sizes):
            data = block[number : number + size]
            place = parent.down.put(data)
            assert (place is not None) == (size >= LEAST)
            ours.sendall(tasks(number, [place or data]))
            sent.append(data)
            while len(sent) > (8 if number < count - 1 else 0):  # for which there is always room, so nobody is blocked
                messages, goes_on = receiver.read()
                assert goes_on is not None
                for _, _, ((answered,), _, (payload,)) in messages:
                    assert answered == got
                    assert payload == sent.popleft()
                    got += 1
    finally:
        ours.close()
        _, status = os.waitpid(pid, 0)
        parent.close()
        worker.close()
    assert (got, os.waitstatus_to_exitcode(status)) == (count, 0)


def _echo(ours: socket.socket, theirs: socket.socket, worker: Board, count: int) -> int:
    try:
        ours.close()
        receiver, echoed = Receiver(theirs, worker.down), 0
        assert worker.up
        while echoed < count:
            messages, goes_on = receiver.read()
            if goes_on is None:
                return 2
            for _, number, [payload] in messages:
                batch = [(number, RETURNED, worker.up.put(payload) or payload)]
                theirs.sendall(encode(RESULTS | RINGED, 1, pack_results(batch)))
                echoed += 1
    except BaseException:
        return 1
    return 0


def resident(path: Path, name: Callable[[str], bool]) -> int:
    """Bytes of the memory that is mapped under such names."""
    total, counts = 0, False
    for line in path.read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            counts = name(line)
        elif counts and first == "Rss:":
            total += 1024 * int(line.split()[1])
    return total


@needs_populate
def test_what_is_not_used_takes_no_memory() -> None:
    fd = os.memfd_create("mpms-ring-test")
    os.ftruncate(fd, board_size(1) + RINGS_SIZE)
    board = Board(fd, 1)
    os.close(fd)
    smaps, ours = Path("/proc/self/smaps"), lambda line: "mpms-ring-test" in line
    try:
        assert resident(smaps, ours) <= mmap.PAGESIZE
        assert board.down
        board.down.put(content(100_000, 1))
        assert 100_000 < resident(smaps, ours) <= (1 << 18) + 4 * mmap.PAGESIZE
    finally:
        board.close()
