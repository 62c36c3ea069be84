"""The tests.

Functions of theirs run in other processes too, which import the module that they are in, and with it pytest: that would
take half of the time of all tests. There it is a name only, whose decorators do nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Nothing(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As a decorator the function, as what makes one itself."""
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else self


if "pytest" not in sys.modules:  # who runs tests has imported it before
    sys.modules["pytest"] = _Nothing("pytest")
