"""The titles of processes and threads, as ``ps`` and ``top`` show them, where ``setproctitle`` is installed.

It is imported once for all workers, before they are forked; importing it changes nothing in the process.
"""

from __future__ import annotations

__all__ = ["set_process_title", "set_thread_title"]

try:
    import setproctitle
except ImportError:
    setproctitle = None


def set_process_title(title: str) -> None:
    """To be called before the environment is changed: from its first entry setproctitle finds what it overwrites."""
    if setproctitle is not None:
        setproctitle.setproctitle(title)


def set_thread_title(title: str) -> None:
    if setproctitle is not None:
        setproctitle.setthreadtitle(title)
