"""What holds for tests with real processes holds here too: nothing is left."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from ..local.conftest import any_method, method, nothing_is_left, stage

__all__ = ["any_method", "method", "nothing_is_left", "stage"]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What is left over in a cycle stays."""
    gc.disable()
    yield
    gc.enable()
