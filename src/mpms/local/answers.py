"""What becomes of requests to cancel a task, for who waits to know."""

from __future__ import annotations

import threading

from ..ids import TaskId
from ..locks import Lock

__all__ = ["Answer", "Answers"]


class Answer:
    """Whether one task was cancelled."""

    def __init__(self) -> None:
        self._known = threading.Event()
        self._cancelled = False

    def give(self, cancelled: bool) -> None:
        self._cancelled = cancelled
        self._known.set()

    def wait(self, timeout: float) -> bool:
        """Whether it is known to be cancelled within ``timeout`` seconds."""
        return timeout > 0 and self._known.wait(timeout) and self._cancelled


class Answers:
    """Any thread asks; who knows gives the answer to all that have asked for a task."""

    def __init__(self) -> None:
        self._asked: dict[TaskId, list[Answer]] = {}
        self._lock = Lock()  # guards it; reentrant: a handler of a signal may ask, too

    def __bool__(self) -> bool:
        return bool(self._asked)

    def ask(self, task: TaskId) -> Answer:
        answer = Answer()
        with self._lock:
            self._asked.setdefault(task, []).append(answer)
        return answer

    def give(self, task: TaskId, *, cancelled: bool) -> None:
        with self._lock:
            answers = self._asked.pop(task, ())
        for answer in answers:
            answer.give(cancelled)

    def end(self) -> None:
        """Nobody will know any more: what is cancelled from now on was too late."""
        for task in list(self._asked):
            self.give(task, cancelled=False)
