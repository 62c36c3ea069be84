"""What makes a fresh interpreter like the parent's: path, arguments, directory, authentication key."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import sys

from ..wire.messages import Setup
from .native import set_environment

__all__ = ["prepare"]


def prepare(setup: Setup) -> None:
    """As ``multiprocessing.spawn.prepare``, but that ``__main__`` is not imported."""
    if setup.native_threads is not None:
        set_environment(setup.native_threads)
    sys.path[:] = setup.path
    sys.argv[:] = setup.argv
    if setup.directory is not None:
        try:
            os.chdir(setup.directory)
        except OSError:
            pass  # removed meanwhile
    multiprocessing.process.current_process().authkey = setup.authkey
    if setup.mp_method is not None:
        multiprocessing.set_start_method(setup.mp_method, force=True)
