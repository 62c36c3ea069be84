"""One worker's sockets: nothing blocks, nothing is lost, the end is told apart from silence."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mpms.ids import Seq, TaskId, WorkerId
from mpms.local import link as link_module
from mpms.local.functions import Shipped
from mpms.local.link import Link, Offer, Parcel, open_link
from mpms.wire.board import Board, board_size
from mpms.wire.files import FILED, MemoryFile, send_file
from mpms.wire.frames import HEADER, Decoder, Marked, Message, encode
from mpms.wire.messages import FORGET, FUNCTION, RECALL, RETURNED, SELECT, TASK, TASKS
from mpms.wire.receiver import Receiver
from mpms.wire.shelf import Shelf
from mpms.worker.outbox import Outbox

from ..wire.single import single

needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there is no memfd here")


class Peer:
    """The worker's side."""

    def __init__(self, descriptors: list[int]) -> None:
        data, control, self.board, self.stacks = descriptors
        self._memory = Board(self.board, 3)
        self.data: socket.socket | None = socket.socket(fileno=data)
        self.control = socket.socket(fileno=control)
        self._receiver = Receiver(self.data, self._memory.down)

    @property
    def sock(self) -> socket.socket:
        assert self.data is not None
        return self.data

    def read(self) -> list[Message]:
        """What is there."""
        messages: list[Message] = []
        self.sock.setblocking(False)
        try:
            while True:
                messages += [(kind, seq, bytes(data)) for kind, seq, data in single(self._receiver.read()[0])]
        except BlockingIOError:
            return messages
        finally:
            self.sock.setblocking(True)

    def end(self) -> None:
        """As a process that ends."""
        if self.data is not None:
            self.data.close()
            self.data = None
            self.control.close()
            self._memory.close()
            os.close(self.board)
            os.close(self.stacks)


@pytest.fixture(params=["rings", "no rings"])
def pair(
    nothing_is_left: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Link, Peer]]:
    if request.param == "no rings":
        monkeypatch.setattr("mpms.local.link.RINGS_SIZE", 0)
    link, descriptors = open_link(WorkerId(1), "mpms-link-p1", 3)
    peer = Peer(descriptors)
    yield link, peer
    peer.end()
    link.close()


Pair = tuple[Link, Peer]


def plain(seq: int, payload: bytes = b"") -> tuple[int, Parcel]:
    """A task of the job's own function."""
    return seq, (payload, None, "what is kept of it besides")


def of(function: Shipped, *seqs: int) -> list[tuple[int, Parcel]]:
    """Tasks that bring this function along."""
    return [(seq, (b"", function)) for seq in seqs]


def said(peer: Peer) -> list[tuple[int, int]]:
    """Kinds and numbers of what has arrived."""
    return [(kind, number) for kind, number, _ in peer.read()]


@pytest.mark.parametrize("size", [0, 10, 3_000])
def test_tasks_arrive_in_order(pair: Pair, size: int) -> None:
    link, peer = pair
    tasks = [(seq, bytes([seq]) * size) for seq in range(1, 31)]  # joined, or as a vector
    link.send_tasks([plain(seq, payload) for seq, payload in tasks])
    assert peer.read() == [(TASK, seq, payload) for seq, payload in tasks]
    assert not link.wants_write


def test_bytes_arrive_behind_their_mark(pair: Pair) -> None:
    link, peer = pair
    content = os.urandom(100_000)
    link.send_tasks([(1, (b"small", None)), (2, (Marked(b"mark", content), None)), (3, (b"small", None))])
    assert peer.read() == [(TASK, 1, b"small"), (TASK, 2, b"mark" + content), (TASK, 3, b"small")]


def test_what_is_small_goes_in_one_message_with_where_the_rest_is_and_in_order(pair: Pair) -> None:
    link, peer = pair
    contents = [os.urandom(size) for size in (10, 60_000, 20, 1_000_000, 30_000, 5_000, 70_000, 30)]
    link.send_tasks([plain(seq, content) for seq, content in enumerate(contents, 1)])
    messages, _ = peer._receiver.read()
    while len(list(single(messages))) < len(contents):
        messages += peer._receiver.read()[0]
    assert [(seq, bytes(data)) for _, seq, data in single(messages)] == list(enumerate(contents, 1))
    if peer._memory.down is not None and sys.platform == "linux":
        assert [(kind, seq) for kind, seq, _ in messages] == [(TASKS, 1), (TASK, 6), (TASKS, 7)]
    link.send_tasks([plain(9, b"alone")])
    assert peer._receiver.read()[0] == [(TASK, 9, b"alone")]


