"""Wakes the supervisor from any thread, at the price of a system call only when it sleeps."""

from __future__ import annotations

import os

from . import descriptors

__all__ = ["WakeUp"]


class WakeUp:
    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        for fd in (self._read, self._write):
            os.set_blocking(fd, False)
            descriptors.own(fd)
        self.is_needed = False
        """Whether the supervisor sleeps."""
        self.for_tasks = True
        """Whether it is to be woken for a task, too."""

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        """From any thread, after the thing it is about is in place."""
        if self.is_needed:
            self.is_needed = False
            try:
                os.write(self._write, b"\0")
            except (BlockingIOError, OSError):
                pass  # it is ringing; or the supervisor has gone, and nothing waits for it

    def falling_asleep(self, *, for_tasks: bool) -> None:
        """The supervisor, before it looks for the last time whether there is something to do."""
        self.for_tasks = for_tasks
        self.is_needed = True

    def awake(self) -> None:
        self.is_needed = False

    def hush(self) -> None:
        """When it was seen to ring."""
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        descriptors.close(self._read)
        descriptors.close(self._write)
