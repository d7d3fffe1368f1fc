"""How float8 rows are laid out for the GEMMs of a GPU, whose tests show that they read it so."""

from __future__ import annotations

import torch
from quire import ops


def test_columns_lie_where_the_kernels_look_for_them() -> None:
    """Word t of 16 bytes holds columns 2 t + 8, 2 t, 2 t + 9 and 2 t + 1 of the 16."""
    values = torch.arange(3 * 32, dtype=torch.uint8).view(3, 32)
    ordered = ops.float8_columns(values.clone().view(torch.float8_e4m3fn)).view(torch.uint8)
    for piece in range(2):
        for word in range(4):
            columns = [16 * piece + 2 * word + column for column in (8, 0, 9, 1)]
            first = 16 * piece + 4 * word
            assert ordered[:, first : first + 4].equal(values[:, columns])
