"""GPU tests run once: the CPU's instruction set is no axis of theirs."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def isa() -> None:
    """In place of the CPU tests' fixture, which runs a test on every instruction set."""
