"""config.json: what is read, in both spellings of transformers, and what is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from quire.errors import ModelError, ModelNotFound, UnsupportedModel
from quire.models.config import load_model_config
from quire.models.rope import cos_sin
from random_llama import EOS
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write(folder: Path, **values: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(BASE | values))
    return folder


def test_explicit_sizes_win(tmp_path: Path) -> None:
    """head_dim and num_key_value_heads are independent of hidden_size."""
    folder = write(tmp_path, head_dim=64, num_key_value_heads=1, tie_word_embeddings=True)
    spec = load_model_config(folder).spec
    attention = spec.attention
    assert (attention.head_dim, attention.num_kv_heads) == (64, 1)
    assert (attention.q_size, attention.kv_size) == (256, 64)
    assert spec.is_tied


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rope_theta": 500.0},
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
    ],
    ids=["none", "theta", "linear-4", "llama3-4", "default-5", "linear-5", "llama3-5"],
)
def test_rope_table_equals_transformers(tmp_path: Path, values: dict[str, Any]) -> None:
    """Every scaling kind, in the spelling of transformers 4 and 5, gives transformers' cosines and sines."""
    config = load_model_config(write(tmp_path, **values))
    rotary = LlamaRotaryEmbedding(LlamaConfig(**BASE | values))
    expected_cos, expected_sin = rotary(torch.zeros(1), torch.arange(512)[None])
    head_dim = config.spec.attention.head_dim
    cos, sin = cos_sin(config.spec.attention.rope, head_dim, 512)
    half = head_dim // 2
    torch.testing.assert_close(cos, expected_cos[0, :, :half], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, expected_sin[0, :, :half], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("values", "key", "given", "allowed"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architectures", "MambaForCausalLM", "Qwen3ForCausalLM"),
        ({"architectures": [{"a": 1}]}, "architectures", '[{"a": 1}]', "LlamaForCausalLM, MistralFor"),
        ({"architectures": []}, "architectures", "[]", "LlamaForCausalLM"),
        ({"hidden_act": "tanh"}, "hidden_act", '"tanh"', '"silu", "swish", "gelu"'),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "quantization_config.quant_method",
            "bitsandbytes",
            '"compressed-tensors", "fp8", "modelopt"',
        ),
        ({"quantization_config": {}}, "quantization_config.quant_method", "null", '"compressed-tensors"'),
        ({"compression_config": {"format": "x"}}, "compression_config.config_groups", "null", "an object"),
        (
            {"rope_scaling": {"type": "ntk", "factor": 2.0}},
            "rope_scaling.type",
            "ntk",
            "default, linear, llama3",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "rope_scaling.short_factor",
            "[1.0]",
            "16 numbers above 0",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor", "null", "a number in (0, "),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor", "0.5", "1.0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads", "3", "a divisor of num_attention_heads (4)"),
        ({"head_dim": 20}, "head_dim", "20", "a multiple of 8 in [32, 256]"),
        ({"hidden_size": "128"}, "hidden_size", '"128"', "an integer"),
        ({"hidden_size": 0}, "hidden_size", "0", "an integer in [1, "),
        ({"vocab_size": None}, "vocab_size", "null", "an integer"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings", "1", "true or false"),
        ({"rms_norm_eps": -1}, "rms_norm_eps", "-1", "a number in (0, 1]"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps", "nan", "a number in (0, 1]"),
        ({"rms_norm_eps": 1e400}, "rms_norm_eps", "inf", "a number in (0, 1]"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps", "an integer of 1329 bits", "a number in (0, 1]"),
        ({"rope_theta": math.nan}, "rope_theta", "nan", "a number in (0, 1e+15]"),
        ({"rope_theta": -math.inf}, "rope_theta", "-inf", "a number in (0, 1e+15]"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta", "an integer of ", "a number in"),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            "rope_scaling.high_freq_factor",
            "1.0",
            "a number above low_freq_factor (1.0)",
        ),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers", "2147483648", "an integer in [1, 1000]"),
        ({"vocab_size": 2**40}, "vocab_size", "1099511627776", "an integer in [1, 16777216]"),
        ({"eos_token_id": 2**31}, "eos_token_id", "2147483648", "a token id or a list"),
        ({"bos_token_id": -1}, "bos_token_id", "-1", "a token id"),
        ({"dtype": "float8"}, "dtype", "float8", "float32, bfloat16, float16"),
        ({"eos_token_id": "x"}, "eos_token_id", '"x"', "a token id or a list"),
        ({"rope_scaling": [1]}, "rope_scaling", "[1]", "an object"),
        ({"rope_parameters": []}, "rope_parameters", "[]", "an object"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters.full_attention",
            '{"rope_type": "default"}',
            "one RoPE for all layers",
        ),
    ],
)
def test_what_cannot_run_is_named(
    tmp_path: Path, values: dict[str, Any], key: str, given: str, allowed: str
) -> None:
    """File, key, what was given and what is allowed."""
    with pytest.raises(UnsupportedModel) as error:
        load_model_config(write(tmp_path, **values))
    for part in (str(tmp_path / "config.json"), key, given, allowed):
        assert part in str(error.value)


def test_no_config(tmp_path: Path) -> None:
    """A folder without config.json is no model."""
    with pytest.raises(ModelNotFound, match=r"config\.json: no such file"):
        load_model_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_malformed_config(tmp_path: Path, text: str) -> None:
    """What is not a JSON object is refused with the file's name."""
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json: .*(JSON|UTF-8 text)"):
        load_model_config(tmp_path)


def test_eos_of_the_generation_config_wins(tmp_path: Path) -> None:
    """generation_config.json says where a sequence ends; config.json only when it does not."""
    write(tmp_path, eos_token_id=EOS)
    assert load_model_config(tmp_path).eos_token_ids == (EOS,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert load_model_config(tmp_path).eos_token_ids == (5, 6)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5.0, 6, 5]}')
    assert load_model_config(tmp_path).eos_token_ids == (5, 6)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_checkpoint_dtype(tmp_path: Path, key: str) -> None:
    """Both spellings of the checkpoint's number format are read."""
    assert load_model_config(write(tmp_path, **{key: "bfloat16"})).checkpoint_dtype == "bfloat16"
