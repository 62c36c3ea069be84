"""How workers come to be: what they share with the parent, and what is done when that can't be."""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpms import MPMS, PoolBroken
from mpms.local import servers

from .helpers import Stopwatch, at_full_strength, fork_server, pids, promised, until

FRESH = ("forkserver", "spawn")
"""The methods whose workers are not copies of this process."""


def outcomes(pool: MPMS, *tasks: Any) -> list[Any]:
    with pool:
        for task in tasks:
            pool.put(task)
        pool.close()
        return [result for _, result in pool.iter_results()]


def add_one(number: int) -> int:
    return number + 1


# Which one


def is_fresh(pid: int) -> bool:
    """Whether it is a new interpreter, and not a copy of this one."""
    return any("mpms." in word for word in psutil.Process(pid).cmdline())


@pytest.mark.skipif(sys.platform != "linux", reason="spawn is the default there")
def test_the_default_on_linux_is_a_fork_server_that_is_a_fresh_interpreter() -> None:
    with MPMS(add_one, processes=2, threads=1) as pool:
        server = psutil.Process(fork_server(pool))
        assert server.ppid() == os.getpid()
        assert server.num_threads() == 1
        assert is_fresh(server.pid)
        assert "mpms.local.forkserver" in " ".join(server.cmdline())


def test_a_forked_server_is_a_copy_of_this_process_and_spawned_workers_are_none(any_method: str) -> None:
    with MPMS(is_fresh, processes=1, threads=1, start_method=any_method, name="p") as pool:
        (worker,) = at_full_strength(pool)
        server = psutil.Process(worker).ppid()
        assert psutil.Process(server).ppid() == os.getpid()
        assert psutil.Process(server).num_threads() == 1
        assert is_fresh(server) == (any_method != "fork")
    assert pool.stats().starts == 1


def modules_of_this_test(_: object) -> tuple[bool, bool]:
    return "tests.local.stage" in sys.modules, threading.active_count() > 3