def test_where_the_ring_has_no_room_it_goes_by_the_socket(pair: Pair) -> None:
    link, peer = pair
    contents = [os.urandom(700_000) for _ in range(8)]  # 4 MiB have room for five
    link.send_tasks([plain(seq, content) for seq, content in enumerate(contents, 1)])
    got = list[Message]()
    while len(got) < len(contents):
        got += peer.read()
        link.flush()
    assert got == [(TASK, seq, content) for seq, content in enumerate(contents, 1)]
    link.send_tasks([plain(9, contents[0])])
    assert peer.read() == [(TASK, 9, contents[0])]


def test_the_weight_of_the_tasks_that_were_sent_last_is_what_each_has_to_be_copied(pair: Pair) -> None:
    link, peer = pair
    assert link.weight == 0
    for sizes, weight in [([5_000, 7_000], 6_000), ([10], 0), ([60_000], 60_000), ([10, 10, 6_000], 2_000)]:
        link.send_tasks([plain(seq, bytes(size)) for seq, size in enumerate(sizes, 1)])
        assert link.weight == weight
        assert len(peer.read()) == len(sizes)


def test_a_function_is_sent_before_the_first_task_that_needs_it_and_only_once(pair: Pair) -> None:
    link, peer = pair
    first, second = Shipped(b"first"), Shipped(b"second")
    link.send_tasks([*of(first, 1, 2), *of(second, 3), *of(first, 4)])
    assert peer.read() == [
        (FUNCTION, first.number, b"first"),
        (TASK, 1, b""),
        (TASK, 2, b""),
        (FUNCTION, second.number, b"second"),
        (TASK, 3, b""),
        (SELECT, first.number, b""),
        (TASK, 4, b""),
    ]
    link.send_tasks(of(first, 5))  # nothing needs to be said: it is that of the task before
    link.send_tasks([plain(6), *of(second, 7)])
    assert said(peer) == [(TASK, 5), (SELECT, 0), (TASK, 6), (SELECT, second.number), (TASK, 7)]


def test_tasks_of_the_job_need_no_word_about_functions(pair: Pair) -> None:
    link, peer = pair
    link.send_tasks([plain(1), plain(2)])
    assert said(peer) == [(TASK, 1), (TASK, 2)]


def test_functions_with_the_same_bytes_are_apart_by_their_numbers(pair: Pair) -> None:
    link, peer = pair
    first, second = Shipped(b"same"), Shipped(b"same")
    link.send_tasks([*of(first, 1), *of(second, 2)])
    assert said(peer) == [(FUNCTION, first.number), (TASK, 1), (FUNCTION, second.number), (TASK, 2)]


def test_the_worker_forgets_the_function_that_was_used_longest_ago_and_gets_it_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpms.local.link._FUNCTIONS_MOST", 2)
    link, peer = pair
    a, b, c = (Shipped(name) for name in (b"a", b"b", b"c"))
    link.send_tasks([*of(a, 1), *of(b, 2), *of(a, 3)])
    peer.read()
    link.send_tasks(of(c, 4))
    assert said(peer) == [(FUNCTION, c.number), (FORGET, b.number), (TASK, 4)]
    link.send_tasks([*of(a, 5), *of(b, 6)])
    assert said(peer) == [(SELECT, a.number), (TASK, 5), (FUNCTION, b.number), (FORGET, c.number), (TASK, 6)]


