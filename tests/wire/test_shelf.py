"""Files of memory are used again: when nobody looks at them any more, and not before."""

from __future__ import annotations

import gc
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpms.wire import files
from mpms.wire.files import File, MemoryFile, send_file
from mpms.wire.frames import Marked
from mpms.wire.receiver import Receiver
from mpms.wire.shelf import LEAST, Shelf

SIZE = 1 << 20
MANY = 1 << 30

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there is no memfd here")


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf(MANY)
    yield shelf
    shelf.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def transfer(pair: tuple[socket.socket, socket.socket]) -> Callable[[MemoryFile], bytes]:
    ours, theirs = pair
    receiver = Receiver(theirs)

    def transfer(file: MemoryFile) -> bytes:
        """As it is there when it has arrived: a view of what is mapped."""
        send_file(ours, file.message(1, 1), file)
        [(_, _, payload)], _ = receiver.read()
        return payload

    return transfer


def packed(shelf: Shelf, *parts: bytes | memoryview) -> MemoryFile:
    file = shelf.pack(parts)
    assert isinstance(file, MemoryFile)
    return file


def inode(file: MemoryFile) -> int:
    return os.fstat(file.fd).st_ino


def content(file: MemoryFile) -> bytes:
    return os.pread(file.fd, file.size, mmap.PAGESIZE)


def test_a_file_is_used_again_when_its_reader_is_done_and_its_sender_has_forgotten_it(
    shelf: Shelf, transfer: Callable[[MemoryFile], bytes]
) -> None:
    file = packed(shelf, b"a" * SIZE)
    first = inode(file)
    payload = transfer(file)
    assert payload == b"a" * SIZE
    del payload
    assert inode(packed(shelf, b"b" * SIZE)) != first  # it may be sent again
    del file
    again = packed(shelf, b"c" * SIZE)
    assert inode(again) == first
    assert transfer(again) == b"c" * SIZE


def test_what_somebody_looks_at_stays_as_it_is(shelf: Shelf, transfer: Callable[[MemoryFile], bytes]) -> None:
    payload = transfer(packed(shelf, b"a" * SIZE))
    part = memoryview(payload)[5:10]
    del payload
    for _ in range(3):
        transfer(packed(shelf, b"b" * SIZE))
    assert part == b"aaaaa"


def test_each_file_is_used_by_one_payload_at_a_time(shelf: Shelf, transfer: Callable[[MemoryFile], bytes]) -> None:
    for _ in range(3):
        letters = [bytes([65 + number]) for number in range(4)]
        payloads = [transfer(packed(shelf, letter * SIZE)) for letter in letters]
        assert [bytes(payload[:1]) for payload in payloads] == letters
        assert all(payload == letter * SIZE for payload, letter in zip(payloads, letters, strict=True))


