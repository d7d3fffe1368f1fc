"""A GGUF file's metadata as config.json, and Hugging Face's names of its tensors."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from quire.errors import UnsupportedModel, describe
from quire.gguf.header import GgufHeader

# What a key of an architecture's metadata is called in config.json.
_KEYS: Mapping[str, str] = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.local.freq_base": "rope_local_base_freq",
}
# Keys that are read below, that repeat others, or that only name the weights' history: the values that they
# may have; None: any.
_OTHERS: Mapping[str, tuple[object, ...] | None] = {
    "attention.causal": (True,),
    "attention.value_length": None,
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.dimension_count": None,
    "rope.scaling.attn_factor": None,
    "rope.scaling.factor": None,
    "rope.scaling.finetuned": None,
    "rope.scaling.original_context_length": None,
    "rope.scaling.type": None,
    "tensor_data_layout": None,
    "vocab_size": None,  # that of the embedding counts
}

_TEXTS = ("rope.scaling.type", "tensor_data_layout")  # the others are numbers

# Hugging Face's names of what is outside of the layers, and in a layer.
_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# Factors of RoPE's frequencies, which config.json has as numbers.
_ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp stores a family of models."""

    name: str  # in config.json
    model_type: str | None = None  # there, too; None: the file's name for it
    layer: Mapping[str, str] = field(default_factory=dict)  # names of tensors that differ
    norm_offset: float = 0.0  # added to the weights of norms
    has_paired_heads: bool = False  # rows of queries and keys are in the order of pairs
    is_partial: bool = False  # a part of a head may have positions
    large: tuple[int, ...] = ()  # numbers of layers of the models that scale scores by hidden_size / heads


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(name="LlamaForCausalLM", has_paired_heads=True),
    "qwen2": Architecture(name="Qwen2ForCausalLM"),
    "qwen3": Architecture(name="Qwen3ForCausalLM"),
    "phi3": Architecture(name="Phi3ForCausalLM", layer={"ffn_up": "mlp.gate_up_proj"}, is_partial=True),
    "gemma": Architecture(name="GemmaForCausalLM", norm_offset=1.0),
    "gemma2": Architecture(name="Gemma2ForCausalLM", layer=_SANDWICH, norm_offset=1.0, large=(46,)),
    "gemma3": Architecture(
        name="Gemma3ForCausalLM", model_type="gemma3_text", layer=_SANDWICH, norm_offset=1.0, large=(62,)
    ),
}


def architecture_of(header: GgufHeader) -> Architecture:
    given = header.metadata.get("general.architecture")
    if not isinstance(given, str) or given not in ARCHITECTURES:
        _refuse(header, "general.architecture", given, ", ".join(ARCHITECTURES))
    return ARCHITECTURES[given]


def tensor_names(header: GgufHeader) -> dict[str, str]:
    """Hugging Face's name -> the file's. A tensor that the architecture does not have keeps its name."""
    layer = {**_LAYER, **architecture_of(header).layer}

    def name_of(stored: str) -> str:
        if match := _LAYER_NAME.fullmatch(stored):
            index, part, kind = match.groups()
            return f"model.layers.{index}.{layer[part]}.{kind}" if part in layer else stored
        part, _, kind = stored.rpartition(".")
        return f"{_MODEL[part]}.{kind}" if part in _MODEL else stored

    return {name_of(stored): stored for stored in header.tensors if stored not in _ROPE_FACTORS}


def model_config(header: GgufHeader, numbers: Callable[[str], list[float]]) -> dict[str, Any]:
    """The values of config.json. numbers: those of a tensor in float32, by its name in the file."""
    architecture = architecture_of(header)
    if (parts := header.metadata.get("split.count", 1)) not in (0, 1):
        _refuse(header, "split.count", parts, "1: `llama-gguf-split --merge` joins the parts of a model")
    given = _own_metadata(header)
    config = {name: _shortest(given[key]) for key, name in _KEYS.items() if key in given}
    if architecture.has_paired_heads and "rope.dimension_count" in given:
        config.setdefault("head_dim", given["rope.dimension_count"])
    embedding = header.tensors.get("token_embd.weight")
    return {
        "architectures": [architecture.name],
        "model_type": architecture.model_type or header.metadata["general.architecture"],
        **config,
        **_head_sizes(header, architecture, given, config),
        **_rope_scaling(header, given, config, numbers),
        "attention_bias": "blk.0.attn_output.bias" in header.tensors,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "vocab_size": embedding.shape[0] if embedding else 0,
        "dtype": _dtype(header),
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_ids(header.metadata),
    }


