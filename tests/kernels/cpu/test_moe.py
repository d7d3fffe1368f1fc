"""Mixtures of experts against transformers' routers and a plain loop over tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from kernel_reference import assert_close
from moe_reference import ACTIVATION_OF_FORM, make_experts, moe_mlp, normal
from quire import ops
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 70])
@pytest.mark.parametrize("form", ACTIVATION_OF_FORM)
def test_moe_mlp(form: str, num_tokens: int, dtype: torch.dtype) -> None:
    """Equals the loop over tokens, with biases and shared experts too, and experts that nobody takes."""
    x, tensors = make_experts(form, num_tokens, dtype)
    logits = normal(num_tokens, 12, seed=7)
    logits[:, 3] = -100  # an expert without tokens
    ids, weights = ops.moe_route(logits, top_k=4)
    activation = ACTIVATION_OF_FORM[form]
    out = torch.full(x.shape, torch.nan, dtype=dtype)
    assert ops.moe_mlp(x, ids, weights, activation=activation, out=out, **tensors) is out
    assert_close(out, moe_mlp(x, ids, weights, tensors, activation), TOLERANCE[dtype], form)


def test_wrong_tensors_are_named() -> None:
    """Sizes that do not fit are refused with what was given."""
    ids, weights = ops.moe_route(torch.zeros((2, 3)), top_k=2)
    gate_up, down = torch.zeros((3, 16, 8)), torch.zeros((3, 8, 8))
    with pytest.raises(ValueError, match=r"down: got torch.float32\[3, 8, 7\].* = \[3, 8, 8\]"):
        ops.moe_mlp(torch.zeros((2, 8)), ids, weights, gate_up=gate_up, down=down[..., :7])
    with pytest.raises(ValueError, match=r"ids: got torch.int64\[2, 2\]"):
        ops.moe_mlp(torch.zeros((2, 8)), ids.long(), weights, gate_up=gate_up, down=down)
