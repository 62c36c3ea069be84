"""Batches taken apart, for tests that are about single tasks and results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mpms.wire.frames import Message
from mpms.wire.messages import PLAIN, RESULTS, RETURNED, TASK, TASKS, pack_task, unpack_results, unpack_tasks
from mpms.wire.pickling import dump

__all__ = ["single"]


def single(messages: Iterable[Message]) -> Iterator[Message]:
    """The same as if each task and each result had come in a message of its own."""
    for kind, number, payload in messages:
        if kind == TASKS:
            for seq, one in enumerate(unpack_tasks(payload), number):
                yield TASK, seq, pack_task(one)
        elif kind == RESULTS:
            seqs, kinds, payloads = unpack_results(payload)
            assert len(seqs) == number
            for kind, seq, payload in zip(kinds, seqs, payloads, strict=True):
                yield (RETURNED, seq, dump(payload)) if kind == PLAIN else (kind, seq, payload)
        else:
            yield kind, number, payload
