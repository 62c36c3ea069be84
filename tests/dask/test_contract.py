"""The suite that every engine passes, on clusters."""

from __future__ import annotations

from ..contract.test_engines import *  # noqa: F403
