"""Experts with random weights, and what they give, token by token in float32."""

from __future__ import annotations

import torch
from quire import ops
from torch import Tensor

ACTIVATION_OF_FORM: dict[str, ops.Activation] = {
    "plain": "silu",
    "gpt-oss": "swiglu_oai",
    "shared": "silu",
    "gated shared": "gelu_tanh",
}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_experts(
    form: str,
    num_tokens: int,
    dtype: torch.dtype,
    *,
    num_experts: int = 12,
    hidden_size: int = 72,
    intermediate_size: int = 40,
) -> tuple[Tensor, dict[str, Tensor]]:
    """x, and the tensors that `ops.moe_mlp` takes by name."""
    inner = 2 * intermediate_size
    x = normal(num_tokens, hidden_size, dtype=dtype)
    gate_up = normal(num_experts, inner, hidden_size, dtype=dtype, seed=1) * hidden_size**-0.5
    down = normal(num_experts, hidden_size, intermediate_size, dtype=dtype, seed=2) * intermediate_size**-0.5
    tensors = {"gate_up": gate_up, "down": down}
    if form == "gpt-oss":
        tensors["gate_up_bias"] = normal(num_experts, inner, dtype=dtype, seed=3)
        tensors["down_bias"] = normal(num_experts, hidden_size, dtype=dtype, seed=4)
    if "shared" in form:
        tensors["shared"] = normal(num_tokens, hidden_size, dtype=dtype, seed=5)
    if form == "gated shared":
        tensors["shared_gate"] = normal(num_tokens, 1, dtype=dtype, seed=6)
    return x, tensors


def moe_mlp(x: Tensor, ids: Tensor, weights: Tensor, tensors: dict[str, Tensor], activation: str) -> Tensor:
    """Token by token and expert by expert, in float32."""
    t = {name: tensor.float() for name, tensor in tensors.items()}
    out = torch.zeros(x.shape)
    for token, (experts, factors) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
        for expert, factor in zip(experts, factors, strict=True):
            inner = t["gate_up"][expert] @ x[token].float()
            inner += t["gate_up_bias"][expert] if "gate_up_bias" in t else 0
            gate, up = inner.chunk(2)
            if activation == "swiglu_oai":
                gate = gate.clamp(max=7)
                inner = gate * torch.sigmoid(1.702 * gate) * (up.clamp(-7, 7) + 1)
            elif activation == "silu":
                inner = torch.nn.functional.silu(gate) * up
            else:
                inner = torch.nn.functional.gelu(gate, approximate="tanh") * up
            y = t["down"][expert] @ inner
            out[token] += factor * (y + t["down_bias"][expert] if "down_bias" in t else y)
        if "shared" in t:
            out[token] += t["shared"][token] * (
                t["shared_gate"][token].sigmoid() if "shared_gate" in t else 1
            )
    return out
