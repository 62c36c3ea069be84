"""The tests of the core fail when they should."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mpms

from .mutants import MUTANTS, Mutant

SOURCE = Path(mpms.__file__).parent
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OF_EXAMPLES = ["test_machine.py", "test_retries.py", "test_options.py", "test_control.py", "test_cancel.py"]
AT_ONCE = 2  # more only wait for each other on the two cores of a small machine
FAILED = 1  # pytest's own: tests were run and failed; not 2 to 5, which say that they could not be run
EXAMPLES = 60  # enough for each of the breakages that no example notices


PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no"]

# Loads pytest once, and forks for each line: the folder with the package to try the tests on. Says how pytest exits.
RUNNER = """
import os, signal, sys
import pytest
for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.alarm(110)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        code = 3  # for what can't be loaded: pytest, told to stop at the first failure, calls that a failure too
        try:
            sys.path.insert(0, line.rstrip())  # before the installed one
            import mpms.core.machine
            code = pytest.main(sys.argv[1:])
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Workshop:
    """A folder for copies of the package, and a process that tries the tests on them.

    Without plug-ins and settings, which take longer to load than examples to run; and what isn't broken is compiled
    once. Of one thread.
    """

    def __init__(self, room: Path, tests: list[str]) -> None:
        self._room = room
        self._sound = self._copy(SOURCE, room / "sound" / "mpms")
        here = self._copy(HERE, room / "tests" / "core")
        (room / "tests" / "__init__.py").touch()
        compileall.compile_dir(room, quiet=1)
        self._runner = subprocess.Popen(
            [
                sys.executable,
                "-c",
                RUNNER,
                *PYTEST,
                "-c",
                os.devnull,
                "--rootdir",
                room,
                "--noconftest",
                "--assert=plain",
            ]
            + [here / test for test in tests],
            cwd=room,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def _copy(source: Path, to: Path) -> Path:
        return Path(shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__")))

    def broken(self, file: str, old: str, new: str) -> Path:
        """A copy in which ``old`` is ``new``."""
        copy = Path(shutil.copytree(self._sound, Path(tempfile.mkdtemp(dir=self._room)) / "mpms"))
        broken = (copy / file).read_text().replace(old, new)
        (copy / file).unlink()
        (copy / file).write_text(broken)
        for compiled in (copy / file).parent.glob(f"__pycache__/{Path(file).stem}.*"):
            compiled.unlink()
        return copy

    def result(self, copy: Path) -> int:
        """How pytest exits on the tests of this workshop, with ``copy`` as the package."""
        assert self._runner.stdin
        assert self._runner.stdout
        print(copy.parent, file=self._runner.stdin, flush=True)
        return int(self._runner.stdout.readline())

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.communicate()


def result_of_search(copy: Path) -> int:
    """How pytest exits on the property, with ``copy`` as the package."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *PYTEST, str(HERE / "test_property.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(copy.parent), "MPMS_CORE_EXAMPLES": str(EXAMPLES)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=110,
    )
    return done.returncode


def not_noticed(mutants: list[Mutant], room: Path) -> list[str]:
    names = []
    with Workshop(room, OF_EXAMPLES) as workshop:
        for mutant in mutants:
            copy = workshop.broken(f"core/{mutant.file}", mutant.old, mutant.new)
            compile((copy / "core" / mutant.file).read_text(), mutant.file, "exec")  # else it proves nothing
            # The examples first: they notice most, and sooner.
            if (workshop.result(copy) or result_of_search(copy)) != FAILED:
                names.append(mutant.name)
    return names


def test_every_breakage_is_still_found_in_the_source_once() -> None:
    counts = {m.name: (SOURCE / "core" / m.file).read_text().count(m.old) for m in MUTANTS}
    assert {name: count for name, count in counts.items() if count != 1} == {}
    assert len(counts) == len(MUTANTS) >= 100


def test_the_copy_is_what_is_tested_and_unbroken_it_passes(tmp_path: Path) -> None:
    with Workshop(tmp_path / "examples", OF_EXAMPLES) as workshop:
        sound = workshop.broken("core/machine.py", "nothing of it", "")
        assert workshop.result(sound) == 0
        wrong = workshop.broken("core/machine.py", "from __future__", "raise SystemError('this is the copy')  #")
        assert workshop.result(wrong) not in (0, FAILED)
    assert result_of_search(sound) == 0
    assert result_of_search(wrong) not in (0, FAILED)


@pytest.mark.timeout(600)  # 25 s of a processor, and on a busy machine several times that
def test_every_breakage_is_noticed(tmp_path: Path) -> None:
    shares = [MUTANTS[number::AT_ONCE] for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        names = pool.map(not_noticed, shares, [tmp_path / str(number) for number in range(AT_ONCE)])
    assert [name for share in names for name in share] == []
