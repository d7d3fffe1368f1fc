"""The GEMM for some rows: against float32, every cut, and beside kernels that overlap with it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from gemm_cases import DTYPES, TOLERANCE, check_overlap, normal, product, split_gemm, tuning
from kernel_reference import assert_close
from quire import ops
from quire.ops.gemm import WideWeight
from torch import Tensor

pytestmark = pytest.mark.gpu

# One row, whole tiles of 96 and of 128 rows, ragged ones, several tiles.
ROWS = [1, 65, 72, 96, 97, 128, 131, 192, 200, 256, 300]
# Columns of out x k: whole tiles, fewer columns than a tile, ragged; k of one step, fewer steps than a ring
# has stages, parts of unequal length.
SIZES = [(128, 64), (256, 128), (8, 72), (392, 1096), (1032, 2048)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_product(n: int, k: int, dtype: torch.dtype) -> None:
    """Right for every cut; every row and column written, nothing beside them touched."""
    weight = WideWeight(normal(n, k, dtype=dtype, seed=n))
    bias = normal(n, dtype=dtype, seed=1)
    cuts = [None] + [
        tuning("Split", parts=parts, columns=columns, rows=rows)
        for parts, columns, rows in itertools.product((1, 2, 3, 4, 8), (64, 128), (96, 128))
    ]
    for m in ROWS:
        wide = normal(m, k + 24, dtype=dtype, seed=m) * (3 / math.sqrt(k))
        x = wide[:, 8 : k + 8]  # rows that lie apart
        for b in (None, bias):
            expected = (product(x, weight.tensor) + (0 if b is None else b.float())).to(dtype)
            for cut in cuts:
                room = torch.full((m + 1, n + 8), math.nan, dtype=x.dtype, device="cuda")
                split_gemm(x, weight, bias=b, out=room[:m, :n], tuning=cut)
                assert_close(room[:m, :n], expected, TOLERANCE[dtype], f"{m} rows")
                assert room[m:].isnan().all(), "wrote below out"
                assert room[:, n:].isnan().all(), "wrote beside out"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 4096), (4096, 14336), (3072, 2048), (2048, 8192)])
def test_a_models_size(n: int, k: int, dtype: torch.dtype) -> None:
    weight = WideWeight(normal(n, k, dtype=dtype))
    for m in (72, 128, 160, 256):
        x = normal(m, k, dtype=dtype, seed=m) * (3 / math.sqrt(k))
        y = split_gemm(x, weight)
        assert_close(y, product(x, weight.tensor).to(dtype), TOLERANCE[dtype], f"{m} rows")
        for _ in range(10):
            assert torch.equal(split_gemm(x, weight), y), "does not repeat"
        beside = torch.full_like(x, math.nan)
        beside[3:60] = x[3:60]
        assert torch.equal(split_gemm(beside, weight)[3:60], y[3:60]), "depends on the other rows"


@pytest.mark.parametrize("m", [72, 256])
def test_overlapping_chain_in_a_graph(m: int) -> None:
    """Kernels that start early see what the kernels in front wrote: equal bits with the launches in order."""
    hidden, inter = 512, 2048
    layers = [
        (
            WideWeight(normal(inter, hidden, dtype=torch.bfloat16, seed=i) * hidden**-0.5),
            WideWeight(normal(hidden, inter, dtype=torch.bfloat16, seed=9 + i) * inter**-0.5),
        )
        for i in range(6)
    ]
    norm_weight = torch.ones(hidden, dtype=torch.bfloat16, device="cuda")

    def chain(x: Tensor, overlaps: bool) -> Tensor:
        for up, down in layers:
            y = ops.rms_norm(x, norm_weight, 1e-5)
            if not overlaps:
                torch.cuda.synchronize()
            y = split_gemm(y, up, overlaps=overlaps)
            x = split_gemm(y, down, overlaps=overlaps)
        return x

    check_overlap(chain, normal(m, hidden, dtype=torch.bfloat16))


def test_refuses() -> None:
    """Errors name what was given and what is allowed."""
    weight = WideWeight(normal(64, 128, dtype=torch.bfloat16))
    x = normal(4, 128, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="silu_mul"):
        split_gemm(x, WideWeight(normal(64, 128, dtype=torch.bfloat16), silu_mul=True))
    with pytest.raises(ValueError, match="stride_x"):
        split_gemm(normal(4, 132, dtype=torch.bfloat16)[:, :128], weight)
    with pytest.raises(ValueError, match="stride_out"):
        split_gemm(x, weight, out=normal(4, 68, dtype=torch.bfloat16)[:, :64])
    with pytest.raises(ValueError, match="columns"):
        split_gemm(x, weight, tuning=tuning("Split", columns=32))
    with pytest.raises(ValueError, match="rows"):
        split_gemm(x, weight, tuning=tuning("Split", rows=64))
    assert split_gemm(normal(0, 128, dtype=torch.bfloat16), weight).shape == (0, 64)
