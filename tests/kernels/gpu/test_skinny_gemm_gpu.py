"""The GEMM for few rows: against float32, alone and in chains of overlapping kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    skinny_gemm,
    tuning,
)
from kernel_reference import assert_close
from quire import ops
from quire.ops.gemm import SkinnyWeight
from torch import Tensor

pytestmark = pytest.mark.gpu

ROWS = [1, 2, 7, 8, 9, 16, 17, 24, 31, 32, 33, 48, 50, 63, 64]
# n x k: whole tiles, ragged, odd, fewer tiles than SMs, many; k of one step and ragged.
SIZES = [
    (128, 64),
    (64, 72),
    (1, 128),
    (13, 200),
    (1000, 1096),
    (2048, 2048),
    (3072, 2048),
    (5001, 512),
    (40000, 256),
]


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_product(n: int, k: int, dtype: torch.dtype) -> None:
    """Every row and column is right and written once; nothing beside them is touched."""
    weight = SkinnyWeight(normal(n, k, dtype=dtype, seed=n))
    bias = normal(n, dtype=dtype, seed=1)
    for m in ROWS:
        wide = normal(m, k + 24, dtype=dtype, seed=m)
        x = wide[:, 8 : k + 8]  # rows that lie apart
        expected = product(x, weight.tensor)
        for apart in (0, 3):
            room = poisoned(m + 1, n + apart, dtype=dtype)
            skinny_gemm(x, weight, out=room[:m, :n])
            assert_close(room[:m, :n], expected.to(dtype), TOLERANCE[dtype], f"{m} rows")
            assert room[m:].isnan().all(), "wrote below out"
            assert room[:, n:].isnan().all(), "wrote beside out"
        with_bias = (expected + bias.float()).to(dtype)
        assert_close(skinny_gemm(x, weight, bias=bias), with_bias, TOLERANCE[dtype], f"{m} rows and bias")


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_every_cut(parts: int, silu: bool) -> None:
    """Each number of blocks per tile, with fewer blocks than tiles, with one load on its way and with all."""
    n, k = (3008 if silu else 1500), 1160
    weight = SkinnyWeight(normal(n, k, dtype=torch.bfloat16), silu_mul=silu)
    for m in (1, 16, 21, 30, 40, 45, 56, 64):
        x = normal(m, k, dtype=torch.bfloat16, seed=m) * 0.1
        expected = product(x, weight.tensor)
        expected = silu_mul(expected, x.dtype) if silu else expected.to(x.dtype)
        tolerance = (SILU_TOLERANCE if silu else TOLERANCE)[x.dtype]
        for num_blocks in (0, 1, 24):
            for trigger, in_flight in ((0, 1), (4, 3), (1000, 1000)):
                cut = tuning(
                    "Skinny", parts=parts, num_blocks=num_blocks, trigger=trigger, in_flight=in_flight
                )
                out = poisoned(m, weight.out_size, dtype=x.dtype)
                skinny_gemm(x, weight, out=out, tuning=cut)
                assert_close(out, expected, tolerance, f"{m} rows, {num_blocks} blocks")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(256, 128), (208, 512), (2 * 1000, 264), (16384, 2048)])
def test_silu_mul(n: int, k: int, dtype: torch.dtype) -> None:
    """The fused epilogue is the GEMM, each half rounded, then silu(gate), rounded, times up."""
    weight = SkinnyWeight(normal(n, k, dtype=dtype, seed=n), silu_mul=True)
    bias = normal(n, dtype=dtype, seed=1)
    for m in (1, 5, 8, 13, 29, 64):
        x = normal(m, k, dtype=dtype, seed=m) * (3 / math.sqrt(k))
        room = poisoned(m + 1, n // 2, dtype=dtype)
        skinny_gemm(x, weight, out=room[:m])
        expected = silu_mul(product(x, weight.tensor), dtype)
        assert_close(room[:m], expected, SILU_TOLERANCE[dtype], f"{m} rows")
        assert room[m:].isnan().all(), "wrote beside out"
        expected = silu_mul(product(x, weight.tensor) + bias.float(), dtype)
        out = skinny_gemm(x, weight, bias=bias)
        assert_close(out, expected, SILU_TOLERANCE[dtype], f"{m} rows and bias")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_mul_equals_the_kernels_apart(dtype: torch.dtype) -> None:
    """With the same cut of k, fused and unfused give the same bits."""
    w = normal(2 * 1024, 512, dtype=dtype)
    for m in (3, 64):
        x = normal(m, 512, dtype=dtype, seed=m) * 0.1
        cut = tuning("Skinny", parts=2)
        apart = ops.act_mul(skinny_gemm(x, SkinnyWeight(w), tuning=cut))
        assert torch.equal(skinny_gemm(x, SkinnyWeight(w, silu_mul=True), tuning=cut), apart)


def test_rows() -> None:
    """Rows of x in any order, some twice; an index out of range reads zeros."""
    n, k = 1000, 512
    weight = SkinnyWeight(normal(n, k, dtype=torch.bfloat16))
    x = normal(300, k + 8, dtype=torch.bfloat16, seed=1)[:, :k]
    for m in (1, 8, 20, 40, 64):
        rows = torch.randint(0, 300, (m,), dtype=torch.int32, device="cuda")
        rows[0] = 299
        out = skinny_gemm(x, weight, rows=rows)
        assert torch.equal(out, skinny_gemm(x[rows.long()].contiguous(), weight))
        rows[-1], rows[m // 2] = 300, -5
        out = skinny_gemm(x, weight, rows=rows, out=poisoned(m, n, dtype=x.dtype))
        assert (out[-1] == 0).all()
        assert (out[m // 2] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k", "silu"), [(6144, 4096, False), (2048, 8192, False), (4096, 1024, True)])
def test_a_row_has_the_same_bits_in_every_batch(n: int, k: int, silu: bool, dtype: torch.dtype) -> None:
    """Alone, in any number of rows, and in every repeat."""
    weight = SkinnyWeight(normal(n, k, dtype=dtype), silu_mul=silu)
    x = normal(64, k, dtype=dtype, seed=1)
    whole = skinny_gemm(x, weight)
    for _ in range(20):
        assert torch.equal(skinny_gemm(x, weight), whole)
    whole = skinny_gemm(x, weight, is_invariant=True)
    for _ in range(20):
        assert torch.equal(skinny_gemm(x, weight, is_invariant=True), whole)
    for m in ROWS:
        first = 64 - m
        assert torch.equal(skinny_gemm(x[first:], weight, is_invariant=True), whole[first:]), f"{m} rows"


class Chain:
    """A Llama-like row of kernels without attention: norm, qkv, o, norm, gate_up, down, and again."""

    def __init__(
        self, hidden: int, inter: int, num_layers: int, gemm: Callable[[Tensor, SkinnyWeight], Tensor]
    ) -> None:
        def weight(n: int, k: int, silu: bool = False) -> SkinnyWeight:
            w = normal(n, k, dtype=torch.bfloat16, seed=len(self.layers) * 7 + n) / math.sqrt(k)
            return SkinnyWeight(w.contiguous(), silu_mul=silu)

        self.layers: list[tuple[SkinnyWeight, ...]] = []
        for _ in range(num_layers):
            qkv, o = weight(hidden * 3 // 2, hidden), weight(hidden, hidden)
            self.layers.append((qkv, o, weight(2 * inter, hidden, True), weight(hidden, inter)))
        self.norm_weight = torch.ones(hidden, dtype=torch.bfloat16, device="cuda")
        self.gemm = gemm

    def __call__(self, x: Tensor) -> Tensor:
        residual = x.clone()
        hidden = x.size(1)
        for qkv, o, gate_up, down in self.layers:
            y = ops.rms_norm(x, self.norm_weight, 1e-5)
            y = self.gemm(self.gemm(y, qkv)[:, :hidden], o)
            y = ops.rms_norm(y, self.norm_weight, 1e-5, residual)
            x = self.gemm(self.gemm(y, gate_up), down)
        return x + residual


@pytest.mark.parametrize("m", [1, 8, 33, 64])
def test_overlapping_chain_in_a_graph(m: int) -> None:
    """Kernels that start early see what the kernels in front wrote: equal bits with the launches in order."""

    def in_order(x: Tensor, weight: SkinnyWeight) -> Tensor:
        out = skinny_gemm(x, weight, overlaps=False)
        torch.cuda.synchronize()
        return out

    x = normal(m, 1024, dtype=torch.bfloat16)
    chain = Chain(1024, 3072, 6, in_order)

    def run(x: Tensor, overlaps: bool) -> Tensor:
        chain.gemm = skinny_gemm if overlaps else in_order
        return chain(x)

    check_overlap(run, x)


def test_refuses() -> None:
    """Errors name what was given and what is allowed."""
    w = normal(64, 128, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="multiples of 8"):
        SkinnyWeight(normal(64, 100, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="dtype"):
        SkinnyWeight(normal(64, 128, dtype=torch.float32))
    with pytest.raises(ValueError, match="multiples of 16"):
        SkinnyWeight(normal(72, 128, dtype=torch.bfloat16), silu_mul=True)
    with pytest.raises(ValueError, match="16-byte"):
        SkinnyWeight(normal(65, 128, dtype=torch.bfloat16).flatten()[4 : 4 + 64 * 128].view(64, 128))
    weight = SkinnyWeight(w)
    with pytest.raises(ValueError, match="num_rows"):
        skinny_gemm(normal(65, 128, dtype=torch.bfloat16), weight)
    with pytest.raises(ValueError, match="stride_x"):
        skinny_gemm(normal(4, 132, dtype=torch.bfloat16)[:, :128], weight)
    with pytest.raises(ValueError, match="16-byte"):
        skinny_gemm(normal(4, 136, dtype=torch.bfloat16)[:, 4:132], weight)
    assert skinny_gemm(normal(0, 128, dtype=torch.bfloat16), weight).shape == (0, 64)
