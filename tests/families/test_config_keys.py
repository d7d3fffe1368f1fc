"""A key of config.json that changes what transformers computes is read or refused, in every family.

For each family one published config, with one key added or changed: either it is refused by that name, or the
model gives what transformers gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import ABSENT, CONFIGS, config_of, make_checkpoint
from quire import LLM, SamplingParams
from quire.errors import UnsupportedModel
from quire.models.config import load_model_config
from quire.models.families import FAMILIES
from random_llama import save_tokenizer
from test_parity import REFUSED, TOLERANCE, difference

CHANGES: list[dict[str, Any]] = [
    {"sliding_window": 32},
    {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1},
    {"sliding_window": 32, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    {"no_rope_layers": [1, 0, 1]},
    {"logit_scale": 0.125},
    {"logits_scaling": 4.0},
    {"residual_multiplier": 0.5},
    {"embedding_multiplier": 3.0},
    {"attention_multiplier": 0.25},
    {"query_pre_attn_scalar": 16},
    {"attn_logit_softcapping": 5.0},
    {"final_logit_softcapping": 3.0},
    {"partial_rotary_factor": 0.75},
    {"use_qk_norm": True},
    {"qk_layernorm": True},
    {"use_parallel_residual": False},
    {"use_parallel_residual": True},
    {"rope_theta": 500.0},
    {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64}},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"hidden_act": "relu"},
    {"norm_topk_prob": True},
    {"num_experts_per_tok": 3},
    {"routed_scaling_factor": 2.5},
    {"tie_word_embeddings": True},
    {"clip_qkv": 0.5},
    # What a family means without the key.
    *(
        {key: ABSENT}
        for key in (
            "attention_bias",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "hidden_act",
            "layer_norm_eps",
            "layer_types",
            "logit_scale",
            "no_rope_layers",
            "norm_topk_prob",
            "partial_rotary_factor",
            "query_pre_attn_scalar",
            "rms_norm_eps",
            "rope_local_base_freq",
            "rope_theta",
            "rotary_pct",
            "sliding_window",
            "sliding_window_pattern",
            "use_qkv_bias",
        )
    ),
]


def representatives() -> dict[str, str]:
    """Architecture -> a config of it."""
    named: dict[str, str] = {}
    for name in sorted(CONFIGS.keys() - REFUSED.keys()):
        if "longrope" not in name:
            named.setdefault(config_of(name)["architectures"][0], name)
    return named


def refused(folder: Path) -> str | None:
    try:
        load_model_config(folder)
    except UnsupportedModel as error:
        return str(error)
    return None


def test_every_family_has_a_config() -> None:
    assert representatives().keys() == FAMILIES.keys()


def cases() -> list[tuple[str, dict[str, Any]]]:
    """What is absent has been there."""
    return [
        (name, change)
        for name in representatives().values()
        for change in CHANGES
        if list(change.values()) != [ABSENT] or change.keys() & config_of(name).keys()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), cases(), ids=lambda value: str(value)[:40])
def test_a_key_is_refused_or_means_what_it_means_to_transformers(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    model = make_checkpoint(name, tmp_path, **change)
    if model is None:
        return  # transformers refuses it
    refusal = refused(tmp_path)
    if refusal is not None:
        assert any(key in refusal for key in change)
        return
    save_tokenizer(tmp_path)
    llm = LLM(
        str(tmp_path),
        dtype="float32",
        device="cpu",
        max_model_len=96,
        num_gpu_blocks_override=7,
        max_num_batched_tokens=48,
    )
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=5, prompt_logprobs=5)
    prompt = [(7 * i) % 595 + 5 for i in range(80)]
    (result,) = llm.generate([prompt], params)
    assert difference(model, prompt, result) < TOLERANCE
