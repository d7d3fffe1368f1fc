"""Qwen 2 and 2.5: Llama with biases of queries, keys and values."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.decoder import decoder
from quire.models.spec import ModelSpec


def qwen2(config: ConfigReader) -> ModelSpec:
    return decoder(config, qkv_bias=True, num_kv_heads=32, window=4096, uses_window=False)
