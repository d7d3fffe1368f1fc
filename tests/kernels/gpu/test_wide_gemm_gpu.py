"""The GEMM for many rows: against float32, ragged sizes, and beside kernels that overlap with it."""

from __future__ import annotations

import math

import pytest
import torch
from gemm_cases import (
    DTYPES,
    SILU_TOLERANCE,
    TOLERANCE,
    check_overlap,
    normal,
    product,
    silu_mul,
    tuning,
    wide_gemm,
)
from kernel_reference import assert_close
from quire import ops
from quire.ops.gemm import WideWeight
from torch import Tensor

pytestmark = pytest.mark.gpu

# Whole tiles and pairs of tiles, ragged ones, one row, a warpgroup without rows, more units than clusters.
ROWS = [1, 64, 65, 128, 130, 256, 300, 513, 1000]
# Columns of out x k: whole tiles, fewer columns than a tile, ragged; k of one step, of fewer steps than the
# ring has stages, ragged.
SIZES = [(128, 64), (256, 128), (8, 72), (392, 1096), (2056, 2048)]


def check(x: Tensor, weight: WideWeight, bias: Tensor | None, expected: Tensor, tolerance: float) -> None:
    """Right however the work is spread; every row and column written, nothing beside them touched."""
    m, n = expected.shape
    bits = None
    for cut in (
        None,
        tuning("Wide", pair=0, halves=0),
        tuning("Wide", pair=1, group=1),
        tuning("Wide", pair=1, halves=0, columns=112),
        tuning("Wide", pair=0, columns=112),
        tuning("Wide", columns=128),
    ):
        room = torch.full((m + 1, n + 8), math.nan, dtype=x.dtype, device="cuda")
        wide_gemm(x, weight, bias=bias, out=room[:m, :n], tuning=cut)
        assert_close(room[:m, :n], expected, tolerance, f"{m} rows")
        assert room[m:].isnan().all(), "wrote below out"
        assert room[:, n:].isnan().all(), "wrote beside out"
        bits = room[:m, :n] if bits is None else bits
        assert torch.equal(room[:m, :n], bits), "depends on how the work is spread"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "silu_mul"])
def test_product(n: int, k: int, fused: bool, dtype: torch.dtype) -> None:
    weight = WideWeight(normal(n * (1 + fused), k, dtype=dtype, seed=n), silu_mul=fused)
    bias = normal(n * (1 + fused), dtype=dtype, seed=1)
    tolerance = (SILU_TOLERANCE if fused else TOLERANCE)[dtype]
    for m in ROWS:
        wide = normal(m, k + 24, dtype=dtype, seed=m) * (3 / math.sqrt(k))
        x = wide[:, 8 : k + 8]  # rows that lie apart
        for b in (None, bias):
            expected = product(x, weight.tensor) + (0 if b is None else b.float())
            check(x, weight, b, silu_mul(expected, dtype) if fused else expected.to(dtype), tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [160, 256, 320, 544, 2048])
def test_a_models_size(m: int, dtype: torch.dtype) -> None:
    """The shape of a 1B model, every kind of schedule: fused equals the kernels apart bitwise."""
    w = normal(2 * 8192, 2048, dtype=dtype)
    x = normal(m, 2048, dtype=dtype, seed=m) * (3 / math.sqrt(2048))
    fused = wide_gemm(x, WideWeight(w, silu_mul=True))
    apart = wide_gemm(x, WideWeight(w))
    assert_close(apart, product(x, w).to(dtype), TOLERANCE[dtype], f"{m} rows")
    assert torch.equal(fused, ops.act_mul(apart))


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "silu_mul"])
def test_a_row_has_the_same_bits_in_every_batch(fused: bool) -> None:
    """Wherever it lies in a tile, whatever is beside it, and in every repeat."""
    weight = WideWeight(normal(2048, 1024, dtype=torch.bfloat16), silu_mul=fused)
    x = normal(1100, 1024, dtype=torch.bfloat16, seed=1)
    whole = wide_gemm(x, weight)
    for _ in range(20):
        assert torch.equal(wide_gemm(x, weight), whole)
    for first, last in ((0, 1), (3, 260), (77, 600), (500, 1100), (1099, 1100)):
        assert torch.equal(wide_gemm(x[first:last], weight), whole[first:last])
        beside = torch.full_like(x, math.nan)
        beside[first:last] = x[first:last]
        assert torch.equal(wide_gemm(beside, weight)[first:last], whole[first:last])


def test_overlapping_chain_in_a_graph() -> None:
    """Kernels that start early see what the kernels in front wrote: equal bits with the launches in order."""
    hidden, inter, m = 512, 2048, 300
    scale = hidden**-0.5
    layers = [
        (
            WideWeight(
                (normal(2 * inter, hidden, dtype=torch.bfloat16, seed=i) * scale).contiguous(), silu_mul=True
            ),
            WideWeight((normal(hidden, inter, dtype=torch.bfloat16, seed=9 + i) * scale).contiguous()),
        )
        for i in range(6)
    ]
    norm_weight = torch.ones(hidden, dtype=torch.bfloat16, device="cuda")

    def chain(x: Tensor, overlaps: bool) -> Tensor:
        for gate_up, down in layers:
            y = ops.rms_norm(x, norm_weight, 1e-5)
            if not overlaps:
                torch.cuda.synchronize()
            y = wide_gemm(y, gate_up, overlaps=overlaps)
            x = wide_gemm(y, down, overlaps=overlaps)
        return x

    check_overlap(chain, normal(m, hidden, dtype=torch.bfloat16))


def test_refuses() -> None:
    """Errors name what was given and what is allowed."""
    with pytest.raises(ValueError, match="multiples of 8"):
        WideWeight(normal(64, 100, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="multiples of 8"):
        WideWeight(normal(60, 128, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="multiples of 16"):
        WideWeight(normal(72, 128, dtype=torch.bfloat16), silu_mul=True)
    with pytest.raises(ValueError, match="dtype"):
        WideWeight(normal(64, 128, dtype=torch.float32))
    weight = WideWeight(normal(64, 128, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="stride_x"):
        wide_gemm(normal(4, 132, dtype=torch.bfloat16)[:, :128], weight)
    with pytest.raises(ValueError, match="x: must be 16-byte"):
        wide_gemm(normal(4, 136, dtype=torch.bfloat16)[:, 4:132], weight)
    x = normal(4, 128, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="stride_out"):
        wide_gemm(x, weight, out=normal(4, 68, dtype=torch.bfloat16)[:, :64])
    assert wide_gemm(normal(0, 128, dtype=torch.bfloat16), weight).shape == (0, 64)
