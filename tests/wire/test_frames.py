"""Whatever the pieces in which bytes arrive, messages come out whole and in order."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mpms.wire import frames
from mpms.wire.frames import HEADER, Decoder, Message, encode, keep_memory

numbers = st.integers(0, 2**64 - 1)
messages = st.lists(st.tuples(st.integers(0, 255), numbers, st.binary(max_size=60)), max_size=20)


@st.composite
def torn(draw: st.DrawFn) -> tuple[list[Message], list[bytes]]:
    """Messages, and their bytes in pieces; some of them are empty."""
    given = draw(messages)
    stream = b"".join(encode(*message) for message in given)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    edges = [0, *cuts, len(stream)]
    return given, [stream[a:b] for a, b in pairwise(edges)]


@given(torn())
def test_messages_come_out_whole_and_in_order(case: tuple[list[Message], list[bytes]]) -> None:
    given, pieces = case
    decoder = Decoder()
    got: list[Message] = []
    read = 0
    ends = _ends(given)
    for piece in pieces:
        got += decoder.feed(piece)
        read += len(piece)
        assert len(got) == sum(end <= read for end in ends)  # as soon as it is there
    assert got == given
    event(f"torn within a message: {any(cut not in ends for cut in _cuts(pieces))}")


@given(torn(), st.data())
def test_a_torn_tail_is_no_error_and_no_message(case: tuple[list[Message], list[bytes]], data: st.DataObject) -> None:
    given, pieces = case
    stream = b"".join(pieces)
    stop = data.draw(st.integers(0, len(stream)))
    whole = sum(end <= stop for end in _ends(given))
    assert Decoder().feed(stream[:stop]) == given[:whole]


@given(torn(), st.integers(1, 40), st.integers(1, 30), st.data())
def test_large_messages_are_read_in_place(
    case: tuple[list[Message], list[bytes]], large: int, room: int, data: st.DataObject
) -> None:
    """By whoever reads them so, or as any others."""
    given, pieces = case
    stream = b"".join(pieces)
    decoder, got, at, read_in_place = Decoder(), list[Message](), 0, 0
    with patch.multiple(frames, _LARGE=large, _ROOM=room):
        while at < len(stream):
            count = data.draw(st.integers(1, 50))
            if decoder.partial is not None and data.draw(st.booleans()):
                with decoder.room() as place:
                    count = min(count, len(place), len(stream) - at)
                    place[:count] = stream[at : at + count]
                got += decoder.filled(count)
                read_in_place += 1
            else:
                got += decoder.feed(stream[at : at + count])
            at += count
    assert got == given
    assert decoder.partial is None
    event(f"read in place: {min(read_in_place, 3)} times")


def test_a_large_message_takes_no_more_memory_than_has_come() -> None:
    """However long somebody says that it is who has lost his mind."""
    decoder = Decoder()
    assert decoder.feed(HEADER.pack(1, 1, 1 << 62)) == []
    assert decoder.partial is not None
    assert len(decoder.partial) == 1 << 25
    assert decoder.filled(1 << 25) == []
    assert len(decoder.partial) == 1 << 26


def _ends(given: list[Message]) -> list[int]:
    """Where each message ends in the stream."""
    ends, at = [], 0
    for _, _, payload in given:
        at += HEADER.size + len(payload)
        ends.append(at)
    return ends


def _cuts(pieces: list[bytes]) -> list[int]:
    cuts, at = [], 0
    for piece in pieces[:-1]:
        at += len(piece)
        cuts.append(at)
    return cuts


def test_byte_by_byte() -> None:
    given = [(1, 2, b"three"), (4, 5, b""), (6, 7, b"8" * 300)]
    decoder = Decoder()
    got = [m for byte in b"".join(encode(*m) for m in given) for m in decoder.feed(bytes([byte]))]
    assert got == given


def test_payloads_are_bytes_of_their_own() -> None:
    [(_, _, payload)] = Decoder().feed(encode(1, 1, b"payload"))
    assert type(payload) is bytes


def test_a_large_payload_that_comes_at_once_is_not_copied() -> None:
    stream = encode(1, 1, b"small") + encode(2, 2, b"p" * 50_000) + encode(3, 3, b"after")
    got = Decoder().feed(stream)
    assert got == [(1, 1, b"small"), (2, 2, b"p" * 50_000), (3, 3, b"after")]
    assert isinstance(got[1][2], memoryview)
    assert got[1][2].obj is stream


def test_a_large_payload_in_what_was_kept_is_copied_for_that_is_overwritten() -> None:
    decoder, stream = Decoder(), encode(2, 2, b"p" * 50_000) + encode(3, 3, b"after")
    assert decoder.feed(stream[:5]) == []
    got = decoder.feed(stream[5:])
    assert got == [(2, 2, b"p" * 50_000), (3, 3, b"after")]
    decoder.feed(b"x" * 10)
    assert got[0][2] == b"p" * 50_000


FAULTS = """
import resource
import sys
from mpms.wire.frames import keep_memory
if "keep" in sys.argv:
    keep_memory(1 << 22)
for turn in range(110):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(100_000) for _ in range(60)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="others keep what they keep; without a GIL Python has an allocator of its own",
)
def test_what_was_freed_is_used_again_and_not_asked_of_the_kernel() -> None:
    # Dask sets one of these in its own process, for those that it starts; with it glibc doesn't change its mind.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def faults(*words: str) -> int:
        program = [sys.executable, "-c", FAULTS, *words]
        told = subprocess.run(program, env=environ, capture_output=True, text=True, check=True)
        return int(told.stdout)

    assert faults() > 10_000  # 25 pages each
    assert faults("keep") < 500


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="what memory there is is not shown here")
def test_to_keep_memory_takes_none() -> None:
    """With or without a GIL."""
    program = (
        "import re; from pathlib import Path; from mpms.wire.frames import keep_memory\n"
        "def held(): return int(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "held(); before = held(); keep_memory(1 << 24); print(held() - before)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 1_000  # KiB


def test_to_keep_more_than_there_is_is_no_error() -> None:
    keep_memory(1 << 60)
