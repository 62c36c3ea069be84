"""The command line, as a process of its own: what it prints, and the status with which it ends."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from mpms.faces.terminal import ProgressLine

from ..local.helpers import promised

MPMS = [sys.executable, "-m", "mpms"]
SMALL = ["-p", "2", "-t", "2"]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Three files that parse, one of them in Latin-1, and four that don't."""
    root = tmp_path / "sources"
    (root / "package").mkdir(parents=True)
    (root / "one.py").write_text("def f():\n    def g(): pass\n\nclass C:\n    async def h(self): pass\n")
    (root / "package" / "two.py").write_text(
        'class D: pass\nescape = "\\d"  # SyntaxWarning, which nobody wants to see\n'
    )
    (root / "package" / "latin.py").write_bytes(b"# coding: latin-1\nname = '\xe4'")
    (root / "not_utf8.py").write_bytes(b"name = '\xe4'\n")
    (root / "no_codec.py").write_bytes(b"# coding: no-such-codec\n")
    (root / "broken.py").write_text("def f(:\n")
    (root / "unclosed.py").write_text("f(\n")
    # What isn't a source: other names, a link to nowhere, a pipe (reading it would wait), a cache.
    (root / "notes.txt").write_text("def f(: not Python")
    (root / "nowhere.py").symlink_to(root / "missing")
    os.mkfifo(root / "pipe.py")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "cached.py").write_text("def f(): pass\n")
    return root


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough work for several kills, in files that are parsed well within the life of a worker."""
    root = tmp_path / "many"
    root.mkdir()
    for number in range(150):
        (root / f"m{number}.py").write_text("class C:\n" + "    def f(self, a, b): return a + b * 2\n" * 300)
    (root / "broken.py").write_text("def f(:\n")
    return root


def mpms(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MPMS, *map(str, arguments)], capture_output=True, text=True, timeout=100)


def rows(output: str) -> dict[str, str]:
    """The table as a dict."""
    return dict(re.findall(r"^ *(\S.*?) {2,}([\d.,]+)$", output, re.MULTILINE))


def test_demo_counts_what_is_in_the_files(sources: Path) -> None:
    done = mpms("demo", *SMALL, "--paths", sources)
    assert (done.returncode, done.stderr) == (0, "")
    table = rows(done.stdout)
    assert float(table.pop("seconds")) > 0
    assert float(table.pop("files/s").replace(",", "")) > 0
    assert table == {
        "files": "7",
        "functions": "3",
        "classes": "2",
        "lines": "9",
        "errors": "4",
        "SyntaxError": "4",
        "workers": "2",
    }


def test_the_table_is_aligned(sources: Path) -> None:
    lines = mpms("demo", *SMALL, "--paths", sources).stdout.splitlines()
    assert len({len(line) for line in lines}) == 1


def test_directories_that_overlap_count_once(sources: Path) -> None:
    done = mpms("demo", *SMALL, "--paths", sources, sources / "package", sources / "package" / "..")
    assert rows(done.stdout)["files"] == "7"


def test_limit_takes_the_first_files(sources: Path) -> None:
    table = rows(mpms("demo", *SMALL, "--limit", "2", "--paths", sources).stdout)
    assert (table["files"], table["errors"]) == ("2", "2")  # broken.py and no_codec.py


@pytest.mark.parametrize("method", os.environ.get("MPMS_TEST_START_METHODS", "forkserver").split(","))
def test_demo_runs_with_this_start_method(sources: Path, method: str) -> None:
    done = mpms("demo", *SMALL, "--start-method", method, "--paths", sources)
    assert (done.returncode, done.stderr, rows(done.stdout)["files"]) == (0, "", "7")


def test_the_installed_command_is_the_same(sources: Path) -> None:
    command = Path(sys.executable).with_name("mpms")
    if not command.exists():
        pytest.skip("mpms is not installed beside this Python")
    done = subprocess.run([command, "demo", *SMALL, "--paths", sources], capture_output=True, text=True, timeout=60)
    assert (done.returncode, rows(done.stdout)["files"]) == (0, "7")


def test_chaos_ends_with_the_totals_of_the_clean_run(many: Path) -> None:
    done = mpms("demo", "--chaos", *SMALL, "--paths", many)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    table = rows(done.stdout)
    assert (table["files"], table["functions"], table["classes"]) == ("151", "45,000", "150")
    assert (table["errors"], table["SyntaxError"]) == ("1", "1")
    assert int(table["kills"]) >= 1
    # A kill may find a worker that the pool replaces anyway, or that is no longer needed.
    assert 1 <= int(table["replaced workers"]) <= int(table["kills"])
    # Also those that try, one at a time, the files of which nobody knows whether they killed their worker. But the last
    # two may be killed when nothing is left for their successors.
    assert int(table["workers"]) >= max(3, int(table["replaced workers"]))
    assert table["lost tasks"] == "0"
    assert "The totals are those of the clean run" in done.stdout


def test_chaos_without_retries_says_what_differs(many: Path) -> None:
    done = mpms("demo", "--chaos", "--retries", "0", *SMALL, "--paths", many)
    assert done.returncode == 1
    table = rows(done.stdout)
    lost = int(table["lost tasks"])
    assert lost >= 1
    assert f"WorkerCrashed: {lost} instead of 0" in done.stdout
    broken = "SyntaxError: 0 instead of 1" in done.stdout  # it has no functions that could be missing
    assert f"functions: {45_000 - 300 * (lost - broken):,} instead of 45,000" in done.stdout
    assert re.search(r"m\d+\.py: WorkerCrashed instead of 300 functions, 1 classes, 301 lines", done.stdout)


def test_version_is_that_of_the_distribution() -> None:
    done = mpms("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mpms {metadata.version('mpms')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["deno"], "invalid choice: 'deno'"),
        (["demo", "-p", "0"], "-p/--processes: a whole number from 1 on is needed, not '0'"),
        (["demo", "-t", "many"], "-t/--threads: a whole number from 1 on is needed, not 'many'"),
        (["demo", "--retries", "-1"], "--retries: a whole number from 0 on is needed, not '-1'"),
        (["demo", "--limit", "0"], "--limit: a whole number from 1 on is needed, not '0'"),
        (["demo", "--start-method", "thread"], "--start-method: invalid choice: 'thread'"),
        (["demo", "--engine", "ray://host"], "--engine: dask://HOST:PORT is needed, not 'ray://host'"),
        (["demo", "--engine", "dask://host:1", "--chaos"], "leave --chaos and fork out"),
        (["demo", "--paths", "/no/such/directory"], "--paths: not a directory: '/no/such/directory'"),
        (["demo", "--paths", "EMPTY"], "no *.py file below"),
    ],
)
def test_a_bad_option_is_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = mpms(*[str(tmp_path) if argument == "EMPTY" else argument for argument in arguments])
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


class OnTerminal:
    """`mpms` with a pseudo-terminal for stdout and stderr."""

    def __init__(self, *arguments: str | Path) -> None:
        self.text = ""
        self._terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*MPMS, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "COLUMNS": "100", "LINES": "24", "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(theirs)

    def read_until(self, text: str) -> None:
        while text not in self.text:
            if not self._read():
                raise AssertionError(f"it ended without {text!r}: {self.text!r}")

    def read_to_the_end(self) -> None:
        while self._read():
            pass

    def _read(self) -> bool:
        ready, _, _ = select.select([self._terminal], [], [], 60)
        assert ready, f"nothing new, and somebody still has the terminal open: {self.text!r}"
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # Linux's way to say that nobody has the other side open any more
            data = b""
        self.text += data.decode()
        return bool(data)

    def screen(self) -> list[str]:
        """What is seen on it: a carriage return goes back and overwrites."""
        lines = []
        for line in self.text.replace("\r\n", "\n").split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines

    def close(self) -> None:
        os.close(self._terminal)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def on_terminal() -> Iterator[type[OnTerminal]]:
    opened: list[OnTerminal] = []

    class Tracked(OnTerminal):
        def __init__(self, *arguments: str | Path) -> None:
            super().__init__(*arguments)
            opened.append(self)

    yield Tracked
    for each in opened:
        each.close()


def test_the_progress_line_is_gone_from_the_screen_in_the_end(on_terminal: type[OnTerminal], many: Path) -> None:
    demo = on_terminal("demo", "--chaos", *SMALL, "--paths", many)
    demo.read_to_the_end()
    assert demo.process.wait(60) == 0
    assert len(re.findall(r"\rclean run: [\d,]+ of 151 files, [\d,]+/s", demo.text)) >= 2
    assert re.search(r"\rchaos: [\d,]+ of 151 files, [\d,]+/s, \d+ kills", demo.text)
    screen = demo.screen()
    assert "of 151 files" not in "\n".join(screen)
    assert re.fullmatch(r"files +151", screen[0])


def test_a_progress_line_that_ends_while_its_text_is_made_stays_gone() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)

    def late() -> str:
        line.__exit__()
        return "late"

    line.show(late)
    assert stream.getvalue() == ""


def test_no_progress_is_obeyed(on_terminal: type[OnTerminal], sources: Path) -> None:
    demo = on_terminal("demo", "--no-progress", *SMALL, "--paths", sources)
    demo.read_to_the_end()
    assert re.match(r"files +7\r\n", demo.text)


@pytest.mark.parametrize("chaos", [[], ["--chaos"]], ids=["clean", "chaos"])
@pytest.mark.parametrize("whom", ["the command", "its process group"])
def test_ctrl_c_ends_it_with_one_short_message(
    on_terminal: type[OnTerminal], many: Path, chaos: list[str], whom: str
) -> None:
    demo = on_terminal("demo", *chaos, *SMALL, "--paths", many)
    demo.read_until("chaos: " if chaos else " files, ")  # it is at work
    if whom == "the command":
        demo.process.send_signal(signal.SIGINT)
    else:  # as a terminal does it
        os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.process.wait(promised(5)) == 130
    demo.read_to_the_end()  # ends when no worker holds the terminal any more
    assert [line for line in demo.screen() if line] == ["interrupted"]
