"""Real processes and real signals. After every test nothing may be left: see `nothing_is_left`."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from stat import S_ISREG

import psutil
import pytest

from .stage import Stage

METHODS = ("forkserver", "fork", "spawn")
_SHM = "/dev/shm"
ASKED = os.environ.get("MPMS_TEST_START_METHODS", "forkserver").split(",")


@pytest.fixture(params=ASKED)
def method(request: pytest.FixtureRequest) -> str:
    """The start methods that this run is about: one in `make test`, all in `make test-all`."""
    return request.param


@pytest.fixture(params=METHODS)
def any_method(request: pytest.FixtureRequest) -> str:
    """Every start method, in every run: for what depends on it."""
    return request.param


def leftovers() -> dict[str, set[str]]:
    """What this process holds now."""
    return {
        "children": {*_children()},
        "descriptors": {f"{fd.name} → {_target(fd)}" for fd in Path("/proc/self/fd").iterdir() if _target(fd)},
        "threads": {thread.name for thread in threading.enumerate()},
        "shared memory": set(os.listdir(_SHM)),
        "temporary files": set(os.listdir(tempfile.gettempdir())),  # of this process's own: see tests/conftest.py
    }


def _children() -> Iterator[str]:
    for process in psutil.Process().children(recursive=True):
        try:
            yield f"{process.pid} {process.name()}"
        except psutil.NoSuchProcess:
            pass  # it has ended since, and was waited for


def _target(fd: Path) -> str:
    try:
        return os.readlink(fd)
    except OSError:
        return ""  # the one with which the directory was read


def may_be_ours(names: set[str]) -> set[str]:
    """Those of ``names`` in shared memory that aren't others'.

    All programs share it, and nothing but its user says whose an entry is. It isn't ours if it is another user's, or
    if another process has it open or mapped: what we have left behind is used by this process or by nobody, as no child
    of ours lives. What nobody uses may still be of another program that uses multiprocessing, one of whose processes
    was killed: its resource tracker cleans up after it, in the end. Directories aren't made by ``shm_open`` and
    ``sem_open``, but by libraries that we don't use.
    """
    files: dict[tuple[int, int], str] = {}
    for name in names:
        stat = _stat(f"{_SHM}/{name}")
        if stat is not None and S_ISREG(stat.st_mode) and stat.st_uid == os.geteuid():
            files[stat.st_dev, stat.st_ino] = name
    if not files:
        return set()
    this = psutil.Process()
    run = this.parent() if "PYTEST_XDIST_WORKER" in os.environ else this
    ours, those_of_the_run = ({each.pid, *(p.pid for p in each.children(recursive=True))} for each in (this, run))
    for process in psutil.process_iter():
        if process.pid not in ours:
            for file in _used_by(process.pid):
                files.pop(file, None)
        if process.pid not in those_of_the_run and is_resource_tracker(process):
            return set()
    return {name for name in files.values() if _stat(f"{_SHM}/{name}")}


def is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker import main" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _used_by(pid: int) -> Iterator[tuple[int, int]]:
    """Device and inode of each file that the process has open or mapped; a mapped semaphore's name is another one.

    Nothing, if it has ended or is another user's.
    """
    try:
        maps = Path(f"/proc/{pid}/maps").read_bytes().splitlines()
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for line in maps:
        _, _, _, device, inode, *_ = line.split(maxsplit=5)
        major, _, minor = device.partition(b":")
        yield os.makedev(int(major, 16), int(minor, 16)), int(inode)
    for fd in fds:
        stat = _stat(f"/proc/{pid}/fd/{fd}")
        if stat is not None:
            yield stat.st_dev, stat.st_ino


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


class Watch:
    """Tells what there is that wasn't there when it began."""

    def __init__(self) -> None:
        resource_tracker.ensure_running()  # one for the whole run, of multiprocessing's own
        self._before = leftovers()

    def left(self) -> dict[str, set[str]]:
        """Only of what there is any."""
        left = {what: names - self._before[what] for what, names in leftovers().items()}
        deadline = time.monotonic() + 2  # until another program that was killed has been cleaned up after
        while (ours := may_be_ours(left["shared memory"])) and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        left["shared memory"] = ours
        return {what: names for what, names in left.items() if names}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Children, descriptors, threads, shared memory and temporary files are after the test as they were before."""
    watch = Watch()
    yield
    if watch.left():
        gc.collect()  # a Manager's process refers to itself here and there: what only waits for this is not left
    assert watch.left() == {}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Where the test and its tasks meet."""
    stage = Stage(tmp_path)
    yield stage
    stage.close()
