"""Imports go one way, the core is pure, and ``import mpms`` is light.

faces → engine protocol, config, ground · dask → local, wire, ground · local → core, wire, ground · worker → wire,
ground · core → ground · wire → ground. Ground is `ids`, `outcome`, `errors`, `endings`, `record`, `figures`, `locks`,
`typed`; but the core, which has no threads, takes no locks.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

GROUND = {"ids", "outcome", "errors", "endings", "record", "figures", "locks", "typed"}

# room → the rooms whose modules it may import, beside its own. A room is a package or module right below mpms.
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "config": GROUND,
    "engine": {"config", *GROUND},
    "testing": {"wire", "engine", "config", *GROUND},  # its arguments and results travel as the real ones do
    "core": GROUND - {"locks"},
    "wire": GROUND,
    "worker": {"wire", *GROUND},
    "local": {"core", "wire", "engine", "config", *GROUND},
    "dask": {"local", "wire", "engine", "config", *GROUND},  # on each machine it has a local pool
    "faces": {"engine", "config", *GROUND},
    "joblib": {"faces", "typed"},  # a backend there, made of a face
    # The names that users see, and the command: both only hand on.
    "__init__": {"faces", "testing", "engine", "config", *GROUND},
    "__main__": {"faces"},
}

# (module, module that it imports) → why. A face needs an engine unless it is given one; the fork server becomes the
# worker; `mpms stack` looks into the files of another process, which no engine can do. All within a function, so that
# importing the one doesn't load the other.
EXCEPTIONS = {
    ("mpms.local.forkserver", "mpms.worker.main"): "it forks, and the child goes on there",
    ("mpms.local.forkserver", "mpms.worker.setup"): "it is made like the parent, as a spawned worker is",
    ("mpms.faces.bulk", "mpms.wire.chunks"): "items are packed in the thread that reads them, and engines take chunks",
    ("mpms.faces.cli", "mpms.local.stacks"): "`mpms stack` reads what any process's workers keep on this machine",
}
ENGINES_FOR_FACES = {"mpms.local.engine", "mpms.dask"}

IMPURE = {"time", "os", "threading", "random", "logging", "socket", "select"}
HEAVY = {"asyncio", "multiprocessing", "argparse", "cloudpickle"}


def test_imports_go_one_way() -> None:
    assert list(violations(SOURCE)) == []


def test_importing_mpms_is_light() -> None:
    program = f"import sys; before = set(sys.modules); import mpms; print(*({HEAVY!r} & (set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_neither_process_loads_typing_for_a_start() -> None:
    program = """
from mpms import MPMS
looks = "'typing' in __import__('sys').modules"
with MPMS(eval, processes=1, threads=1) as pool:
    pool.put(looks)
    pool.close()
    print([result for _, result in pool.iter_results()], eval(looks))
"""
    # Without what the environment loads on its own, as that of an editable install may.
    command, env = [sys.executable, "-S", "-c", program], {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[False] False\n"


def test_the_fork_server_is_started_before_what_is_not_needed_for_that_is_loaded() -> None:
    program = """
import subprocess, sys
def begin(*args, start=subprocess.Popen.__init__, **options):
    print(*sorted({"logging", "traceback", "concurrent.futures", "mpms.core.machine"} & set(sys.modules)))
    start(*args, **options)
subprocess.Popen.__init__ = begin
from mpms import MPMS
with MPMS(abs, processes=1, threads=1) as pool:
    pool.put(-1)
    pool.close()
    print([result for _, result in pool.iter_results()], "mpms.core.machine" in sys.modules)
"""
    command, env = [sys.executable, "-S", "-c", program], {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n[1] True\n"


def test_a_pool_that_forks_loads_nothing_to_start_an_interpreter_nor_to_send_by_value() -> None:
    program = """
import sys
from mpms import MPMS
with MPMS(abs, processes=1, threads=1, start_method="fork") as pool:
    pool.put(-1)
    pool.close()
    print([result for _, result in pool.iter_results()], {"subprocess", "cloudpickle"} & set(sys.modules))
"""
    command, env = [sys.executable, "-S", "-c", program], {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[1] set()\n"


def test_names_of_typing_stand_where_types_may() -> None:
    program = """
import mpms.typed
from mpms import MPMS
from mpms.typed import *
T = TypeVar("T", bound=int)
class Named(Protocol[T]):
    __slots__ = ("name",)
class Box(Named[T], Generic[T]):
    __slots__ = ()
assert not hasattr(Box(), "__dict__")
assert [repr(x) for x in (Any, Literal["a", 1], int | Any | None, T, tuple[Any, T])]  # none raises
assert Box[int].__origin__ is Box
assert MPMS[int].__origin__ is MPMS
assert cast(int, "x") == "x"
assert NewType("Id", int)("5") == 5
assert overload(len) is len
missing = [name for name in mpms.typed.__all__ if not hasattr(mpms.typed, name)]
assert not missing, missing
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


