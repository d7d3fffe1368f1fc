"""The row-wise layers between the GEMMs of a block."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from quire import _core
from quire._tensor_checks import address, check, describe, dtype_id, has_cuda_kernels, stream_of

if has_cuda_kernels():
    from quire import _cuda


Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai"]
ACTIVATIONS: dict[str, int] = {name: number for number, name in enumerate(get_args(Activation))}


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    *,
    residual_scale: float = 1.0,
    weight_offset: float = 0.0,
    rounds_once: bool = False,
    out_scale: Tensor | None = None,
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * (weight + weight_offset) per row of x `[num_rows, hidden_size]`.

    weight: `[hidden_size]`, or `[num_groups, hidden_size / num_groups]`, which cuts each row into so many
    parts, each a norm of its own: the heads of queries or keys. Rows of x and out may lie apart, and out may
    be x.
    With a residual (shape of x, contiguous): residual += x * residual_scale first, in place, and the norm is
    of the sum. A 16-bit norm is rounded before the product with the weight, unless it rounds_once, after it.
    out, out_scale, on a GPU: values and scales of `QuantizedRows`, out contiguous.
    """
    options: dict[str, Any] = {} if residual_scale == 1 else {"residual_scale": residual_scale}
    if rounds_once or weight_offset:
        options |= {"rounds_once": rounds_once, "weight_offset": weight_offset}
    return _norm(x, weight, eps, residual, out, out_scale, options)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    *,
    residual_scale: float = 1.0,
    out_scale: Tensor | None = None,
) -> Tensor:
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias per row; all else as in `rms_norm`."""
    if bias is not None:
        check("bias", bias, x.dtype, tuple(weight.shape), "as weight", x.device.type)
    options = {"is_centered": True, "bias": address(bias), "residual_scale": residual_scale}
    return _norm(x, weight, eps, residual, out, out_scale, options)


def _norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None,
    out: Tensor | None,
    out_scale: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """options: arguments of the kernel beside those that every norm has. Python is slow with more than 15."""
    num_rows, width = x.size(0), x.size(1)
    dtype = x.dtype
    out_dtype = dtype if out_scale is None else torch.float8_e4m3fn
    if out is None:
        out = torch.empty((num_rows, width), dtype=out_dtype, device=x.device)
    stride_x, stride_out = x.stride(), out.stride()
    if (
        stride_x[1] != 1
        or weight.dtype is not dtype
        or weight.numel() != width
        or not weight.is_contiguous()
        or out.dtype is not out_dtype
        or out.size(0) != num_rows
        or out.size(1) != width
        or stride_out[1] != 1
    ):
        raise ValueError(
            f"x, weight, out: got {describe(x)}, {describe(weight)}, {describe(out)}; allowed: one type, "
            "[num_rows, hidden_size] with contiguous rows, contiguous [hidden_size], [num_rows, hidden_size] "
            "with contiguous rows"
        )
    if residual is not None and (
        residual.dtype is not dtype
        or residual.size(0) != num_rows
        or residual.size(1) != width
        or not residual.is_contiguous()
    ):
        raise ValueError(
            f"residual: got {describe(residual)}; "
            f"allowed: contiguous {dtype}[num_rows, hidden_size] = [{num_rows}, {width}]"
        )
    if out_scale is not None and out_scale.ndim == 2:
        options = options | {"num_scales": out_scale.size(0)}
    group_size = weight.size(-1)
    is_cuda = x.is_cuda
    run = _cuda.norm if is_cuda else _core.cpu_norm
    if options:
        run = partial(run, **options)
    run(
        dtype=dtype_id("x", x),
        num_rows=num_rows,
        hidden_size=group_size,
        eps=eps,
        x=x.data_ptr(),
        stride_x=stride_x[0],
        weight=weight.data_ptr(),
        out=out.data_ptr(),
        stride_out=stride_out[0],
        num_groups=width // group_size,
        residual=address(residual),
        out_scale=address(out_scale),
        stream=stream_of(out) if is_cuda else 0,
    )
    return out


def act_mul(
    gate_up: Tensor,
    out: Tensor | None = None,
    *,
    activation: Activation = "silu",
    out_scale: Tensor | None = None,
) -> Tensor:
    """activation(gate) * up for gate_up `[num_rows, 2 * intermediate_size]`: gate first, then up.

    swiglu_oai: gate is at most 7, up within 7 of 0; gate * sigmoid(1.702 * gate) * (up + 1).
    out_scale: as in `rms_norm`.
    """
    return _activate("gate_up", gate_up, out, activation, is_gated=True, out_scale=out_scale)


def activate(x: Tensor, out: Tensor | None = None, *, activation: Activation) -> Tensor:
    """activation(x) for x `[num_rows, intermediate_size]`, element by element. out may be x."""
    if activation == "swiglu_oai":
        raise ValueError(f"activation: got {activation!r}; allowed here: those without a gate")
    return _activate("x", x, out, activation, is_gated=False)


def _activate(
    name: str,
    x: Tensor,
    out: Tensor | None,
    activation: Activation,
    *,
    is_gated: bool,
    out_scale: Tensor | None = None,
) -> Tensor:
    num_rows, width = x.size(0), x.size(1)
    parts = 2 if is_gated else 1
    out_dtype = x.dtype if out_scale is None else torch.float8_e4m3fn
    if out is None:
        out = torch.empty((num_rows, width // parts), dtype=out_dtype, device=x.device)
    if (
        width % parts != 0
        or x.stride(1) != 1
        or out.dtype is not out_dtype
        or out.size(0) != num_rows
        or out.size(1) * parts != width
        or not out.is_contiguous()
    ):
        raise ValueError(
            f"{name}, out: got {describe(x)}, {describe(out)}; allowed: one type, [num_rows, "
            f"{parts} * intermediate_size] with contiguous rows, contiguous [num_rows, intermediate_size]"
        )
    is_cuda = x.is_cuda
    run = _cuda.activate if is_cuda else _core.cpu_activate
    run(
        dtype=dtype_id(name, x),
        activation=ACTIVATIONS[activation],
        is_gated=is_gated,
        num_rows=num_rows,
        size=width // parts,
        x=x.data_ptr(),
        stride_x=x.stride(0),
        out=out.data_ptr(),
        out_scale=address(out_scale),
        stream=stream_of(out) if is_cuda else 0,
    )
    return out


def scale_and_cap(x: Tensor, *, scale: float = 1.0, soft_cap: float | None = None) -> Tensor:
    """x becomes x * scale, then soft_cap * tanh(that / soft_cap) where there is a cap, in place: logits
    `[num_rows, vocab_size]`, rows of which may lie apart."""
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(f"x: got {describe(x)}; allowed: [num_rows, size] with contiguous rows")
    is_cuda = x.is_cuda
    run = _cuda.scale_and_cap if is_cuda else _core.cpu_scale_and_cap
    run(
        dtype=dtype_id("x", x),
        num_rows=x.size(0),
        size=x.size(1),
        x=x.data_ptr(),
        stride_x=x.stride(0),
        scale=scale,
        soft_cap=soft_cap or 0.0,
        stream=stream_of(x) if is_cuda else 0,
    )
    return x


def embedding(
    token_ids: Tensor,
    table: Tensor,
    out: Tensor | None = None,
    *,
    scale: float = 1.0,
    last_token_ids: Tensor | None = None,
) -> Tensor:
    """out[i] = table[token_ids[i]] * scale; token_ids `[num_tokens]` int32, table `[vocab_size,
    hidden_size]`.

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
        scale=scale,
        stream=stream_of(out) if is_cuda else 0,
    )
    return out


def gather_rows(
    indices: Tensor, x: Tensor, out: Tensor, x2: Tensor | None = None, out2: Tensor | None = None
) -> None:
    """out[i] = x[indices[i]], and the same of a second pair. An index that is no row of x: NaN.

    indices: `[num_rows]` int32; x: `[num_x_rows, width]`, rows may be apart; out: contiguous. On the CPU an
    index that is no row is an error.
    """
    if not x.is_cuda:
        torch.index_select(x, 0, indices, out=out)
        if x2 is not None and out2 is not None:
            torch.index_select(x2, 0, indices, out=out2)
        return
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
