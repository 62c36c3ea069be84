"""Exceptions to bytes, with their tracebacks, notes and causes; and what stands for what can't travel."""

from __future__ import annotations

import copyreg
import pickle
import traceback
from typing import Any, TypeAlias

from ..errors import RemoteTraceback, RemoteWorkerError
from .pickling import dump, dump_by_value, load

__all__ = ["dump_error", "is_of_tblib", "load_error", "unsendable"]

_TEXT_LIMIT = 8192
_CHAIN_MOST = 20  # exceptions that were raised from one another; deeper ones are a recursion


def dump_error(error: BaseException) -> bytes:
    """An exception, its traceback as text, its notes, and the exceptions that it was raised from, if they pickle."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    first, *chain = _chain(error)
    try:
        links = [_dump_loadable(first)]
    except BaseException as problem:  # the user's __reduce__ and __setstate__ may raise anything
        links = [dump((unsendable(error, problem, text), "", []))]
    for link in chain:
        try:
            links.append(_dump_loadable(link))
        except BaseException:
            break  # the text has it; what it was raised from would be shown as the cause of another one
    return pickle.dumps((text, links), 5)


_Link: TypeAlias = tuple[BaseException, str, list[str]]
"""An exception, how it hangs on the one before it (``cause`` or ``context``), its notes."""


def _chain(error: BaseException) -> list[_Link]:
    links: list[_Link] = [(error, "", _notes(error))]
    seen = {id(error)}
    while len(links) < _CHAIN_MOST:
        if error.__cause__ is not None:
            how, following = "cause", error.__cause__
        elif error.__context__ is not None and not error.__suppress_context__:
            how, following = "context", error.__context__
        else:
            break
        if id(following) in seen:
            break
        seen.add(id(following))
        links.append((following, how, _notes(following)))
        error = following
    return links


def _notes(error: BaseException) -> list[str]:
    return [str(note) for note in getattr(error, "__notes__", ())]


def _dump_loadable(link: _Link) -> bytes:
    """Loaded once to see that it can be: many exceptions pickle and don't unpickle."""
    data = dump_by_value(link) if is_of_tblib(type(link[0])) else dump(link)
    _load_link(data)
    return data


def is_of_tblib(cls: type[BaseException]) -> bool:
    """Whether tblib pickles these exceptions: where Dask or another program that installs it was imported, it does so
    for all. It sets attributes in place of calling the constructor, which loses those of SystemExit and hides that an
    exception can't be loaded; and it takes along causes that don't pickle."""
    reducer = copyreg.dispatch_table.get(cls)
    return reducer is not None and getattr(reducer, "__module__", "").partition(".")[0] == "tblib"


def load_error(data: bytes) -> BaseException:
    """The exception of :func:`dump_error`. Its ``__cause__`` is the remote traceback, whose own is the original one.

    In place of one that can be loaded there and not here, a :class:`RemoteWorkerError` that says so.
    """
    text, links = pickle.loads(data)
    try:
        error, _ = _load_link(links[0])
    except BaseException as problem:  # the user's classes
        detail = f"the exception could not be unpickled: {type(problem).__name__}: {problem}"
        error = RemoteWorkerError("mpms_unpickleable_result", detail, text[:_TEXT_LIMIT])
    last: BaseException = RemoteTraceback(text)
    error.__cause__ = last
    for link in links[1:]:
        try:
            following, how = _load_link(link)
        except BaseException:
            break
        if how == "cause":
            last.__cause__ = following
        else:
            last.__context__ = following
        last = following
    return error


def _load_link(data: bytes) -> tuple[BaseException, str]:
    error, how, notes = load(data)
    if not isinstance(error, BaseException):
        raise TypeError(f"it unpickles to a {type(error).__name__}")
    if notes and not getattr(error, "__notes__", None):  # a __reduce__ of its own left them out, or Python is 3.10
        error.__notes__ = notes  # type: ignore[attr-defined]
    return error, how


def unsendable(value: Any, problem: BaseException, tb: str | None = None) -> RemoteWorkerError:
    """What is delivered in place of a value that can't be pickled."""
    try:
        shown = repr(value)
    except BaseException as error:
        shown = f"<no repr: {type(error).__name__}>"
    detail = f"type={type(value).__qualname__}, error={type(problem).__name__}: {problem}, repr={shown[:_TEXT_LIMIT]}"
    return RemoteWorkerError("mpms_unpickleable_result", detail, None if tb is None else tb[:_TEXT_LIMIT])