def test_only_a_forked_worker_has_the_modules_that_nobody_asked_for(any_method: str) -> None:
    importlib.import_module("tests.local.stage")
    function = by_value(modules_of_this_test)
    (answer,) = outcomes(MPMS(function, processes=1, threads=1, start_method=any_method), 0)
    assert answer == (any_method == "fork", False)


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a function of a script: it needs no module of the tests."""
    space: dict[str, Any] = {"sys": sys, "threading": threading, "__name__": "__main__"}
    return type(function)(function.__code__, space)


# The fallback


def locked() -> Callable[[int], int]:
    lock = threading.Lock()

    def count(number: int) -> int:
        with lock:
            return number + 1

    return count


class Tray:
    """With a queue of the fork context."""

    def __init__(self) -> None:
        self.queue = multiprocessing.get_context("fork").SimpleQueue()

    def put(self, number: int) -> int:
        self.queue.put(number)
        return number + 1

    def close(self) -> None:
        self.queue.close()


@pytest.mark.parametrize("what", ["a lock in a closure", "a queue of the fork context"])
def test_what_cannot_be_sent_falls_back_to_fork_with_one_warning_that_says_why(what: str) -> None:
    tray = Tray()
    worker, name, why = (locked(), "count", "lock") if what == "a lock in a closure" else (tray.put, "Tray.put", "fork")
    pool = MPMS(worker, processes=2, threads=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool.start()
        for number in range(20):
            pool.put(number)
        pool.close()
        got = sorted(result for _, result in pool.iter_results())
        pool.join()
    assert got == list(range(1, 21))
    (warning,) = caught
    assert warning.category is RuntimeWarning
    text = str(warning.message)
    assert f"{name} can't be sent to a new process" in text
    assert why in text
    assert "start_method='fork'" in text
    assert warning.filename == __file__
    if what != "a lock in a closure":
        assert sorted(tray.queue.get() for _ in range(20)) == list(range(20))
    tray.close()


def test_the_fallback_holds_when_the_first_put_starts_the_pool_too() -> None:
    pool = MPMS(locked(), processes=1, threads=1)
    with pytest.warns(RuntimeWarning, match="falls back") as caught:
        pool.put(1)
    assert len(caught) == 1
    pool.close()
    assert [result for _, result in pool.iter_results()] == [2]
    pool.join()


@pytest.mark.parametrize("method", FRESH)
def test_a_method_that_was_asked_for_is_not_replaced_but_refused(method: Any) -> None:
    pool = MPMS(locked(), processes=1, threads=1, start_method=method)
    for _ in range(2):  # nothing has happened: it may be tried again, with the same answer
        with pytest.raises(TypeError, match=r"count can't be sent to a new process: .*lock.*'fork'") as caught:
            pool.start()
        assert caught.value.__cause__ is not None
    with pytest.raises(TypeError, match="can't be sent"):
        pool.put(1)
    assert (len(pool), pool.total_count, pool.stats().starts) == (0, 0, 0)
    pool.join()


@pytest.mark.parametrize("hook", ["process_initializer", "thread_finalizer", "preload"])
def test_a_hook_that_cannot_be_sent_is_refused_in_the_same_way(hook: str) -> None:
    options: dict[str, Any] = {hook: locked()}
    with pytest.raises(TypeError, match="can't be sent to a new process"):
        MPMS(add_one, processes=1, threads=1, start_method="forkserver", **options).start()


def test_fork_was_asked_for_and_so_warns_of_nothing() -> None:
    assert outcomes(MPMS(locked(), processes=1, threads=1, start_method="fork"), 1) == [2]


# What workers share with the parent


def surroundings(_: object) -> tuple[str | None, str]:
    return os.environ.get("MPMS_TEST_WORD"), os.getcwd()


def test_environment_and_directory_are_those_at_the_start_of_each_worker(
    any_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MPMS(surroundings, processes=1, threads=1, start_method=any_method) as pool:
        answers = pool.iter_results()
        old = at_full_strength(pool)
        for word in ("one", None):
            folder = tmp_path / str(word)
            folder.mkdir()
            monkeypatch.chdir(folder)
            if word is None:
                monkeypatch.delenv("MPMS_TEST_WORD")
            else:
                monkeypatch.setenv("MPMS_TEST_WORD", word)
            os.kill(min(old), signal.SIGKILL)
            old = until(lambda old=old: pids(pool) - old)
            pool.put(0)
            assert next(answers)[1] == (word, str(folder))


def test_a_directory_that_is_gone_is_no_reason_not_to_start(
    any_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert outcomes(MPMS(add_one, processes=1, threads=1, start_method=any_method), 1) == [2]


def path_and_arguments(_: object) -> tuple[list[str], list[str]]:
    return sys.path, sys.argv


def test_path_and_arguments_are_those_of_the_parent(
    any_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["a program", "--with", "ärguments"])
    (answer,) = outcomes(MPMS(path_and_arguments, processes=1, threads=1, start_method=any_method), 0)
    assert answer == ([path or os.getcwd() for path in sys.path], sys.argv)


def flags_of(_: object) -> tuple[Any, ...]:
    return tuple(sys.flags), sys.executable, sys.warnoptions


def test_the_interpreter_and_its_flags_are_those_of_the_parent(any_method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""\
        import sys
        from mpms import MPMS

        def flags_of(_):
            return tuple(sys.flags), sys.executable, __debug__

        pool = MPMS(flags_of, processes=1, threads=1, start_method=sys.argv[1])
        pool.put(0)
        pool.close()
        for _, flags in pool.iter_results():
            print(flags == flags_of(0), flags)
        pool.join()
        """)
    )
    command = [sys.executable, "-O", "-B", "-X", "utf8", str(script), any_method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("True "), done.stdout + done.stderr


def append(numbers: Any, number: int) -> tuple[int, bool]:
    numbers.append(number)
    return len(numbers), bool(multiprocessing.current_process().authkey)


def test_the_authentication_key_is_that_of_the_parent(any_method: str) -> None:
    """So that tasks may use a Manager."""
    # By fork: with Python 3.14's own way, a server of multiprocessing would be left.
    with multiprocessing.get_context("fork").Manager() as manager:
        numbers = manager.list()
        with MPMS(append, processes=1, threads=1, start_method=any_method) as pool:
            pool.put(numbers, 1)
            pool.put(numbers, 2)
            pool.close()
            assert [result for _, result in pool.iter_results()] == [(1, True), (2, True)]
        assert list(numbers) == [1, 2]


def test_a_script_may_use_modules_that_only_its_folder_has(any_method: str, tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "beside.py").write_text("import os\nWORD = 40\ndef work(n): return WORD + n, os.getcwd()\n")
    (folder / "script.py").write_text(
        "import sys, beside\n"
        "from mpms import MPMS\n"
        "pool = MPMS(beside.work, processes=1, threads=1, start_method=sys.argv[1])\n"
        "pool.put(2)\n"
        "pool.close()\n"
        "print([result for _, result in pool.iter_results()])\n"
        "pool.join()\n"
    )
    command = [sys.executable, "program/script.py", any_method]  # a relative path, and another directory
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"[(42, {str(tmp_path)!r})]\n", "")


