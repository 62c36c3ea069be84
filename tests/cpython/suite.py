"""CPython's own tests of ``concurrent.futures``, with :class:`mpms.Executor` in the place of the process pool.

They come from the ``test`` package of the interpreter. Some installations leave it out, or parts of it: then from
that of another Python on this machine, as far as it is one module (up to 3.11) and asks for nothing newer.
"""

from __future__ import annotations

import concurrent.futures.process
import contextlib
import gc
import importlib
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mpms

__all__ = ["MISSING", "Suite", "find_suite"]

MISSING = (
    "neither this Python nor another one here has test.test_concurrent_futures: install the interpreter's test suite "
    "(Debian and Ubuntu: libpython3-testsuite, Fedora: python3-test)"
)

_NAME = "test.test_concurrent_futures"
_BORROWED = f"{__package__}.borrowed"
_TOOL = Path(__file__).parents[2] / "tools" / "pythons"


class Suite:
    """The modules of the suite, and what is in them."""

    def __init__(self, version: tuple[int, int], modules: list[ModuleType]) -> None:
        self.version = version
        self._modules = modules
        for module in modules:
            # The place of BrokenProcessPool is taken by errors of the one task; a change of the import is the rest.
            for name, ours in (
                ("BrokenProcessPool", (mpms.WorkerCrashed, mpms.RemoteWorkerError)),
                ("futures", _Futures),
                ("assert_python_ok", _run_with_another_import),
            ):
                if hasattr(module, name):
                    setattr(module, name, ours)
            if hasattr(module, "threading_helper"):
                # In Python 3.10 it waits for seconds for threads of pytest's. For ours there is conftest.py.
                module.threading_helper.threading_cleanup = lambda *_: None

    def __getattr__(self, name: str) -> Any:
        """What has this name in one of the modules."""
        for module in self._modules:
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"{_NAME} of Python {self.version} has no {name}")

    def classes(self) -> dict[str, type]:
        """All that have tests, by name, but for those that only put one together with an executor."""
        found = {}
        for module in self._modules:
            for name, value in vars(module).items():
                if isinstance(value, type) and value.__module__ == module.__name__ and _own_tests(value):
                    found[name] = value
        return found

    def tests(self, name: str) -> list[str]:
        """The tests of a class."""
        return unittest.TestLoader().getTestCaseNames(getattr(self, name))

    def case(self, name: str, method: str, threads: int) -> type[unittest.TestCase]:
        """The tests of a class, for an executor of this start method with so many threads."""
        bases = (_Adapted, getattr(self, name), self.ExecutorMixin, self.BaseTestCase)
        attributes = {"executor_type": _executor(threads), "ctx": method, "__module__": __name__}
        label = f"{name}_{method}_{threads}"
        # By that name a worker finds it, when a method of it is a task.
        globals()[label] = case = type(label, bases, attributes)
        return case


def __getattr__(name: str) -> Any:
    """In a worker, that has to make the class first."""
    parts = re.fullmatch(r"(\w+)_([a-z]+)_(\d+)", name)
    suite = find_suite() if parts is not None else None
    if parts is None or suite is None:
        raise AttributeError(name)
    return suite.case(parts[1], parts[2], int(parts[3]))


class _Adapted:
    """In front of a class of the suite."""

    ctx: str

    def tearDown(self) -> None:
        super().tearDown()  # type: ignore[misc]
        for name in ("log_queue", "executor_kwargs"):  # what a test of an initializer has of multiprocessing's
            vars(self).pop(name, None)
        gc.collect()

    def get_context(self) -> Any:
        return multiprocessing.get_context(self.ctx)

    def create_event(self) -> Any:
        manager: Any = vars(self)["manager"]
        return manager.Event()

    def _assert_logged(self, message: str) -> Any:
        # Nobody logs to "concurrent.futures": what the initializer raised is the cause of the PoolBroken.
        return contextlib.nullcontext()


class _Delegate(type):
    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._to, name)  # type: ignore[attr-defined]


class _Futures(metaclass=_Delegate):
    """In place of the module concurrent.futures."""

    _to = concurrent.futures
    ProcessPoolExecutor = mpms.Executor

    class process(metaclass=_Delegate):
        _to = concurrent.futures.process
        _RemoteTraceback = mpms.RemoteTraceback


def _executor(threads: int) -> type[mpms.Executor]:
    class Executor(mpms.Executor):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, threads=threads, **options)

        @property
        def _broken(self) -> Any:  # the one private name of which we have the same in public
            return self._engine.broken

    Executor.__name__ = f"Executor{threads}"  # see below
    return Executor


def _run_with_another_import(option: str, script: str) -> Any:
    from test.support.script_helper import assert_python_ok

    ours = r"import functools, multiprocessing, mpms; Executor\1 = functools.partial(mpms.Executor, threads=\1)"
    script, changes = re.subn(r"from concurrent\.futures import Executor(\d+)", ours, script)
    assert changes == 1
    if _BORROWED in sys.modules:
        script = script.replace(_NAME, _BORROWED)
    return assert_python_ok(option, script, PYTHONPATH=os.pathsep.join(sys.path), __isolated=False)


def _own_tests(cls: type) -> bool:
    return any(name.startswith("test") for name in vars(cls))


def find_suite() -> Suite | None:
    """The one of this Python; or else another one's that can do; or none."""
    try:
        package = importlib.import_module(_NAME)
    except ModuleNotFoundError:
        return _borrow()
    names = [info.name for info in pkgutil.iter_modules(getattr(package, "__path__", []))]
    modules = [package, *(importlib.import_module(f"{_NAME}.{name}") for name in names)]
    return Suite(sys.version_info[:2], modules)


def _borrow() -> Suite | None:
    if "MPMS_TEST_BORROWED" not in os.environ:  # else a parent process has found it
        file = next(_elsewhere(), None)
        if file is None:
            return None
        os.environ["MPMS_TEST_BORROWED"] = str(file)
    version = os.environ["MPMS_TEST_BORROWED"].rpartition("/python")[2].partition("/")[0]
    major, minor = map(int, version.split("."))
    try:
        return Suite((major, minor), [importlib.import_module(_BORROWED)])
    except ImportError:  # the package has neither support for tests
        return None


def _elsewhere() -> Iterator[Path]:
    try:
        lines = subprocess.run([_TOOL], capture_output=True, text=True, timeout=60).stdout.splitlines()
    except OSError:
        return
    for line in lines:
        version, _, python = line.partition(" ")
        file = Path(python).parents[1] / "lib" / f"python{version}" / "test" / "test_concurrent_futures.py"
        if file.exists():
            yield file
