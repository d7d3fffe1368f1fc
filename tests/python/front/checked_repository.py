"""A model folder and a repository that `quire check` finds in order, for tests to spoil."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from quire.models.config import load_model_config
from quire.triton.check import check_repository
from safetensors.torch import save_file
from sample_tokenizers import train_byte_level, write_model

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"
LLAMA = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "model_type": "llama",
    "hidden_act": "silu",
}


def checked_model(folder: Path) -> Path:
    write_model(folder, train_byte_level(), **LLAMA)
    stored = load_model_config(folder).parameters(torch.float32).stored
    save_file({name: torch.zeros(each.shape) for name, each in stored.items()}, folder / "model.safetensors")
    return folder


def checked_repository(folder: Path) -> Path:
    """A copy of ours, beside its model."""
    shutil.copytree(REPOSITORY, folder)
    model = checked_model(folder.parent / "model")
    (folder / "generation" / "1" / "model.json").write_text(json.dumps({"model": str(model)}))
    return folder


def problems_of(repository: Path) -> list[str]:
    return [str(problem).removeprefix(f"{repository}/") for problem in check_repository(repository)]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
