"""What holds for tests with real processes holds here too: nothing is left."""

from __future__ import annotations

from ..local.conftest import any_method, method, nothing_is_left, stage

__all__ = ["any_method", "method", "nothing_is_left", "stage"]
