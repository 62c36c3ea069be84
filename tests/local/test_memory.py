"""What the system tells of a process, and gives to it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from mpms.local.memory import anonymous_file, is_alive, is_zombie

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="there is no /proc here")

THE_FIRST_THREAD_ENDS = """
import ctypes, os, sys, threading
def run():
    while open(f"/proc/self/task/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    print(flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=run).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_is_alive_until_its_last_thread_has_ended() -> None:
    """Of one that was killed while a thread is in a call that can't be interrupted, the others end at once."""
    with subprocess.Popen(
        [sys.executable, "-c", THE_FIRST_THREAD_ENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        assert is_alive(process.pid)
        assert not is_zombie(process.pid)
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_zombie(process.pid)
        assert not is_alive(process.pid)
    assert not is_zombie(process.pid)
    assert not is_alive(process.pid)


def test_a_file_that_may_not_be_so_large_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "ftruncate", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="too large"):
        anonymous_file("mpms-large", 1 << 20)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_of_a_size_keeps_it() -> None:
    fd = anonymous_file("mpms-sealed", 1 << 20)
    try:
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        assert os.fstat(fd).st_size == 1 << 20
    finally:
        os.close(fd)


def test_a_file_without_one_may_be_of_any() -> None:
    fd = anonymous_file("mpms-free")
    try:
        os.ftruncate(fd, 1 << 20)
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)
