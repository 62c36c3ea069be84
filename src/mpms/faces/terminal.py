"""What the command line shows on a terminal: one line that is rewritten, and aligned tables."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from ..locks import Lock

__all__ = ["AboveLine", "ProgressLine", "table"]

REWRITE_EVERY = 0.1  # seconds; faster can't be read


class ProgressLine:
    """A line that rewrites itself in place while something goes on, and is gone afterwards.

    Shows nothing without a stream. Any thread may use it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self._lock = Lock()  # guards what is on the terminal's last line: _shown, and the stream
        self._shown = 0
        self._due = 0.0

    def show(self, text: Callable[[], str]) -> None:
        """Show it, unless that was done less than a tenth of a second ago: then `text` isn't even called."""
        now = time.monotonic()
        if self.stream is None or now < self._due:
            return
        self._due = now + REWRITE_EVERY
        # A line that wraps can't be rewritten.
        line = text()[: shutil.get_terminal_size().columns - 1]
        with self._lock:
            if self.stream is not None:  # else it is gone meanwhile
                # Blanks rather than an escape sequence: they work on every terminal.
                self.stream.write(f"\r{line.ljust(self._shown)}")
                self.stream.flush()
                self._shown = len(line)

    def clear(self) -> None:
        """Leave an empty line and the cursor at its start."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        if self.stream is not None and self._shown:
            self.stream.write(f"\r{' ' * self._shown}\r")
            self.stream.flush()
            self._shown = 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._clear()
            self.stream = None


class AboveLine(logging.Handler):
    """Logs to stderr, above the progress line rather than into it; attached to `logger` inside a ``with``."""

    def __init__(self, logger: logging.Logger, line: ProgressLine, *, level: int) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self.logger = logger
        self.line = line

    def emit(self, record: logging.LogRecord) -> None:
        self.line.clear()
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def __enter__(self) -> AboveLine:
        self.logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.logger.removeHandler(self)


def table(rows: Mapping[str, str]) -> str:
    """Names to the left, values to the right."""
    left = max(map(len, rows))
    right = max(map(len, rows.values()))
    return "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in rows.items())
