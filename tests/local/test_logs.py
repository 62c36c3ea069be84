"""What workers log and print: it arrives, with who said it; a flood stops nothing; a crash loses no flushed line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpms import MPMS

from .helpers import at_full_strength, die, note, noted, results, until

APP = logging.getLogger("app_of_test_logs")


class Records(logging.Handler):
    """Keeps what it is given. Waits at each record until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.threads: set[str] = set()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def emit(self, record: logging.LogRecord) -> None:
        self.may_go_on.wait()
        self.records.append(record)
        self.threads.add(threading.current_thread().name)

    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def app() -> Iterator[Records]:
    """The handler of the application's logger, which has a level of its own."""
    handler = Records()
    APP.addHandler(handler)
    APP.propagate = False
    APP.setLevel(logging.INFO)
    yield handler
    handler.may_go_on.set()
    APP.removeHandler(handler)
    APP.propagate = True
    APP.setLevel(logging.NOTSET)


def log_something(word: int) -> int:
    APP.info("task %d says %s", word, "hello")
    APP.getChild("inner").warning("from below")
    return os.getpid()


def test_records_of_workers_reach_the_loggers_of_the_parent_with_who_and_for_which_task(
    any_method: str, app: Records
) -> None:
    with MPMS(log_something, processes=2, threads=2, start_method=any_method, forward_logs=True) as pool:
        for word in range(20):
            pool.put(word)
        outcomes = pool.iter_results()
        tasks = {meta.taskid: (meta.args[0], pid) for meta, pid in (next(outcomes) for _ in range(20))}
        at_full_strength(pool)  # a worker may have worked before word of its birth is read
        names = {info.pid: info.name for info in pool.workers()}  # while it is open, they live
    assert Counter(app.messages()) == Counter([f"task {word} says hello" for word in range(20)] + ["from below"] * 20)
    for record in app.records:
        word, pid = tasks[record.mpms_task]  # type: ignore[attr-defined]
        assert record.process == pid
        assert record.mpms_worker == names[pid]  # type: ignore[attr-defined]
        if record.name == APP.name:
            assert record.getMessage() == f"task {word} says hello"
            assert (record.levelname, record.funcName, record.filename) == ("INFO", "log_something", "test_logs.py")
        else:
            assert record.name == f"{APP.name}.inner"
        assert f"{record.mpms_worker}#t" in record.threadName  # type: ignore[attr-defined,operator]


def test_without_the_option_nothing_is_forwarded(method: str, app: Records) -> None:
    with MPMS(log_something, processes=1, threads=1, start_method=method) as pool:
        pool.put(1)
    assert app.records == []


class Spy:
    """Says when it is made into text."""

    def __init__(self, log: str) -> None:
        self.log = log

    def __str__(self) -> str:
        note(self.log, os.getpid())
        return "text"


def log_at_each_level(word: int, log: str) -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        APP.log(level, "%s", Spy(log))
        logging.getLogger(f"{APP.name}.quiet").log(level, "%s", Spy(log))


def test_levels_are_those_of_the_parent_and_are_applied_in_the_worker(
    any_method: str, app: Records, tmp_path: Any
) -> None:
    log = str(tmp_path / "texts")
    quiet = APP.getChild("quiet")
    quiet.setLevel(logging.ERROR)
    try:
        with MPMS(log_at_each_level, processes=1, threads=1, start_method=any_method, forward_logs=True) as pool:
            pool.put(1, log)
    finally:
        quiet.setLevel(logging.NOTSET)
    assert Counter((record.name, record.levelname) for record in app.records) == Counter(
        [(APP.name, "INFO"), (APP.name, "WARNING"), (APP.name, "ERROR"), (quiet.name, "ERROR")]
    )
    assert len(noted(log)) == 4  # the others were not even made into text
    assert str(os.getpid()) not in noted(log)


def log_what_does_not_travel(word: int) -> None:
    APP.warning("a lock: %r", threading.Lock(), extra={"user": "me"})
    try:
        raise KeyError("inner")
    except KeyError:
        APP.exception("failed")
    APP.info(threading.Lock())
    thread = threading.Thread(target=lambda: APP.info("of a thread of its own"))
    thread.start()
    thread.join()  # the worker may end before it has logged


def test_what_does_not_travel_becomes_text(method: str, app: Records) -> None:
    with MPMS(log_what_does_not_travel, processes=1, threads=1, start_method=method, forward_logs=True) as pool:
        pool.put(1)
    lock, failed, bare, own = sorted(app.records, key=lambda record: record.created)
    assert lock.getMessage().startswith("a lock: <unlocked _thread.lock")
    assert lock.user == "me"  # type: ignore[attr-defined]
    assert "failed\nTraceback" in failed.getMessage()
    assert "KeyError: 'inner'" in failed.getMessage()
    assert "in log_what_does_not_travel" in failed.getMessage()
    assert bare.getMessage().startswith("<unlocked _thread.lock")
    assert (own.getMessage(), own.mpms_task) == ("of a thread of its own", None)  # type: ignore[attr-defined]


