"""GGUF files of Hugging Face checkpoints, written as llama.cpp's converter does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map
from gguf.quants import quantize
from torch import Tensor, nn

_NORMS_FROM_ONE = ("gemma", "gemma2", "gemma3")


def write_gguf(
    file: Path,
    architecture: str,
    folder: Path,
    model: nn.Module,
    weights: str = "F32",
    factors: Mapping[str, Sequence[float]] | None = None,
    **metadata: Any,
) -> None:
    """folder: of config.json and a byte-level tokenizer.json. weights: the type of matrices. factors: of
    RoPE, by the tensor's name. metadata: more of the architecture's keys."""
    config = model.config
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    for key, value in metadata.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key.replace('__', '.')}", value)
    write_tokenizer(writer, folder)
    _write_tensors(writer, architecture, model, weights)
    for name, values in (factors or {}).items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(writer: GGUFWriter, folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    added = {each["content"]: each["id"] for each in state["added_tokens"]}
    vocabulary = {**state["model"]["vocab"], **added, "ab": len(added) + len(state["model"]["vocab"])}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if each in added else TokenType.NORMAL for each in tokens])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(vocabulary["<eos>"])


def _write_tensors(writer: GGUFWriter, architecture: str, model: nn.Module, weights: str) -> None:
    [number] = [number for number, name in MODEL_ARCH_NAMES.items() if name == architecture]
    names = get_tensor_name_map(number, model.config.num_hidden_layers)
    is_tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and is_tied:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            which = "num_attention_heads" if name.endswith("q_proj.weight") else "num_key_value_heads"
            tensor = _paired(tensor, getattr(model.config, which))
        if architecture in _NORMS_FROM_ONE and name.endswith("norm.weight"):
            tensor = tensor + 1
        kind = GGMLQuantizationType[weights if tensor.dim() > 1 else "F32"]
        writer.add_tensor(stored, quantize(np.ascontiguousarray(tensor.numpy()), kind), raw_dtype=kind)


def _paired(tensor: Tensor, heads: int) -> Tensor:
    """Rows of a head in the order 0, n / 2, 1, n / 2 + 1, ..."""
    return tensor.reshape(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