def _own_metadata(header: GgufHeader) -> dict[str, Any]:
    """The keys of the architecture, without its name; each is known, and has a value that is."""
    prefix = f"{header.metadata['general.architecture']}."
    own = [key for key in header.metadata if key.startswith(prefix)]
    given = {key.removeprefix(prefix): header.metadata[key] for key in own}
    for key, value in given.items():
        allowed = () if key not in _KEYS and key not in _OTHERS else _OTHERS.get(key)
        if allowed is not None and value not in allowed:
            _refuse(header, prefix + key, value, ", ".join(map(describe, allowed)) or "a file without it")
        if key not in _TEXTS and type(value) not in (int, float, bool):
            _refuse(header, prefix + key, value, "a number")
    return given


def _head_sizes(
    header: GgufHeader, architecture: Architecture, given: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What follows from the sizes of heads, which must be one size."""
    heads, hidden = config.get("num_attention_heads", 0), config.get("hidden_size", 0)
    head_dim = config.get("head_dim") or (hidden // heads if heads else 0)
    if not head_dim:
        return {}  # refused by whoever reads config.json
    rotary_dim = given.get("rope.dimension_count", head_dim)
    for key in ("attention.value_length", "rope.dimension_count")[: 1 if architecture.is_partial else 2]:
        if given.get(key, head_dim) != head_dim:
            prefix = header.metadata["general.architecture"]
            _refuse(header, f"{prefix}.{key}", given[key], f"{head_dim}, the size of a head")
    sizes = {"partial_rotary_factor": rotary_dim / head_dim} if architecture.is_partial else {}
    if architecture.large:
        is_large = config.get("num_hidden_layers") in architecture.large
        sizes["query_pre_attn_scalar"] = hidden // heads if is_large else head_dim
    return sizes


def _rope_scaling(
    header: GgufHeader,
    given: Mapping[str, Any],
    config: Mapping[str, Any],
    numbers: Callable[[str], list[float]],
) -> dict[str, Any]:
    kind = given.get("rope.scaling.type", "none")
    original = given.get("rope.scaling.original_context_length", config.get("max_position_embeddings"))
    whole, short, long = (name if name in header.tensors else "" for name in _ROPE_FACTORS)
    if whole or (short and long):
        # Factors of each frequency: with the same for all lengths they are any scaling, such as llama3's.
        scaling = {
            "rope_type": "longrope",
            "short_factor": numbers(whole or short),
            "long_factor": numbers(whole or long),
            "original_max_position_embeddings": original,
        }
        if whole or "rope.scaling.attn_factor" in given:
            scaling["attention_factor"] = _shortest(given.get("rope.scaling.attn_factor", 1.0))
        return {"rope_scaling": scaling}
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        key = f"{header.metadata['general.architecture']}.rope.scaling.type"
        _refuse(header, key, kind, "none, linear, yarn")
    scaling = {"rope_type": kind, "factor": given.get("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = original
    return {"rope_scaling": scaling}


def _dtype(header: GgufHeader) -> str:
    """The type of most weights; of quantized ones the engine's usual type."""
    types = {tensor.type.name for tensor in header.tensors.values() if len(tensor.shape) > 1}
    return {frozenset({"F32"}): "float32", frozenset({"F16"}): "float16"}.get(frozenset(types), "bfloat16")


def _end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """The end of a text, of a turn, and of a message that calls a tool."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = (metadata.get(f"tokenizer.ggml.{key}") for key in keys)
    return list(dict.fromkeys(each for each in ids if each is not None))


def _shortest(value: Any) -> Any:
    """The shortest decimal of a float32: 1e-05 instead of 9.999999747378752e-06."""
    if not isinstance(value, float) or abs(value) > 3e38:
        return value
    return next(
        (short for digits in range(1, 9) if _float32(short := float(f"{value:.{digits}g}")) == value), value
    )


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _refuse(header: GgufHeader, key: str, given: object, allowed: str) -> NoReturn:
    raise UnsupportedModel(f"{header.file}: {key}: got {describe(given)}; allowed: {allowed}")
