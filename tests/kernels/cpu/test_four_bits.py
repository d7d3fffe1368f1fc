"""How weights of four bits are laid out for the GEMMs of a GPU, whose tests show that they read it so."""

from __future__ import annotations

import pytest
import torch
from quire import ops


def test_columns_lie_where_the_kernels_look_for_them() -> None:
    """Nibble j of word t of 16 bytes is column 16 * (j % 4 // 2) + 8 * (j % 2) + 2 * t + j // 4 of the 32."""
    values = torch.randint(0, 16, (5, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = values[:, ::2] | values[:, 1::2] << 4
    ordered = ops.four_bit_columns(rows)
    assert ordered is rows
    words = ordered.view(torch.int32).long() & 0xFFFFFFFF
    for word in range(12):
        for nibble in range(8):
            column = 16 * (nibble % 4 // 2) + 8 * (nibble % 2) + 2 * (word % 4) + nibble // 4
            found = words[:, word] >> 4 * nibble & 15
            assert found.equal(values[:, word // 4 * 32 + column].long()), (word, nibble)


def test_values_by_group() -> None:
    """Rows of a group are neighbours; what fills up the last tile is 0."""
    values = torch.arange(1, 70 * 3 + 1, dtype=torch.int16).view(70, 3)
    found = ops.by_group(values)
    assert found.is_contiguous()
    assert found[:, :70].equal(values.t())
    assert found[:, 70:].equal(torch.zeros(3, 58, dtype=torch.int16))


def test_mxfp4_scales() -> None:
    """Every power of two is exact in bfloat16; float16 has 0 and 2**15 for what it does not reach."""
    codes = torch.arange(255, dtype=torch.uint8)
    powers = [2.0 ** (code - 127) for code in range(255)]
    assert ops.mxfp4_scales(codes, torch.bfloat16).double().tolist() == powers
    halves = [0.0 if power < 2.0**-24 else min(power, 2.0**15) for power in powers]
    assert ops.mxfp4_scales(codes, torch.float16).double().tolist() == halves


def test_refuses() -> None:
    """Rows of no whole 16 bytes."""
    with pytest.raises(ValueError, match="a multiple of 32"):
        ops.four_bit_columns(torch.zeros(4, 24, dtype=torch.uint8))
