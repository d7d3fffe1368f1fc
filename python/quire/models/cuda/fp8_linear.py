"""y = x @ (weight * scale).T + bias on a GPU, the weight in float8: widened in registers for few rows, which
keep their 16 bits; more rows are multiplied quantised."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import ops
from quire.models.cuda.float8_product import Float8Product
from quire.models.linear import Input
from quire.ops import gemm

# Up to so many rows widening the weight is as fast as quantising the rows; they then keep their 16 bits.
_WIDENED_ROWS = 16


class CudaFp8Linear:
    """A projection, whose weight is laid out anew in place; scale and bias stay where they are.

    is_invariant: every row of the result has the same bits whatever rows are beside it; then no rows are
    quantised.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, is_invariant: bool = False
    ) -> None:
        """weight: float8_e4m3fn ``[out_size, in_size]``, its columns in their own order; scale: float32
        ``[out_size]``, or ``[out_size, ceil(in_size / 128)]``; bias: ``[out_size]``."""
        self._weight, self._scale, self._bias = ops.float8_columns(weight), scale, bias
        self._is_invariant = is_invariant
        self._products: dict[tuple[torch.dtype, bool], gemm.SkinnyWeight] = {}
        self._quantized = None
        if not is_invariant and gemm.WideWeight.takes(weight):
            self._quantized = Float8Product(self._weight, scale, bias)

    def num_scales(self, num_rows: int) -> int:
        if self._quantized is None or num_rows <= _WIDENED_ROWS:
            return 0
        return self._quantized.num_scales

    def __call__(self, x: Input, out: Tensor | None = None) -> Tensor:
        """Into `out`, which a step always gives: it allocates nothing."""
        if isinstance(x, ops.QuantizedRows):
            assert self._quantized is not None
            assert out is not None
            return self._quantized(x, out)
        if out is None:
            out = x.new_empty(x.size(0), self._weight.size(0))
        self._multiply(x, out, silu_mul=False)
        return out

    def add_to(self, x: Input, residual: Tensor, added: Tensor | None) -> Tensor | None:
        """Leaves the sum to the norm after it."""
        return self(x, added)

    def _multiply(self, x: Tensor, out: Tensor, *, silu_mul: bool) -> None:
        product = self._product(x.dtype, silu_mul)
        product.product(x, self._bias, out)

    def _product(self, dtype: torch.dtype, silu_mul: bool) -> gemm.SkinnyWeight:
        """The weight as its kernel wants it described, for activations of this type."""
        found = self._products.get((dtype, silu_mul))
        if found is None:
            found = gemm.SkinnyWeight(
                self._weight,
                silu_mul=silu_mul,
                is_invariant=self._is_invariant,
                scale=self._scale,
                dtype=dtype,
            )
            self._products[dtype, silu_mul] = found
        return found


class CudaFp8GateUp(CudaFp8Linear):
    """Gate and up projection of one input, `weight` [2 * intermediate_size, in_size] with gate first, and
    SiLU(gate) * up."""

    def silu_mul(self, x: Input, gate_up: Tensor | None, out: Tensor) -> None:
        if isinstance(x, ops.QuantizedRows):
            assert self._quantized is not None
            self._quantized.silu_mul(x, gate_up, out)
        elif self._weight.size(0) % 16 == 0:
            self._multiply(x, out, silu_mul=True)
        else:
            ops.act_mul(self(x, gate_up), out)
