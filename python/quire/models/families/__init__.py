"""The model families: each a function from config.json to what its models compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quire.models.config_reader import ConfigReader
from quire.models.families.llama import llama
from quire.models.families.mistral import mistral
from quire.models.families.qwen2 import qwen2
from quire.models.families.qwen3 import qwen3
from quire.models.spec import ModelSpec

# By the name in config.json's "architectures".
FAMILIES: Mapping[str, Callable[[ConfigReader], ModelSpec]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
}
