"""A cluster of several hosts, each a network namespace on a bridge, one of which is cut off. Run by test_hosts.py in a
network namespace of its own, with which all of it ends. Prints what came of the tasks.

    bridge 10.83.0.1 (scheduler, client) ─┬─ 10.83.0.2
                                          └─ 10.83.0.3 ✂
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mpms.config import PoolConfig
from mpms.dask import DaskEngine
from mpms.outcome import Crashed, Returned

from ..contract.conftest import PATIENCE, Gate, Recorder
from . import tasks
from .clusters import Commands


def main() -> None:
    ip("link set lo up")
    ip("link add name bridge0 type bridge")
    ip("address add 10.83.0.1/24 dev bridge0")
    ip("link set bridge0 up")
    hosts = [Host(number) for number in (2, 3)]
    try:
        with Commands(host="10.83.0.1") as cluster, tempfile.TemporaryDirectory() as folder:
            for host in hosts:
                cluster.add_machine("--host", host.address, threads=1, prefix=host.prefix)
            print(json.dumps(cut_one_off(cluster, hosts, Path(folder))))
    finally:
        for host in hosts:
            host.close()


def cut_one_off(cluster: Commands, hosts: list[Host], folder: Path) -> dict[str, object]:
    sink, notes = Recorder(), folder / "notes"
    engine = DaskEngine(cluster.address)(tasks.note_and_hold, PoolConfig(processes=1, threads=1), sink)
    engine.start()
    gates = [Gate(folder / f"gate{number}") for number in range(6)]
    for number, gate in enumerate(gates):
        engine.submit((str(notes), str(number), gate.path), {})
    for gate in gates[:2]:
        gate.wait_for_task()
    began = time.monotonic()
    hosts[1].cut_off()
    while not sink.delivered:  # the two hosts hold their tasks: it is the one that was lost
        assert not engine.wait_stopped(0.05)
    seconds = time.monotonic() - began
    for gate in gates:  # also that of the task which goes on where nobody hears of it
        gate.open()
    engine.close()
    assert engine.wait_stopped(PATIENCE)
    outcomes = sink.outcomes().values()
    return {
        "seconds": seconds,
        "lost": [str(outcome.error) for outcome in outcomes if isinstance(outcome, Crashed)],
        "returned": sorted(outcome.value for outcome in outcomes if isinstance(outcome, Returned)),
        "started": sorted(notes.read_text().split()),
    }


class Host:
    """A network namespace, as long as a process in it lives."""

    def __init__(self, number: int) -> None:
        self.address = f"10.83.0.{number}"
        self._link = f"host{number}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.prefix = ["nsenter", "--target", str(self._holder.pid), "--net"]
        ip(f"link add name {self._link} type veth peer name eth0 netns {self._holder.pid}")
        ip(f"link set {self._link} master bridge0 up")
        for command in ("link set lo up", f"address add {self.address}/24 dev eth0", "link set eth0 up"):
            ip(command, *self.prefix)

    def cut_off(self) -> None:
        ip(f"link set {self._link} down")

    def close(self) -> None:
        self._holder.communicate(b"\n")


def ip(command: str, *prefix: str) -> None:
    subprocess.run([*prefix, "ip", *command.split()], check=True)


if __name__ == "__main__":
    main()