def log_in_a_fork(word: int) -> int:
    pid = os.fork()
    if not pid:
        APP.info("not that much")
        APP.warning("said by a fork of %d", word)
        os._exit(7)
    APP.info("said by %d itself", word)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_a_task_forks_logs_to_stderr_and_lives_on(
    any_method: str, app: Records, capfd: pytest.CaptureFixture[str]
) -> None:
    with MPMS(log_in_a_fork, processes=1, threads=1, start_method=any_method, forward_logs=True) as pool:
        pool.put(5)
        pool.close()
        assert results(pool) == {5: 7}
    assert app.messages() == ["said by 5 itself"]
    assert capfd.readouterr().err == "said by a fork of 5\n"


def log_in_a_hook(word: str) -> None:
    APP.info(word)


def test_hooks_log_too(any_method: str, app: Records) -> None:
    hooks: dict[str, Any] = {}
    for kind in ("process", "thread"):
        for hook in ("initializer", "finalizer"):
            hooks[f"{kind}_{hook}"] = log_in_a_hook
            hooks[f"{kind}_{hook.removesuffix('ializer').removesuffix('alizer')}args"] = (f"{kind} {hook}",)
    with MPMS(log_something, processes=1, threads=1, start_method=any_method, forward_logs=True, **hooks) as pool:
        at_full_strength(pool)
    assert app.messages() == [
        "process initializer",
        "thread initializer",
        "thread finalizer",
        "process finalizer",
    ]
    assert {record.mpms_task for record in app.records} == {None}  # type: ignore[attr-defined]


def log_and_die(word: int) -> None:
    APP.info("last words of %d", word)
    die("SIGKILL")


def test_what_was_logged_before_a_crash_arrives(method: str, app: Records) -> None:
    with MPMS(log_and_die, processes=1, threads=1, start_method=method, forward_logs=True) as pool:
        for word in range(10):
            pool.put(word)
    assert app.messages() == [f"last words of {word}" for word in range(10)]
    assert [record.mpms_task for record in app.records] == list(range(1, 11))  # type: ignore[attr-defined]


# Floods and slow handlers

FLOOD = 100_000


def flood(word: int) -> int:
    for number in range(FLOOD):
        APP.info("%d of %d", number, word)
    return word


def test_a_flood_into_a_slow_handler_stops_no_work_and_is_bounded(
    method: str, app: Records, caplog: pytest.LogCaptureFixture
) -> None:
    app.may_go_on.clear()  # as slow as can be
    with MPMS(flood, processes=2, threads=1, start_method=method, forward_logs=True) as pool:
        before = psutil.Process().memory_info().rss
        for word in range(2):
            pool.put(word)
        assert sorted(result for _, result in (next(pool.iter_results()) for _ in range(2))) == [0, 1]
        grown = [psutil.Process().memory_info().rss - before]
        grown += [psutil.Process(info.pid).memory_info().rss - before for info in pool.workers()]
        assert app.records == []
        app.may_go_on.set()
    # 200,000 records are some 100 MB here, and those that wait for a slow handler are 10,000.
    assert max(grown) < 60e6
    assert 0 < len(app.records) <= 10_001
    assert len(app.records) + dropped(caplog) <= 2 * FLOOD
    assert dropped(caplog) > FLOOD
    # The oldest are dropped, and the last ones are here; they are in the order in which they were said.
    for word in range(2):
        numbers = [record.getMessage().split()[0] for record in app.records if record.mpms_task == word + 1]  # type: ignore[attr-defined]
        assert numbers == sorted(numbers, key=int)
    assert f"{FLOOD - 1} of" in " ".join(app.messages()[-2000:])


def dropped(caplog: pytest.LogCaptureFixture) -> int:
    """What the log says about it."""
    lost = 0
    for record in caplog.records:
        if (
            "log records were dropped: handlers are slow" in record.message
            or "logged faster than is read" in record.message
        ):
            lost += int(record.args[1])  # type: ignore[index,arg-type]
    return lost


def test_a_handler_that_hangs_keeps_no_result_and_no_crash_from_its_outcome(method: str, app: Records) -> None:
    app.may_go_on.clear()
    with MPMS(log_then_do, processes=1, threads=1, start_method=method, forward_logs=True, retries=1) as pool:
        for word in range(5):
            pool.put(word, "SIGKILL" if word == 2 else "")
        pool.close()
        got = results(pool)
        assert {word for word, result in got.items() if result == word} == {0, 1, 3, 4}
        assert got[2].blamed is True
        app.may_go_on.set()
    assert len(app.records) == 6


def log_then_do(word: int, how: str) -> int:
    APP.info("%d", word)
    if how:
        die(how)
    return word


class Failing(Records):
    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if len(self.records) < 3:
            raise OSError("disk full") if len(self.records) == 1 else SystemExit("a handler leaves")


