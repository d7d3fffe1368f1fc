"""Random checkpoints of Llama and the other families with a byte-level tokenizer, as Hugging Face folders."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's imports
    from transformers import AutoConfig, AutoModelForCausalLM

from quire import LLM, _core

BOS, EOS, PAD = 256, 257, 258
VOCAB_SIZE = 300
# Some families beside Llama, by what makes them other (tests/families has all).
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "sliding_window": 24, "head_dim": 40},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 40, "rms_norm_eps": 1e-3},
    "qwen3-biases": {"model_type": "qwen3", "head_dim": 128, "attention_bias": True},
}


def save_tokenizer(folder: Path) -> None:
    """256 bytes, three special tokens, no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def make_llama(
    folder: Path,
    *,
    model_type: str = "llama",
    seed: int = 0,
    save: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Save a random model. Weights are larger than a fresh model's, so that greedy ids vary and logits lie
    apart."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **values | {"head_dim": 32} | settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder, **(save or {}))
    save_tokenizer(folder)
    return folder


def with_batches_in_flight(llm: LLM, max_batches_in_flight: int) -> _core.EngineCore:
    """A core as that of `llm`, but for the number of batches in flight."""
    values = {name: getattr(llm._core.config, name) for name in vars(_core.EngineConfig) if name[0] != "_"}
    config = _core.EngineConfig(**values | {"max_batches_in_flight": max_batches_in_flight})
    return _core.EngineCore(config, llm._core.token_table)
