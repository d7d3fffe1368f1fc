"""The Llama architecture in plain PyTorch, for training.

The module names give the state dict exactly the names a Hugging Face ``LlamaForCausalLM`` checkpoint has,
so exporting is saving. Shapes in comments: B sequences, T positions, H query heads, K key/value heads,
D head size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def write_configs(folder: Path) -> None:
    """Write ``config.json`` and ``generation_config.json``."""
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    generation = {"bos_token_id": CONFIG["bos_token_id"], "eos_token_id": CONFIG["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


class RMSNorm(nn.Module):
    """Scale each vector to unit root mean square, in float32, then by a learnt weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rope_tables(head_dim: int, length: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [length, head_dim], for Hugging Face's rotate-half convention."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.arange(length).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding to ``x`` [B, heads, T, D]; dimension i turns with i + D/2."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention in which each key/value head serves H/K query heads."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.head_dim = c["head_dim"]
        q_size = c["num_attention_heads"] * self.head_dim
        kv_size = c["num_key_value_heads"] * self.head_dim
        self.q_proj = nn.Linear(c["hidden_size"], q_size, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], kv_size, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, c["hidden_size"], bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def heads(y: Tensor) -> Tensor:  # [B, T, heads * D] -> [B, heads, T, D]
            return y.view(batch, length, -1, self.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x)), cos, sin)
        k = rotate(heads(self.k_proj(x)), cos, sin)
        v = heads(self.v_proj(x))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm transformer layer, with dropout on what each half adds to the residual stream."""

    def __init__(self, c: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Trunk(nn.Module):
    """Everything but the output projection; the attribute ``model`` of a Hugging Face checkpoint."""

    cos: Tensor  # [max_position_embeddings, D], as is sin
    sin: Tensor

    def __init__(self, c: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList([Layer(c, dropout) for _ in range(c["num_hidden_layers"])])
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.dropout = nn.Dropout(dropout)
        cos, sin = rope_tables(c["head_dim"], c["max_position_embeddings"], c["rope_theta"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.embed_tokens(ids))
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    """Language model with tied input and output embeddings."""

    def __init__(self, c: dict[str, Any], dropout: float = 0.0) -> None:
        super().__init__()
        self.model = Trunk(c, dropout)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # The two projections per layer that write to the residual stream start smaller, so that its
                # variance does not grow with depth.
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * c["num_hidden_layers"]) ** -0.5 if writes else 1.0
                nn.init.normal_(p, std=c["initializer_range"] * scale)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits [B, T, vocabulary] for ``ids`` [B, T]; with targets [B, T], the mean loss (nats)."""
        logits = F.linear(self.model(ids), self.model.embed_tokens.weight)
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
