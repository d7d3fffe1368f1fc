"""The model families: what each makes of config.json, held against transformers, and keys that no family may
pass over."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quire.models.config import ModelConfig, load_model_config
from quire.models.spec import RopeSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's imports
    from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 1024,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "max_position_embeddings": 512,
}
# Families with Llama's keys and names, and their model_type.
FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GraniteForCausalLM": "granite",
    "Olmo2ForCausalLM": "olmo2",
}


def load(folder: Path, architecture: str, **values: Any) -> ModelConfig:
    config = {"architectures": [architecture], **SIZES, **values}
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_config(folder)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"head_dim": 40},
        {"num_key_value_heads": 4, "head_dim": 64},
    ],
    ids=["defaults", "biases", "tied", "head_dim", "sizes"],
)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_parameters_are_those_of_transformers(
    tmp_path: Path, architecture: str, values: dict[str, Any]
) -> None:
    """Names and shapes of a checkpoint, whatever config.json leaves out; and the numbers that no shape
    shows."""
    config = load(tmp_path, architecture, **values)
    given = {**SIZES, **values}
    reference = AutoConfig.for_model(FAMILIES[architecture], **given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(reference)
    # A tied head is not among them.
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stored = config.parameters(torch.float32).stored
    assert expected == {name: each.shape for name, each in stored.items()}
    norms = [config.spec.norm, *(config.spec.attention.qk_norm or ())]
    assert {reference.rms_norm_eps} == {norm.eps for norm in norms}
    assert RopeSpec(theta=reference.rope_parameters["rope_theta"]) == config.spec.attention.rope


@pytest.mark.parametrize("architecture", FAMILIES)
def test_null_kv_heads(tmp_path: Path, architecture: str) -> None:
    """null is one KV head per query head, also where the missing key is another number."""
    assert load(tmp_path, architecture, num_key_value_heads=None).spec.attention.num_kv_heads == 32


NEUTRAL: list[dict[str, Any]] = [
    {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 2},
    {"sliding_window": 32, "use_sliding_window": False},
    {"sliding_window": 512},
    {"layer_types": ["full_attention", "full_attention"]},
    {"no_rope_layers": [1, 1], "no_rope_layer_interval": None},
    {"logit_scale": 1.0, "logits_scaling": 1, "residual_multiplier": 1.0, "embedding_multiplier": None},
    {"attn_logit_softcapping": None, "final_logit_softcapping": None, "clip_qkv": None},
    {"partial_rotary_factor": 1.0, "rope_interleaved": False, "is_llama_config": True},
    {"pretraining_tp": 2, "use_cache": True, "attention_dropout": 0.1, "activation": "swiglu"},
    {"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
    {"hidden_act": "swish"},
    {"a_key_of_tomorrow": {"factor": 2}},
]


@pytest.mark.parametrize("values", NEUTRAL, ids=lambda values: next(iter(values)))
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_keys_that_change_nothing_pass(tmp_path: Path, architecture: str, values: dict[str, Any]) -> None:
    """Unknown keys, and known ones with a value with which they change nothing: the same model."""
    expected = load(tmp_path, architecture).spec
    assert expected == load(tmp_path, architecture, **values).spec


def test_layers_of_one_size(tmp_path: Path) -> None:
    """Buffers and the KV cache have one shape for all layers: a spec with two is refused."""
    spec = load(tmp_path, "LlamaForCausalLM").spec
    other = replace(spec.layers[0], attention=replace(spec.attention, head_dim=64))
    with pytest.raises(ValueError, match="layers: got 2 kinds of attention; allowed: 1"):
        replace(spec, layers=(*spec.layers, other))
