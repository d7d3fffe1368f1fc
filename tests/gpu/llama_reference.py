"""Llama and its relatives in plain torch and float32, and random checkpoints for them.
`test_llama_reference.py` holds them against Hugging Face transformers, so that the GPU tests need no such
package.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

BOS, EOS = 256, 257

DEFAULTS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
}


def save_tokenizer(folder: Path) -> None:
    """256 bytes and two special tokens, no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def make_llama(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """A random model in bfloat16, with weights so large that every layer matters to the logits and these lie
    apart."""
    config = DEFAULTS | settings
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def linear(name: str, width_in: int, width_out: int, bias: bool) -> None:
        weights[f"{name}.weight"] = (
            torch.randn(width_out, width_in, generator=generator) * 1.2 / width_in**0.5
        )
        if bias:
            weights[f"{name}.bias"] = torch.randn(width_out, generator=generator) * 0.1

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = 0.5 + torch.rand(width, generator=generator)

    hidden, head_dim, family = config["hidden_size"], config["head_dim"], config["model_type"]
    qkv_bias = config["attention_bias"] or family == "qwen2"
    q_size, kv_size = (config[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    linear("model.embed_tokens", hidden, config["vocab_size"], False)
    for i in range(config["num_hidden_layers"]):
        root = f"model.layers.{i}"
        norm(f"{root}.input_layernorm", hidden)
        norm(f"{root}.post_attention_layernorm", hidden)
        linear(f"{root}.self_attn.q_proj", hidden, q_size, qkv_bias)
        linear(f"{root}.self_attn.k_proj", hidden, kv_size, qkv_bias)
        linear(f"{root}.self_attn.v_proj", hidden, kv_size, qkv_bias)
        if family == "qwen3":
            norm(f"{root}.self_attn.q_norm", head_dim)
            norm(f"{root}.self_attn.k_norm", head_dim)
        linear(f"{root}.self_attn.o_proj", q_size, hidden, config["attention_bias"])
        linear(f"{root}.mlp.gate_proj", hidden, config["intermediate_size"], config["mlp_bias"])
        linear(f"{root}.mlp.up_proj", hidden, config["intermediate_size"], config["mlp_bias"])
        linear(f"{root}.mlp.down_proj", config["intermediate_size"], hidden, config["mlp_bias"])
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        linear("lm_head", hidden, config["vocab_size"], False)

    folder.mkdir(parents=True, exist_ok=True)
    bfloat16 = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(bfloat16, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    return folder


class ReferenceLlama:
    """A checkpoint of `make_llama`: whole sequences, no cache, no batch, nothing shared with the engine."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {name: x.float() for name, x in load_file(folder / "model.safetensors").items()}

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]

    def _angles(self, num_tokens: int) -> Tensor:
        """[num_tokens, head_dim / 2]"""
        head_dim, scaling = self.config["head_dim"], self.config.get("rope_scaling") or {}
        frequencies = []
        for d in range(0, head_dim, 2):
            frequency = self.config["rope_theta"] ** (-d / head_dim)
            if scaling.get("rope_type") == "linear":
                frequency /= scaling["factor"]
            elif scaling.get("rope_type") == "llama3":
                turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
                low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
                kept = min(max((turns - low) / (high - low), 0.0), 1.0)
                frequency *= kept + (1 - kept) / scaling["factor"]
            frequencies.append(frequency)
        return torch.arange(num_tokens)[:, None] * torch.tensor(frequencies)

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> Tensor:
        """After each token: [num_tokens, vocab_size]."""
        config, num_tokens = self.config, len(token_ids)
        head_dim, group = config["head_dim"], config["num_attention_heads"] // config["num_key_value_heads"]
        angles = self._angles(num_tokens)
        cos, sin = angles.cos(), angles.sin()

        def heads(x: Tensor) -> Tensor:  # [num_heads, num_tokens, head_dim]
            return x.view(num_tokens, -1, head_dim).transpose(0, 1)

        def rotated(x: Tensor, norm: str) -> Tensor:
            if f"{norm}.weight" in self.weights:
                x = self._norm(norm, x)
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        x = self.weights["model.embed_tokens.weight"][token_ids]
        for i in range(config["num_hidden_layers"]):
            root = f"model.layers.{i}"
            h = self._norm(f"{root}.input_layernorm", x)
            q, k, v = (heads(self._linear(f"{root}.self_attn.{name}_proj", h)) for name in "qkv")
            q = rotated(q, f"{root}.self_attn.q_norm")
            k = rotated(k, f"{root}.self_attn.k_norm").repeat_interleave(group, 0)
            v = v.repeat_interleave(group, 0)
            scores = q @ k.transpose(1, 2) / head_dim**0.5
            is_later = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
            attention = scores.masked_fill(is_later, -math.inf).softmax(-1) @ v
            x = x + self._linear(f"{root}.self_attn.o_proj", attention.transpose(0, 1).flatten(1))
            h = self._norm(f"{root}.post_attention_layernorm", x)
            gate = F.silu(self._linear(f"{root}.mlp.gate_proj", h))
            x = x + self._linear(f"{root}.mlp.down_proj", gate * self._linear(f"{root}.mlp.up_proj", h))
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        return self._linear(head, self._norm("model.norm", x))


@cache
def reference(folder: Path) -> ReferenceLlama:
    return ReferenceLlama(folder)


def gaps(folder: Path, prompt: list[int], answer: list[int]) -> Tensor:
    """For each token of the answer, given all before it: how far the reference puts its logit below the best
    one, in standard deviations of the logits. 0: it would have said the same."""
    logits = reference(folder).logits(prompt + answer)[len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return (logits.max(1).values - chosen) / logits.std(1)
