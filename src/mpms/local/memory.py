"""Memory: files of it without a name, to be shared by processes; how much a process holds, and the machine has."""

from __future__ import annotations

import fcntl
import os

from ..typed import Any, Literal

__all__ = ["OomWatch", "anonymous_file", "free_memory", "is_alive", "is_zombie", "resident_memory"]


def anonymous_file(name: str, size: int = 0) -> int:
    """A descriptor of a file in memory that ends with its last user: a ``memfd``, whose ``size``, if it is told, nobody
    changes any more; elsewhere a temporary file."""
    is_memfd = hasattr(os, "memfd_create")
    if is_memfd:
        as_bytes: Any = name.encode("utf-8", "replace").replace(b"\0", b"?")  # which the stubs don't know of
        fd = os.memfd_create(as_bytes, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        import tempfile

        with tempfile.TemporaryFile(prefix=name) as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
        if is_memfd and size:
            # A process that looks at what was cut off ends by that, whoever did it.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def resident_memory(pid: int) -> int | None:
    """Bytes that the process holds in memory now; ``None`` when that can't be known."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        if os.path.exists("/proc/self/statm"):
            return None
    except (OSError, ValueError, IndexError):
        return None
    try:
        import psutil

        return int(psutil.Process(pid).memory_info().rss)
    except Exception:  # not installed, or the process has ended
        return None


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and nobody has reaped it; ``False`` where that can't be known."""
    return _state(pid) == "zombie"


def is_alive(pid: int) -> bool:
    """Whether the process has not ended, killed or not; ``False`` where that can't be known."""
    return _state(pid) == "alive"


def _state(pid: int) -> Literal["alive", "zombie", "unknown"]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        # Of a process that is killed the first thread is a zombie while another is in a call that can't be interrupted.
        return "zombie" if fields[0] == b"Z" and int(fields[17]) <= 1 else "alive"
    except (OSError, ValueError, IndexError):
        return "unknown"


def free_memory() -> int | None:
    """Bytes that the machine can give to programs without swapping; ``None`` when that can't be known."""
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except Exception:  # not installed
        return None


class OomWatch:
    """Whether the kernel's out-of-memory killer has killed something since the last look; where the kernel counts."""

    def __init__(self) -> None:
        self._seen = self._count()

    def has_killed(self) -> bool:
        before, self._seen = self._seen, self._count()
        return before is not None and self._seen is not None and self._seen > before

    @staticmethod
    def _count() -> int | None:
        try:
            with open("/proc/vmstat", "rb") as file:
                for line in file:
                    if line.startswith(b"oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            pass
        return None
