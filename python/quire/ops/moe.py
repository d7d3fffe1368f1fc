"""Mixtures of experts: which experts a token goes to, and their MLPs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from quire._tensor_checks import check, describe
from quire.ops.layers import Activation, act_mul


def moe_route(
    logits: Tensor,
    *,
    top_k: int,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    renormalize: bool = True,
    scale: float = 1.0,
    bias: Tensor | None = None,
    num_groups: int = 1,
    top_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """The experts of each token, ids `[num_tokens, top_k]` int32, and their weights, the same in float32.

    logits: `[num_tokens, num_experts]`. A weight is the expert's score, in float32: softmax over all experts,
    or each expert's sigmoid. The experts with the largest score + bias (`[num_experts]` float32) are taken,
    of equal ones the first. renormalize: a token's weights are divided by their sum. scale: then multiplies
    them.
    num_groups: experts lie in so many groups, and only those of the top_groups best groups can be taken; a
    group is as good as its best expert, with sigmoid as its best two together.
    """
    num_tokens, num_experts = logits.shape
    for name, value, most in (
        ("top_k", top_k, num_experts // num_groups * top_groups),
        ("top_groups", top_groups, num_groups),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name}: got {value}; allowed: 1 to {most}")
    if num_experts % num_groups:
        raise ValueError(f"num_groups: got {num_groups}; allowed: divisors of num_experts ({num_experts})")
    if bias is not None:
        check("bias", bias, torch.float32, (num_experts,), "num_experts", logits.device.type)
    scores = logits.float().softmax(-1) if scoring == "softmax" else logits.float().sigmoid()
    choice = scores if bias is None else scores + bias
    if num_groups > 1:
        grouped = choice.view(num_tokens, num_groups, -1)
        best = grouped.topk(min(2, grouped.size(2)) if scoring == "sigmoid" else 1).values.sum(-1)
        groups = best.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
        is_out = torch.ones_like(best, dtype=torch.bool).scatter_(1, groups, False)
        choice = grouped.masked_fill(is_out[:, :, None], -torch.inf).view(num_tokens, num_experts)
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids.int(), weights * scale


def moe_mlp(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    *,
    gate_up: Tensor,
    down: Tensor,
    activation: Activation = "silu",
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    shared: Tensor | None = None,
    shared_gate: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The sum of each token's experts, times their weights; an expert is down(activation(gate) * up).

    x: `[num_tokens, hidden_size]`; ids, weights: of `moe_route`. gate_up: `[num_experts, 2 *
    intermediate_size, hidden_size]`, gate first; down: `[num_experts, hidden_size, intermediate_size]`;
    biases `[num_experts, out_size]`.
    shared: `[num_tokens, hidden_size]`, of an expert that all tokens have, is added, times
    sigmoid(shared_gate), `[num_tokens, 1]`, where there is one. Sums are in float32, and rounded once.
    """
    num_tokens, hidden_size = x.shape
    num_experts, width = gate_up.size(0), gate_up.size(1) // 2
    device = x.device.type
    check("gate_up", gate_up, x.dtype, (num_experts, 2 * width, hidden_size), "E, 2 * I, hidden_size", device)
    check("down", down, x.dtype, (num_experts, hidden_size, width), "E, hidden_size, I", device)
    check("ids", ids, torch.int32, (num_tokens, ids.size(1)), "num_tokens, top_k", device)
    check("weights", weights, torch.float32, tuple(ids.shape), "num_tokens, top_k", device)
    if out is not None and (out.shape != x.shape or out.dtype is not x.dtype):
        raise ValueError(f"out: got {describe(out)}; allowed: {x.dtype}{list(x.shape)}")
    total = torch.zeros(num_tokens, hidden_size, device=x.device)
    if shared is not None:
        total += shared if shared_gate is None else shared.float() * shared_gate.float().sigmoid()
    linear = torch.nn.functional.linear
    for expert in sorted(set(ids.flatten().tolist())):
        token, slot = torch.where(ids == expert)
        inner = linear(x[token], gate_up[expert], None if gate_up_bias is None else gate_up_bias[expert])
        inner = act_mul(inner, activation=activation)
        y = linear(inner, down[expert], None if down_bias is None else down_bias[expert])
        total.index_add_(0, token, y.float() * weights[token, slot, None])
    return total.to(x.dtype) if out is None else out.copy_(total)
