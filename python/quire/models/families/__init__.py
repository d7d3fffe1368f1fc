"""The model families: each a function from config.json to what its models compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from quire.models.config_reader import ConfigReader
from quire.models.spec import ModelSpec

Family = Callable[[ConfigReader], ModelSpec]

# By the name in config.json's "architectures": module.function.
_PLACES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama.llama",
    "MistralForCausalLM": "mistral.mistral",
    "Ministral3ForCausalLM": "mistral.ministral3",
    "Qwen2ForCausalLM": "qwen2.qwen2",
    "Qwen3ForCausalLM": "qwen3.qwen3",
    "Phi3ForCausalLM": "phi3.phi3",
    "GraniteForCausalLM": "granite.granite",
    "SmolLM3ForCausalLM": "smollm3.smollm3",
    "GlmForCausalLM": "glm.glm",
    "Glm4ForCausalLM": "glm.glm4",
    "GemmaForCausalLM": "gemma.gemma",
    "Gemma2ForCausalLM": "gemma.gemma2",
    "Gemma3ForCausalLM": "gemma.gemma3",
    "Olmo2ForCausalLM": "olmo.olmo2",
    "Olmo3ForCausalLM": "olmo.olmo3",
    "CohereForCausalLM": "cohere.cohere",
    "Cohere2ForCausalLM": "cohere.cohere2",
    "NemotronForCausalLM": "nemotron.nemotron",
    "Exaone4ForCausalLM": "exaone4.exaone4",
    "StableLmForCausalLM": "stablelm.stablelm",
    "Starcoder2ForCausalLM": "starcoder2.starcoder2",
    "PhiForCausalLM": "phi.phi",
    "GPT2LMHeadModel": "gpt2.gpt2",
    "GPTNeoXForCausalLM": "gpt_neox.gpt_neox",
    "OPTForCausalLM": "opt.opt",
    "MixtralForCausalLM": "mistral.mixtral",
    "Qwen2MoeForCausalLM": "qwen2.qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3.qwen3_moe",
    "OlmoeForCausalLM": "olmo.olmoe",
    "GraniteMoeForCausalLM": "granite.granite_moe",
    "Glm4MoeForCausalLM": "glm.glm4_moe",
    "GptOssForCausalLM": "gpt_oss.gpt_oss",
}


def _family(place: str) -> Family:
    module, function = place.split(".")
    family: Family = getattr(import_module(f"{__name__}.{module}"), function)
    return family


FAMILIES: Mapping[str, Family] = {name: _family(place) for name, place in _PLACES.items()}