@needs_memfd
@pytest.mark.parametrize("refused", [False, True])
def test_a_task_in_a_file_arrives_between_the_others(
    pair: Pair, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the system has too many descriptors under way to take this one."""
    link, peer = pair
    if refused:
        monkeypatch.setattr("mpms.local.link.send_file", refuse)
    file = Shelf(0).pack([b"file" * 200_000])
    assert isinstance(file, MemoryFile)
    link.send_tasks([plain(1, b"one"), (2, (file, None)), plain(3, b"three"), (4, (file, None))])
    assert link.weight == 0
    got: list[Message] = []
    receiver = Receiver(peer.sock)
    peer.sock.setblocking(False)
    while len(got) < 4:
        messages, _ = receiver.read()
        got += [(kind, number, bytes(payload)) for kind, number, payload in single(messages)]
        link.flush()
    assert got == [(TASK, 1, b"one"), (TASK, 2, b"file" * 200_000), (TASK, 3, b"three"), (TASK, 4, b"file" * 200_000)]
    assert not link.wants_write


def refuse(*_: object) -> int:
    raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))


@needs_memfd
def test_a_worker_whose_file_cannot_be_taken_is_given_up(pair: Pair) -> None:
    link, peer = pair
    file = Shelf(0).pack([bytes(1 << 20)])
    assert isinstance(file, MemoryFile)
    send_file(peer.sock, HEADER.pack(RETURNED | FILED, 1, 8) + (1 << 21).to_bytes(8, "little"), file)
    assert link.read() == []
    assert link.lost
    assert "shorter" in link.trouble


def test_a_large_function_goes_whole_and_before_its_task_to_a_worker_that_reads_late(pair: Pair) -> None:
    link, peer = pair
    large = Shipped(os.urandom(3_000_000))
    link.send_tasks([plain(1), *of(large, 2), plain(3)])
    assert link.wants_write
    got: list[Message] = []
    while link.wants_write:
        got += peer.read()
        link.flush()
    got += peer.read()
    assert got == [
        (TASK, 1, b""),
        (FUNCTION, large.number, large.data),
        (TASK, 2, b""),
        (SELECT, 0, b""),
        (TASK, 3, b""),
    ]


def test_what_a_stopped_worker_does_not_take_waits_here_and_arrives_in_order(pair: Pair) -> None:
    link, peer = pair
    sent = [
        (1, b"small"),
        *((seq, os.urandom(3_000_000)) for seq in (2, 3)),
        *((seq, b"x" * 500) for seq in range(4, 1_000)),
    ]
    for task in sent:
        link.send_tasks([plain(*task)])  # returns, though nobody reads
    link.send_tasks([plain(1_000, b"y" * 70_000), plain(1_001, b"")])
    assert link.wants_write
    got: list[Message] = []
    while link.wants_write:
        got += peer.read()
        link.flush()
    got += peer.read()
    assert got == [(TASK, *task) for task in [*sent, (1_000, b"y" * 70_000), (1_001, b"")]]


def test_nothing_to_hear_is_no_end(pair: Pair) -> None:
    link, peer = pair
    assert link.read() == []
    assert not link.lost
    peer.sock.sendall(encode(RETURNED, 1, b"value")[:-1])
    assert link.read() == []  # torn so far
    peer.sock.sendall(b"e")
    assert link.read() == [(RETURNED, 1, b"value")]
    assert not link.lost


def test_one_worker_with_much_to_say_does_not_keep_others_waiting(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    link, peer = pair
    numbers = itertools.count()
    talker = Receiver(peer.sock)
    monkeypatch.setattr(talker, "read", lambda: ([(RETURNED, next(numbers), b"")], True))  # there is always more
    monkeypatch.setattr(link, "_receiver", talker)
    assert 0 < len(link.read()) <= 4  # of a megabyte each


def test_the_end_of_the_stream_is_seen_after_all_that_was_said(pair: Pair) -> None:
    link, peer = pair
    peer.sock.sendall(encode(RETURNED, 1, b"one") + encode(RETURNED, 2, b"torn")[:-2])
    peer.end()
    assert link.drain() == [(RETURNED, 1, b"one")]
    assert link.lost
    assert link.drain() == []


def test_what_a_worker_has_left_in_its_ring_is_heard_after_its_end(pair: Pair) -> None:
    link, peer = pair
    contents = [os.urandom(40_000), os.urandom(50_000)]
    box = Outbox(peer.sock, lambda: None, peer._memory.up)
    for seq, content in enumerate(contents):
        box.add_result(seq, RETURNED, content)
        box.flush()
    peer.end()
    assert list(single(link.drain())) == [(RETURNED, 0, contents[0]), (RETURNED, 1, contents[1])]
    assert link.lost


def test_a_worker_that_ended_with_unread_tasks_is_heard_to_the_end(pair: Pair) -> None:
    # The kernel tells of the unread ones as a connection that was reset.
    link, peer = pair
    link.send_tasks([plain(1, b"never read")])
    peer.sock.sendall(encode(RETURNED, 9, b"said before"))
    peer.end()
    assert link.drain() == [(RETURNED, 9, b"said before")]
    assert link.lost


def test_draining_does_not_wait_for_a_grandchild_that_holds_the_other_side(pair: Pair) -> None:
    link, peer = pair
    peer.sock.sendall(encode(RETURNED, 1, b"one"))
    with socket.socket(fileno=os.dup(peer.sock.fileno())):
        peer.end()
        assert link.drain() == [(RETURNED, 1, b"one")]
        assert not link.lost


def test_draining_goes_on_while_a_large_message_is_under_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    link, peer = pair
    monkeypatch.setattr(link, "read", lambda: Link.read(link, 1))  # so that one time it brings no whole message
    peer.sock.sendall(encode(RETURNED, 1, b"x" * 150_000))
    with socket.socket(fileno=os.dup(peer.sock.fileno())):  # and no end of file says that there is more
        peer.end()
        assert [len(payload) for _, _, payload in link.drain()] == [150_000]


def test_sending_to_who_has_ended_is_no_error_and_hides_nothing(pair: Pair) -> None:
    link, peer = pair
    peer.sock.sendall(encode(RETURNED, 1, b"last words"))
    peer.end()
    link.send_tasks([plain(2, b"x" * 100_000), plain(3, b"")])
    link.control(RECALL, 3)
    assert not link.wants_write
    assert link.drain() == [(RETURNED, 1, b"last words")]


def test_who_reads_no_more_can_still_speak(pair: Pair) -> None:
    link, peer = pair
    peer.sock.shutdown(socket.SHUT_RD)  # it retires
    link.send_tasks([plain(1, b"too late")])
    assert not link.wants_write
    assert not link.lost
    peer.sock.sendall(encode(RETURNED, 7, b"still here"))
    assert link.read() == [(RETURNED, 7, b"still here")]


def test_control_has_a_channel_of_its_own_and_never_blocks(pair: Pair) -> None:
    link, peer = pair
    link.control(RECALL, 5)
    assert Decoder().feed(peer.control.recv(1000)) == [(RECALL, 5, b"")]
    assert peer.read() == []
    for number in range(20_000):  # a stopped worker's buffer is full long before
        link.control(RECALL, number)


def test_the_board_and_the_stacks_are_shared(pair: Pair) -> None:
    link, peer = pair
    assert (link.running(), link.watermark(), link.stacks()) == ([], 0, "")
    assert os.fstat(peer.board).st_size == board_size(3) + link_module.RINGS_SIZE  # 0 without rings
    board = Board(peer.board, 3)
    board.set_ident(2, 99)
    board.begin(2, 41, 2.5)
    os.write(peer.stacks, b"Fatal Python error: \xff\n")
    [slot] = link.running()
    assert (slot.thread, slot.seq, slot.start, slot.ident) == (2, 41, 2.5, 99)
    assert link.watermark() == 41
    assert link.stacks() == "Fatal Python error: \ufffd\n"
    os.write(peer.stacks, b"more")
    assert link.stacks().endswith("more")
    board.close()


# Shortages


def descriptors_open() -> set[int]:
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")}


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many can be opened, and no more."""
    used, limits = descriptors_open(), resource.getrlimit(resource.RLIMIT_NOFILE)
    most = [fd for fd in range(len(used) + count + max(used)) if fd not in used][count]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("count", range(8))
def test_a_link_for_which_too_few_descriptors_are_left_leaves_none_open(count: int) -> None:
    before = descriptors_open()
    with descriptors_left(count), pytest.raises(OSError, match="Errno 24"):
        open_link(WorkerId(1), "mpms-link-p1", 3)
    assert descriptors_open() == before


def test_a_link_for_which_no_memory_is_left_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def board(fd: int, threads: int) -> Board:
        raise OSError(errno.ENOMEM, "no memory")

    before = descriptors_open()
    monkeypatch.setattr(link_module, "Board", board)
    with pytest.raises(OSError, match="no memory"):
        open_link(WorkerId(1), "mpms-link-p1", 3)
    assert descriptors_open() == before


# What is offered to who submits tasks


def offered(link: Link, seq: int) -> Offer:
    offer = link.offer(Seq(seq))
    assert offer is not None
    return offer


def test_an_offer_is_taken_once_and_that_is_known_when_it_is_closed(pair: Pair) -> None:
    link, peer = pair
    offer = offered(link, 7)
    assert offer.take(TaskId(1), b"first")
    assert not offer.take(TaskId(2), b"second")
    assert peer.read() == [(TASK, 7, b"first")]
    assert link.taken(offer) == 1
    assert not link.wants_write


def test_an_offer_that_was_closed_is_not_taken_any_more(pair: Pair) -> None:
    link, peer = pair
    offer = offered(link, 7)
    assert link.taken(offer) is None
    assert not offer.take(TaskId(1), b"late")
    assert peer.read() == []
    assert link.taken(offer) is None


@pytest.mark.parametrize("then", ["another is submitted", "the supervisor comes"])
def test_a_handler_of_a_signal_may_come_between_before_an_offer_is_taken(
    pair: Pair, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, peer = pair
    offer, handled = offered(link, 7), list[object]()

    def interrupted(kind: int, number: int, payload: bytes) -> bytes:
        if not handled:
            handled.append(None)
            handled[0] = offer.take(TaskId(2), b"inner") if then == "another is submitted" else link.taken(offer)
        return encode(kind, number, payload)

    monkeypatch.setattr(link_module, "encode", interrupted)
    assert not offer.take(TaskId(1), b"outer")
    if then == "another is submitted":
        assert handled == [True]
        assert peer.read() == [(TASK, 7, b"inner")]
        assert link.taken(offer) == 2
    else:
        assert handled == [None]
        assert peer.read() == []


def test_an_offer_is_for_tasks_of_the_function_of_the_last_one(pair: Pair) -> None:
    link, _ = pair
    assert offered(link, 1).function is None
    function = Shipped(b"first")
    link.send_tasks(of(function, 1))
    assert offered(link, 2).function is function


def test_who_has_something_left_to_send_or_is_lost_offers_nothing(pair: Pair) -> None:
    link, peer = pair
    link.send_tasks([plain(seq, bytes(1 << 18)) for seq in range(1, 30)])
    assert link.wants_write
    assert link.offer(Seq(30)) is None
    peer.end()
    while not link.lost:
        link.read()
    link.flush()
    assert link.offer(Seq(30)) is None


def test_an_offer_of_a_worker_that_has_ended_is_not_taken(pair: Pair) -> None:
    link, peer = pair
    offer = offered(link, 1)
    peer.end()
    assert not offer.take(TaskId(1), b"payload")
    assert link.taken(offer) is None


def test_an_offer_of_a_stopped_worker_whose_socket_is_full_is_not_taken(pair: Pair) -> None:
    link, _ = pair
    offer = offered(link, 1)
    while True:
        try:
            link._data.send(bytes(1 << 16))
        except BlockingIOError:
            break
    assert not offer.take(TaskId(1), bytes(4000))
    assert link.taken(offer) is None
    assert not link.wants_write


def test_what_is_left_of_a_task_that_did_not_fit_is_sent_first(pair: Pair) -> None:
    """Which Linux never does with so little; a test has to."""
    link, peer = pair
    offer = Offer(link.worker, Seq(1), None, lambda data, flags: link._data.send(data[:3], flags))
    assert offer.take(TaskId(1), b"payload")
    assert link.taken(offer) == 1
    assert link.wants_write
    link.send_tasks([plain(2)])
    assert peer.read() == [(TASK, 1, b"payload"), (TASK, 2, b"")]


def test_who_closes_an_offer_waits_for_who_is_sending(pair: Pair) -> None:
    link, peer = pair
    sending, goes_on = threading.Event(), threading.Event()

    def send(data: bytes, flags: int) -> int:
        sending.set()
        goes_on.wait(30)
        return link._data.send(data, flags)

    offer, closed = Offer(link.worker, Seq(1), None, send), list[TaskId | None]()
    sender = threading.Thread(target=lambda: offer.take(TaskId(1), b"payload"))
    sender.start()
    assert sending.wait(30)
    closer = threading.Thread(target=lambda: closed.append(link.taken(offer)))
    closer.start()
    closer.join(0.05)
    assert closed == []
    goes_on.set()
    for thread in (sender, closer):
        thread.join(30)
    assert closed == [1]
    assert peer.read() == [(TASK, 1, b"payload")]
