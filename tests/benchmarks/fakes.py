"""Systems that fail in one way each, in the process of a measurement: ``python -m tests.benchmarks.fakes JOB``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.child import main
from benchmarks.system import System
from benchmarks.systems import SYSTEMS


class Honest(System):
    """Runs each task at once."""

    module = "json"

    def open(self) -> None:
        self.came = 0

    def put(self, argument: Any) -> None:
        self.came += 1
        self.done(self.function(argument))

    def join(self) -> None:
        pass


class Lossy(Honest):
    def put(self, argument: Any) -> None:
        super().put(argument) if self.came < 100 else None


class Hanging(Honest):
    """With a grandchild that has made itself a daemon."""

    def put(self, argument: Any) -> None:
        daemon = subprocess.Popen(
            [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"],
            start_new_session=True,
            stdout=subprocess.PIPE,
        )
        assert daemon.stdout
        daemon.stdout.readline()
        print("daemon", daemon.pid, flush=True)
        time.sleep(600)


class HangingAtTheEnd(Honest):
    def join(self) -> None:
        time.sleep(600)


class Breaking(Honest):
    def put(self, argument: Any) -> None:
        raise BrokenPipeError("the pool is broken")


class Telling(Honest):
    """Its outcomes are exceptions."""

    def put(self, argument: Any) -> None:
        self.done(BrokenPipeError("the pool is broken"))


class Crashing(Honest):
    def put(self, argument: Any) -> None:
        os._exit(3)


class Missing(Honest):
    module = "no_such_module_at_all"


FAKES: dict[str, type[System]] = {
    fake.__name__: fake for fake in (Honest, Lossy, Hanging, HangingAtTheEnd, Breaking, Telling, Crashing, Missing)
}

if __name__ == "__main__":
    SYSTEMS.update({name: fake for name, fake in FAKES.items() if name == json.loads(sys.argv[1])["contender"]})
    main(sys.argv[1])
