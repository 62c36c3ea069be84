"""What a task raises arrives as it was raised: its own type, where it was raised, its causes and its notes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mpms import MPMS, TaskTimeout, WorkerCrashed
from mpms.errors import RemoteTraceback

from .helpers import results


class Problem(Exception):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.code = code


def fail(word: str) -> None:
    if word == "plain":
        raise Problem("plain", 7)
    if word == "chained":
        try:
            try:
                raise KeyError("innermost")
            except KeyError as inner:
                raise Problem("middle", 8) from inner
        except Problem as middle:
            raise ValueError("outer") from middle
    if word == "in an except block":
        try:
            raise Problem("first", 1)
        except Problem:
            {}["second"]
    if word == "from None":
        try:
            raise Problem("hidden", 1)
        except Problem:
            raise ValueError("shown") from None
    if word == "noted":
        error = ValueError("noted")
        error.add_note("of the file a.txt")  # type: ignore[attr-defined]
        error.add_note("line 7")  # type: ignore[attr-defined]
        raise error
    if word == "notes by hand":  # as Python < 3.11 knows them
        error = ValueError("noted")
        error.__notes__ = ["of the file a.txt"]  # type: ignore[attr-defined]
        raise error
    if word == "attributes":
        error = ValueError("with more")
        error.detail = {"a": 1}  # type: ignore[attr-defined]
        raise error
    if word == "mpms's own":
        raise WorkerCrashed("of an inner pool", exitcode=-9, blamed=True)
    if word == "a group":
        raise ExceptionGroup("several", [Problem("one", 1), ValueError("two")])  # noqa: F821
    if word == "cycle":
        error = ValueError("a")
        error.__context__ = other = KeyError("b")
        other.__context__ = error
        raise error


def error_of(word: str, method: str) -> BaseException:
    with MPMS(fail, processes=1, threads=1, start_method=method) as pool:
        pool.put(word)
        pool.close()
        error = results(pool)[word]
    assert isinstance(error, BaseException)
    return error


def test_an_exception_has_its_own_type_and_the_remote_traceback_as_its_cause(any_method: str) -> None:
    error = error_of("plain", any_method)
    assert type(error) is Problem
    assert (error.args, error.code) == (("plain", 7), 7)
    assert type(error.__cause__) is RemoteTraceback
    text = str(error.__cause__)
    assert "Traceback (most recent call last)" in text
    assert f'File "{Path(__file__)}"' in text
    assert "in fail" in text
    assert 'raise Problem("plain", 7)' in text


def test_a_chain_of_causes_can_be_walked(method: str) -> None:
    error = error_of("chained", method)
    assert (type(error), error.args) == (ValueError, ("outer",))
    remote = error.__cause__
    assert type(remote) is RemoteTraceback
    middle = remote.__cause__
    assert (type(middle), middle.args, middle.code) == (Problem, ("middle", 8), 8)  # type: ignore[union-attr]
    inner = middle.__cause__  # type: ignore[union-attr]
    assert type(inner) is KeyError
    text = str(remote)
    assert text.index("innermost") < text.index("middle") < text.index("outer")


def test_what_was_being_handled_can_be_reached_too(method: str) -> None:
    error = error_of("in an except block", method)
    assert type(error) is KeyError
    chain = [error.__context__, error.__cause__, error.__cause__ and error.__cause__.__context__]
    first = next(each for each in chain if isinstance(each, Problem))
    assert first.args == ("first", 1)
    assert "During handling of the above exception" in str(error.__cause__)


def test_what_was_hidden_stays_hidden(method: str) -> None:
    error = error_of("from None", method)
    assert type(error) is ValueError
    assert "hidden" not in str(error.__cause__)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="add_note came with Python 3.11")
def test_notes_are_kept(any_method: str) -> None:
    error = error_of("noted", any_method)
    assert error.__notes__ == ["of the file a.txt", "line 7"]  # type: ignore[attr-defined]
    assert "of the file a.txt\nline 7" in str(error.__cause__)


def test_notes_that_were_set_by_hand_are_kept_under_every_python(method: str) -> None:
    error = error_of("notes by hand", method)
    assert error.__notes__ == ["of the file a.txt"]  # type: ignore[attr-defined]


def test_attributes_are_kept(method: str) -> None:
    assert error_of("attributes", method).detail == {"a": 1}  # type: ignore[attr-defined]


def test_an_error_of_mpms_that_a_task_raises_keeps_its_fields(method: str) -> None:
    error = error_of("mpms's own", method)
    assert isinstance(error, WorkerCrashed)
    assert (error.signal, error.blamed) == ("SIGKILL", True)
    assert "in fail" in str(error.__cause__)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_a_group_arrives_with_its_members(method: str) -> None:
    error = error_of("a group", method)
    assert [type(each) for each in error.exceptions] == [Problem, ValueError]  # type: ignore[attr-defined]
    assert error.exceptions[0].code == 1  # type: ignore[attr-defined]


def test_a_chain_that_is_a_ring_arrives(method: str) -> None:
    assert type(error_of("cycle", method)) is ValueError


def spin(word: int) -> None:
    try:
        while True:
            sum(range(50))
    except TimeoutError:
        raise Problem("cleaned up", word) from None


def test_an_exception_that_a_task_raises_in_answer_to_its_timeout_is_its_own(method: str) -> None:
    # Long enough for it to be in its `try` by then.
    with MPMS(spin, processes=1, threads=1, start_method=method, task_timeout=1.0, timeout_raises=True) as pool:
        pool.put(5)
        pool.close()
        error = results(pool)[5]
    assert (type(error), error.args) == (Problem, ("cleaned up", 5))
    assert not isinstance(error, TaskTimeout)
