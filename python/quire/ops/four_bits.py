"""Weights of four bits as the GEMMs on a GPU read them: the order of columns, scales and zeros by group."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core
from quire._tensor_checks import describe

COLUMNS = 32  # that 16 bytes hold
# Nibble p of each 32 columns, from the lowest of the first byte on, holds column FOUR_BIT_COLUMNS[p]:
# four_bit_column() in C++, which says why.
FOUR_BIT_COLUMNS = tuple(_core.four_bit_columns())
_ROWS = 64  # of a tile
_CHUNK_PIECES = 1 << 20  # of 32 columns, that are copied at a time
_E8M0 = [2.0**-127 * 2.0**code for code in range(255)]
_FLOAT16_SCALE = 2.0**15


def four_bit_columns(rows: Tensor) -> Tensor:
    """Puts the columns of `[num_rows, size / 2]` bytes, size a multiple of 32, in the order that the GEMMs
    read: in place, a part at a time. Given: the lower half of each byte is the even column. Returns rows."""
    if rows.dtype != torch.uint8 or not rows.is_contiguous() or rows.size(1) % (COLUMNS // 2) != 0:
        raise ValueError(
            f"rows: got {describe(rows)}; allowed: contiguous uint8 [num_rows, size / 2], size a multiple of "
            f"{COLUMNS}"
        )
    order = torch.tensor(FOUR_BIT_COLUMNS, device=rows.device)
    pieces = rows.view(-1, COLUMNS // 2)
    for begin in range(0, pieces.size(0), _CHUNK_PIECES):
        part = pieces[begin : begin + _CHUNK_PIECES]
        columns = torch.stack((part & 15, part >> 4), dim=2).view(-1, COLUMNS).index_select(1, order)
        part.copy_(columns[:, ::2] | columns[:, 1::2] << 4)
    return rows


def rows_by_group(out_size: int) -> int:
    """out_size, rounded up to whole tiles."""
    return -(-out_size // _ROWS) * _ROWS


def by_group(values: Tensor) -> Tensor:
    """Scales or zeros `[out_size, groups]` as `[groups, rows_by_group(out_size)]`, filled up with 0: a tile's
    rows of a group are neighbours."""
    out_size, groups = values.shape
    found = values.new_zeros(groups, rows_by_group(out_size))
    found[:, :out_size] = values.t()
    return found


def mxfp4_scales(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """e8m0 bytes as numbers of this type: exact in bfloat16. In float16 those below 2**-24 become 0, those
    above 2**15 become that."""
    powers = torch.tensor(_E8M0, device=scale.device)
    if dtype == torch.float16:
        powers.clamp_(max=_FLOAT16_SCALE)
    return powers.to(dtype)[scale.long()]
