"""What is typed into a notebook or at the prompt works: definitions without a file, that change as one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

_SECONDS = 90.0
"""A kernel takes two seconds to start; a busy machine takes more."""


# A notebook. In a process of its own: nbclient leaves sockets and threads to the end of its process.

RUN_NOTEBOOK = """
import json, sys, warnings
warnings.simplefilter("ignore")  # those of Jupyter
import nbformat
from nbclient import NotebookClient

cells = json.load(sys.stdin)
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
NotebookClient(notebook, timeout=80, kernel_name="python3").execute()
print(json.dumps([
    "".join(
        output["text"] if output.output_type == "stream" else output["data"]["text/plain"] for output in cell.outputs
    )
    for cell in notebook.cells
]))
"""

INTERRUPT_A_CELL = """
import asyncio, json, sys, warnings
warnings.simplefilter("ignore")  # those of Jupyter
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

*cells, last = json.load(sys.stdin)
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (*cells, last)])
client = NotebookClient(notebook, timeout=80, kernel_name="python3")

async def interrupt_when_it_runs():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), open(sys.argv[1], "rb", buffering=0)
    )
    await reader.readline()
    await client.km.interrupt_kernel()

async def main():
    outputs = []
    async with client.async_setup_kernel():
        for at, cell in enumerate(notebook.cells):
            hurry = asyncio.ensure_future(interrupt_when_it_runs()) if "INTERRUPT" in cell.source else None
            try:
                await client.async_execute_cell(cell, at)
            except CellExecutionError as error:
                outputs.append(error.ename)
            else:
                outputs.append("".join(output.get("text", "") for output in cell.outputs))
            if hurry is not None:
                await hurry
    print(json.dumps(outputs))

asyncio.run(main())
"""


def run_cells(program: str, cells: list[str], folder: Path, *args: str) -> list[str]:
    """What each cell prints."""
    environ = {
        **os.environ,
        "IPYTHONDIR": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder),
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env=environ,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    outputs: list[str] = json.loads(done.stdout)
    return outputs


def test_functions_and_classes_of_a_notebook_work_and_the_newest_definition_is_used(tmp_path: Path) -> None:
    outputs = run_cells(
        RUN_NOTEBOOK,
        [
            "from mpms import MPMS, Executor, Meta\nexecutor = Executor(2)",
            """\
class Point:
    def __init__(self, x):
        self.x = x
class NoPoint(Exception):
    pass
factor = 10
def scale(point):
    if not isinstance(point, Point):
        raise NoPoint(point)
    return Point(point.x * factor)
""",
            """\
def show(number):
    point = executor.submit(scale, Point(number)).result()
    with MPMS(scale, processes=1) as pool:
        other = next(pool.map(None, [Point(number)]))
        third = next(pool.map(scale, [Point(number)]))
        pool.put(None)
        pool.close()
        [(meta, error)] = pool.iter_results()
    print(point.x, other.x, third.x, {type(each) is Point for each in (point, other, third)}, type(error) is NoPoint)
show(1)
""",
            "def scale(point):\n    return Point(point.x * factor + 1)",
            "show(2)",
            """\
def scale(point):
    if point is None:
        raise NoPoint("again")
    return Point(-point.x)
class NoPoint(Exception):
    pass
show(3)
""",
            "print(list(executor.map(lambda number: number + factor, range(3))))\nfactor = 20",
            "print(list(executor.map(lambda number: number + factor, range(3))))",
            "print(await executor.run(scale, Point(4)) is None, (await executor.run(scale, Point(4))).x)",
            "executor.shutdown()",
        ],
        tmp_path,
    )
    assert outputs == [
        "",
        "",
        "10 10 10 {True} True\n",
        "",
        "21 21 21 {True} False\n",
        "-3 -3 -3 {True} True\n",
        "[10, 11, 12]\n",
        "[20, 21, 22]\n",
        "False -4\n",
        "",
    ]


def test_interrupting_a_cell_ends_its_wait_and_leaves_a_pool_that_is_usable_or_ended(tmp_path: Path) -> None:
    words = tmp_path / "words"
    os.mkfifo(words)
    held = os.open(words, os.O_RDWR)  # so that it isn't at its end while nobody writes
    go = str(tmp_path / "go")  # by which a task waits until the cell has its future
    os.mkfifo(go)
    hang = f"""\
def hang(number):
    if number == 2:
        open({go!r}).close()
    if number:
        with open({str(words)!r}, "w") as pipe:
            pipe.write("here\\n")
        threading.Event().wait()
    return number
