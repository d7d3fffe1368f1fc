"""Engines on the GPU for tests, and prompts for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from llama_models import MODELS
from quire import LLM


def make_llm(folder: Path, **settings: Any) -> LLM:
    """A small pool and few graphs, so that many engines start fast and fit side by side."""
    values: dict[str, Any] = {
        "device": "cuda",
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "num_gpu_blocks_override": 400,
    }
    return LLM(str(folder), **values | settings)


def prompts(model: str, seed: int, count: int, lengths: tuple[int, ...] = ()) -> list[list[int]]:
    """Random prompts around the sizes where blocks, tiles and chunks end."""
    lengths = lengths or (1, 2, 15, 16, 17, 33, 63, 64, 65, 130, 300)
    generator = random.Random(seed)
    vocab_size = MODELS[model].get("vocab_size", 512)
    return [[generator.randrange(vocab_size) for _ in range(lengths[i % len(lengths)])] for i in range(count)]
