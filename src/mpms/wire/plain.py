"""Values that are so small and simple that they go with others as they are, in one pickle for all of them.

No code of anybody's runs when they are pickled or unpickled, it can't fail, and they don't change until then: so who
sends and receives batches may do it.
"""

from __future__ import annotations

from ..typed import Any

__all__ = ["PLAIN_MOST", "are_plain", "is_plain"]

_LENGTH_MOST = 500  # of a text or of bytes
_BITS_MOST = 64
PLAIN_MOST = 8  # arguments, so that all of them are not much


def is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value) <= _LENGTH_MOST
    if kind is int:
        return value.bit_length() <= _BITS_MOST  # type: ignore[no-any-return]
    return value is None or kind is bool or kind is float


def are_plain(args: tuple[Any, ...]) -> bool:
    if len(args) > PLAIN_MOST:
        return False
    for value in args:  # as above: a call for each would take as long as all that it asks
        kind = type(value)
        if kind is str or kind is bytes:
            if len(value) > _LENGTH_MOST:
                return False
        elif kind is int:
            if value.bit_length() > _BITS_MOST:
                return False
        elif not (value is None or kind is bool or kind is float):
            return False
    return True