def test_a_file_that_another_thread_has_used_since_it_was_looked_at_is_left_alone(
    shelf: Shelf, transfer: Callable[[MemoryFile], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race: it is free; another thread takes it, fills it, sends it, and puts it back."""
    first = inode(packed(shelf, b"a" * SIZE))
    look, payloads = shelf._is_free, list[bytes]()

    def look_and_be_overtaken(file: File) -> bool:
        monkeypatch.undo()
        assert look(file)
        other = packed(shelf, b"b" * SIZE)
        assert inode(other) == first
        payloads.append(transfer(other))
        return True

    monkeypatch.setattr(shelf, "_is_free", look_and_be_overtaken)
    ours = packed(shelf, b"c" * SIZE)
    assert inode(ours) != first
    assert payloads == [b"b" * SIZE]
    payloads.clear()
    assert inode(packed(shelf, b"d" * SIZE)) == first  # it is on the shelf all the same


def test_threads_that_share_a_shelf_never_have_the_same_file(shelf: Shelf) -> None:
    torn = list[int]()

    def use(number: int) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            receiver = Receiver(theirs)
            for turn in range(100):
                content = bytes([number * 50 + turn % 50]) * (SIZE + turn % 3)
                file = packed(shelf, content)
                send_file(ours, file.message(1, 1), file)
                del file
                [(_, _, payload)], _ = receiver.read()
                if payload != content:
                    torn.append(number)
                del payload

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torn == []


def test_what_was_sent_twice_is_not_used_again(shelf: Shelf, transfer: Callable[[MemoryFile], bytes]) -> None:
    """The first reader has died, and nobody knows which of the two is done."""
    file = packed(shelf, b"a" * SIZE)
    first = inode(file)
    transfer(file)
    transfer(file)
    del file
    assert inode(packed(shelf, b"b" * SIZE)) != first


def test_what_was_never_sent_is_used_again(shelf: Shelf) -> None:
    first = inode(packed(shelf, b"a" * SIZE))
    assert inode(packed(shelf, b"b" * SIZE)) == first


def test_parts_of_every_kind_are_as_they_were(shelf: Shelf, transfer: Callable[[MemoryFile], bytes]) -> None:
    parts = (
        b"a" * SIZE,
        memoryview(bytearray(b"b" * SIZE)),
        memoryview(b"c" * SIZE),
        b"",
        memoryview(bytearray()),
        b"d",
    )
    for _ in range(3):
        file = packed(shelf, *parts)
        assert content(file) == b"".join(parts)
        assert transfer(file) == b"".join(parts)


def test_a_smaller_payload_fits_and_a_larger_one_makes_room(
    shelf: Shelf, transfer: Callable[[MemoryFile], bytes]
) -> None:
    numbers = set()
    for size in (SIZE, LEAST, 3 * SIZE, SIZE + 1, 3 * SIZE):
        file = packed(shelf, os.urandom(size))
        numbers.add(inode(file))
        assert transfer(file) == content(file)
        assert file.size == size
        del file
    assert len(numbers) == 1


def test_the_smallest_one_that_is_large_enough_is_taken(shelf: Shelf) -> None:
    several = [packed(shelf, bytes(factor * SIZE)) for factor in (3, 1, 4, 2)]
    known = {file.size // SIZE: inode(file) for file in several}
    del several
    for factor in (2, 3, 1, 4):
        assert inode(packed(shelf, bytes(factor * SIZE - 1))) == known[factor]
    assert inode(packed(shelf, bytes(2 * SIZE + 10))) == known[3]  # and not the one of 2, which is nearer


def test_so_many_bytes_are_kept_and_no_more(transfer: Callable[[MemoryFile], bytes]) -> None:
    shelf = Shelf(3 * SIZE)
    kept = [packed(shelf, bytes(SIZE)) for _ in range(5)]
    known = {inode(file) for file in kept}
    before = len(os.listdir("/proc/self/fd"))
    kept.clear()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    kept = [packed(shelf, bytes(SIZE)) for _ in range(5)]
    assert len(known.intersection(map(inode, kept))) == 3
    del kept
    packed(shelf, bytes(3 * SIZE + 1))
    assert len(os.listdir("/proc/self/fd")) <= before - 2  # too large to be kept


def test_what_never_comes_back_makes_way(shelf: Shelf, transfer: Callable[[MemoryFile], bytes]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = [transfer(packed(shelf, bytes(SIZE))) for _ in range(40)]
    assert len(os.listdir("/proc/self/fd")) - before <= 16
    first = inode(packed(shelf, bytes(SIZE)))
    assert inode(packed(shelf, bytes(SIZE))) == first
    del held


def test_a_closed_shelf_keeps_nothing(shelf: Shelf) -> None:
    before = len(os.listdir("/proc/self/fd"))
    late = packed(shelf, bytes(SIZE))
    packed(shelf, bytes(SIZE))
    shelf.close()
    del late
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_child_has_inherited_stays_as_it_is_for_it(
    shelf: Shelf, transfer: Callable[[MemoryFile], bytes]
) -> None:
    payload = transfer(packed(shelf, b"a" * SIZE))
    asked, answered = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(asked[0], 1)
        os.write(answered[1], payload[:1])
        os._exit(0)
    del payload
    for _ in range(3):
        transfer(packed(shelf, b"b" * SIZE))
    os.write(asked[1], b"!")
    assert os.read(answered[0], 1) == b"a"
    os.waitpid(child, 0)
    for fd in (*asked, *answered):
        os.close(fd)


def test_a_child_does_not_write_to_the_files_of_its_parent(shelf: Shelf) -> None:
    first = inode(packed(shelf, b"a" * SIZE))
    child = os.fork()
    if child == 0:
        mine = inode(packed(shelf, b"b" * SIZE))
        os._exit(mine == first)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    file = packed(shelf, b"c" * SIZE)
    assert inode(file) == first
    assert content(file) == b"c" * SIZE


def test_a_file_of_the_users_that_has_its_number_now_is_left_alone(shelf: Shelf, tmp_path: Path) -> None:
    """A task has closed all descriptors that it found, and has opened its own."""
    file = packed(shelf, b"a" * SIZE)
    fd = file.fd
    del file
    path = tmp_path / "the user's"
    path.write_bytes(b"\1 the user's")
    users = os.open(path, os.O_RDWR)
    os.dup2(users, fd)
    os.close(users)
    assert packed(shelf, b"b" * SIZE).fd != fd
    shelf.close()
    assert os.read(fd, 100) == b"\1 the user's"
    os.close(fd)


def test_a_file_can_not_be_cut_off_under_who_looks_at_it(shelf: Shelf, transfer: Callable[[MemoryFile], bytes]) -> None:
    """To look at what isn't there ends a process, by SIGBUS."""
    file = packed(shelf, b"a" * SIZE)
    payload = transfer(file)
    with pytest.raises(PermissionError):
        os.truncate(file.fd, 0)
    assert payload == b"a" * SIZE


def test_a_number_that_somebody_uses_who_has_closed_it_is_not_that_of_a_file(shelf: Shelf) -> None:
    fd = os.dup(0)
    os.close(fd)
    assert packed(shelf, bytes(SIZE)).fd > fd + 100


def test_a_file_that_was_closed_by_a_task_is_no_loss(shelf: Shelf) -> None:
    file = packed(shelf, b"a" * SIZE)
    os.close(file.fd)
    del file
    assert content(packed(shelf, b"b" * SIZE)) == b"b" * SIZE


def test_what_is_read_for_want_of_a_mapping_is_returned_at_once(
    shelf: Shelf, transfer: Callable[[MemoryFile], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed(shelf, b"a" * SIZE)
    first = inode(file)
    system = files._system()
    with monkeypatch.context() as patch:
        patch.setattr(files, "_system", lambda: system.replace(mmap=lambda *_: files._FAILED))
        payload = transfer(file)
        del file
        again = packed(shelf, b"b" * SIZE)  # and written by system calls
    assert inode(again) == first
    assert content(again) == b"b" * SIZE
    assert payload == b"a" * SIZE


def test_without_memory_for_it_the_payload_goes_through_the_socket(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", none_left)
        assert shelf.pack([b"a" * SIZE]) == b"a" * SIZE
    packed(shelf, b"a" * SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", none_left)
        assert shelf.pack([b"a" * (2 * SIZE)]) == b"a" * (2 * SIZE)


def test_while_the_interpreter_ends_nothing_is_touched(shelf: Shelf) -> None:
    """What that needs may be gone by then: without a GIL programs ended with pages of complaints."""
    packed(shelf, b"a" * SIZE)
    file = packed(shelf, b"a" * SIZE)  # the second time it is mapped
    before = MemoryFile.alive
    file._file.__del__(lambda: True)
    file.__del__(lambda: True)
    assert content(file) == b"a" * SIZE
    assert file._file._mapped
    assert MemoryFile.alive == before
    assert shelf._files == []


def test_bytes_behind_a_mark_are_packed_without_a_copy_unless_they_go_in_a_file(shelf: Shelf) -> None:
    data = bytes(100_000)
    packed = shelf.pack([b"mark", data])
    assert isinstance(packed, Marked)
    assert packed.data is data
    assert len(packed) == len(data) + 4
    changing = bytearray(100_000)
    assert shelf.pack([b"mark", memoryview(changing)]) == b"mark" + changing
    assert isinstance(shelf.pack([b"mark", bytes(SIZE)]), MemoryFile)
