"""y = x @ weight.T + bias on a GPU: our weight-streaming GEMM for few rows, the one that cuts k for some,
cuBLAS for more; with SiLU * mul our GEMM for many rows."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import ops
from quire.ops import gemm

# Up to so many rows our GEMM for few is faster than cuBLAS, on an H100 and for the shapes of 1B and 8B
# models, and it overlaps with the kernels around it (docs/kernels/skinny_gemm.md). With more, the GEMM for
# many is faster than cuBLAS and a kernel for SiLU * mul (docs/kernels/gate_up_gemm.md).
_FASTER_ROWS = 64
# Weights of so many rows at most, and up to how many rows of x the GEMM that cuts k is then faster than
# cuBLAS: where small tiles are done in one round (docs/kernels/split_gemm.md).
_SPLIT_ROWS = ((4096, 256), (8192, 128))
# With more rows, cuBLAS adds to the residual for less than the norm after it takes to read and write one
# array more each (docs/kernels/step.md).
_NORM_ADDS_ROWS = 256


class CudaLinear:
    """A projection, whose weight and bias stay where they are.

    is_invariant: every row of the result has the same bits whatever rows are beside it. Many rows are then
    computed by the GEMM for few, a part at a time, which is slower (CudaGateUp: all by the GEMM for many).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, is_invariant: bool = False) -> None:
        """weight: ``[out_size, in_size]``; bias: ``[out_size]``."""
        self._bias = bias
        self._is_invariant = is_invariant
        self._transposed = weight.t()
        self._plain = gemm.SkinnyWeight(weight, is_invariant=is_invariant)
        self._split_rows = _split_rows(weight)
        if self._split_rows:
            self._split = gemm.WideWeight(weight)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Into `out`, which a step always gives: it allocates nothing."""
        if out is None:
            out = x.new_empty(x.size(0), self._transposed.size(1))
        if self._is_invariant:
            for rows, to in parts(x, out, gemm.MAX_SKINNY_ROWS):
                self._plain(rows, self._bias, to)
        elif x.size(0) <= _FASTER_ROWS:
            self._plain(x, self._bias, out)
        elif x.size(0) <= self._split_rows:
            self._split.split(x, self._bias, out)
        elif self._bias is None:
            torch.mm(x, self._transposed, out=out)
        else:
            torch.addmm(self._bias, x, self._transposed, out=out)
        return out

    def num_scales(self, num_rows: int) -> int:
        return 0

    def add_to(self, x: Tensor, residual: Tensor, added: Tensor | None) -> Tensor | None:
        """Adding to the residual rounds once."""
        if self._is_invariant or x.size(0) <= _NORM_ADDS_ROWS or self._bias is not None:
            return self(x, added)
        torch.addmm(residual, x, self._transposed, out=residual)
        return None


class CudaGateUp(CudaLinear):
    """Gate and up projection of one input, `weight` [2 * intermediate_size, in_size] with gate first, and
    SiLU(gate) * up."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, is_invariant: bool = False) -> None:
        super().__init__(weight, bias, is_invariant=is_invariant)
        self._fused = self._wide = None
        if weight.size(0) % 16 == 0:
            self._fused = gemm.SkinnyWeight(weight, silu_mul=True, is_invariant=is_invariant)
        if gemm.WideWeight.takes(weight, silu_mul=True):
            self._wide = gemm.WideWeight(weight, silu_mul=True)

    def silu_mul(self, x: Tensor, gate_up: Tensor | None, out: Tensor) -> None:
        if self._wide is not None and (self._is_invariant or x.size(0) > _FASTER_ROWS):
            self._wide(x, self._bias, out)  # a row has the same bits in any number of rows
        elif self._fused is not None and (self._is_invariant or x.size(0) <= _FASTER_ROWS):
            for rows, to in parts(x, out, gemm.MAX_SKINNY_ROWS):
                self._fused(rows, self._bias, to)
        else:
            ops.act_mul(self(x, gate_up), out)


def _split_rows(weight: Tensor) -> int:
    """Up to how many rows of x the GEMM that cuts k is the fastest; 0: of none."""
    if not gemm.WideWeight.takes(weight):
        return 0
    return next((rows for columns, rows in _SPLIT_ROWS if weight.size(0) <= columns), 0)


def parts(x: Tensor, out: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Both, cut into pieces that the GEMM for few rows takes."""
    return [(x[i : i + size], out[i : i + size]) for i in range(0, x.size(0), size)]
