"""From the four-bit layouts of checkpoints to the one that is computed with."""

from __future__ import annotations

import pytest
import torch
from four_bits import (
    Rounded,
    pack_awq,
    pack_compressed,
    pack_gptq,
    pack_mxfp4,
    round_to_int4,
    round_to_mxfp4,
)
from quire.models.formats import int4_layouts
from quire.models.formats.int4_layouts import (
    awq_weight,
    awq_zero,
    columns_by_group,
    compressed_weight,
    compressed_zero,
    dequantize_int4,
    dequantize_mxfp4,
    gptq_weight,
    gptq_zero,
    groups_problem,
    mxfp4_weight,
)
from torch import Tensor

NUM_OUTPUTS, NUM_INPUTS = 40, 128


@pytest.fixture(autouse=True)
def _several_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one shorter than the others."""
    monkeypatch.setattr(int4_layouts, "_SLICE", 16)


def rounded(group_size: int = 32, *, is_symmetric: bool = False, groups: Tensor | None = None) -> Rounded:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=generator) + 0.3
    return round_to_int4(matrix, group_size, is_symmetric=is_symmetric, groups=groups)


def shuffled_groups(group_size: int) -> Tensor:
    return torch.randperm(NUM_INPUTS, generator=torch.Generator().manual_seed(2)) // group_size


def test_a_byte_holds_two_columns_the_even_one_low() -> None:
    """The common form, written out."""
    words = torch.tensor([[0x76543210, -0x01234568]], dtype=torch.int32)  # the second one is 0xFEDCBA98
    expected = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert compressed_weight(words).tolist() == [expected]
    assert gptq_weight(words.t()).tolist() == [expected]
    # AWQ: outputs 0 2 4 6 1 3 5 7 from the lowest nibble on, here those of two inputs.
    assert awq_weight(torch.tensor([[0x75316420], [0x75316420]], dtype=torch.int32)).tolist() == [
        [17 * output] for output in range(8)
    ]


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_awq(group_size: int, dtype: torch.dtype) -> None:
    """The matrix that was packed, to the bit."""
    expected = rounded(group_size)
    packed = pack_awq(expected)
    scale = packed["scales"].t().to(dtype)
    got = dequantize_int4(awq_weight(packed["qweight"]), scale, awq_zero(packed["qzeros"]))
    assert torch.equal(got, expected.matrix(dtype))


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(group_size: int, version: int) -> None:
    """The matrix that was packed, to the bit, from both versions of its zero points."""
    expected = rounded(group_size)
    packed = pack_gptq(expected, version=version)
    zero = gptq_zero(packed["qzeros"], is_one_less=version == 1)
    got = dequantize_int4(gptq_weight(packed["qweight"]), packed["scales"].t(), zero)
    assert torch.equal(got, expected.matrix(torch.float16))


@pytest.mark.parametrize("group_size", [32, 64])
def test_act_order(group_size: int) -> None:
    """Inputs of a group are put together; multiplied with the inputs in that order, or put back, the matrix
    is what was packed."""
    expected = rounded(group_size, groups=shuffled_groups(group_size))
    packed = pack_gptq(expected)
    columns = columns_by_group(packed["g_idx"])
    weight = gptq_weight(packed["qweight"], columns)
    rows = pack_compressed(expected, is_symmetric=False)["weight_packed"]
    assert torch.equal(compressed_weight(rows, columns), weight)
    scale, zero = packed["scales"].t(), gptq_zero(packed["qzeros"], is_one_less=True)
    matrix = expected.matrix(torch.float16)
    assert torch.equal(dequantize_int4(weight, scale, zero), matrix[:, columns])
    assert torch.equal(dequantize_int4(weight, scale, zero, columns), matrix)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({0: 4}, "got groups in [0, 4]; allowed: [0, 3]"),
        ({0: -1}, "got groups in [-1, 3]; allowed: [0, 3]"),
        ({0: 1}, "got 31 inputs in group 0; allowed: 32"),
        ({}, None),
    ],
)
def test_groups_of_other_sizes(change: dict[int, int], problem: str | None) -> None:
    """What is wrong with them is told."""
    g_idx = torch.arange(NUM_INPUTS, dtype=torch.int32) // 32
    for place, group in change.items():
        g_idx[place] = group
    assert groups_problem(g_idx, 32) == problem


@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_compressed(group_size: int, is_symmetric: bool) -> None:
    """The matrix that was packed, to the bit; without zero points they are 8."""
    expected = rounded(group_size, is_symmetric=is_symmetric)
    packed = pack_compressed(expected, is_symmetric=is_symmetric)
    zero = None if is_symmetric else compressed_zero(packed["weight_zero_point"])
    got = dequantize_int4(compressed_weight(packed["weight_packed"]), packed["weight_scale"], zero)
    assert torch.equal(got, expected.matrix(torch.float16))


def test_mxfp4() -> None:
    """The matrix that was packed, to the bit, from gpt-oss's blocks and from rows of bytes."""
    generator = torch.Generator().manual_seed(1)
    matrix = (
        torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=generator)
        * torch.logspace(-3, 3, NUM_OUTPUTS)[:, None]
    )
    expected = round_to_mxfp4(matrix)
    packed = pack_mxfp4(expected)
    blocks = packed["weight_packed"].view(NUM_OUTPUTS, NUM_INPUTS // 32, 16)
    assert torch.equal(mxfp4_weight(blocks), packed["weight_packed"])
    got = dequantize_mxfp4(packed["weight_packed"], packed["weight_scale"], torch.bfloat16)
    assert torch.equal(got, expected.matrix(torch.bfloat16))
    halves = (packed[name].unflatten(0, (2, -1)) for name in ("weight_packed", "weight_scale"))  # as experts
    assert torch.equal(dequantize_mxfp4(*halves, torch.bfloat16).flatten(0, 1), got)
    assert expected.codes.unique().numel() == 16  # every code occurred


def test_extremes_of_mxfp4() -> None:
    """The smallest and the largest scale are exact; 255 is not a number."""
    codes = torch.full((3, 16), 0x91, dtype=torch.uint8)  # 0.5 and -0.5
    scale = torch.tensor([[0], [254], [255]], dtype=torch.uint8)
    got = dequantize_mxfp4(codes, scale, torch.bfloat16)
    assert got[:2, :2].tolist() == [[2.0**-128, -(2.0**-128)], [2.0**126, -(2.0**126)]]
    assert got[2].isnan().all()
