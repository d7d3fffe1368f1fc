"""y = x @ weight.T + bias, with the weight laid out for this CPU's GEMM."""

from __future__ import annotations

import torch
from torch import Tensor

# A packed weight serves every number of rows; oneDNN picks the layout for about so many.
_TYPICAL_ROWS = 16


class Linear:
    """A projection. Fill `weight` and `bias`, then call pack() once; only then it can be called.

    oneDNN's packed layout spares each call the repacking of the whole weight. Measured on two Zen 4 cores,
    all projections of the embedded model, bfloat16: 1.0 ms packed and 2.0 ms plain for one row, 1.9 and 3.1
    ms for 16.
    """

    def __init__(self, in_size: int, out_size: int, dtype: torch.dtype, *, bias: bool = False) -> None:
        self.weight = torch.empty(out_size, in_size, dtype=dtype)  # [out_size, in_size], as in checkpoints
        self.bias = torch.empty(out_size, dtype=dtype) if bias else None
        self._packed: Tensor | None = None

    def pack(self, *, keep_plain: bool = False) -> None:
        """Lay the weight out for its GEMM. The plain one is dropped unless it is kept for another use."""
        if torch.backends.mkldnn.is_available():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, _TYPICAL_ROWS)
            if not keep_plain:
                self.weight = torch.empty(0, dtype=self.weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """x: ``[num_rows, in_size]``. Returns a new ``[num_rows, out_size]``; oneDNN has no form with a
        given output."""
        if self._packed is None:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        return _LINEAR(
            x, self._packed, self.bias, "none", [], ""
        )  # no operation behind it, and no settings of one


# Looked up once: torch.ops resolves names in Python.
_LINEAR = torch.ops.mkldnn._linear_pointwise.default
