"""Rows stored as float8 with a scale each: by the norms, by act_mul and on their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from layer_cases import normal
from quire import ops
from quire.ops.float8 import FLOAT8_COLUMNS
from torch import Tensor

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16]
# One vector a thread or several, a block with idle threads, the largest.
SIZES = [16, 48, 256, 1008, 4096, 14336, 28672]


def poisoned_scales(num_rows: int) -> Tensor:
    return torch.full((num_rows,), math.nan, device="cuda")


def assert_quantized(rows: ops.QuantizedRows, expected: Tensor, what: str) -> None:
    """Values and scales are what torch makes of the rows in their own type, bit for bit, columns in order."""
    largest = expected.float().abs().amax(1).clamp_min(1e-12)
    # One rounding each, of which torch's division by a constant may differ in the last bit.
    torch.testing.assert_close(rows.scales, largest / 448, rtol=3e-7, atol=0)
    inverse = torch.full_like(largest, 448) / largest
    values = (expected.float() * inverse[:, None]).to(torch.float8_e4m3fn).float()
    in_order = values.unflatten(1, (-1, 16))[:, :, list(FLOAT8_COLUMNS)].flatten(1)
    assert torch.equal(rows.values.float(), in_order), what


def rows_of_every_size(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Six rows, the third of zeros."""
    row_scale = torch.tensor([1e-3, 1, 0, 30, 1, 1], dtype=dtype, device="cuda")[:, None]
    return normal(6, size, dtype=dtype, seed=seed) * row_scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 65536])
def test_quantize_rows(size: int, dtype: torch.dtype) -> None:
    """Rows that lie apart; zeros; a NaN stays alone."""
    for apart in (0, 8):
        x = rows_of_every_size(size + apart, dtype)[:, :size]
        out = ops.QuantizedRows(
            torch.full((6, size), 0x7F, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn),
            poisoned_scales(6),
        )
        assert ops.quantize_rows(x, out) is out
        assert_quantized(out, x, f"rows of {size}")
        assert not out.values[2].float().any()
    x[4, size - 1] = math.nan
    values = ops.quantize_rows(x).values.float()
    assert values[4, FLOAT8_COLUMNS.index(15) - 16].isnan()
    assert values.isnan().sum() == 1, "one NaN spreads"