# What is loaded before

TABLE: list[int] = []


def load_table() -> None:
    TABLE.extend(range(1000))


def sum_of_table(_: object) -> tuple[int, int]:
    return sum(TABLE), id(TABLE)


def test_tasks_see_what_preload_has_loaded(any_method: str) -> None:
    pool = MPMS(sum_of_table, processes=1, threads=1, lifecycle=2, start_method=any_method, preload=load_table)
    got = outcomes(pool, *range(4))
    assert {total for total, _ in got} == {sum(range(1000))}  # once in each, however often it is replaced
    if any_method != "spawn":
        assert len({where for _, where in got}) == 1  # it is the same memory
    assert TABLE == []


BAD = """\
import os
if os.getpid() != {pid}:
    {what}

def work(number):
    return number
"""


@pytest.fixture
def bad_module(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Callable[[int], int]]:
    """Make a module that does ``what`` at its import in another process; its function ``work``."""

    def make(what: str) -> Callable[[int], int]:
        (tmp_path / "bad_module.py").write_text(BAD.format(pid=os.getpid(), what=what))
        monkeypatch.syspath_prepend(str(tmp_path))
        request.addfinalizer(lambda: sys.modules.pop("bad_module", None))
        return importlib.import_module("bad_module").work

    return make


def breaks(pool: MPMS) -> PoolBroken:
    """The pool breaks, and says so to everybody."""
    pool.put(1)
    pool.close()
    results: list[Any] = []
    with pytest.raises(PoolBroken) as broken:
        results.extend(result for _, result in pool.iter_results())
    assert [type(result) for result in results] == [PoolBroken]
    with pytest.raises(PoolBroken):
        pool.join()
    assert pool.unfinished() == [((1,), {})]
    return broken.value


@pytest.mark.parametrize("method", FRESH)
def test_a_module_that_cannot_be_imported_over_there_breaks_the_pool_with_its_error(
    method: Any, bad_module: Callable[[str], Callable[[int], int]]
) -> None:
    work = bad_module("raise ImportError('no such library here')")
    with Stopwatch() as watch:
        error = breaks(MPMS(work, processes=2, threads=1, start_method=method, max_start_failures=2))
    assert watch.seconds < promised(15)
    assert isinstance(error.__cause__, ImportError)
    assert "no such library here" in str(error.__cause__)
    assert "bad_module.py" in str(error.__cause__.__cause__)


@pytest.mark.parametrize("method", FRESH)
@pytest.mark.parametrize("what", ["__import__('signal').pause()", "os._exit(5)"], ids=["hangs", "exits"])
def test_a_module_that_hangs_or_exits_at_its_import_breaks_the_pool_in_bounded_time(
    method: Any, what: str, bad_module: Callable[[str], Callable[[int], int]]
) -> None:
    work = bad_module(what)
    with Stopwatch() as watch:
        pool = MPMS(work, processes=1, threads=1, start_method=method, start_timeout=1, max_start_failures=2)
        breaks(pool)
    assert watch.seconds < promised(20)


def test_the_interpreter_is_the_one_that_multiprocessing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert servers._executable() == sys.executable
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/opt/other/python")  # as set_executable does it
    assert servers._executable() == "/opt/other/python"


def collects(_: object = None) -> bool:
    return gc.isenabled()


def note_whether_it_collects(path: str) -> None:
    Path(path).write_text(str(gc.isenabled()))


def test_pythons_collector_is_at_work_in_preload_and_in_tasks(any_method: str, tmp_path: Path) -> None:
    """It is off for a while before."""
    path = str(tmp_path / "preload")
    preload = functools.partial(note_whether_it_collects, path)
    with MPMS(collects, processes=1, threads=1, start_method=any_method, preload=preload) as pool:
        pool.put(1)
        pool.close()
        assert [result for _, result in pool.iter_results()] == [True]
    assert Path(path).read_text() == "True"
