"""Float8 e4m3 operands of the GEMMs on a GPU: the order of their columns, rows quantised with scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quire._tensor_checks import check, describe, dtype_id, has_cuda_kernels, stream_of

if has_cuda_kernels():
    from quire import _cuda

# Position p of each 16 columns holds column FLOAT8_COLUMNS[p]: kFloat8Columns in C++, which says why.
FLOAT8_COLUMNS = (8, 0, 9, 1, 10, 2, 11, 3, 12, 4, 13, 5, 14, 6, 15, 7)
_CHUNK_PIECES = 1 << 22  # of 16 columns, that are copied at a time


class QuantizedRows(NamedTuple):
    """Rows of which row i is about values[i] * scales[i]."""

    values: Tensor  # [num_rows, size] float8 e4m3, columns in the order of FLOAT8_COLUMNS
    scales: Tensor  # [num_rows] float32

    def first(self, num_rows: int) -> QuantizedRows:
        return QuantizedRows(self.values[:num_rows], self.scales[:num_rows])

    def cut(self, size: int) -> QuantizedRows:
        """As many contiguous rows of this size, at most that of these, in the same memory."""
        num_rows = self.scales.size(0)
        return QuantizedRows(self.values.view(-1)[: num_rows * size].view(num_rows, size), self.scales)


def quantize_rows(x: Tensor, out: QuantizedRows | None = None) -> QuantizedRows:
    """Each row of x `[num_rows, size]`, of 16 bits, with the scale (its largest magnitude) / 448.

    size: a multiple of 16. Rows of x may lie apart, 16-byte aligned; out is contiguous.
    """
    num_rows, size = x.shape
    if not x.is_cuda or x.stride(1) != 1:
        raise ValueError(f"x: got {describe(x)}; allowed: [num_rows, size] with contiguous rows on a GPU")
    if out is None:
        out = new_quantized_rows(num_rows, size, x.device)
    check("out.values", out.values, torch.float8_e4m3fn, (num_rows, size), "num_rows, size", x.device.type)
    check("out.scales", out.scales, torch.float32, (num_rows,), "num_rows", x.device.type)
    _cuda.quantize_rows(
        dtype=dtype_id("x", x),
        num_rows=num_rows,
        size=size,
        x=x.data_ptr(),
        stride_x=x.stride(0),
        out=out.values.data_ptr(),
        scale=out.scales.data_ptr(),
        stream=stream_of(x),
    )
    return out


def new_quantized_rows(num_rows: int, size: int, device: torch.device) -> QuantizedRows:
    """Zeros."""
    return QuantizedRows(
        torch.zeros((num_rows, size), dtype=torch.float8_e4m3fn, device=device),
        torch.zeros(num_rows, dtype=torch.float32, device=device),
    )


def float8_columns(rows: Tensor) -> Tensor:
    """Puts the columns of one-byte rows `[num_rows, size]`, size a multiple of 16, in the order that the
    GEMMs read: in place, a part at a time. Returns rows."""
    size = rows.size(1)
    if rows.element_size() != 1 or not rows.is_contiguous() or size % 16 != 0:
        raise ValueError(
            f"rows: got {describe(rows)}; allowed: contiguous [num_rows, size] of one-byte elements, size a "
            "multiple of 16"
        )
    order = torch.tensor(FLOAT8_COLUMNS, device=rows.device)
    pieces = rows.view(torch.uint8).view(-1, 16)
    for begin in range(0, pieces.size(0), _CHUNK_PIECES):
        part = pieces[begin : begin + _CHUNK_PIECES]
        part.copy_(part.index_select(1, order))
    return rows
