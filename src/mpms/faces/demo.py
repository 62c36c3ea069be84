"""``mpms demo``: parse every Python source file of this Python in a pool; also while workers are killed.

    find_sources → pool.put(path) ┄┄ worker: parse(path) ┄┄→ collect → Run → table
                                       ↑ SIGKILL, every 100 ms
                                     Killer

The files are real input: among thousands of them some don't decode and some don't parse, on purpose.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import random
import signal
import site
import sys
import sysconfig
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import WorkerCrashed
from ..ids import StartMethod
from ..typed import Any
from .classic import MPMS
from .terminal import AboveLine, ProgressLine, table

__all__ = ["Counts", "Job", "Run", "compare", "find_sources", "installed", "parse", "show"]

LOGGER = logging.getLogger("mpms")

KILL_EVERY = 0.1  # seconds
DIFFERENCES_SHOWN = 10  # the first ten files that differ tell as much as a screen of them


# -- in the workers ----------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """What is in one file, or in all of them."""

    functions: int
    classes: int
    lines: int


mine = threading.local()


def set_up_process() -> None:
    """Silence what the files' invalid escapes would warn of: once for the process, whose filters they are."""
    # Not in `parse`, with warnings.catch_warnings: that isn't safe in threads.
    warnings.simplefilter("ignore")


def set_up_thread() -> None:
    """Give this thread a counter of its own: threads that share one would count each other's files."""
    mine.kinds = Counter()


def parse(path: str) -> Counts:
    """Count what is in the file; raises what reading and parsing raise."""
    with open(path, "rb") as file:
        source = file.read()
    kinds: Counter[type[ast.AST]] = mine.kinds
    kinds.clear()
    kinds.update(map(type, ast.walk(ast.parse(source))))  # bytes, so that the file's own coding line counts
    return Counts(
        functions=kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef],
        classes=kinds[ast.ClassDef],
        lines=len(source.splitlines()),
    )


# -- the input ---------------------------------------------------------------------------------------------


def installed() -> list[str]:
    """The directories of the standard library and of what is installed."""
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    # Debian has more than one site-packages, and sysconfig names one of them.
    return [path for path in dict.fromkeys([*named, *site.getsitepackages()]) if os.path.isdir(path)]


def find_sources(roots: Iterable[str], *, limit: int | None = None) -> list[str]:
    """Every ``*.py`` file below `roots`, each once, sorted; the first `limit` of them."""
    found: set[str] = set()
    for root in roots:
        # lib64 is often a link to lib: the real path makes one of the two.
        for directory, subdirectories, names in os.walk(os.path.realpath(root)):
            # The site-packages in a standard library belong to another environment, unless they are a root.
            subdirectories[:] = [
                name for name in subdirectories if name not in ("__pycache__", "site-packages", "dist-packages")
            ]
            found.update(os.path.join(directory, name) for name in names if name.endswith(".py"))
    # Not a dangling link, and not a pipe, which would be waited for.
    return [path for path in sorted(found) if os.path.isfile(path)][:limit]


# -- one run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to parse, and in what kind of pool."""

    files: list[str]
    processes: int | None
    threads: int
    retries: int
    start_method: StartMethod | None
    engine: str | None = None
    progress: bool


@dataclass(kw_only=True)
class Run:
    """What came out of one run: of each file its counts, or the name of its error."""

    files: list[str]
    outcomes: dict[str, Counts | str] = field(default_factory=dict)
    delivered: int = 0
    crashed: int = 0
    seconds: float = 0.0
    starts: int = 0
    replaced: int = 0
    retried: int = 0
    kills: int = 0

    def add(self, path: str, result: Counts | BaseException) -> None:
        self.delivered += 1
        self.crashed += isinstance(result, WorkerCrashed)
        self.outcomes[path] = type(result).__name__ if isinstance(result, BaseException) else result

    @property
    def lost(self) -> int:
        """Files without an outcome, and files whose outcome is that their worker died."""
        return len(self.files) - len(self.outcomes) + self.crashed

    @property
    def errors(self) -> Counter[str]:
        return Counter(outcome for outcome in self.outcomes.values() if isinstance(outcome, str))

    @property
    def counts(self) -> Counts:
        each = [outcome for outcome in self.outcomes.values() if isinstance(outcome, Counts)]
        return Counts(*map(sum, zip(*each, strict=True))) if each else Counts(0, 0, 0)

    def totals(self) -> dict[str, int]:
        """All that doesn't depend on how the pool fared."""
        errors = {f"  {name}": number for name, number in sorted(self.errors.items())}
        return {
            "files": self.delivered,
            **self.counts._asdict(),
            "errors": self.errors.total(),
            **errors,
        }