"""
    try:
        outputs = run_cells(
            INTERRUPT_A_CELL,
            [
                "import os, threading\nfrom mpms import MPMS, Executor, TaskCancelled\n" + hang,
                "executor = Executor(1)\nprint(executor.submit(hang, 0).result())",
                f"future = executor.submit(hang, 2)\nopen({go!r}, 'w').close()\nfuture.result()  # INTERRUPT",
                "print(future.done(), executor.submit(abs, -1).cancel())",
                "executor.kill_workers()\nexecutor.shutdown()\nprint(type(future.exception()).__name__)",
                "with MPMS(hang, processes=1, threads=1) as pool:\n    pool.put(1)  # INTERRUPT",
                "pool.join()\nprint(pool.unfinished(), pool.workers())",  # a stop waits for half a second only
                "with MPMS(hang, processes=1, threads=1) as pool:\n    list(pool.map(None, range(5)))  # INTERRUPT",
                "pool.join()\nprint(pool.unfinished(), pool.workers())",
                "pool = MPMS(hang, processes=1, threads=2)\nlist(pool.map_unordered(None, [1]))  # INTERRUPT",
                "print(list(pool.map(abs, [-1])))\npool.graceful_shutdown(0.0)\npool.join()\nprint(pool.workers())",
                """\
children = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
print([pid for pid in children if b"mpms" in open(f"/proc/{pid}/cmdline", "rb").read()])
""",
            ],
            tmp_path,
            str(words),
        )
    finally:
        os.close(held)
    assert outputs == [
        "",
        "0\n",
        "KeyboardInterrupt",
        "False True\n",
        "TaskCancelled\n",
        "KeyboardInterrupt",
        "[((1,), {})] []\n",
        "KeyboardInterrupt",
        "[] []\n",
        "KeyboardInterrupt",
        "[1]\n[]\n",
        "[]\n",
    ]


# The prompt


class Prompt:
    """``python -i``, to which one types."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-i", "-q", "-u"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        self.stdin: IO[str] = self.process.stdin  # type: ignore[assignment]
        self.stdout: IO[str] = self.process.stdout  # type: ignore[assignment]

    def type(self, *lines: str) -> None:
        self.stdin.write("".join(f"{line}\n" for line in lines))
        self.stdin.flush()

    def answers(self, word: str) -> str:
        """What comes, up to and with the line that ends in ``word``, without prompts."""
        lines = []
        for line in self.stdout:
            lines.append(line.replace(">>> ", "").replace("... ", ""))
            if line.rstrip().endswith(word):
                return "".join(lines)
        raise AssertionError("it ended: " + "".join(lines))

    def close(self) -> None:
        self.stdin.close()
        try:
            # After an interrupt any session of Python 3.14 ends in this way.
            assert self.process.wait(_SECONDS) in ((0, -signal.SIGINT) if sys.version_info >= (3, 14) else (0,))
        finally:
            self.process.kill()
            self.stdout.close()


@pytest.fixture
def prompt(tmp_path: Path) -> Iterator[Any]:
    prompt = Prompt(tmp_path)
    yield prompt
    prompt.close()


def test_definitions_at_the_prompt_work_and_the_newest_one_is_used(prompt: Prompt) -> None:
    prompt.type(
        "from mpms import MPMS, Executor",
        "executor = Executor(1)",
        "factor = 2",
        "def work(number):",
        "    return number * factor",
        "",
        "class Thing:",
        "    pass",
        "",
        "print([executor.submit(work, 1).result(), *executor.map(work, [2, 3])], 'first')",
    )
    assert prompt.answers("first") == "[2, 4, 6] first\n"
    prompt.type(
        "def work(number):",
        "    return -number",
        "",
        "print([executor.submit(work, 1).result(), *executor.map(work, [2, 3])], 'second')",
        "with MPMS(work, processes=1) as pool: print(list(pool.map(None, [4])), 'third')",
        "",
        "print(type(executor.submit(Thing).result()) is Thing, 'fourth')",
    )
    assert prompt.answers("second") == "[-1, -2, -3] second\n"
    assert prompt.answers("third") == "[-4] third\n"
    assert prompt.answers("fourth") == "True fourth\n"


def test_an_interrupt_at_the_prompt_ends_a_wait_and_the_pool_goes_on(prompt: Prompt) -> None:
    prompt.type(
        "import sys, threading",
        "from mpms import MPMS",
        "def hang(number):",
        "    if number: print('hangs', flush=True); threading.Event().wait()",
        "    return number",
        "",
        "pool = MPMS(hang, processes=1, threads=2)",
        "list(pool.map_unordered(None, [0, 1]))",
    )
    prompt.answers("hangs")
    prompt.process.send_signal(signal.SIGINT)
    assert "hang" not in prompt.answers("KeyboardInterrupt").splitlines()[-1]
    prompt.type("print(list(pool.map(None, [0, 0])), 'usable')")
    assert prompt.answers("usable") == "[0, 0] usable\n"
    # Whether it has ended is for `join` to say: a stop waits for half a second only.
    prompt.type("_ = pool.graceful_shutdown(0.0); pool.join(); print(pool.workers(), 'ended')")
    assert prompt.answers("ended") == "[] ended\n"


def test_the_end_of_the_session_ends_pools_that_are_open(prompt: Prompt) -> None:
    prompt.type(
        "from mpms import MPMS, Executor",
        "executor, pool = Executor(1), MPMS(abs, processes=1)",
        "pool.start()",
        "print(executor.submit(abs, -1).result(), 'up')",
    )
    assert prompt.answers("up") == "1 up\n"
