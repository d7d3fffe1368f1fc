"""The row-wise layers between the GEMMs of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core
from quire._tensor_checks import address, check, describe, dtype_id, has_cuda_kernels, stream_of

if has_cuda_kernels():
    from quire import _cuda


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    *,
    out_scale: Tensor | None = None,
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight per row of x `[num_rows, hidden_size]`; weight `[hidden_size]`.

    With a residual (shape of x, contiguous): residual += x first, in place, and the norm is of the sum.
    out_scale, on a GPU: `[num_rows]` float32; out is then float8 e4m3, of which row i times out_scale[i] is
    about the result.
    """
    num_rows, hidden_size = x.size(0), x.size(1)
    dtype = x.dtype
    out_dtype = dtype if out_scale is None else torch.float8_e4m3fn
    if out is None:
        out = torch.empty((num_rows, hidden_size), dtype=out_dtype, device=x.device)
    if (
        x.stride(1) != 1
        or weight.dtype is not dtype
        or weight.numel() != hidden_size
        or not weight.is_contiguous()
        or out.dtype is not out_dtype
        or out.size(0) != num_rows
        or out.size(1) != hidden_size
        or not out.is_contiguous()
    ):
        raise ValueError(
            f"x, weight, out: got {describe(x)}, {describe(weight)}, {describe(out)}; allowed: one type, "
            "[num_rows, hidden_size] with contiguous rows, contiguous [hidden_size], contiguous [num_rows, "
            "hidden_size]"
        )
    if residual is not None and (
        residual.dtype is not dtype
        or residual.size(0) != num_rows
        or residual.size(1) != hidden_size
        or not residual.is_contiguous()
    ):
        raise ValueError(
            f"residual: got {describe(residual)}; "
            f"allowed: contiguous {dtype}[num_rows, hidden_size] = [{num_rows}, {hidden_size}]"
        )
    is_cuda = x.is_cuda
    run = _cuda.rms_norm if is_cuda else _core.cpu_rms_norm
    run(
        dtype=dtype_id("x", x),
        num_rows=num_rows,
        hidden_size=hidden_size,
        eps=eps,
        x=x.data_ptr(),
        stride_x=x.stride(0),
        weight=weight.data_ptr(),
        out=out.data_ptr(),
        residual=address(residual),
        out_scale=address(out_scale),
        stream=stream_of(out) if is_cuda else 0,
    )
    return out


def silu_mul(gate_up: Tensor, out: Tensor | None = None, *, out_scale: Tensor | None = None) -> Tensor:
    """silu(gate) * up for gate_up `[num_rows, 2 * intermediate_size]`: gate first, then up. out_scale: as in
    `rms_norm`."""
    num_rows, width = gate_up.size(0), gate_up.size(1)
    out_dtype = gate_up.dtype if out_scale is None else torch.float8_e4m3fn
    if out is None:
        out = torch.empty((num_rows, width // 2), dtype=out_dtype, device=gate_up.device)
    if (
        width % 2 != 0
        or gate_up.stride(1) != 1
        or out.dtype is not out_dtype
        or out.size(0) != num_rows
        or out.size(1) * 2 != width
        or not out.is_contiguous()
    ):
        raise ValueError(
            f"gate_up, out: got {describe(gate_up)}, {describe(out)}; allowed: one type, [num_rows, "
            "2 * intermediate_size] with contiguous rows, contiguous [num_rows, intermediate_size]"
        )
    is_cuda = gate_up.is_cuda
    run = _cuda.silu_mul if is_cuda else _core.cpu_silu_mul
    run(
        dtype=dtype_id("gate_up", gate_up),
        num_rows=num_rows,
        intermediate_size=width // 2,
        gate_up=gate_up.data_ptr(),
        stride_gate_up=gate_up.stride(0),
        out=out.data_ptr(),
        out_scale=address(out_scale),
        stream=stream_of(out) if is_cuda else 0,
    )
    return out


def embedding(
    token_ids: Tensor, table: Tensor, out: Tensor | None = None, *, last_token_ids: Tensor | None = None
) -> Tensor:
    """out[i] = table[token_ids[i]]: token_ids `[num_tokens]` int32, table `[vocab_size, hidden_size]`.

    On a GPU a negative id stands for `last_token_ids[~id]`, and one that is no token gives a row of NaN; on
    the CPU both are errors.
    """
    num_tokens = token_ids.size(0)
    vocab_size, hidden_size = table.size(0), table.size(1)
    if out is None:
        out = torch.empty((num_tokens, hidden_size), dtype=table.dtype, device=table.device)
    device = table.device.type
    check("token_ids", token_ids, torch.int32, (num_tokens,), "num_tokens", device)
    check("table", table, table.dtype, (vocab_size, hidden_size), "vocab_size, hidden_size", device)
    check("out", out, table.dtype, (num_tokens, hidden_size), "num_tokens, hidden_size", device)
    is_cuda = table.is_cuda
    run = _cuda.embedding if is_cuda else _core.cpu_embedding
    run(
        dtype=dtype_id("table", table),
        num_tokens=num_tokens,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        token_ids=token_ids.data_ptr(),
        table=table.data_ptr(),
        out=out.data_ptr(),
        last_token_ids=address(last_token_ids),
        num_last_token_ids=0 if last_token_ids is None else last_token_ids.size(0),
        stream=stream_of(out) if is_cuda else 0,
    )
    return out


def gather_rows(
    indices: Tensor, x: Tensor, out: Tensor, x2: Tensor | None = None, out2: Tensor | None = None
) -> None:
    """out[i] = x[indices[i]], and the same of a second pair. An index that is no row of x: NaN.

    indices: `[num_rows]` int32; x: `[num_x_rows, width]`, rows may be apart; out: contiguous. On a GPU only:
    on the CPU torch's index_select does it.
    """
    _cuda.gather_rows(
        dtype=dtype_id("x", x),
        num_rows=indices.size(0),
        num_x_rows=x.size(0),
        indices=indices.data_ptr(),
        x=x.data_ptr(),
        stride_x=x.stride(0),
        width=x.size(1),
        out=out.data_ptr(),
        x2=address(x2),
        stride_x2=0 if x2 is None else x2.stride(0),
        width2=0 if x2 is None else x2.size(1),
        out2=address(out2),
        stream=stream_of(x),
    )