def run(job: Job, *, title: str = "", chaos: bool = False) -> Run:
    """Put every file of the job through a pool."""
    done = Run(files=job.files)
    killer = Killer()
    started = time.monotonic()

    def said() -> str:
        rate = done.delivered / (time.monotonic() - started)
        kills = f", {killer.kills} kills" if chaos else ""
        return f"{title}{done.delivered:,} of {len(job.files):,} files, {rate:,.0f}/s{kills}"

    def collect(meta: Any, result: Any) -> None:
        done.add(meta.args[0], result)
        progress.show(said)

    with ProgressLine(sys.stderr if job.progress else None) as progress:
        # That workers die is no news in chaos.
        with AboveLine(LOGGER, progress, level=logging.ERROR if chaos else logging.WARNING):
            with MPMS(
                parse,
                collect,
                processes=job.processes,
                threads=job.threads,
                process_initializer=set_up_process,
                thread_initializer=set_up_thread,
                retries=job.retries,
                start_method=job.start_method,
                engine=job.engine,
                name="demo",
            ) as pool:
                with killer.killing(pool.workers) if chaos else contextlib.nullcontext():
                    for path in job.files:
                        pool.put(path)
                    pool.join()  # here, and not at the end of the pool's block: until then the killer goes on

    stats = pool.stats()
    done.seconds = time.monotonic() - started
    done.starts, done.retried, done.replaced = stats.starts, stats.retried, sum(stats.crashes.values())
    done.kills = killer.kills
    return done


class Killer:
    """Kills a random worker every `every` seconds, from a thread of its own, until it is told to stop."""

    def __init__(self, every: float = KILL_EVERY) -> None:
        self.every = every
        self.kills = 0
        self._stop = threading.Event()

    @contextlib.contextmanager
    def killing(self, workers: Callable[[], Iterable[Any]]) -> Iterator[None]:
        thread = threading.Thread(target=self._kill_until_stopped, args=(workers,), name="killer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _kill_until_stopped(self, workers: Callable[[], Iterable[Any]]) -> None:
        while not self._stop.wait(self.every):
            pids = [worker.pid for worker in workers() if worker.pid is not None]
            if not pids:
                continue
            try:
                os.kill(random.choice(pids), signal.SIGKILL)
            except ProcessLookupError:  # it ended on its own since
                continue
            self.kills += 1


# -- what is printed ---------------------------------------------------------------------------------------


def show(job: Job) -> int:
    """Run once and print the table; the exit status is returned."""
    print(table(_rows(run(job))))
    return 0


def compare(job: Job) -> int:
    """Run twice, the second time while workers are killed; 1 if the totals differ, else 0."""
    clean = run(job, title="clean run: ")
    chaos = run(job, title="chaos: ", chaos=True)
    print(
        table(
            {
                **_rows(chaos),
                "kills": f"{chaos.kills:,}",
                "replaced workers": f"{chaos.replaced:,}",
                "retried tasks": f"{chaos.retried:,}",
                "lost tasks": f"{chaos.lost:,}",
            }
        )
    )
    different = list(differences(clean, chaos))
    if different:
        print("\nThe totals differ from those of the clean run:")
        print("\n".join(different))
        return 1
    print(f"\nThe totals are those of the clean run, which took {clean.seconds:.2f} seconds.")
    if not chaos.kills:
        print("But no worker was killed: it was over too soon.")
    return 0


def _rows(done: Run) -> dict[str, str]:
    return {
        **{name: f"{number:,}" for name, number in done.totals().items()},
        "seconds": f"{done.seconds:.2f}",
        "files/s": f"{done.delivered / done.seconds:,.0f}",
        "workers": f"{done.starts:,}",
    }


def differences(clean: Run, chaos: Run) -> Iterator[str]:
    """What differs, a line each: first the totals, then the files to which that is due."""
    before, after = clean.totals(), chaos.totals()
    for name in dict.fromkeys([*before, *after]):
        if before.get(name, 0) != after.get(name, 0):
            yield f"  {name.strip()}: {after.get(name, 0):,} instead of {before.get(name, 0):,}"
    changed = [path for path in clean.files if clean.outcomes.get(path) != chaos.outcomes.get(path)]
    for path in changed[:DIFFERENCES_SHOWN]:
        yield f"  {path}: {_said(chaos, path)} instead of {_said(clean, path)}"
    if len(changed) > DIFFERENCES_SHOWN:
        yield f"  ... and {len(changed) - DIFFERENCES_SHOWN:,} more files"


def _said(done: Run, path: str) -> str:
    outcome = done.outcomes.get(path, "no outcome")
    return outcome if isinstance(outcome, str) else ", ".join(f"{n} {name}" for name, n in outcome._asdict().items())
