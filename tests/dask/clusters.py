"""Clusters of Dask on this machine: each has Dask workers under nannies, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ..local.conftest import is_resource_tracker

ROOT = Path(__file__).parents[2]

thorough = pytest.mark.skipif(os.environ.get("MPMS_TEST_DASK") != "all", reason="only in make test-all: it takes long")

THREADS = 4
"""Of each machine. A pool has as many or fewer."""


@pytest.fixture(scope="package")
def local_client() -> Iterator[Any]:
    """The client of a ``LocalCluster`` of one machine"""
    distributed = pytest.importorskip("distributed")
    with quiet():
        cluster = distributed.LocalCluster(
            n_workers=1, threads_per_worker=THREADS, processes=True, dashboard_address=":0", silence_logs=False
        )
        client = distributed.Client(cluster, set_as_default=False)
    yield client
    client.close()
    cluster.close()


@pytest.fixture(scope="package")
def commands_client() -> Iterator[Any]:
    """The client of a cluster that was started as in production"""
    distributed = pytest.importorskip("distributed")
    with Commands() as cluster:
        cluster.add_machine()
        with distributed.Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            yield client


class Commands:
    """``dask scheduler`` and ``dask worker``, on loopback."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._processes: list[Process] = []
        self.scheduler = self._start("scheduler", "--host", host, "--port", "0", "--dashboard-address", ":0")
        self.address = self.scheduler.wait_for(r"Scheduler at: +(\S+)")

    def add_machine(self, *arguments: str, threads: int = THREADS, prefix: Sequence[str] = ()) -> Process:
        """``prefix``: a command that starts it somewhere else."""
        options = ["--nworkers", "1", "--nthreads", str(threads), *arguments]
        worker = self._start("worker", self.address, *options, prefix=prefix)
        worker.wait_for(r"Starting established connection|Registered to: +(\S+)")
        return worker

    def _start(self, *arguments: str, prefix: Sequence[str] = ()) -> Process:
        process = Process([*prefix, sys.executable, "-m", "dask", *arguments, "--preload", "mpms.dask"])
        self._processes.append(process)
        return process

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.end()


class Process:
    """A process and what it prints."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._popen = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self.lines: list[str] = []
        self._printed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self._printed:
                self.lines.append(line)
                self._printed.notify_all()
        with self._printed:
            self.lines.append("")  # the end
            self._printed.notify_all()

    def wait_for(self, pattern: str, timeout: float = 60.0) -> str:
        """The group of the first line in which it is found."""
        found: list[str] = []

        def look() -> bool:
            found.extend(match[1] or "" for line in self.lines if (match := re.search(pattern, line)) is not None)
            return bool(found) or "" in self.lines

        with self._printed:
            self._printed.wait_for(look, timeout)
        assert found, f"{pattern!r} was not printed in {''.join(self.lines)}"
        return found[0]

    def kill(self, number: int) -> None:
        """Its whole process group: the nanny with its Dask worker. The pool's own processes are groups of their own.

        But for the resource tracker of multiprocessing, if they are killed: it removes their semaphores, and ends.
        """
        with contextlib.suppress(ProcessLookupError):
            if number != signal.SIGKILL:
                os.killpg(self.pid, number)
                return
            os.killpg(self.pid, signal.SIGSTOP)  # so that none of them sees the others go
            for pid in self._group():
                os.kill(pid, signal.SIGKILL)
            os.killpg(self.pid, signal.SIGCONT)

    def _group(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == self.pid and not is_resource_tracker(process):
                    found.append(process.pid)
        return found

    def end(self) -> None:
        self.kill(15)
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self.kill(9)
            self._popen.wait(10)
        self._reader.join(10)
        assert self._popen.stdout is not None
        self._popen.stdout.close()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of a busy port and the like."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
