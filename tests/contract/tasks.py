"""What the workers run. A module of its own, so that a new process has nothing else to import."""

from __future__ import annotations

import enum
import hashlib
import os
import sys
from typing import Any

from mpms import WorkerGracefulDie


def add(a: int, b: int = 0) -> int:
    return a + b


def give(value: Any) -> Any:
    return value


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    pass


class Number(int):
    pass


def give_with_type(value: Any, how: str | None = "") -> Any:
    """With the name of its type; ``None``: without."""
    return value if how is None else (value, type(value).__name__)


def count_and_show(*args: Any) -> tuple[int, str]:
    return len(args), repr(args)


def count_and_hash(*args: Any) -> tuple[int, str]:
    return len(args), hashlib.sha256(repr(args).encode()).hexdigest()


def hold(fifo: str, value: Any = None) -> Any:
    """Returns when the test lets go of ``fifo``."""
    with open(fifo) as file:
        file.read()
    return value


def spoil(numbers: list[int]) -> list[int]:
    """Changes what it was given."""
    numbers.append(0)
    return numbers


def exception_as_value(text: str) -> ValueError:
    return ValueError(text)


def fail_deep(number: int) -> None:
    def inner() -> None:
        raise LookupError("nothing at", number)

    inner()


def raise_exit() -> None:
    sys.exit(3)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def die_gracefully(number: int) -> int:
    if number == 3:
        raise WorkerGracefulDie("replace me")
    return number


class Stubborn:
    """Can't be pickled, by its own word."""

    def __reduce__(self) -> Any:
        raise ArithmeticError("I stay here")


class StubbornError(Exception):
    def __reduce__(self) -> Any:
        raise ArithmeticError("I stay here")


class TwoWords(Exception):
    """Pickles, and doesn't unpickle: its constructor wants two arguments and gets one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def return_stubborn() -> Stubborn:
    return Stubborn()


def raise_stubborn() -> None:
    raise StubbornError("of no use elsewhere")


def raise_two_words() -> None:
    raise TwoWords("good", "bye")


def _refuse() -> None:
    raise OSError("not in this process")


class HomesickValue:
    """Pickles where it is made, and can't be unpickled anywhere."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def return_homesick() -> HomesickValue:
    return HomesickValue()


def note(path: str, word: str) -> None:
    """Append a word to the file: from several processes, so in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{word}\n".encode())
    os.close(fd)


def refuse(text: str) -> None:
    raise ValueError(text)


def refuse_later(fifo: str, text: str) -> None:
    hold(fifo)
    raise ValueError(text)


class Counter:
    """An object that changes."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def get(self) -> int:
        return self.count

    def __call__(self, number: int) -> int:
        return self.count + number


class HomesickFunction:
    """Pickles where it is made, and can't be unpickled anywhere."""

    def __reduce__(self) -> Any:
        return _refuse, ()

    def __call__(self, number: int) -> int:
        return number


def invert(number: int) -> float:
    return 1 / number


def picky(number: int) -> Any:
    """What comes of a chunk: a value, something else, and all that can go wrong."""
    if number == 1:
        raise LookupError(number)
    if number == 2:
        next(iter(()))
    if number == 3:
        return Stubborn()
    if number == 4:
        sys.exit(4)
    return [number]


def crash_at_zero(number: int) -> int:
    if not number:
        os._exit(3)
    return number


def crash_once(path: str, number: int) -> int:
    try:
        os.close(os.open(f"{path}{number}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return number
    os._exit(3)
