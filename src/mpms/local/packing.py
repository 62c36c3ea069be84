"""Calls, made ready to be sent: in the thread that submits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..typed import TYPE_CHECKING, Any
from ..wire.frames import Marked
from ..wire.messages import SMALL
from ..wire.pickling import ALONE, dump_call
from ..wire.shelf import LEAST as FILE_LEAST
from ..wire.shelf import Shelf
from .functions import Functions, Shipped

if TYPE_CHECKING:
    from ..wire.files import Payload

__all__ = ["Packing"]

_KEPT = 1 << 27
"""Bytes of large arguments whose memory is kept for the next ones."""


class Packing:
    """For any thread. ``function`` is that of the pool, if it has one."""

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self._function = function
        self._functions, self._each = Functions(), Functions(each=True)
        self._shelf = Shelf(_KEPT)
        self._join = self._shelf.pack

    def pack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Payload:
        """The arguments of a call, pickled. Raises what pickling raises."""
        if len(args) == 1 and not kwargs and type(args[0]) is bytes and SMALL < len(args[0]) < FILE_LEAST:
            return Marked(ALONE, args[0])  # as `dump_call` does it, in a quarter of the time
        return dump_call(args, kwargs, self._join)

    def ship(self, function: Callable[..., Any] | None, *, each: bool) -> Shipped:
        """What goes with a call of it; ``None``: of the pool's own. Raises what pickling raises."""
        function = self._function if function is None else function
        if function is None:
            raise TypeError("a task needs a function: this pool has none of its own")
        return (self._each if each else self._functions).ship(function)

    def close(self) -> None:
        self._shelf.close()
