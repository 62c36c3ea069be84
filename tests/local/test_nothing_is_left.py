"""What every test with real processes is followed by sees what it is to see, and nothing of other programs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.shared_memory import SharedMemory

import pytest

from . import conftest
from .conftest import Watch

pytestmark = pytest.mark.alone  # shared memory that nobody uses would be seen by tests in other processes too


@contextmanager
def child() -> Iterator[None]:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.communicate()


@contextmanager
def descriptor() -> Iterator[None]:
    fds = os.pipe()
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


@contextmanager
def thread() -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def shared_memory() -> Iterator[None]:
    memory = SharedMemory(create=True, size=1)
    memory.close()  # nobody uses it
    try:
        yield
    finally:
        memory.unlink()


@contextmanager
def temporary_file() -> Iterator[None]:
    with tempfile.NamedTemporaryFile(prefix="anything"):
        yield


@pytest.mark.parametrize(
    ("leave", "what"),
    [
        (child, "children"),
        (descriptor, "descriptors"),
        (thread, "threads"),
        (shared_memory, "shared memory"),
        (temporary_file, "temporary files"),
    ],
)
def test_what_is_left_is_seen(
    leave: Callable[[], AbstractContextManager[None]], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside another program that uses multiprocessing nobody could say whose the memory is.
    monkeypatch.setattr(conftest, "is_resource_tracker", lambda process: False)
    watch = Watch()
    assert watch.left() == {}
    with leave():
        assert len(watch.left()[what]) >= 1
    assert watch.left() == {}


OTHER = """
import multiprocessing, sys
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=1)
lock = multiprocessing.get_context("spawn").Lock()
print(memory.name, "sem." + lock._semlock.name.lstrip("/"), flush=True)
sys.stdin.read()
memory.close()
memory.unlink()
"""


def test_shared_memory_that_another_program_uses_is_not_ours() -> None:
    watch = Watch()
    # By way of a shell that ends at once, so that it is no child of this process.
    other = subprocess.Popen(
        ["sh", "-c", 'exec 3<&0; "$0" -c "$1" <&3 3<&- &', sys.executable, OTHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    names = other.stdout.readline().split()
    assert len(names) == 2
    assert set(names) <= set(os.listdir("/dev/shm"))
    assert other.wait() == 0
    assert watch.left().keys() == {"descriptors"}  # the pipes to it
    other.communicate()
