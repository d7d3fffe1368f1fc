"""Mixtures of experts against transformers' routers and a plain loop over tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from kernel_reference import assert_close
from quire import ops
from torch import Tensor
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("renormalize", [True, False])
def test_softmax_routing(renormalize: bool, dtype: torch.dtype) -> None:
    """The largest logits' experts, with the softmax over all, or over the chosen ones where renormalised."""
    logits = normal(40, 60, dtype=dtype)
    ids, weights = ops.moe_route(logits, top_k=6, renormalize=renormalize, scale=2.5)
    top = logits.float().topk(6)
    expected = top.values.softmax(-1) if renormalize else logits.float().softmax(-1).gather(1, ids.long())
    assert torch.equal(logits.gather(1, ids.long()).float(), top.values)
    assert_close(weights, 2.5 * expected, 1e-6, "weights")
    assert ids.dtype is torch.int32


@pytest.mark.parametrize(("num_groups", "top_groups"), [(1, 1), (8, 3), (4, 4)])
@pytest.mark.parametrize("renormalize", [True, False])
def test_sigmoid_routing_with_groups(renormalize: bool, num_groups: int, top_groups: int) -> None:
    """Equals transformers' router of GLM-4-MoE: a bias decides the choice, but not the weight."""
    config = SimpleNamespace(
        num_experts_per_tok=6,
        num_local_experts=64,
        hidden_size=32,
        routed_scaling_factor=2.5,
        n_group=num_groups,
        topk_group=top_groups,
        norm_topk_prob=renormalize,
    )
    router = Glm4MoeTopkRouter(config)
    router.weight.data = normal(64, 32, seed=1)
    router.e_score_correction_bias.data = normal(64, seed=2) * 0.3
    logits, expected_weights, expected_ids = router(normal(50, 32))
    ids, weights = ops.moe_route(
        logits.detach(),
        top_k=6,
        scoring="sigmoid",
        renormalize=renormalize,
        scale=2.5,
        bias=router.e_score_correction_bias,
        num_groups=num_groups,
        top_groups=top_groups,
    )
    order, expected_order = ids.sort(-1), expected_ids.sort(-1)
    assert torch.equal(order.values, expected_order.values.int())
    expected = expected_weights.detach().gather(1, expected_order.indices)
    assert_close(weights.gather(1, order.indices), expected, 1e-6, "weights")


def test_of_equal_scores_the_first_expert_is_taken() -> None:
    """Ties never depend on the batch."""
    ids, _ = ops.moe_route(torch.zeros((3, 10)), top_k=4)
    assert [[0, 1, 2, 3]] * 3 == ids.tolist()


def test_refused_routing() -> None:
    """More experts than the groups have, and groups that do not divide them, are named."""
    logits = torch.zeros((2, 12))
    with pytest.raises(ValueError, match="top_k: got 7; allowed: 1 to 6"):
        ops.moe_route(logits, top_k=7, num_groups=4, top_groups=2)
    with pytest.raises(ValueError, match="top_groups: got 5; allowed: 1 to 4"):
        ops.moe_route(logits, top_k=2, num_groups=4, top_groups=5)
    with pytest.raises(ValueError, match=r"num_groups: got 5; allowed: divisors of num_experts \(12\)"):
        ops.moe_route(logits, top_k=2, num_groups=5)


def reference(x: Tensor, ids: Tensor, weights: Tensor, tensors: dict[str, Tensor], activation: str) -> Tensor:
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
            else:
                inner = torch.nn.functional.silu(gate) * up
            y = t["down"][expert] @ inner
            out[token] += factor * (y + t["down_bias"][expert] if "down_bias" in t else y)
        if "shared" in t:
            out[token] += t["shared"][token] * (
                t["shared_gate"][token].sigmoid() if "shared_gate" in t else 1
            )
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 70])
@pytest.mark.parametrize("form", ["plain", "gpt-oss", "shared", "gated shared"])
def test_moe_mlp(form: str, num_tokens: int, dtype: torch.dtype) -> None:
    """Equals the loop over tokens, with biases and shared experts too, and experts that nobody takes."""
    num_experts, hidden, width, top_k = 12, 72, 40, 4
    x = normal(num_tokens, hidden, dtype=dtype)
    tensors = {
        "gate_up": normal(num_experts, 2 * width, hidden, dtype=dtype, seed=1) / 8,
        "down": normal(num_experts, hidden, width, dtype=dtype, seed=2) / 6,
    }
    if form == "gpt-oss":
        tensors["gate_up_bias"] = normal(num_experts, 2 * width, dtype=dtype, seed=3)
        tensors["down_bias"] = normal(num_experts, hidden, dtype=dtype, seed=4)
    if "shared" in form:
        tensors["shared"] = normal(num_tokens, hidden, dtype=dtype, seed=5)
    if form == "gated shared":
        tensors["shared_gate"] = normal(num_tokens, 1, dtype=dtype, seed=6)
    logits = normal(num_tokens, num_experts, seed=7)
    logits[:, 3] = -100  # an expert without tokens
    ids, weights = ops.moe_route(logits, top_k=top_k)
    activation: ops.Activation = "swiglu_oai" if form == "gpt-oss" else "silu"
    out = torch.full((num_tokens, hidden), torch.nan, dtype=dtype)
    assert ops.moe_mlp(x, ids, weights, activation=activation, out=out, **tensors) is out
    assert_close(out, reference(x, ids, weights, tensors, activation), TOLERANCE[dtype], form)


def test_wrong_tensors_are_named() -> None:
    """Sizes that do not fit are refused with what was given."""
    ids, weights = ops.moe_route(torch.zeros((2, 3)), top_k=2)
    gate_up, down = torch.zeros((3, 16, 8)), torch.zeros((3, 8, 8))
    with pytest.raises(ValueError, match=r"down: got torch.float32\[3, 8, 7\].* = \[3, 8, 8\]"):
        ops.moe_mlp(torch.zeros((2, 8)), ids, weights, gate_up=gate_up, down=down[..., :7])
    with pytest.raises(ValueError, match=r"ids: got torch.int64\[2, 2\]"):
        ops.moe_mlp(torch.zeros((2, 8)), ids.long(), weights, gate_up=gate_up, down=down)
