"""Qwen 3, dense: Llama with a norm of each query and key head."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.decoder import decoder
from quire.models.spec import ModelSpec


def qwen3(config: ConfigReader) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    return decoder(
        config,
        qkv_bias=bias,
        o_bias=bias,
        has_qk_norm=True,
        num_kv_heads=32,
        head_dim=128,
        window=4096,
        uses_window=False,
    )
