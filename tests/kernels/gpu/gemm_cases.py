"""What the tests of the three GEMMs share: inputs, references, and chains of kernels that overlap."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from quire import ops
from quire.ops.float8 import FLOAT8_COLUMNS
from quire.ops.gemm import SkinnyWeight, WideWeight
from torch import Tensor

DTYPES = [torch.bfloat16, torch.float16]
# One rounding of the sum; two more with silu_mul, whose inputs may also round to a neighbour.
TOLERANCE = {torch.bfloat16: 2e-3, torch.float16: 3e-4}
SILU_TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 6e-4}


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def product(x: Tensor, w: Tensor) -> Tensor:
    return (x.double() @ w.double().T).float()


def silu_mul(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """Each step rounded as launch_silu_mul does."""
    gate, up = gate_up.to(dtype).float().chunk(2, dim=1)
    return ((gate * torch.sigmoid(gate)).to(dtype).float() * up).to(dtype)


def float8_tolerance(k: int, dtype: torch.dtype, *, silu_mul: bool = False) -> float:
    """What rounding the result leaves, and sums of about 14 bits: the tensor cores align 32 products and the
    sum so far to the largest of them and drop what lies below 2^-13 of it. A step's error does not shrink
    with k, and the errors of steps add up like random ones."""
    rounding = (SILU_TOLERANCE if silu_mul else TOLERANCE)[dtype]
    return rounding + (2 if silu_mul else 1) * 2**-13 * (20 + 2 * math.sqrt(k / 32))


def float8_weight(
    n: int, k: int, *, dtype: torch.dtype, silu_mul: bool = False, seed: int = 0
) -> tuple[WideWeight, Tensor]:
    """A weight of very different scales, and its values in float32."""
    values = normal(n, k, dtype=torch.float32, seed=seed).to(torch.float8_e4m3fn)
    scale = 2.0 ** (torch.arange(n, device="cuda") % 5 - 2) * (1 + torch.arange(n, device="cuda") % 7 / 8)
    dequantized = values.float() * scale[:, None]
    return WideWeight(ops.float8_columns(values), silu_mul=silu_mul, scale=scale, dtype=dtype), dequantized


def dequantized(rows: ops.QuantizedRows) -> Tensor:
    """In float32, the columns in their own order."""
    places = torch.tensor(FLOAT8_COLUMNS, device="cuda").argsort()
    values = rows.values.float().unflatten(1, (-1, 16))[:, :, places].flatten(1)
    if rows.num_scales == 1:
        return values * rows.scales[:, None]
    return values * rows.scales.T.repeat_interleave(128, 1)[:, : values.size(1)]


def check_overlap(chain: Callable[[Tensor, bool], Tensor], x: Tensor) -> None:
    """chain(x, overlaps) in a graph, whose kernels start early: the bits of the launches in order, over and
    over, for changing inputs."""
    inputs = [x, x.flip(1), x * 0.5]
    expected = [chain(each, False) for each in inputs]
    buffer = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(buffer, True)
    for _ in range(30):
        for each, right in zip(inputs, expected, strict=True):
            buffer.copy_(each)
            graph.replay()
            assert torch.equal(out, right)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def skinny_gemm(x: Tensor, weight: SkinnyWeight, **settings: Any) -> Tensor:
    return weight(x, **_given(settings))


def wide_gemm(x: Tensor | ops.QuantizedRows, weight: WideWeight, **settings: Any) -> Tensor:
    return weight(x, **_given(settings))


def split_gemm(x: Tensor | ops.QuantizedRows, weight: WideWeight, **settings: Any) -> Tensor:
    return weight.split(x, **_given(settings))


def widened_gemm(x: Tensor, weight: SkinnyWeight, **settings: Any) -> Tensor:
    return weight.widened(x, **_given(settings))


def tuning(kernel: str, **settings: int) -> Any:
    """How a kernel cuts its work: kernel is Skinny, Wide or Split. Imported late: tests are collected on
    machines that have no `quire._cuda`."""
    return getattr(importlib.import_module("quire._cuda"), f"{kernel}GemmTuning")(**settings)
