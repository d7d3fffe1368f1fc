"""y = x @ weight.T + bias, with the weight laid out for this CPU's GEMM."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import ops

# A packed weight serves every number of rows; oneDNN picks the layout for about so many.
_TYPICAL_ROWS = 16


class CpuLinear:
    """A projection.

    oneDNN's packed layout spares each call the repacking of the whole weight. Measured on two Zen 4 cores,
    all projections of the embedded model, bfloat16: 1.0 ms packed and 2.0 ms plain for one row, 1.9 and 3.1
    ms for 16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight: ``[out_size, in_size]``, kept only where there is no oneDNN; bias: ``[out_size]``."""
        self._bias = bias
        self._is_packed = torch._C._has_mkldnn
        if self._is_packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)
        self._weight = weight

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns a new tensor: oneDNN has no form with a given output."""
        if not self._is_packed:
            return torch.nn.functional.linear(x, self._weight, self._bias)
        assert _LINEAR is not None
        y: Tensor = _LINEAR(x, self._weight, self._bias, "none", [], "")  # no operation fused after it
        return y

    def num_scales(self, num_rows: int) -> int:
        return 0

    def add_to(self, x: Tensor, residual: Tensor, added: Tensor | None) -> Tensor:
        """Returns y: the norm that follows reads it anyway."""
        return self(x)


class CpuGateUp(CpuLinear):
    """Gate and up projection, and SiLU(gate) * up."""

    def silu_mul(self, x: Tensor, gate_up: Tensor | None, out: Tensor) -> None:
        ops.act_mul(self(x), out)


# Looked up once: torch.ops resolves names in Python.
_LINEAR = torch.ops.mkldnn._linear_pointwise.default if torch._C._has_mkldnn else None
