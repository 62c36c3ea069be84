"""Whose result it is."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from ..ids import TaskId
from ..typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .outlet import Outlet

__all__ = ["Meta"]


class Meta(dict[str, Any]):
    """Whose result a collector or an iterator has in hand. Any item may be set; it is seen with every later result.

    ``mpms`` is the pool (a weak proxy; ``self`` is an alias); ``args``, ``kwargs`` and ``taskid`` belong to the task.
    """

    mpms: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    taskid: TaskId | None

    def __init__(self, mpms: Outlet[Any]) -> None:
        super().__init__()
        self.mpms = weakref.proxy(mpms)
        self.forget()

    @property
    def self(self) -> Any:
        return self.mpms

    def hold(self, task: TaskId, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.taskid, self.args, self.kwargs = task, args, kwargs

    def forget(self) -> None:
        self.taskid, self.args, self.kwargs = None, (), {}
