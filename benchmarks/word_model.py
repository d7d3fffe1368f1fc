"""Checkpoint folders for measuring: a shape without weights, or a real model, in both a vocabulary of words.

    python benchmarks/word_model.py {8b|1b|30b-a3b|quire-8m|8b-fp8|8b-int4|8b-fp8kv} FOLDER

The token with id i is the word ``w<i>`` and words are separated by spaces, so a text of n words is a prompt
of n tokens, whatever its words. All but quire-8m have no weights: load them with
``load_format: dummy``; speed does not depend on the values. quire-8m has those of the embedded model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workload import SHAPES, base_and_format

_SPECIAL = ("<s>", "</s>", "<unk>")
_COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 16384,
    "initializer_range": 0.02,
    "attention_bias": False,
    "mlp_bias": False,
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
# Llama 3.1 8B, Llama 3.2 1B, Qwen3-30B-A3B.
_SIZES = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
# compressed-tensors, which both engines read: a scale per output channel and activations quantised per token;
# symmetric groups of 128.
_WEIGHTS = {
    "-fp8": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
    "-int4": {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": 128,
        "symmetric": True,
        "dynamic": False,
    },
}
_ACTIVATIONS = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
EMBEDDED = Path(__file__).resolve().parents[1] / "models" / "quire-8m"


def make(shape: str, folder: Path) -> Path:
    """Write the folder of a shape; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    base, weights = base_and_format(shape)
    if base in _SIZES:
        config: dict[str, Any] = _COMMON | _SIZES[base]
        if weights in _WEIGHTS:
            config["quantization_config"] = _quantization(weights)
    else:
        config = json.loads((EMBEDDED / "config.json").read_text("utf-8"))
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / "model.safetensors").symlink_to(EMBEDDED / "model.safetensors")
    _write(folder / "config.json", config)
    _write(folder / "tokenizer.json", _tokenizer(config["vocab_size"]))
    special = dict(zip(("bos_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    limit = config["max_position_embeddings"]
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": limit, **special},
    )
    return folder


def text_of(token_ids: Sequence[int]) -> str:
    """The text that such a tokenizer turns into these ids; none of them may be special."""
    return " ".join(f"w{token_id}" for token_id in token_ids)


def _quantization(name: str) -> dict[str, Any]:
    is_float = _WEIGHTS[name]["type"] == "float"
    scheme = {
        "targets": ["Linear"],
        "weights": _WEIGHTS[name],
        "input_activations": _ACTIVATIONS if is_float else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if is_float else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    words = [*_SPECIAL, *(f"w{token_id}" for token_id in range(len(_SPECIAL), vocab_size))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": word, **flags} for i, word in enumerate(_SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: token_id for token_id, word in enumerate(words)},
            "unk_token": "<unk>",
        },
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(make(options.shape, options.folder))


if __name__ == "__main__":
    main()
