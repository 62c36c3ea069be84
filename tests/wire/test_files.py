"""Large payloads travel as descriptors of files in memory, and none is left."""

from __future__ import annotations

import array
import errno
import gc
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mpms.wire import files
from mpms.wire.files import FILED, MemoryFile, send_file
from mpms.wire.frames import HEADER, Message, encode
from mpms.wire.pickling import load
from mpms.wire.receiver import Receiver
from mpms.wire.shelf import LEAST, Shelf

LARGE = LEAST

pack = Shelf(0).pack

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there is no memfd here")


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    gc.collect()  # an exception that was caught has its frames, and they what was in them
    assert len(descriptors()) == len(before)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def filed(*parts: bytes) -> MemoryFile:
    file = pack(parts)
    assert isinstance(file, MemoryFile)
    return file


def everything(receiver: Receiver) -> list[Message]:
    """Until the end of the stream."""
    messages = []
    while True:
        more, goes_on = receiver.read()
        messages += [(kind, number, bytes(payload)) for kind, number, payload in more]
        if goes_on is None:
            return messages


def test_small_payloads_are_bytes_and_large_ones_are_files() -> None:
    assert pack([b"one ", memoryview(b"two")]) == b"one two"
    data = bytes(LARGE - 1)
    assert pack([data]) is data
    file = pack([bytes(LARGE // 2), memoryview(bytearray(LARGE // 2))])
    assert isinstance(file, MemoryFile)
    assert len(file) == LARGE


def test_a_file_arrives_as_it_was_packed_among_other_messages(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    contents = [os.urandom(LARGE + number) for number in range(3)]
    for number, content in enumerate(contents):
        ours.sendall(encode(1, number, b"before"))
        file = filed(content[:1000], content[1000:])
        message = file.message(2, number)
        assert send_file(ours, message, file) == len(message)
        ours.sendall(encode(3, number, b"behind"))
    ours.shutdown(socket.SHUT_WR)
    assert everything(Receiver(theirs)) == [
        message
        for number, content in enumerate(contents)
        for message in ((1, number, b"before"), (2, number, content), (3, number, b"behind"))
    ]


def test_the_descriptor_may_come_before_the_rest_of_its_message(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    file = filed(bytes(LARGE))
    message = file.message(2, 7)
    receiver = Receiver(theirs)
    send_file(ours, message[:5], file)
    assert receiver.read() == ([], True)
    ours.sendall(message[5:])
    [(kind, number, payload)], _ = receiver.read()
    assert (kind, number, bytes(payload)) == (2, 7, bytes(LARGE))


def test_a_payload_through_the_socket_may_be_under_way_before_it(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    large, file = encode(1, 1, bytes(100_000)), filed(b"f" * LARGE)
    ours.sendall(large[:50_000])
    receiver = Receiver(theirs)
    assert receiver.read()[0] == []
    ours.sendall(large[50_000:])
    send_file(ours, file.message(2, 2), file)
    ours.shutdown(socket.SHUT_WR)
    assert everything(receiver) == [(1, 1, bytes(100_000)), (2, 2, b"f" * LARGE)]


def test_what_is_mapped_is_ones_own_and_can_be_written_to(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    file = filed(b"a" * LARGE)
    for _ in range(2):
        send_file(ours, file.message(2, 0), file)
    receiver = Receiver(theirs)
    [(_, _, first)], _ = receiver.read()
    del file  # whoever has sent it may forget it
    view = memoryview(first)
    view[:3] = b"bbb"
    [(_, _, second)], _ = receiver.read()
    assert bytes(first[:4]) == b"bbba"
    assert bytes(second[:4]) == b"aaaa"


def test_without_descriptors_it_goes_through_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr(os, "memfd_create", none_left)
    assert pack([b"?", bytes(LARGE), b"!"]) == b"?" + bytes(LARGE) + b"!"
    monkeypatch.delattr(os, "memfd_create")
    assert pack([b"?", bytes(LARGE), b"!"]) == b"?" + bytes(LARGE) + b"!"


def test_a_sixteenth_of_all_descriptors_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = 16 * (MemoryFile.alive + 3), 1 << 20
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    packed = [pack([bytes(LARGE)]) for _ in range(5)]
    assert [isinstance(each, MemoryFile) for each in packed] == [True] * 3 + [False] * 2
    del packed[0]
    assert isinstance(pack([bytes(LARGE)]), MemoryFile)


def test_it_can_be_read_again_for_who_takes_no_descriptor() -> None:
    file = filed(b"a" * LARGE, b"b")
    assert b"".join(file.inline(5, 6)) == encode(5, 6, b"a" * LARGE + b"b")


def test_a_receiver_that_has_no_descriptor_left_says_so(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    file = filed(bytes(LARGE))
    ours.sendall(encode(1, 1, b"before"))
    send_file(ours, file.message(2, 0), file)
    receiver = Receiver(theirs)
    with few_descriptors():
        assert receiver.read()[0] == [(1, 1, b"before")]
    assert receiver.broken is not None
    assert receiver.broken.errno == errno.EMFILE


@contextmanager
def few_descriptors() -> Iterator[None]:
    """None is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)  # the lowest that is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_room_for_a_mapping_it_is_read(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    file = filed(b"a" * LARGE)
    send_file(ours, file.message(2, 0), file)
    system = files._system().replace(mmap=lambda *_: files._FAILED)
    monkeypatch.setattr(files, "_system", lambda: system)
    [(_, _, payload)], _ = Receiver(theirs).read()
    assert payload == b"a" * LARGE
    memoryview(payload)[:1] = b"b"


def test_without_memory_for_one_it_is_told_when_it_is_loaded_and_the_next_one_arrives(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: bytes) -> bytearray:
        raise MemoryError

    ours, theirs = pair
    file = filed(b"a" * LARGE)
    send_file(ours, file.message(2, 7), file)
    ours.sendall(encode(1, 8, b"next"))
    receiver = Receiver(theirs)
    system = files._system().replace(mmap=lambda *_: files._FAILED)
    monkeypatch.setattr(files, "_system", lambda: system)
    monkeypatch.setattr(files, "bytearray", no_memory, raising=False)
    messages, _ = receiver.read()
    if len(messages) < 2:
        messages += receiver.read()[0]
    assert [(kind, number) for kind, number, _ in messages] == [(2, 7), (1, 8)]
    with pytest.raises(MemoryError, match="no memory for the payload"):
        load(messages[0][2])
    assert receiver.broken is None


def test_a_file_that_is_shorter_than_was_said_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    file = filed(bytes(LARGE))
    message = HEADER.pack(2 | FILED, 0, 8) + (LARGE + 1).to_bytes(8, "little")
    ours.sendall(encode(1, 1, b"before"))
    send_file(ours, message, file)
    receiver = Receiver(theirs)
    assert receiver.read()[0] == [(1, 1, b"before")]
    assert "shorter" in str(receiver.broken)


@pytest.mark.parametrize("size", [b"", (LARGE).to_bytes(8, "little") * 2])
def test_a_size_that_is_none_is_refused(pair: tuple[socket.socket, socket.socket], size: bytes) -> None:
    ours, theirs = pair
    file = filed(bytes(LARGE))
    send_file(ours, encode(2 | FILED, 0, size), file)
    receiver = Receiver(theirs)
    assert receiver.read()[0] == []
    assert receiver.broken is not None


def test_a_second_message_with_a_single_file_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    file = filed(bytes(LARGE))
    send_file(ours, file.message(2, 0) + file.message(2, 1), file)
    receiver = Receiver(theirs)
    [(_, number, _)], _ = receiver.read()
    assert number == 0
    assert receiver.broken is not None


def test_who_closes_early_leaves_no_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    file = filed(bytes(LARGE))
    receiver = Receiver(theirs)
    send_file(ours, file.message(2, 0)[:3], file)
    receiver.read()
    receiver.close()


def test_what_else_comes_beside_a_message_does_no_harm(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    receiver = Receiver(theirs)
    number = array.array("i", [ours.fileno()])
    ours.sendmsg([encode(1, 2, b"three")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, number)])
    assert receiver.read()[0] == [(1, 2, b"three")]
    receiver.close()


class Counted:
    """A socket of which it is known how much was asked for."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.asked: list[int] = []

    def recvmsg(self, size: int, room: int) -> object:
        self.asked.append(size)
        return self._sock.recvmsg(size, room)

    def recvmsg_into(self, buffers: list[memoryview], room: int) -> object:
        return self._sock.recvmsg_into(buffers, room)


def test_what_comes_in_bulk_is_read_in_bulk_and_what_comes_alone_is_not(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    counted = Counted(theirs)
    receiver = Receiver(counted)  # type: ignore[arg-type]
    content = os.urandom(1 << 16)

    def read(count: int) -> list[int]:
        """So many messages of the content; how much was asked for each time, in KiB."""
        counted.asked.clear()
        while count:
            messages, _ = receiver.read()
            assert all(bytes(payload) == content for _, _, payload in messages)
            count -= len(messages)
        return [size >> 10 for size in counted.asked]

    for _ in range(3):
        ours.sendall(encode(1, 1, content))
        assert read(1) == [96]
    ours.sendall(encode(1, 1, content) * 6)
    assert read(6) == [96, 1024]  # and what was left of the second one, to where it stays
    ours.sendall(encode(1, 1, content) * 6)
    assert read(6) == [1024]
    ours.sendall(encode(1, 1, content))
    assert read(1) == [1024]
    ours.sendall(encode(1, 1, content))
    assert read(1) == [96]
