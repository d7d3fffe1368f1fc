"""Model folders and repositories with sample tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_tokenizers import TOKENIZERS, train_byte_level, write_model
from tokenizers import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


@pytest.fixture(scope="session")
def tokenizers_by_name() -> dict[str, Tokenizer]:
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.fixture(scope="session")
def byte_level_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a byte-level tokenizer and a limit of 64 tokens, without weights."""
    return write_model(tmp_path_factory.mktemp("model") / "byte-level", train_byte_level())


@pytest.fixture(scope="session")
def make_repository() -> Callable[[Path, Path], Path]:
    """folder, model -> a repository with the real tokenizer model, and a generation model's settings."""

    def make(folder: Path, model: Path) -> Path:
        shutil.copytree(REPOSITORY / "tokenizer", folder / "tokenizer")
        settings = folder / "generation" / "1" / "model.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"model": str(model)}))
        return folder

    return make
