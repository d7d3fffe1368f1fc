"""A real tritonserver over the repository's own `model_repository/` and the embedded model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from quire.triton.server import TritonServer
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
MODEL = ROOT / "models" / "quire-8m"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test of this folder as serving."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.serving)


@pytest.fixture(scope="session")
def make_repository(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A copy of `model_repository/` to edit; keyword arguments change settings in model.json. Engines compute
    with one thread, as tests and servers share the cores, and do not zero half a gigabyte of KV memory."""
    small = {"num_threads": 1, "kv_cache_memory_bytes": 64 << 20}

    def make(**settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("repository") / "models"
        shutil.copytree(ROOT / "model_repository", folder)
        path = folder / "generation" / "1" / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | small | settings))
        return folder

    return make


@pytest.fixture(scope="session")
def server(make_repository: Callable[..., Path]) -> Iterator[TritonServer]:
    """Shared by tests that leave it as they found it."""
    with TritonServer(make_repository()) as running:
        yield running


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))
