"""The functions that tasks bring along: each is sent once, and loaded by the first task that needs it."""

from __future__ import annotations

from collections.abc import Callable

from ..locks import Lock
from ..typed import Any
from ..wire.pickling import load

__all__ = ["Function", "Functions"]


class Function:
    """One function: at hand, or as bytes so far. Any thread may load it."""

    __slots__ = ("_data", "_loading", "call")

    def __init__(self, call: Callable[..., Any] | None, data: bytes = b"") -> None:
        self.call = call
        self._data = data
        self._loading = Lock()  # guards the two above

    def load(self) -> Callable[..., Any]:
        """What it raises is the task's error: it is the user's module that is imported, and in that task's time."""
        with self._loading:
            if self.call is None:
                self.call = load(self._data)
                self._data = b""
            return self.call


class Functions:
    """By number. The leader owns it. Tasks are of the function that is selected when they come."""

    def __init__(self, of_the_job: Callable[..., Any] | None) -> None:
        self.selected = Function(of_the_job)
        self._all = {0: self.selected}

    def add(self, number: int, data: bytes) -> None:
        self._all[number] = self.selected = Function(None, data)

    def select(self, number: int) -> None:
        self.selected = self._all[number]

    def forget(self, number: int) -> None:
        """Tasks that were read before still have it."""
        del self._all[number]
