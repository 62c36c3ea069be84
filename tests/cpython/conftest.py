"""Nothing may be left after these either."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import forkserver

import pytest

from ..local.conftest import ASKED, nothing_is_left

__all__ = ["nothing_is_left"]


@pytest.fixture(autouse=True, scope="session")
def managers_have_their_fork_server() -> Iterator[None]:
    """One for the whole run, of multiprocessing's own: some tests have a manager."""
    if "forkserver" in ASKED:
        forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
