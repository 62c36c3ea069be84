"""Where the means of Linux are missing the pool works, and cleans up, by others: forced here, on Linux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .helpers import program, promised

MISSING = {
    "memfd_create": "import os; del os.memfd_create",
    "waitid": "import os; del os.waitid",
    "F_SETSIG": "import fcntl; del fcntl.F_SETSIG",
    "prctl": """
import ctypes
class CDLL(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return super().__getattr__(name)
ctypes.CDLL = CDLL
""",
}

WORK = """
import fcntl, tempfile, psutil
from mpms.core import policy
from tests.local.helpers import at_full_strength, die, results, until

def task(word, kind):
    if kind == "die":
        die("SIGSEGV")
    if kind == "hang":
        hold_the_gil()
    if kind == "large":
        return word * 1_000_000
    if kind == "fork" and os.fork() == 0:
        signal.pause()
    return word

missing, method = sys.argv[1:3]
assert not hasattr({"F_SETSIG": fcntl, "prctl": ctypes.CDLL(None)}.get(missing, os), missing)
policy.DUMP_SECONDS = 2.0  # on a busy machine the stacks come late
kinds = {1: "die", 2: "hang", 3: "fork"}
with MPMS(task, processes=2, threads=2, start_method=method, worker_graceful_die_timeout=0.2) as pool:
    at_full_strength(pool)
    for word in range(1, 20):
        pool.put_with((word, kinds.get(word, "")), timeout=0.5 if word == 2 else None)
        if word <= 4:
            until(lambda: pool.finish_count == word)
    until(lambda: pool.finish_count == 19)
    os.kill(min(at_full_strength(pool)), signal.SIGKILL)
    at_full_strength(pool)
    pool.put("large", "large")
    pool.close()
    got = results(pool)
    assert pool.stats().zombies == 0
assert got.pop("large") == "large" * 1_000_000
assert isinstance(got[1], WorkerCrashed) and got[1].blamed is True and "in task" in got[1].stack, got[1]
assert isinstance(got[2], TaskTimeout) and ("hold_the_gil" in got[2].stack) is HAS_GIL, got[2]
assert all(got[word] == word for word in range(3, 20)), got
assert psutil.Process().children(recursive=True) == []
assert not [name for name in os.listdir(tempfile.gettempdir()) if "mpms-" in name]
say("done")
"""


def without(missing: str, path: Path) -> dict[str, str]:
    """The environment of an interpreter, and of those that it starts, in which it is missing."""
    (path / "sitecustomize.py").write_text("\n".join(MISSING[word] for word in missing.split(" and ")))
    (path / "temporary").mkdir()
    paths = [str(path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(path / "temporary")}


@pytest.mark.parametrize("missing", MISSING)
def test_the_pool_works_and_cleans_up_without(missing: str, any_method: str, tmp_path: Path) -> None:
    with program(WORK, missing, any_method, **without(missing, tmp_path)) as script:
        script.says("done")
        code, out, err = script.ends(60)
        assert (code, out) == (0, ""), err
        assert script.left_after(promised(1)) == []
