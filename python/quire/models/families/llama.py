"""Llama 1 to 3, and the many models of its architecture."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.decoder import decoder
from quire.models.spec import ModelSpec


def llama(config: ConfigReader) -> ModelSpec:
    attention_bias = config.flag("attention_bias", False)
    return decoder(
        config,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias", False),
        uses_window=False,  # transformers' Llama has none, whatever sliding_window says
    )
