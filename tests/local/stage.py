"""Where a test and its tasks meet, across processes: by named pipes and files, so that nobody sleeps or polls."""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from pathlib import Path

__all__ = ["Stage", "me"]

_PATIENCE = 60.0
"""Seconds after which a test that waits for a task gives up: it would fail anyway, and so it says where."""


def me() -> tuple[int, int]:
    """This thread of this process."""
    return os.getpid(), threading.get_ident()


class Stage:
    """Pickles as its path, so tasks may have it as an argument or in a closure.

    A task says something (:meth:`say`), the test hears it (:meth:`hear`); a task waits (:meth:`wait`) until the test
    lets everybody go on (:meth:`open`). What is only looked at in the end goes to a log (:meth:`note`, :meth:`notes`).
    """

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        os.mkfifo(self._gate)
        os.mkfifo(self._words)
        # Both ends: nobody blocks in opening a pipe, and it isn't at its end while nobody writes.
        self._held: int | None = os.open(self._gate, os.O_RDWR)
        self._ear = os.open(self._words, os.O_RDWR | os.O_NONBLOCK)
        self._heard = b""
        _STAGES.add(self)

    @property
    def _gate(self) -> str:
        return f"{self.path}/gate"

    @property
    def _words(self) -> str:
        return f"{self.path}/words"

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.path = path

    # The side of the tasks

    def say(self, word: object = "here") -> None:
        with open(self._words, "w") as pipe:
            pipe.write(f"{word}\n")

    def wait(self) -> None:
        """Until the test has opened the gate."""
        try:
            fd = os.open(self._gate, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return  # it is open
        os.set_blocking(fd, True)
        os.read(fd, 1)
        os.close(fd)

    def say_and_wait(self, word: object = "here") -> object:
        """What it said."""
        self.say(word)
        self.wait()
        return word

    def note(self, *words: object) -> None:
        """A line of the log, with the time in front; whole, whoever else writes."""
        line = " ".join(map(str, (time.monotonic(), *words)))
        fd = os.open(f"{self.path}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)

    # The side of the test

    def hear(self, count: int = 1) -> list[str]:
        """The next words; blocks until there are so many."""
        until = time.monotonic() + _PATIENCE
        while (lines := self._heard.split(b"\n"))[count:] == []:
            ready, _, _ = select.select([self._ear], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"only {len(lines) - 1} of {count} words were said: {lines}"
            self._heard += os.read(self._ear, 65536)
        self._heard = b"\n".join(lines[count:])
        return [line.decode() for line in lines[:count]]

    def open(self) -> None:
        """Let all go on who wait, and who will."""
        if self._held is not None:
            os.unlink(self._gate)
            os.close(self._held)
            self._held = None

    def notes(self) -> list[tuple[float, list[str]]]:
        """The log: when, and the words; in the order of time."""
        try:
            lines = Path(self.path, "log").read_text().splitlines()
        except FileNotFoundError:
            return []
        return sorted((float(when), words) for when, *words in map(str.split, lines))

    def words(self) -> list[str]:
        """The log without its times."""
        return [" ".join(words) for _, words in self.notes()]

    def close(self) -> None:
        self.open()
        os.close(self._ear)
        _STAGES.discard(self)


_STAGES: weakref.WeakSet[Stage] = weakref.WeakSet()


def _leave_to_the_test() -> None:
    """In a fork: whoever holds the gate keeps it shut."""
    for stage in list(_STAGES):
        if stage._held is not None:
            os.close(stage._held)
            stage._held = None
        os.close(stage._ear)
    _STAGES.clear()


os.register_at_fork(after_in_child=_leave_to_the_test)
