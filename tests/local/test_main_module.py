"""What is defined in ``__main__`` works, and nothing of a script runs twice; no main guard is needed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mpms import MPMS

_SECONDS = 60.0
"""A script takes half a second, with spawn one; a busy machine takes more."""


def run(folder: Path, command: list[str], text: str | None = None) -> list[str]:
    """The lines that a Python program prints; fails unless it ends well and says nothing on stderr."""
    done = subprocess.run(
        [sys.executable, *command],
        input=text,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def run_script(folder: Path, body: str, *args: str) -> list[str]:
    (folder / "script.py").write_text(textwrap.dedent(body))
    return run(folder, ["script.py", *args])


# Nothing runs twice, however the program is given to Python

SCRIPT = """\
import os, sys
with open("ran", "a") as log:
    log.write("once\\n")

from mpms import MPMS

base = 40

def add(number):
    return base + number

def main_of(number):
    return sys.modules["__main__"].__dict__.get("base", "another one")

total = 0

def collect(meta, result):
    global total
    total += result

pool = MPMS(add, collect, processes=2, threads=2, start_method=sys.argv[1])
for number in range(10):
    pool.put(number)
pool.join()
print(total)
"""


def _as_script(folder: Path, method: str) -> list[str]:
    (folder / "script.py").write_text(SCRIPT)
    return run(folder, ["script.py", method])


def _as_text(folder: Path, method: str) -> list[str]:
    return run(folder, ["-c", SCRIPT, method])


def _on_stdin(folder: Path, method: str) -> list[str]:
    return run(folder, ["-", method], SCRIPT)


def _as_module(folder: Path, method: str) -> list[str]:
    (folder / "script.py").write_text(SCRIPT)
    return run(folder, ["-m", "script", method])


def _as_package(folder: Path, method: str) -> list[str]:
    """With an import that is relative, so that it works as part of its package only."""
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("def double(number):\n    return number * 2\n")
    (package / "__main__.py").write_text(SCRIPT.replace("base = 40", "from .helper import double\nbase = double(20)"))
    return run(folder, ["-m", "package", method])


def _as_folder(folder: Path, method: str) -> list[str]:
    program = folder / "program"
    program.mkdir()
    (program / "__main__.py").write_text(SCRIPT)
    return run(folder, ["program", method])


WAYS = {way.__name__.strip("_"): way for way in (_as_text, _on_stdin, _as_module, _as_package, _as_folder)}


def test_a_script_without_a_main_guard_runs_once(any_method: str, tmp_path: Path) -> None:
    assert _as_script(tmp_path, any_method) == [str(sum(range(40, 50)))]
    assert (tmp_path / "ran").read_text() == "once\n"


@pytest.mark.parametrize("way", WAYS)
def test_a_program_runs_once_however_it_is_given_to_python(method: str, way: str, tmp_path: Path) -> None:
    assert WAYS[way](tmp_path, method) == [str(sum(range(40, 50)))]
    assert (tmp_path / "ran").read_text() == "once\n"


def test_a_script_is_not_run_again_when_its_fork_server_and_workers_are_replaced(
    any_method: str, tmp_path: Path
) -> None:
    lines = run_script(
        tmp_path,
        """\
        import logging, os, signal, sys
        logging.getLogger("mpms").setLevel(logging.CRITICAL)  # it tells of the kill
        with open("ran", "a") as log:
            log.write("once\\n")
        import mpms

        def who(_):
            return os.getpid(), os.getppid()

        pool = mpms.MPMS(who, processes=1, threads=1, lifecycle=1, start_method=sys.argv[1])
        pool.put(0)
        worker, server = next(iter(pool.iter_results()))[1]
        os.kill(server, signal.SIGKILL)
        for number in range(3):
            pool.put(number)
        pool.close()
        answers = [result for _, result in pool.iter_results()]
        pool.join()
        print(len(answers), (worker, server) in answers)
        """,
        any_method,
    )
    assert lines == ["3 False"]
    assert (tmp_path / "ran").read_text() == "once\n"


# What is defined in a script

CLASSES = """\
import collections, dataclasses, enum, sys, typing
from mpms import MPMS

