"""The model families: each a function from config.json to what its models compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quire.models.config_reader import ConfigReader
from quire.models.families.llama import llama
from quire.models.spec import ModelSpec

# By the name in config.json's "architectures".
FAMILIES: Mapping[str, Callable[[ConfigReader], ModelSpec]] = {
    "LlamaForCausalLM": llama,
}
