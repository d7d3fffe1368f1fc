"""The GEMMs for few, for some and for many rows on torch tensors, as the tests and the benchmarks call them:
on the current stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_ops import DTYPE_IDS, _cuda, _stream
from torch import Tensor


class Weight:
    """W [n, k] with its description for the kernel; silu_mul: gate rows, then up rows."""

    def __init__(self, w: Tensor, silu_mul: bool = False) -> None:
        assert w.is_contiguous()
        self.tensor, self.silu_mul = w, silu_mul
        self.num_out = w.size(0) // 2 if silu_mul else w.size(0)
        self.handle = _cuda.SkinnyGemmWeight(w.data_ptr(), w.size(0), w.size(1), DTYPE_IDS[w.dtype], silu_mul)


def tuning(**settings: int) -> Any:
    return _cuda.SkinnyGemmTuning(**settings)


def skinny_gemm(
    x: Tensor,
    weight: Weight,
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    out: Tensor | None = None,
    overlaps: bool = True,
    is_invariant: bool = False,
    tuning: Any = None,
) -> Tensor:
    num_rows = x.size(0) if rows is None else rows.numel()
    if out is None:
        out = torch.empty((num_rows, weight.num_out), dtype=x.dtype, device=x.device)
    more = {} if tuning is None else {"tuning": tuning}
    _cuda.skinny_gemm(
        weight.handle,
        num_rows,
        x.data_ptr(),
        x.stride(0),
        0 if bias is None else bias.data_ptr(),
        0 if rows is None else rows.data_ptr(),
        x.size(0),
        out.data_ptr(),
        out.stride(0),
        _stream(),
        overlaps=overlaps,
        is_invariant=is_invariant,
        **more,
    )
    return out


class WideWeight(Weight):
    """The same for the GEMM for many rows."""

    def __init__(self, w: Tensor, silu_mul: bool = False) -> None:
        assert w.is_contiguous()
        self.tensor, self.silu_mul = w, silu_mul
        self.num_out = w.size(0) // 2 if silu_mul else w.size(0)
        self.handle = _cuda.WideGemmWeight(w.data_ptr(), w.size(0), w.size(1), DTYPE_IDS[w.dtype], silu_mul)


def wide_tuning(**settings: int) -> Any:
    return _cuda.WideGemmTuning(**settings)


def split_tuning(**settings: int) -> Any:
    return _cuda.SplitGemmTuning(**settings)


def _gemm(
    launch: Callable[..., None],
    x: Tensor,
    weight: WideWeight,
    *,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    overlaps: bool = True,
    tuning: Any = None,
) -> Tensor:
    if out is None:
        out = torch.empty((x.size(0), weight.num_out), dtype=x.dtype, device=x.device)
    more = {} if tuning is None else {"tuning": tuning}
    launch(
        weight.handle,
        x.size(0),
        x.data_ptr(),
        x.stride(0),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        out.stride(0),
        _stream(),
        overlaps=overlaps,
        **more,
    )
    return out


def wide_gemm(x: Tensor, weight: WideWeight, **settings: Any) -> Tensor:
    """settings: as _gemm()."""
    return _gemm(_cuda.wide_gemm, x, weight, **settings)


def split_gemm(x: Tensor, weight: WideWeight, **settings: Any) -> Tensor:
    """settings: as _gemm()."""
    return _gemm(_cuda.split_gemm, x, weight, **settings)
