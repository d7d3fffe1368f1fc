"""What the executor asks of projections, on whatever device and in whatever format of weights."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from quire import ops

Input = Tensor | ops.QuantizedRows


class Linear(Protocol):
    """y = x @ weight.T + bias, for x ``[num_rows, in_size]``: quantised where num_scales() says so, else a
    Tensor."""

    def __call__(self, x: Any, out: Tensor | None = None) -> Tensor:
        """Returns y ``[num_rows, out_size]``: `out`, or a new tensor on a device without buffers for it."""

    def add_to(self, x: Any, residual: Tensor, added: Tensor | None) -> Tensor | None:
        """residual += y, and returns None; or returns y (in `added`, as `out` above), for the norm that
        follows to add."""

    def num_scales(self, num_rows: int) -> int:
        """Scales of a row of x, where so many rows are multiplied quantised; 0: they are not."""


class GateUp(Linear, Protocol):
    """Gate and up projection of one input, gate first."""

    def silu_mul(self, x: Any, gate_up: Tensor | None, out: Tensor) -> None:
        """SiLU(gate) * up into out ``[num_rows, intermediate_size]``; gate_up: scratch for y."""


class Reader(Protocol):
    """A projection, or a block that begins with one."""

    def num_scales(self, num_rows: int) -> int: ...


def input_of(reader: Reader, x: Input, buffer: ops.QuantizedBuffer | None) -> Input:
    """x as the reader takes it: quantised in the buffer, or as it is. buffer: None where no projection of the
    model takes quantised rows."""
    if buffer is None or isinstance(x, ops.QuantizedRows):
        return x
    num_rows, size = x.shape
    num_scales = reader.num_scales(num_rows)
    return ops.quantize_rows(x, buffer.rows(num_rows, size, num_scales)) if num_scales else x