def assert_quantized_blocks(rows: ops.QuantizedRows, expected: Tensor, what: str) -> None:
    """Each 128 columns are quantised as rows of their own."""
    for block, scales in enumerate(rows.scales):
        columns = slice(128 * block, 128 * (block + 1))
        part = ops.QuantizedRows(rows.values[:, columns], scales)
        assert_quantized(part, expected[:, columns], f"{what}, block {block}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES[2:])
def test_scales_of_blocks(size: int, dtype: torch.dtype) -> None:
    """By quantize_rows and by the norms; the last block may be smaller."""
    x, weight = rows_of_every_size(size, dtype), normal(size, dtype=dtype, seed=size) + 1
    blocks = -(-size // 128)
    rows = ops.quantize_rows(x, num_scales=blocks)
    assert rows.scales.shape == (blocks, 6)
    assert_quantized_blocks(rows, x, f"rows of {size}")
    scales = torch.full((blocks, 6), math.nan, device="cuda")
    values = ops.rms_norm(x, weight, 1e-5, out_scale=scales)
    assert_quantized_blocks(
        ops.QuantizedRows(values, scales), ops.rms_norm(x, weight, 1e-5), f"norm of {size}"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_norms(size: int, dtype: torch.dtype) -> None:
    """What every norm stores in its own type, quantised; with and without a residual."""
    weight = normal(size, dtype=dtype, seed=size) + 1
    norms: list[Callable[..., Tensor]] = [
        lambda x, *rest, **more: ops.rms_norm(x, weight, 1e-5, *rest, **more),
        lambda x, *rest, **more: ops.rms_norm(
            x, weight, 1e-5, *rest, weight_offset=1.0, rounds_once=True, **more
        ),
        lambda x, *rest, **more: ops.layer_norm(x, weight, weight, 1e-5, *rest, **more),
    ]
    x, residual = rows_of_every_size(size, dtype), rows_of_every_size(size, dtype, seed=1)
    for norm in norms:
        scales = poisoned_scales(6)
        assert_quantized(ops.QuantizedRows(norm(x, out_scale=scales), scales), norm(x), f"norm of {size}")
        updated, again = residual.clone(), residual.clone()
        expected = norm(x, updated)
        scales = poisoned_scales(6)
        out = ops.QuantizedRows(norm(x, again, out_scale=scales), scales)
        assert torch.equal(again, updated)
        assert_quantized(out, expected, f"norm of {size} with residual")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_act_mul(size: int, dtype: torch.dtype) -> None:
    """What act_mul stores in its own type, quantised."""
    for apart in (0, 8):
        gate_up = rows_of_every_size(2 * size + apart, dtype)[:, : 2 * size]
        scales = poisoned_scales(6)
        out = ops.QuantizedRows(ops.act_mul(gate_up, out_scale=scales), scales)
        assert_quantized(out, ops.act_mul(gate_up), f"act_mul of {size}")


def test_batch_mates_change_nothing() -> None:
    """Each row is bitwise the same alone and in a batch."""
    x, weight = normal(1500, 512, dtype=torch.bfloat16), normal(512, dtype=torch.bfloat16, seed=1)

    def run(rows: Tensor) -> list[Tensor]:
        normed, acted = poisoned_scales(rows.size(0)), poisoned_scales(rows.size(0))
        return [
            *ops.quantize_rows(rows),
            ops.rms_norm(rows, weight, 1e-5, out_scale=normed),
            normed,
            ops.act_mul(rows, out_scale=acted),
            acted,
        ]

    together = run(x)
    for row in (0, 777, 1499):
        for actual, expected in zip(run(x[row : row + 1]), together, strict=True):
            assert torch.equal(actual.float(), expected[row : row + 1].float())


def test_columns_are_put_in_order_in_place() -> None:
    """float8_columns gives the order that the kernels write."""
    x = normal(40, 256, dtype=torch.bfloat16)
    x[:, 0] = 448  # the scale is 1 where no other value is larger
    rows = ops.quantize_rows(x)
    plain = x.float().to(torch.float8_e4m3fn)
    assert torch.equal(ops.float8_columns(plain).float(), rows.values.float())
    assert torch.equal(rows.scales, torch.ones(40, device="cuda"))


def test_refuses() -> None:
    """Errors name what was given and what is allowed."""
    x = normal(4, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"size: got 24; allowed: multiples of 16"):
        ops.quantize_rows(normal(4, 24, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"num_scales: got 3; allowed: 1, 2"):
        ops.quantize_rows(
            normal(4, 256, dtype=torch.bfloat16), ops.QuantizedBuffer(4, 512, x.device).rows(4, 256, 3)
        )
    with pytest.raises(ValueError, match=r"dtype: got 0; allowed: 1"):
        ops.quantize_rows(normal(4, 64, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"x: must be 16-byte aligned"):
        ops.quantize_rows(x.view(-1)[4:68].view(1, 64))
    with pytest.raises(ValueError, match=r"stride_x: got 36; allowed: multiples of 8"):
        ops.quantize_rows(normal(4, 36, dtype=torch.bfloat16)[:, :32])
    with pytest.raises(ValueError, match=r"x: got .* on cpu"):
        ops.quantize_rows(x.cpu())
    with pytest.raises(ValueError, match=r"out.scales: got"):
        ops.quantize_rows(x, ops.QuantizedRows(torch.empty_like(x).to(torch.float8_e4m3fn), x[:, 0]))
    weight = normal(24, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"hidden_size: got 24; allowed: multiples of 16"):
        ops.rms_norm(normal(4, 24, dtype=torch.bfloat16), weight, 1e-5, out_scale=poisoned_scales(4))
    with pytest.raises(ValueError, match=r"size: got 24; allowed: multiples of 16"):
        ops.act_mul(normal(4, 48, dtype=torch.bfloat16), out_scale=poisoned_scales(4))
    assert ops.quantize_rows(x[:0]).values.shape == (0, 64)
