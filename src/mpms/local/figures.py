"""What can be seen of a pool from outside, from any thread: its workers, what they run, and where they are."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..core.machine import PoolMachine
from ..engine import WorkerHandle
from ..ids import Seq, WorkerId
from ..typed import TYPE_CHECKING
from .link import Link
from .memory import is_zombie

if TYPE_CHECKING:
    from ..figures import WorkerInfo, WorkerStacks

__all__ = ["Figures"]


class Figures:
    """Reads what the supervisor writes; a worker that ends meanwhile is left out. ``links`` are those of the loop."""

    def __init__(self, machine: PoolMachine, links: Mapping[WorkerId, Link]) -> None:
        self._machine = machine
        self._by_id = links

    @property
    def _links(self) -> list[Link]:
        return list(self._by_id.values())

    def phases(self) -> dict[str, int]:
        phases = {"starting": 0, "serving": 0, "retiring": 0, "killed": 0}
        for worker in list(self._machine.fleet.workers.values()):
            phases[type(worker.phase).__name__.lower()] += 1
        return phases

    def zombies(self) -> int:
        return sum(link.pid is not None and is_zombie(link.pid) for link in self._links)

    def workers(self) -> list[WorkerInfo]:
        from ..figures import RunningTask, WorkerInfo

        now, infos = time.monotonic(), list[WorkerInfo]()
        for link in self._links:
            worker = self._machine.fleet.workers.get(link.worker)
            if worker is None:
                continue
            try:
                slots = link.running()
            except ValueError:
                continue  # it has ended since
            infos.append(
                WorkerInfo(
                    name=link.name,
                    pid=link.pid,
                    phase=type(worker.phase).__name__.lower(),
                    age=now - worker.born,
                    done=worker.done,
                    running=tuple(
                        RunningTask(slot.thread + 1, task, max(0.0, now - slot.start))
                        for slot in slots
                        if (task := worker.sent.get(Seq(slot.seq))) is not None
                    ),
                )
            )
        return infos

    def stacks(self) -> list[WorkerStacks]:
        from dataclasses import replace

        from ..figures import WorkerStacks
        from .stacks import take_stacks, thread_stacks

        found = []
        for link in self._links:
            worker = self._machine.fleet.workers.get(link.worker)
            if link.pid is None or worker is None:
                continue
            try:
                threads = thread_stacks(take_stacks(link.pid, link.stacks), link.running())
            except (OSError, ValueError):
                continue  # it has ended since
            tasks = dict(worker.sent)
            named = [replace(t, task=None if t.dispatch is None else tasks.get(Seq(t.dispatch))) for t in threads]
            found.append(WorkerStacks(name=link.name, pid=link.pid, threads=tuple(named)))
        return found

    def handles(self) -> Mapping[str, WorkerHandle]:
        return {link.name: _Handle(link) for link in self._links}


class _Handle:
    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def name(self) -> str:
        return self._link.name

    @property
    def pid(self) -> int | None:
        return self._link.pid

    @property
    def exitcode(self) -> int | None:
        return self._link.exitcode

    def is_alive(self) -> bool:
        return self._link.pid is not None and self._link.exitcode is None
