"""What all tests share: a place for temporary files, how many run beside each other, how long hypothesis searches."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.util import Finalize
from typing import Any

import pytest
from hypothesis import HealthCheck, settings


def pytest_configure(config: pytest.Config) -> None:
    """What this process and all its children have: a directory for temporary files, so that what is left in it is
    theirs, and Ctrl-C, which a shell takes from what it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path outlives the run, to be looked at
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="mpms-tests-")
    # After multiprocessing has removed its own directory in it, at -100.
    Finalize(None, shutil.rmtree, (tempfile.tempdir,), {"ignore_errors": True}, exitpriority=-200)


def pytest_collection_finish() -> None:
    """What pytest has collected stays. Python's collector looked at it for 0.17 s, in the midst of what tests time."""
    gc.collect()
    gc.freeze()


def settings_of_the_process() -> dict[str, Any]:
    log, root = logging.getLogger("mpms"), logging.getLogger()
    return {
        "level of the log": (log.level, log.disabled, log.propagate, root.level, logging.root.manager.disable),
        "handlers of the log": [handler for handler in log.handlers if not isinstance(handler, logging.NullHandler)],
        "handlers of signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "directory": os.getcwd(),
        "socket timeout": socket.getdefaulttimeout(),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "stack size": threading.stack_size(),
        "streams": (sys.__stdout__, sys.__stderr__, sys.excepthook, threading.excepthook),
    }


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    """What a test leaves changed fails the one that happens to come after it in the same process, now and then."""
    before = settings_of_the_process()
    yield
    after = settings_of_the_process()
    assert {name: value for name, value in after.items() if value != before[name]} == {}


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Two for each processor: most tests wait most of the time."""
    return 2 * len(os.sched_getaffinity(0))


# No deadline per example anywhere: on a busy machine it fails tests that are right. For the same reason the health
# check on slowness is off where nobody watches.
settings.register_profile("dev", deadline=None, max_examples=100)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=300,
    derandomize=True,  # the same examples in every run: red means that the change did it
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly",
    deadline=None,
    max_examples=20_000,
    stateful_step_count=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
