"""Mixtures of experts: which experts a token goes to, and their MLPs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from quire._tensor_checks import address, check, describe, dtype_id, has_cuda_kernels, stream_of
from quire.ops.layers import ACTIVATIONS, Activation, act_mul

if has_cuda_kernels():
    from quire import _cuda

# Rows of a tile of the GPU's GEMMs: few where experts have few tokens each.
_FEW_ROWS, _MANY_ROWS = 16, 64


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
    out: tuple[Tensor, Tensor] | None = None,
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
    if out is None:
        out = tuple(  # type: ignore[assignment]
            torch.empty(num_tokens, top_k, dtype=dtype, device=logits.device)
            for dtype in (torch.int32, torch.float32)
        )
    assert out is not None
    ids, weights = out
    check("ids", ids, torch.int32, (num_tokens, top_k), "num_tokens, top_k", logits.device.type)
    check("weights", weights, torch.float32, (num_tokens, top_k), "num_tokens, top_k", logits.device.type)
    if logits.is_cuda:
        _cuda.moe_route(
            dtype=dtype_id("logits", logits),
            num_tokens=num_tokens,
            num_experts=num_experts,
            top_k=top_k,
            logits=logits.data_ptr(),
            stride_logits=logits.stride(0),
            ids=ids.data_ptr(),
            weights=weights.data_ptr(),
            is_sigmoid=scoring == "sigmoid",
            renormalize=renormalize,
            scale=scale,
            bias=address(bias),
            num_groups=num_groups,
            top_groups=top_groups,
            stream=stream_of(logits),
        )
        return out
    scores = logits.float().softmax(-1) if scoring == "softmax" else logits.float().sigmoid()
    choice = scores if bias is None else scores + bias
    if num_groups > 1:
        grouped = choice.view(num_tokens, num_groups, -1)
        best = grouped.topk(min(2, grouped.size(2)) if scoring == "sigmoid" else 1).values.sum(-1)
        groups = best.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
        is_out = torch.ones_like(best, dtype=torch.bool).scatter_(1, groups, False)
        choice = grouped.masked_fill(is_out[:, :, None], -torch.inf).view(num_tokens, num_experts)
    chosen = choice.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    taken = scores.gather(1, chosen)
    if renormalize:
        taken = taken / (taken.sum(-1, keepdim=True) + 1e-20)
    ids.copy_(chosen)
    weights.copy_(taken * scale)
    return out


class MoeWorkspace:
    """What `moe_mlp` needs on a GPU beside its arguments, and places for these: one for all layers."""

    def __init__(
        self,
        *,
        num_experts: int,
        top_k: int,
        hidden_size: int,
        intermediate_size: int,
        max_num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def indices(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        num_rows = max_num_tokens * top_k
        self.num_sms = 0
        if device.type == "cuda":
            self.num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        self.entry_of_row, self.row_of_entry = indices(num_rows), indices(num_rows)
        self.tiles = indices(num_rows // _FEW_ROWS + min(num_experts, num_rows), 4)
        self.num_tiles = indices(1)
        self.inner = torch.zeros(num_rows, intermediate_size, dtype=dtype, device=device)
        self.rows = torch.zeros(num_rows, hidden_size, dtype=dtype, device=device)
        # For the caller of moe_route.
        self.logits = torch.zeros(max_num_tokens, num_experts, dtype=dtype, device=device)
        self.ids = indices(max_num_tokens, top_k)
        self.weights = torch.zeros(max_num_tokens, top_k, device=device)
        self.shared_gate = torch.zeros(max_num_tokens, 1, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """What it takes; on the device "meta", what it would take."""
        return sum(tensor.nbytes for tensor in vars(self).values() if isinstance(tensor, Tensor))


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
    workspace: MoeWorkspace | None = None,
) -> Tensor:
    """The sum of each token's experts, times their weights; an expert is down(activation(gate) * up).

    x: `[num_tokens, hidden_size]`; ids, weights: of `moe_route`. gate_up: `[num_experts, 2 *
    intermediate_size, hidden_size]`, gate first; down: `[num_experts, hidden_size, intermediate_size]`;
    biases `[num_experts, out_size]`.
    shared: `[num_tokens, hidden_size]`, of an expert that all tokens have, is added, times
    sigmoid(shared_gate), `[num_tokens, 1]`, where there is one; shared may be out. Sums are in float32, and
    rounded once.
    workspace: on a GPU, where nothing is allocated if out is given. There types are of 16 bits, and sizes
    multiples of 8.
    """
    num_tokens, hidden_size = x.shape
    num_experts, width = gate_up.size(0), gate_up.size(1) // 2
    device = x.device.type
    if x.stride(1) != 1:
        raise ValueError(f"x: got {describe(x)}; allowed: [num_tokens, hidden_size] with contiguous rows")
    check("gate_up", gate_up, x.dtype, (num_experts, 2 * width, hidden_size), "E, 2 * I, hidden_size", device)
    check("down", down, x.dtype, (num_experts, hidden_size, width), "E, hidden_size, I", device)
    check("ids", ids, torch.int32, (num_tokens, ids.size(1)), "num_tokens, top_k", device)
    check("weights", weights, torch.float32, tuple(ids.shape), "num_tokens, top_k", device)
    for name, bias, size in (
        ("gate_up_bias", gate_up_bias, 2 * width),
        ("down_bias", down_bias, hidden_size),
    ):
        if bias is not None:
            check(name, bias, x.dtype, (num_experts, size), "num_experts, out_size", device)
    if shared is not None:
        check("shared", shared, x.dtype, (num_tokens, hidden_size), "num_tokens, hidden_size", device)
    if shared_gate is not None:
        check("shared_gate", shared_gate, x.dtype, (num_tokens, 1), "num_tokens, 1", device)
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    check("out", out, x.dtype, (num_tokens, hidden_size), "num_tokens, hidden_size", device)
    if x.is_cuda:
        if workspace is None:
            raise ValueError("workspace: got None; allowed: a MoeWorkspace, on a GPU")
        _mlp_on_gpu(
            x,
            ids,
            weights,
            workspace,
            gate_up,
            down,
            ACTIVATIONS[activation],
            gate_up_bias=gate_up_bias,
            down_bias=down_bias,
            shared=shared,
            shared_gate=shared_gate,
            out=out,
        )
        return out
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
    return out.copy_(total)


def _mlp_on_gpu(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    workspace: MoeWorkspace,
    gate_up: Tensor,
    down: Tensor,
    activation: int,
    *,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    shared: Tensor | None,
    shared_gate: Tensor | None,
    out: Tensor,
) -> None:
    num_tokens, top_k = ids.shape
    num_experts, hidden_size, width = down.shape
    num_entries = num_tokens * top_k
    if num_entries > workspace.rows.size(0):
        most = workspace.rows.size(0) // top_k
        raise ValueError(f"x: got {num_tokens} tokens; allowed: {most}, as the workspace has it")
    tile_rows = _FEW_ROWS if num_entries <= _FEW_ROWS * num_experts else _MANY_ROWS
    inner, rows = workspace.inner[:num_entries], workspace.rows[:num_entries]
    dtype, stream = dtype_id("x", x), stream_of(x)
    tiles, num_tiles = workspace.tiles.data_ptr(), workspace.num_tiles.data_ptr()
    entry_of_row, row_of_entry = workspace.entry_of_row.data_ptr(), workspace.row_of_entry.data_ptr()
    _cuda.moe_sort(
        num_entries=num_entries,
        num_experts=num_experts,
        tile_rows=tile_rows,
        ids=ids.data_ptr(),
        entry_of_row=entry_of_row,
        row_of_entry=row_of_entry,
        tiles=tiles,
        num_tiles=num_tiles,
        stream=stream,
    )
    common: dict[str, Any] = {"dtype": dtype, "tile_rows": tile_rows, "num_sms": workspace.num_sms}
    common |= {"tiles": tiles, "num_tiles": num_tiles, "stream": stream}
    _cuda.moe_gemm(
        **common,
        n=2 * width,
        k=hidden_size,
        x=x.data_ptr(),
        stride_x=x.stride(0),
        weight=gate_up.data_ptr(),
        out=inner.data_ptr(),
        bias=address(gate_up_bias),
        entry_of_row=entry_of_row,
        top_k=top_k,
        is_gated=True,
        activation=activation,
    )
    _cuda.moe_gemm(
        **common,
        n=hidden_size,
        k=width,
        x=inner.data_ptr(),
        stride_x=width,
        weight=down.data_ptr(),
        out=rows.data_ptr(),
        bias=address(down_bias),
    )
    _cuda.moe_combine(
        dtype=dtype,
        num_tokens=num_tokens,
        top_k=top_k,
        hidden_size=hidden_size,
        x=rows.data_ptr(),
        row_of_entry=row_of_entry,
        weights=weights.data_ptr(),
        out=out.data_ptr(),
        shared=address(shared),
        shared_gate=address(shared_gate),
        stream=stream,
    )
