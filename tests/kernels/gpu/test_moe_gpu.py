"""Mixtures of experts on the GPU against the CPU's routing and a loop over tokens in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_reference import assert_close
from moe_reference import ACTIVATION_OF_FORM, make_experts, moe_mlp, normal
from quire import ops
from torch import Tensor

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16]
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
SIGMOID: dict[str, Any] = {"scoring": "sigmoid", "scale": 2.5}


def to_gpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in tensors.items()}


def make_workspace(tensors: dict[str, Tensor], top_k: int, max_num_tokens: int) -> ops.MoeWorkspace:
    num_experts, hidden_size, intermediate_size = tensors["down"].shape
    workspace = ops.MoeWorkspace(
        num_experts=num_experts,
        top_k=top_k,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        max_num_tokens=max_num_tokens,
        dtype=tensors["down"].dtype,
        device=torch.device("cuda"),
    )
    for indices in (workspace.entry_of_row, workspace.row_of_entry, workspace.tiles):
        indices.fill_(2**31 - 1)
    workspace.inner.fill_(torch.nan)
    workspace.rows.fill_(torch.nan)
    return workspace


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES], ids=str)
@pytest.mark.parametrize("num_experts", [8, 60, 128, 256, 512])
@pytest.mark.parametrize(
    "options",
    [{}, {"renormalize": False}, SIGMOID, {**SIGMOID, "num_groups": 4, "top_groups": 2}, {"num_groups": 2}],
    ids=str,
)
def test_routing(options: dict[str, Any], num_experts: int, dtype: torch.dtype) -> None:
    """The CPU's experts and weights; ties go to the first expert; NaN touches its own token alone."""
    logits = normal(77, num_experts + 8, dtype=dtype)[:, :num_experts]
    logits[5] = 0
    top_k = 4
    if "scoring" in options:
        options = {**options, "bias": normal(num_experts, seed=1) * 0.1}
    expected_ids, expected = ops.moe_route(logits, top_k=top_k, **options)
    moved = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in options.items()}
    on_gpu = logits.cuda()
    on_gpu[9] = torch.nan
    ids, weights = (x.cpu() for x in ops.moe_route(on_gpu, top_k=top_k, **moved))
    assert weights[9].isnan().all()
    assert ((0 <= ids) & (ids < num_experts)).all()
    others = torch.arange(77) != 9
    assert_close(weights[others], expected[others], 1e-6, "weights")
    # Scores that differ in the last bit only may come in another order.
    same = (ids == expected_ids).all(1)
    assert same[5]
    assert same[others].float().mean() > 0.9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 70, 600])
@pytest.mark.parametrize("form", ACTIVATION_OF_FORM)
@pytest.mark.parametrize(("hidden_size", "intermediate_size"), [(72, 40), (512, 192), (136, 200)])
def test_moe_mlp(
    hidden_size: int, intermediate_size: int, form: str, num_tokens: int, dtype: torch.dtype
) -> None:
    """Equals the loop over tokens: few and many rows per expert, sizes that no tile divides, biases, shared
    experts, experts without tokens; nothing past the step's rows is used."""
    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
    x, tensors = make_experts(form, num_tokens, dtype, **sizes)
    logits = normal(num_tokens, 12, seed=7)
    logits[:, 3] = -100
    logits[:, 5] += 3  # more tokens than the others
    ids, weights = ops.moe_route(logits, top_k=4)
    activation = ACTIVATION_OF_FORM[form]
    apart = torch.full((num_tokens, hidden_size + 8), torch.nan, dtype=dtype, device="cuda")
    apart[:, :hidden_size] = x.cuda()
    out = torch.full((num_tokens, hidden_size), torch.nan, dtype=dtype, device="cuda")
    workspace = make_workspace(tensors, 4, num_tokens + 3)
    ops.moe_mlp(
        apart[:, :hidden_size],
        ids.cuda(),
        weights.cuda(),
        activation=activation,
        out=out,
        workspace=workspace,
        **to_gpu(tensors),
    )
    assert_close(out.cpu(), moe_mlp(x, ids, weights, tensors, activation), TOLERANCE[dtype], form)


def test_batch_mates_change_nothing_and_graphs_replay() -> None:
    """A token's bits are the same alone and among many, in either size of tiles; all can be captured."""
    x, tensors = make_experts("plain", 600, torch.bfloat16, hidden_size=256, intermediate_size=128)
    on_gpu, moved = x.cuda(), to_gpu(tensors)
    logits = normal(600, 12, seed=7).cuda()
    workspace = make_workspace(tensors, 4, 600)
    ids = torch.zeros(600, 4, dtype=torch.int32, device="cuda")
    weights = torch.zeros(600, 4, device="cuda")
    out = torch.zeros_like(on_gpu)

    def run(num_tokens: int) -> None:
        rows = slice(num_tokens)
        ops.moe_route(logits[rows], top_k=4, out=(ids[rows], weights[rows]))
        ops.moe_mlp(on_gpu[rows], ids[rows], weights[rows], out=out[rows], workspace=workspace, **moved)

    run(600)
    together = out.clone()
    for num_tokens in (1, 20):
        out.fill_(torch.nan)
        run(num_tokens)
        assert torch.equal(out[:num_tokens], together[:num_tokens])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(600)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1)).cuda()
    on_gpu.copy_(on_gpu[order])
    logits.copy_(logits[order])
    for _ in range(3):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, together[order])


def test_refused_sizes() -> None:
    """More tokens than the workspace has, and no workspace, are named."""
    x, tensors = make_experts("plain", 9, torch.bfloat16)
    ids, weights = ops.moe_route(normal(9, 12).cuda(), top_k=4)
    moved = to_gpu(tensors)
    with pytest.raises(ValueError, match="x: got 9 tokens; allowed: 8, as the workspace has it"):
        ops.moe_mlp(x.cuda(), ids, weights, workspace=make_workspace(tensors, 4, 8), **moved)
    with pytest.raises(ValueError, match="workspace: got None; allowed: a MoeWorkspace, on a GPU"):
        ops.moe_mlp(x.cuda(), ids, weights, **moved)