calls = 0

class Point:
    made = 0

    def __init__(self, x):
        self.x = x

    def twice(self):
        global calls
        calls += 1
        return self.x * 2

class Point3(Point):
    def twice(self):
        return super().twice() + 1

@dataclasses.dataclass(frozen=True)
class Record:
    name: str
    point: Point

class Color(enum.Enum):
    RED = 1
    BLUE = 2

class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2

Pair = collections.namedtuple("Pair", "left right")

class Typed(typing.NamedTuple):
    word: str

class Refused(Exception):
    def __init__(self, why, code):
        super().__init__(why, code)
        self.code = code

class Slotted:
    __slots__ = ("x",)

@dataclasses.dataclass(slots=True)
class Entry:
    x: int
    y: list = dataclasses.field(default_factory=list)

class Outer:
    class Inner:
        pass

method = sys.argv[1]
"""


def run_with_classes(folder: Path, body: str, *args: str) -> list[str]:
    return run_script(folder, CLASSES + textwrap.dedent(body), *args)


def test_instances_of_the_scripts_classes_are_such_on_both_sides(any_method: str, tmp_path: Path) -> None:
    lines = run_with_classes(
        tmp_path,
        """
        def make():
            slotted = Slotted()
            slotted.x = 1
            return {
                Point: Point(1), Point3: Point3(2), Record: Record("a", Point(3)), Color: Color.RED,
                Bits: Bits.ONE | Bits.TWO, Pair: Pair(1, 2), Typed: Typed("b"), Slotted: slotted,
                Entry: Entry(1, [2]), Outer.Inner: Outer.Inner(),
            }

        def other_classes(things):
            return [cls.__name__ for cls, thing in things.items() if type(thing) is not cls]

        def work(things):
            mine = make()
            return other_classes(things), [
                type(new).__name__ for new, old in zip(mine, things) if new is not old
            ], mine

        with MPMS(work, processes=2, threads=2, start_method=method) as pool:
            for _ in range(4):
                pool.put(make())
            pool.close()
            for meta, (alien, strange, things) in pool.iter_results():
                same = things[Entry] == Entry(1, [2])
                print(alien, strange, other_classes(things), list(things) == list(make()), same)
        """,
        any_method,
    )
    assert lines == ["[] [] [] True True"] * 4


def test_values_and_errors_of_the_script_are_equal_and_caught_after_their_travel(
    any_method: str, tmp_path: Path
) -> None:
    lines = run_with_classes(
        tmp_path,
        """
        def work(color, pair, bits, record):
            assert color is Color.RED
            assert pair == Pair(1, 2)
            assert bits & Bits.TWO
            if record is None:
                raise Refused("no", 7)
            assert record.point.twice() == 7
            return Color.BLUE, pair, bits, record

        with MPMS(work, processes=1, threads=1, start_method=method) as pool:
            pool.put(Color.RED, Pair(1, 2), Bits.TWO, Record("a", Point3(3)))
            pool.put(Color.RED, Pair(1, 2), Bits.TWO, None)
            pool.close()
            (_, (color, pair, bits, record)), (_, error) = pool.iter_results()
        print(color is Color.BLUE, pair == Pair(1, 2), bits is Bits.TWO, record.point.twice())
        try:
            raise error
        except Refused as caught:
            print(caught.code, caught.args, "in work" in str(caught.__cause__))
        """,
        any_method,
    )
    assert lines == ["True True True 7", "7 ('no', 7) True"]


def test_results_leave_the_classes_of_the_script_as_they_are(any_method: str, tmp_path: Path) -> None:
    """By cloudpickle alone each of them would bring the state of the class from over there."""
    lines = run_with_classes(
        tmp_path,
        """
        made = []

        class Base:
            def __init_subclass__(cls):
                made.append(cls.__name__)

        class Derived(Base):
            pass

        def work(point):
            Point.made += 1
            return point, Derived(), Color.RED

        before = Point.twice, vars(Color)["_member_map_"]
        with MPMS(work, processes=1, threads=1, start_method=method) as pool:
            for number in range(3):
                pool.put(Point(number))
            pool.close()
            print(sum(point.twice() for _, (point, _, _) in pool.iter_results()))
        print(Point.made, calls, made, before == (Point.twice, vars(Color)["_member_map_"]))
        """,
        any_method,
    )
    assert lines == ["6", "0 3 ['Derived'] True"]


def test_tasks_leave_the_classes_of_their_worker_as_they_are(any_method: str, tmp_path: Path) -> None:
    """A cache on a class lasts from task to task."""
    lines = run_with_classes(
        tmp_path,
        """
        def work(point):
            Point.made += 1
            return Point.made

        with MPMS(work, processes=1, threads=1, start_method=method) as pool:
            for number in range(3):
                pool.put(Point(number))
            pool.close()
            print([count for _, count in pool.iter_results()])
        """,
        any_method,
    )
    assert lines == ["[1, 2, 3]"]


def test_a_class_that_is_defined_after_the_start_travels_too(any_method: str, tmp_path: Path) -> None:
    lines = run_with_classes(
        tmp_path,
        """
        def work(thing):
            return thing.double(), thing

        with MPMS(work, processes=1, threads=1, start_method=method) as pool:
            pool.put(type("Early", (), {"double": lambda self: 2})())
            results = pool.iter_results()
            print(next(results)[1][0])

            class Late:
                def double(self):
                    return 4

            pool.put(Late())
            pool.close()
            for _, (number, thing) in results:
                print(number, isinstance(thing, Late))
        """,
        any_method,
    )
    assert lines == ["2", "4 True"]


def test_globals_of_a_script_are_shared_by_its_function_and_its_hooks(any_method: str, tmp_path: Path) -> None:
    lines = run_script(
        tmp_path,
        """\
        import sys, threading
        from mpms import MPMS
        state = {"opened": 0}
        local = threading.local()

        def open_all(word):
            global connection
            connection = word
            state["opened"] += 1

        def open_thread():
            local.cursor = connection + "!"

        def work(number):
            return connection, state["opened"], local.cursor

        with MPMS(work, processes=1, threads=2, start_method=sys.argv[1], process_initializer=open_all,
                  process_initargs=("db",), thread_initializer=open_thread) as pool:
            for number in range(4):
                pool.put(number)
            pool.close()
            print({result for _, result in pool.iter_results()}, state, hasattr(local, "cursor"))
        """,
        any_method,
    )
    assert lines == ["{('db', 1, 'db!')} {'opened': 0} False"]


# What has no name to be imported by


def test_lambdas_and_closures_are_workers_arguments_and_results(any_method: str) -> None:
    offset = 2

    def compose(outer, inner):
        return lambda number: outer(inner(number)) + offset

    with MPMS(compose, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(lambda number: number * 10, lambda number: number + offset)
        pool.close()
        [(_, function)] = pool.iter_results()
    assert function(1) == 32

    with MPMS(lambda number: number + offset, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(40)
        pool.close()
        assert [result for _, result in pool.iter_results()] == [42]


def test_local_classes_are_the_same_on_both_sides(any_method: str) -> None:
    class Local:
        def __init__(self, number: int) -> None:
            self.number = number

    class LocalError(Exception):
        pass

    def work(thing: object) -> Local:
        if not isinstance(thing, Local):
            raise LocalError(type(thing).__name__)
        return Local(thing.number + 1)

    with MPMS(work, processes=1, threads=1, start_method=any_method) as pool:
        pool.put(Local(1))
        pool.put(None)
        pool.close()
        value, error = (result for _, result in pool.iter_results())
    assert isinstance(value, Local)
    assert value.number == 2
    assert isinstance(error, LocalError)
    assert error.args == ("NoneType",)
