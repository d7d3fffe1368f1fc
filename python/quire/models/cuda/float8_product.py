"""x @ (weight * scale).T + bias on a GPU with x and the weight in float8: our GEMM that cuts k for some rows,
our GEMM for many for more."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import ops
from quire.ops import gemm

# Columns of out and rows of x of a tile of the GEMM that cuts k, half of the other's tile: where one round
# does all tiles, it is the faster one. Only it has scales of blocks.
_TILE = 128
# With up to so many rows it does SiLU * mul as well.
_FEW_ROWS = 64


class Float8Product:
    """A weight for quantised rows.

    A row of the result depends on the number of rows.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """weight: float8_e4m3fn ``[out_size, in_size]``, its columns put in order by `ops.float8_columns`;
        scale: float32 ``[out_size]``, or ``[out_size, num_scales]`` of each 128 columns; bias:
        ``[out_size]``."""
        self._weight, self._scale, self._bias = weight, scale, bias
        self.num_scales = 1 if scale.ndim == 1 else scale.size(1)
        self._num_sms = torch.cuda.get_device_properties(weight.device).multi_processor_count
        self._described: dict[tuple[torch.dtype, bool], gemm.WideWeight] = {}

    def __call__(self, x: ops.QuantizedRows, out: Tensor) -> Tensor:
        weight = self._for(out.dtype, silu_mul=False)
        num_tiles = -(-out.size(0) // _TILE) * -(-out.size(1) // _TILE)
        is_one_round = num_tiles <= self._num_sms
        multiply = weight.split if is_one_round or self.num_scales > 1 else weight
        return multiply(x, self._bias, out)

    def silu_mul(self, x: ops.QuantizedRows, gate_up: Tensor | None, out: Tensor) -> None:
        """SiLU(gate) * up of the weight's halves; gate_up: scratch for both."""
        if self.num_scales == 1 and gemm.WideWeight.takes(self._weight, silu_mul=True):
            weight = self._for(out.dtype, silu_mul=True)
            multiply = weight.split if out.size(0) <= _FEW_ROWS else weight
            multiply(x, self._bias, out)
        else:
            assert gate_up is not None
            ops.act_mul(self(x, gate_up), out)

    def _for(self, dtype: torch.dtype, *, silu_mul: bool) -> gemm.WideWeight:
        """The weight as its kernels want it described, for results of this type."""
        found = self._described.get((dtype, silu_mul))
        if found is None:
            found = gemm.WideWeight(self._weight, silu_mul=silu_mul, scale=self._scale, dtype=dtype)
            self._described[dtype, silu_mul] = found
        return found
