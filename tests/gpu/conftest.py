from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from llama_models import MODELS
from llama_reference import make_llama


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of one of MODELS, made once."""
    root = tmp_path_factory.mktemp("models")

    def make(model: str) -> Path:
        return root / model if (root / model).exists() else make_llama(root / model, **MODELS[model])

    return make
