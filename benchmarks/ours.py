"""mpms, behind its two faces, and its version 2.6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from .measuring import Unavailable
from .system import Futures, System

__all__ = ["Mpms", "MpmsExecutor", "MpmsExecutorFork", "MpmsFork", "MpmsOld"]


class Mpms(System):
    name, title, module = "mpms", "mpms", "mpms"
    imports = "from mpms import MPMS"
    first = """
from mpms import MPMS
with MPMS(same, lambda meta, result: tell(), processes=2, threads=4) as pool:
    pool.put(1)
"""
    kind: ClassVar[Literal["ours", "peer", "threads"]] = "ours"
    has_threads, can_rotate = True, True
    options: ClassVar[dict[str, Any]] = {}

    def open(self) -> None:
        from mpms import MPMS

        done = self.done
        self.pool = MPMS(
            self.function,
            lambda meta, result: done(result),
            processes=self.shape.processes,
            threads=self.shape.threads,
            task_queue_maxsize=self.shape.queue,
            lifecycle=self.shape.rotate,
            **self.options,
        )
        self.pool.start()
        self.put = self.pool.put  # type: ignore[method-assign, assignment]

    def map(self, items: Sequence[Any]) -> list[Any]:
        if not hasattr(self.pool, "map"):
            raise Unavailable("this revision of MPMS has no map")
        return list(self.pool.map(None, items))

    def join(self) -> None:
        self.pool.close()
        self.pool.join()


class MpmsFork(Mpms):
    name, title = "mpms-fork", 'mpms, start_method="fork"'
    first = Mpms.first.replace("threads=4", 'threads=4, start_method="fork"')
    options: ClassVar[dict[str, Any]] = {"start_method": "fork"}


class MpmsOld(Mpms):
    name, title = "mpms-2.6", "mpms 2.6"
    first = """
from mpms import MPMS
pool = MPMS(same, lambda meta, result: tell(), processes=2, threads=4)
pool.start()
pool.put(1)
pool.close()
pool.join()
"""
    kind = "peer"
    distribution = "mpms"
    environment = "2.6"


class MpmsExecutor(Futures):
    name, title, module = "mpms-executor", "mpms.Executor", "mpms"
    imports = "from mpms import Executor"
    first = """
from mpms import Executor
with Executor(max_workers=2, threads=4) as pool:
    pool.submit(same, 1).result()
    tell()
"""
    kind = "ours"
    has_threads, can_rotate = True, True
    options: ClassVar[dict[str, Any]] = {}

    def open(self) -> None:
        try:
            from mpms import Executor
        except ImportError:
            raise Unavailable("this revision of mpms has no Executor") from None

        self.pool = Executor(
            max_workers=self.shape.processes, threads=self.shape.threads, lifecycle=self.shape.rotate, **self.options
        )

    def map(self, items: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(self.function, items))


class MpmsExecutorFork(MpmsExecutor):
    name, title = "mpms-executor-fork", 'mpms.Executor, "fork"'
    first = MpmsExecutor.first.replace("threads=4", 'threads=4, start_method="fork"')
    options: ClassVar[dict[str, Any]] = {"start_method": "fork"}