def test_a_handler_that_fails_costs_one_record(method: str, app: Records) -> None:
    failing = Failing()
    APP.addHandler(failing)
    try:
        with MPMS(log_then_do, processes=1, threads=1, start_method=method, forward_logs=True) as pool:
            for word in range(5):
                pool.put(word, "")
            pool.close()
            assert results(pool) == {word: word for word in range(5)}
    finally:
        APP.removeHandler(failing)
    assert failing.messages() == ["0", "1", "2", "3", "4"]
    assert app.messages() == ["0", "1", "2", "3", "4"]


def test_a_pool_that_is_stopped_while_a_handler_hangs_is_stopped(method: str, app: Records) -> None:
    app.may_go_on.clear()
    pool = MPMS(log_then_do, processes=1, threads=1, start_method=method, forward_logs=True)
    pool.put(1, "")
    until(lambda: pool.finish_count == 1)
    assert pool.graceful_shutdown(0.2) in (True, False)
    app.may_go_on.set()
    pool.join()
    assert app.messages() == ["1"]


@pytest.mark.parametrize("end", ["join", "graceful_shutdown"])
def test_a_pool_ends_though_a_handler_never_does(
    end: str, app: Records, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mpms.local.reports._PATIENCE", 0.3)
    app.may_go_on.clear()
    pool = MPMS(log_then_do, processes=1, threads=1, forward_logs=True, name="hangs")
    for word in range(3):
        pool.put(word, "")
    pool.close()
    assert results(pool) == {word: word for word in range(3)}
    if end == "join":
        pool.join()
    else:
        assert pool.graceful_shutdown(30.0) is True
    assert app.messages() == []
    app.may_go_on.set()
    until(lambda: app.messages() == ["0", "1", "2"])  # it is lost only if the program ends before
    assert capfd.readouterr().err == "mpms hangs: a handler of logging hangs: what it was to log is lost\n"


@pytest.mark.parametrize("stderr", [None, "closed"])
def test_a_pool_ends_so_without_a_stderr_too(
    stderr: str | None, app: Records, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mpms.local.reports._PATIENCE", 0.3)
    app.may_go_on.clear()
    with (tmp_path / "stderr").open("w") as closed:
        pass
    pool = MPMS(log_then_do, lambda *_: None, processes=1, threads=1, forward_logs=True)
    pool.put(1, "")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", closed if stderr else None)
        pool.join()
    app.may_go_on.set()
    until(lambda: app.messages() == ["1"])


def test_the_end_of_a_pool_waits_for_a_handler_that_is_slow(app: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpms.local.reports._PATIENCE", 0.5)
    monkeypatch.setattr(app, "emit", lambda record: (time.sleep(0.05), app.records.append(record)))
    with MPMS(log_then_do, lambda *_: None, processes=1, threads=1, forward_logs=True) as pool:
        for word in range(30):
            pool.put(word, "")
    assert app.messages() == [str(word) for word in range(30)]


# Prints


def print_and_die(word: int, how: str) -> None:
    print(f"line {word} before {how}\n", end="", flush=True)  # in one piece, also where nothing is buffered
    die(how)


def print_and_return(word: int) -> None:
    print(f"line {word}\n", end="")


@pytest.mark.parametrize("forward", [False, True])
def test_a_crash_loses_no_line_that_was_flushed(
    any_method: str, capfd: pytest.CaptureFixture[str], forward: bool
) -> None:
    ways = ["SIGKILL", "SIGSEGV", "SIGABRT", "exit"] * 2
    with MPMS(print_and_die, processes=2, threads=1, start_method=any_method, forward_logs=forward) as pool:
        for word, how in enumerate(ways):
            pool.put(word, how)
    lines = Counter(line for line in capfd.readouterr().out.splitlines() if line.startswith("line"))
    assert lines == Counter({f"line {word} before {how}": 1 for word, how in enumerate(ways)})


def test_what_was_printed_and_not_flushed_is_there_at_an_orderly_end(
    any_method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with MPMS(print_and_return, processes=2, threads=1, start_method=any_method) as pool:
        for word in range(50):
            pool.put(word)
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(f"line {word}" for word in range(50))


def test_signals_are_names_in_the_log(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mpms"):
        with MPMS(print_and_die, processes=1, threads=1, start_method=method) as pool:
            pool.put(1, "SIGKILL")
    (line,) = [record.message for record in caplog.records if "has ended" in record.message]
    assert line.endswith("has ended: SIGKILL")
    assert signal.SIGKILL.name in line


def test_the_supervisor_waits_for_no_lock_of_logging(method: Any) -> None:
    lock: Any = getattr(logging, "_lock")  # noqa: B009
    with MPMS(abs, processes=1, threads=1, start_method=method) as pool:
        pool.put(-1)
        assert next(pool.iter_results())[1] == 1
        logging.getLogger("mpms").manager._clear_cache()  # type: ignore[attr-defined]  # whether a level is enabled
        with lock:
            [pid] = [handle.pid for handle in pool.worker_processes_pool.values()]
            os.kill(pid, signal.SIGKILL)
            until(lambda: pool.stats().crashes)
            pool.put(-2)
            until(lambda: pool.stats().done == 2)
