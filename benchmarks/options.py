"""What the command lines share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

__all__ = ["names_of"]


def names_of(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an argument that lists some of these names: ``a,b``."""
    allowed = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return parse
