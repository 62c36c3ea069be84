"""CPython's own tests hold for ``Executor``. Those of one start method, or of all: see tests/local/conftest.py."""

from __future__ import annotations

import json
import multiprocessing.util
import os
import subprocess
import sys
import unittest
from pathlib import Path

import pytest

from ..local.conftest import ASKED
from .differences import ABOUT_FUTURES, CLASSES, OTHERS, SLOW, TESTS
from .suite import MISSING, find_suite

THREADS = (1, 4)
ALL = len(ASKED) > 1

suite = find_suite()

if suite is None:

    @pytest.mark.skip(reason=MISSING)
    def test_the_suite_of_the_interpreter_holds() -> None: ...

else:
    for _name in CLASSES:
        for _method in ASKED:
            for _threads in THREADS:
                if _name in ABOUT_FUTURES and _threads > 1 and not ALL:
                    continue
                _case = suite.case(_name, _method, _threads)
                for _test in suite.tests(_name):
                    _difference = TESTS.get(_name, {}).get(_test)
                    if (_difference and _method in _difference.only) or (_test in SLOW and not ALL):
                        setattr(_case, _test, None)  # so it is not collected
                globals()[f"Test{_case.__name__}"] = _case
    del _case  # else the last one is collected by this name, too

    def test_every_class_of_the_suite_is_accounted_for() -> None:
        assert suite is not None
        if suite.version <= (3, 13):
            assert {*suite.classes()} - {*CLASSES, *OTHERS} == set()

    def test_every_difference_is_about_a_test_that_exists() -> None:
        assert suite is not None
        for name, differences in TESTS.items():
            known = suite.tests(name)
            for test, difference in differences.items():
                assert test in known or suite.version < difference.since, f"there is no {name}.{test}"

    @pytest.mark.parametrize("method", ASKED)
    @pytest.mark.parametrize("threads", THREADS if ALL else THREADS[:1])
    def test_what_is_said_not_to_apply_does_not_pass(method: str, threads: int) -> None:
        """In a process of its own: a test that fails half way leaves its executor behind."""
        done = subprocess.run(
            [sys.executable, "-m", __name__, method, str(threads)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == []


def passing(method: str, threads: int) -> list[str]:
    """The tests that pass of those that don't apply."""
    assert suite is not None
    found = []
    for name, differences in TESTS.items():
        case = suite.case(name, method, threads)
        for test, difference in differences.items():
            if method in difference.only and not (difference.may_pass or difference.hangs) and hasattr(case, test):
                result = unittest.TestResult()
                case(test).run(result)
                if result.wasSuccessful() and not result.skipped:
                    found.append(f"{name}.{test}")
    return found


if __name__ == "__main__":
    print("\n", json.dumps(passing(sys.argv[1], int(sys.argv[2]))), flush=True)
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    os._exit(0)
