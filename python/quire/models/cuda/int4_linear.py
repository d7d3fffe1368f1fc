"""y = x @ weight.T + bias on a GPU, the weight in four bits with scales for groups of columns: widened in
registers, so that x keeps its 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import ops
from quire.ops import gemm


class CudaInt4Linear:
    """A projection of int4 or mxfp4, whose weight is laid out anew in place; bias stays where it is.

    is_invariant: every row of the result has the same bits whatever rows are beside it.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        zero: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        group_size: int,
        columns: Tensor | None = None,
        is_invariant: bool = False,
    ) -> None:
        """weight: uint8 ``[out_size, in_size / 2]``, the even column in the lower half of a byte; scale:
        ``[out_size, in_size / group_size]``, of int4 in the type of x, of mxfp4 uint8; zero: uint8, as scale,
        None: 8; bias: ``[out_size]``; columns: int32 ``[in_size]``, x is read as x[:, columns]."""
        in_size = weight.size(1) * 2
        if scale.size(1) * group_size != in_size:
            raise ValueError(
                f"scale: got {scale.size(1)} groups of {group_size}; allowed: {in_size} columns of weight"
            )
        self._weight, self._bias = ops.four_bit_columns(weight), bias
        self._scale = ops.by_group(scale)
        self._zero = None if zero is None else ops.by_group(zero.to(torch.int16))
        self._columns = columns
        self._is_invariant = is_invariant
        self._products: dict[tuple[torch.dtype, bool], gemm.SkinnyWeight] = {}

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Into `out`, which a step always gives."""
        if out is None:
            out = x.new_empty(x.size(0), self._weight.size(0))
        self._multiply(x, out, silu_mul=False)
        return out

    def num_scales(self, num_rows: int) -> int:
        return 0

    def add_to(self, x: Tensor, residual: Tensor, added: Tensor | None) -> Tensor | None:
        """Leaves the sum to the norm after it."""
        return self(x, added)

    def _multiply(self, x: Tensor, out: Tensor, *, silu_mul: bool) -> None:
        product = self._product(x.dtype, silu_mul)
        if self._columns is not None:
            x = x.index_select(1, self._columns)
        product.product(x, self._bias, out)

    def _product(self, dtype: torch.dtype, silu_mul: bool) -> gemm.SkinnyWeight:
        """The weight as its kernel wants it described, for activations of this type."""
        found = self._products.get((dtype, silu_mul))
        if found is None:
            is_mxfp4 = self._scale.dtype == torch.uint8
            found = gemm.SkinnyWeight(
                self._weight,
                silu_mul=silu_mul,
                is_invariant=self._is_invariant,
                scale=ops.mxfp4_scales(self._scale, dtype) if is_mxfp4 else self._scale,
                zero=self._zero,
                is_mxfp4=is_mxfp4,
            )
            self._products[dtype, silu_mul] = found
        return found


class CudaInt4GateUp(CudaInt4Linear):
    """Gate and up projection of one input, `weight` [2 * intermediate_size, in_size / 2] with gate first, and
    SiLU(gate) * up."""

    def silu_mul(self, x: Tensor, gate_up: Tensor | None, out: Tensor) -> None:
        if self._weight.size(0) % 16 == 0:
            self._multiply(x, out, silu_mul=True)
        else:
            ops.act_mul(self(x, gate_up), out)
