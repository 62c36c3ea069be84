"""Exceptions to bytes, with their tracebacks, notes and causes; and what stands for what can't travel."""

from __future__ import annotations

import copyreg
import pickle
import traceback

from ..errors import RemoteTraceback, RemoteWorkerError
from ..typed import Any, TypeAlias
from .pickling import dump, dump_by_value, load

__all__ = ["dump_error", "is_of_tblib", "load_error", "said", "unsendable"]

_TEXT_LIMIT = 8192
_CHAIN_MOST = 20  # exceptions that were raised from one another; deeper ones are a recursion


def dump_error(error: BaseException) -> bytes:
    """An exception, its traceback as text, its notes, and the exceptions that it was raised from, if they pickle."""
    text = _text(error)
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


# The exceptions are the user's: their __getattr__ may raise anything, and so do those then who ask for what may not be
# there, as traceback; their __setattr__ may refuse. Neither is asked.
_get, _set = BaseException.__getattribute__, BaseException.__setattr__


def _text(error: BaseException) -> str:
    """With its traceback."""
    tb = _get(error, "__traceback__")
    try:
        return "".join(traceback.format_exception(type(error), error, tb))
    except BaseException as problem:
        where = "".join(traceback.format_tb(tb))
        shown = f"{type(error).__qualname__}: <no text: {type(problem).__name__}>"
        return f"Traceback (most recent call last):\n{where}{shown}\n"


_Link: TypeAlias = tuple[BaseException, str, list[str]]
"""An exception, how it hangs on the one before it (``cause`` or ``context``), its notes."""


def _chain(error: BaseException) -> list[_Link]:
    links: list[_Link] = [(error, "", _notes(error))]
    seen = {id(error)}
    while len(links) < _CHAIN_MOST:
        how, following = "cause", _get(error, "__cause__")
        if following is None and not _get(error, "__suppress_context__"):
            how, following = "context", _get(error, "__context__")
        if following is None or id(following) in seen:
            break
        seen.add(id(following))
        links.append((following, how, _notes(following)))
        error = following
    return links


def _notes(error: BaseException) -> list[str]:
    try:
        return [str(note) for note in _get(error, "__notes__")]
    except BaseException:  # there are none; or what was set by hand is no list of texts
        return []


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
        detail = f"the exception could not be unpickled: {said(problem)}"
        error = RemoteWorkerError("mpms_unpickleable_result", detail, text[:_TEXT_LIMIT])
    last: BaseException = RemoteTraceback(text)
    _set(error, "__cause__", last)
    for link in links[1:]:
        try:
            following, how = _load_link(link)
        except BaseException:
            break
        if how == "cause":
            _set(last, "__cause__", following)
        else:
            _set(last, "__context__", following)
        last = following
    return error


def _load_link(data: bytes) -> tuple[BaseException, str]:
    error, how, notes = load(data)
    if not isinstance(error, BaseException):
        raise TypeError(f"it unpickles to a {type(error).__name__}")
    if notes and not _notes(error):  # a __reduce__ of its own left them out, or Python is 3.10
        _set(error, "__notes__", notes)
    return error, how


def said(problem: BaseException) -> str:
    """Its name and its text, which is the user's: it may fail."""
    try:
        return f"{type(problem).__name__}: {problem}"
    except BaseException as error:
        return f"{type(problem).__name__}: <no text: {type(error).__name__}>"


def unsendable(value: Any, problem: BaseException, tb: str | None = None) -> RemoteWorkerError:
    """What is delivered in place of a value that can't be pickled."""
    try:
        shown = repr(value)
    except BaseException as error:
        shown = f"<no repr: {type(error).__name__}>"
    detail = f"type={type(value).__qualname__}, error={said(problem)}, repr={shown[:_TEXT_LIMIT]}"
    return RemoteWorkerError("mpms_unpickleable_result", detail, None if tb is None else tb[:_TEXT_LIMIT])