@pytest.mark.parametrize(
    ("path", "line", "seen"),
    [
        ("core/machine.py", "import time", "mpms.core.machine:1 imports time"),
        ("core/machine.py", "from os import path", "mpms.core.machine:1 imports os"),
        ("core/machine.py", "def f():\n    import threading", "mpms.core.machine:2 imports threading"),
        ("core/machine.py", "import select, ast", "mpms.core.machine:1 imports select"),
        ("core/policy.py", "from ..wire import frames", "mpms.core.policy:1 imports mpms.wire"),
        ("core/policy.py", "import mpms.config", "mpms.core.policy:1 imports mpms.config"),
        ("core/policy.py", "from mpms import MPMS", "mpms.core.policy:1 imports mpms"),
        ("core/policy.py", "from .. import MPMS", "mpms.core.policy:1 imports mpms"),
        ("core/policy.py", "from .. import engine", "mpms.core.policy:1 imports mpms.engine"),
        ("core/__init__.py", "from ..local import engine", "mpms.core:1 imports mpms.local"),
        (
            "wire/frames.py",
            "from ..core.messages import Kill",
            "mpms.wire.frames:1 imports mpms.core.messages",
        ),
        ("worker/slots.py", "from ..core import machine", "mpms.worker.slots:1 imports mpms.core"),
        ("local/loop.py", "from ..worker.main import main", "mpms.local.loop:1 imports mpms.worker.main"),
        ("local/loop.py", "from ..faces.classic import MPMS", "mpms.local.loop:1 imports mpms.faces.classic"),
        (
            "faces/aio.py",
            "from ..core.machine import PoolMachine",
            "mpms.faces.aio:1 imports mpms.core.machine",
        ),
        ("faces/aio.py", "from ..local.loop import Loop", "mpms.faces.aio:1 imports mpms.local.loop"),
        ("faces/aio.py", "from ..local.engine import X", "mpms.faces.aio:1 imports mpms.local.engine"),
        ("errors.py", "from .config import X", "mpms.errors:1 imports mpms.config"),
        ("engine.py", "from .faces.classic import X", "mpms.engine:1 imports mpms.faces.classic"),
        ("other.py", "import ast", "mpms.other is in no room: add it to ALLOWED"),
    ],
)
def test_an_import_against_the_way_is_seen(tmp_path: Path, path: str, line: str, seen: str) -> None:
    module = tmp_path / "mpms" / path
    module.parent.mkdir(parents=True)
    module.write_text(line + "\n", "utf-8")
    assert [violation for violation in violations(tmp_path) if violation.startswith(seen)]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/machine.py", "from ..errors import WorkerCrashed\nfrom .. import ids\nimport heapq"),
        ("faces/aio.py", "def f():\n    from ..local.engine import LocalEngine"),
        (
            "faces/aio.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..local.engine import X",
        ),
        ("local/forkserver.py", "from ..worker.main import main"),
        ("__init__.py", "from .faces.classic import MPMS"),
    ],
)
def test_an_import_along_the_way_is_let_through(tmp_path: Path, path: str, line: str) -> None:
    module = tmp_path / "mpms" / path
    module.parent.mkdir(parents=True)
    module.write_text(line + "\n", "utf-8")
    assert list(violations(tmp_path)) == []


def violations(source: Path) -> Iterator[str]:
    """Each import in the tree below `source` that the rules don't allow, as "module:line imports name"."""
    for path in sorted((source / "mpms").rglob("*.py")):
        parts = list(path.relative_to(source).with_suffix("").parts)
        room = parts[1]
        if parts[-1] == "__init__":
            package = parts = parts[:-1]
        else:
            package = parts[:-1]
        module = ".".join(parts)
        if room not in ALLOWED:
            yield f"{module} is in no room: add it to ALLOWED"
            continue

        def is_module(name: str) -> bool:
            file = source.joinpath(*name.split("."))
            return name.removeprefix("mpms.") in ALLOWED or file.is_dir() or file.with_suffix(".py").is_file()

        for line, name, deferred in imported(ast.parse(path.read_bytes()), package, is_module):
            if not allowed(module, room, name, deferred=deferred):
                yield f"{module}:{line} imports {name}"


def allowed(module: str, room: str, name: str, *, deferred: bool) -> bool:
    top, _, rest = name.partition(".")
    if top != "mpms":
        return not (room == "core" and top in IMPURE)
    if (module, name) in EXCEPTIONS:
        return True
    if room == "faces" and name in ENGINES_FOR_FACES:
        return deferred
    target = rest.partition(".")[0]
    # mpms itself is the public names, and stands above all; nobody below asks it.
    return target == room or target in ALLOWED[room]


def imported(tree: ast.Module, package: list[str], is_module: Callable[[str], bool]) -> Iterator[tuple[int, str, bool]]:
    """Line, absolute name of the module, and whether it is loaded later (or for types only), for each import."""
    later = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING"))
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in later
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            name = ".".join(filter(None, [base, node.module]))
            # `from mpms import errors` is the module errors; `from mpms import MPMS` is mpms itself.
            for each in dict.fromkeys(
                f"{name}.{alias.name}" if is_module(f"{name}.{alias.name}") else name for alias in node.names
            ):
                yield node.lineno, each, id(node) in later
