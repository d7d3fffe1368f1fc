"""What the executor asks of projections, on whatever device and in whatever format of weights."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Linear(Protocol):
    """y = x @ weight.T + bias, for x ``[num_rows, in_size]``."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns y ``[num_rows, out_size]``: `out`, or a new tensor on a device without buffers for it."""

    def add_to(self, x: Tensor, residual: Tensor, added: Tensor | None) -> Tensor | None:
        """residual += y, and returns None; or returns y (in `added`, as `out` above), for the norm that
        follows to add."""


class GateUp(Linear, Protocol):
    """Gate and up projection of one input, gate first."""

    def silu_mul(self, x: Tensor, gate_up: Tensor | None, out: Tensor) -> None:
        """SiLU(gate) * up into out ``[num_rows, intermediate_size]``; gate_up: scratch for y."""
