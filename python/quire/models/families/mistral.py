"""Mistral 7B from v0.3 on, Nemo and Small: Llama without biases."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.decoder import decoder
from quire.models.spec import ModelSpec


def mistral(config: ConfigReader) -> ModelSpec:
    return decoder(config, num_kv_heads=8, window=4096)
