"""One measurement, in the process that is started for it: ``python -m benchmarks.child JOB``, see :mod:`.runner`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

from .floors import FLOORS
from .growth import measure_of
from .measuring import LostTasks, Run, Unavailable
from .runner import Job, Status
from .scenarios import SCENARIOS
from .system import System
from .systems import SYSTEMS

__all__ = ["main"]


def main(text: str) -> None:
    job = Job(**json.loads(text))
    found: dict[str, Any] = {"status": None, "detail": "", "version": "", "figures": {}}

    def write() -> None:
        # Whole or not at all: we may be killed at any time.
        path = Path(job.output)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.replace(path)

    def record(**figures: float) -> None:
        found["figures"].update(figures)
        write()

    try:
        found["version"] = _measure(job, record)
        found["status"] = Status.OK
    except Unavailable as error:
        found.update(status=Status.UNAVAILABLE, detail=str(error))
    except _NotInstalled as error:
        found.update(status=Status.NOT_INSTALLED, detail=str(error))
    except LostTasks as error:
        found.update(status=Status.LOSES, detail=str(error))
    except Exception as error:
        traceback.print_exc()
        found.update(status=Status.BROKEN, detail=type(error).__name__)
    write()
    # Not the orderly end: joining is a part of the scenarios that are about it, and whoever is left is killed.
    sys.stdout.flush()
    os._exit(0)


class _NotInstalled(Exception):
    pass


def _measure(job: Job, record: Any) -> str:
    """The version of what was measured."""
    if job.contender in FLOORS:
        run = Run(System, job.seconds, job.loops, record, job.patience)
        FLOORS[job.contender].measure(run)
        return ""
    system = SYSTEMS[job.contender]
    if job.scenario not in ("first", "import"):  # there it is imported by others, for the first time
        try:
            importlib.import_module(system.module)
        except ImportError as error:
            raise _NotInstalled(str(error)) from None
    elif importlib.util.find_spec(system.module) is None:
        raise _NotInstalled(system.module)
    run = Run(system, job.seconds, job.loops, record, job.patience)
    (measure_of(job.scenario) or SCENARIOS[job.scenario].measure)(run)
    return metadata.version(system.distribution) if system.distribution else ""


if __name__ == "__main__":
    main(sys.argv[1])
