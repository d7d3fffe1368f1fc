"""Float8 e4m3 operands of the GEMMs on a GPU: the order of their columns, rows quantised with scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quire import _core
from quire._tensor_checks import check, describe, dtype_id, has_cuda_kernels, stream_of

if has_cuda_kernels():
    from quire import _cuda

# Position p of each 16 columns holds column FLOAT8_COLUMNS[p]: kFloat8Columns in C++, which says why.
FLOAT8_COLUMNS = tuple(_core.float8_columns())
SCALED_COLUMNS = 128  # that share a scale, where a row has several
_CHUNK_PIECES = 1 << 22  # of 16 columns, that are copied at a time


class QuantizedRows(NamedTuple):
    """Rows of which row i is about values[i] * scales[i], or where scales are of blocks, columns 128 b to
    128 b + 127 of it are about those of values[i] * scales[b, i]."""

    values: Tensor  # [num_rows, size] float8 e4m3, columns in the order of FLOAT8_COLUMNS
    scales: Tensor  # float32 [num_rows], or [num_scales, num_rows]

    @property
    def num_scales(self) -> int:
        """Scales of each row."""
        return 1 if self.scales.ndim == 1 else self.scales.size(0)


class QuantizedBuffer:
    """Memory for so many quantised rows at most, zeros at first."""

    def __init__(self, max_num_rows: int, max_size: int, device: torch.device) -> None:
        num_scales = -(-max_size // SCALED_COLUMNS)
        self._values = torch.zeros(max_num_rows * max_size, dtype=torch.float8_e4m3fn, device=device)
        self._scales = torch.zeros(max_num_rows * num_scales, dtype=torch.float32, device=device)

    @property
    def num_bytes(self) -> int:
        return self._values.nbytes + self._scales.nbytes

    def rows(self, num_rows: int, size: int, num_scales: int = 1) -> QuantizedRows:
        """num_scales: of a row, 1 or one for each 128 columns."""
        scales = self._scales[: num_scales * num_rows]
        return QuantizedRows(
            self._values[: num_rows * size].view(num_rows, size),
            scales if num_scales == 1 else scales.view(num_scales, num_rows),
        )


def quantize_rows(x: Tensor, out: QuantizedRows | None = None, *, num_scales: int = 1) -> QuantizedRows:
    """Each row of x `[num_rows, size]`, of 16 bits, with the scale (its largest magnitude) / 448, or the same
    of each 128 columns. num_scales: of a row where out is not given.

    size: a multiple of 16. Rows of x may lie apart, 16-byte aligned; out is contiguous.
    """
    num_rows, size = x.shape
    if not x.is_cuda or x.stride(1) != 1:
        raise ValueError(f"x: got {describe(x)}; allowed: [num_rows, size] with contiguous rows on a GPU")
    if out is None:
        out = QuantizedBuffer(num_rows, size, x.device).rows(num_rows, size, num_scales)
    num_scales = out.num_scales
    shape = (num_rows,) if out.scales.ndim == 1 else (num_scales, num_rows)
    check("out.values", out.values, torch.float8_e4m3fn, (num_rows, size), "num_rows, size", x.device.type)
    check("out.scales", out.scales, torch.float32, shape, "num_scales, num_rows", x.device.type)
    _cuda.quantize_rows(
        dtype=dtype_id("x", x),
        num_rows=num_rows,
        size=size,
        x=x.data_ptr(),
        stride_x=x.stride(0),
        out=out.values.data_ptr(),
        scale=out.scales.data_ptr(),
        num_scales=num_scales,
        stream=stream_of(x),
    )
    return out


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
