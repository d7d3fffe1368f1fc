"""Checkpoints that the tests of this folder share, and engines with little memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quire.runner import memory
from random_llama import make_llama


@pytest.fixture(scope="session", autouse=True)
def _little_kv_memory() -> None:
    """Zeroing the default of 512 MiB would take longer than most of these tests."""
    memory.DEFAULT_KV_CACHE_BYTES = 32 << 20


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_llama(), once per set of settings."""
    made: dict[str, Path] = {}

    def make(**settings: Any) -> Path:
        key = repr(sorted(settings.items()))
        if key not in made:
            made[key] = make_llama(tmp_path_factory.mktemp("llama"), **settings)
        return made[key]

    return make
