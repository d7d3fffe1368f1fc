"""The GEMM for few rows with float8 weights: against the dequantised weight in float64."""

from __future__ import annotations

import math

import pytest
import torch
from float8_cases import KINDS, Case
from gemm_cases import DTYPES, SILU_TOLERANCE, TOLERANCE, normal, product, silu_mul, skinny_gemm, tuning
from kernel_reference import assert_close
from quire import ops
from quire.models.cuda.fp8_linear import CudaFp8GateUp, CudaFp8Linear
from quire.ops.gemm import SkinnyWeight
from torch import Tensor

pytestmark = pytest.mark.gpu

ROWS = [1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32]
# n x k: one load, ragged, odd, fewer tiles than SMs, many; the last load of one step of x and of two.
SIZES = [(128, 128), (64, 144), (1, 256), (13, 400), (1000, 1104), (2048, 2048), (5001, 512), (40000, 256)]


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_is_widened_exactly(dtype: torch.dtype) -> None:
    """Each of the 254 numbers of e4m3, subnormal ones too, in every column and row of a tile."""
    codes = torch.arange(256, device="cuda", dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    k = 256
    rows = torch.stack([codes.roll(i) for i in range(64)])
    weight = SkinnyWeight(
        ops.float8_columns(rows.clone()).view(torch.float8_e4m3fn),
        scale=torch.ones(64, device="cuda"),
        dtype=dtype,
    )
    value = rows.view(torch.float8_e4m3fn).to(dtype)
    unit = torch.eye(k, dtype=dtype, device="cuda")
    for first in range(0, k, 32):
        assert torch.equal(skinny_gemm(unit[first : first + 32], weight), value.T[first : first + 32])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_product(n: int, k: int, dtype: torch.dtype, kind: str) -> None:
    """Every row and column is right and written once; nothing beside them is touched."""
    case = Case(n, k, kind, seed=n)
    weight = case.weight(dtype)
    bias = normal(n, dtype=dtype, seed=1)
    for m in ROWS:
        x = normal(m, k + 24, dtype=dtype, seed=m)[:, 8 : k + 8] * 0.01  # rows that lie apart
        expected = product(x, case.value)
        for apart in (0, 3):
            room = poisoned(m + 1, n + apart, dtype=dtype)
            skinny_gemm(x, weight, out=room[:m, :n])
            assert_close(room[:m, :n], expected.to(dtype), TOLERANCE[dtype], f"{m} rows")
            assert room[m:].isnan().all(), "wrote below out"
            assert room[:, n:].isnan().all(), "wrote beside out"
        with_bias = (expected + bias.float()).to(dtype)
        assert_close(skinny_gemm(x, weight, bias=bias), with_bias, TOLERANCE[dtype], f"{m} rows and bias")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_every_cut(parts: int, silu: bool, kind: str) -> None:
    """Each number of blocks per tile, with fewer blocks than tiles, with one load on its way and with all."""
    n, k = (3008 if silu else 1500), 1168
    case = Case(n, k, kind)
    weight = case.weight(torch.bfloat16, silu_mul=silu)
    for m in (1, 8, 11, 16, 21, 30, 32):
        x = normal(m, k, dtype=torch.bfloat16, seed=m) * 0.01
        expected = product(x, case.value)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(256, 128), (208, 512), (2 * 1000, 272), (16384, 2048)])
def test_silu_mul(n: int, k: int, dtype: torch.dtype, kind: str) -> None:
    """Each half is scaled and rounded, then silu(gate), rounded, times up."""
    case = Case(n, k, kind, seed=n)
    weight = case.weight(dtype, silu_mul=True)
    bias = normal(n, dtype=dtype, seed=1)
    for m in (1, 5, 8, 13, 29, 32):
        x = normal(m, k, dtype=dtype, seed=m) * (0.5 / math.sqrt(k))
        room = poisoned(m + 1, n // 2, dtype=dtype)
        skinny_gemm(x, weight, out=room[:m])
        expected = silu_mul(product(x, case.value), dtype)
        assert_close(room[:m], expected, SILU_TOLERANCE[dtype], f"{m} rows")
        assert room[m:].isnan().all(), "wrote beside out"
        expected = silu_mul(product(x, case.value) + bias.float(), dtype)
        assert_close(skinny_gemm(x, weight, bias=bias), expected, SILU_TOLERANCE[dtype], f"{m} rows and bias")


def test_rows() -> None:
    """Rows of x in any order, some twice; an index out of range reads zeros."""
    n, k = 1000, 1168
    weight = Case(n, k, "block").weight(torch.bfloat16)
    x = normal(300, k + 8, dtype=torch.bfloat16, seed=1)[:, :k]
    for m in (1, 8, 20, 32):
        rows = torch.randint(0, 300, (m,), dtype=torch.int32, device="cuda")
        rows[0] = 299
        assert torch.equal(
            skinny_gemm(x, weight, rows=rows), skinny_gemm(x[rows.long()].contiguous(), weight)
        )
        rows[-1] = 300
        assert (skinny_gemm(x, weight, rows=rows, out=poisoned(m, n, dtype=x.dtype))[-1] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k", "silu"), [(6144, 4096, False), (2048, 8192, False), (4096, 1024, True)])
def test_a_row_has_the_same_bits_in_every_batch(
    n: int, k: int, silu: bool, dtype: torch.dtype, kind: str
) -> None:
    """Alone, in any number of rows, and in every repeat."""
    weight = Case(n, k, kind).weight(dtype, silu_mul=silu)
    x = normal(32, k, dtype=dtype, seed=1) * 0.01
    whole = skinny_gemm(x, weight, is_invariant=True)
    for _ in range(20):
        assert torch.equal(skinny_gemm(x, weight, is_invariant=True), whole)
    for m in ROWS:
        first = 32 - m
        assert torch.equal(skinny_gemm(x[first:], weight, is_invariant=True), whole[first:]), f"{m} rows"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_invariant", [False, True])
def test_projections(kind: str, is_invariant: bool) -> None:
    """The classes of the executor take the weight in its own order of columns and any number of rows."""
    n, k = 1024, 512
    case = Case(n, k, kind)
    bias = normal(n, dtype=torch.bfloat16, seed=3)
    linear = CudaFp8Linear(case.codes.clone(), case.scale, bias, is_invariant=is_invariant)
    gate_up = CudaFp8GateUp(case.codes.clone(), case.scale, is_invariant=is_invariant)
    for m in (1, 32, 33, 64, 65, 300):
        x = normal(m, k, dtype=torch.bfloat16, seed=m) * 0.02
        sums = product(x, case.value)
        expected = (sums + bias.float()).to(x.dtype)
        assert_close(linear(x), expected, 2 * TOLERANCE[x.dtype], f"{m} rows")
        out = poisoned(m, n // 2, dtype=x.dtype)
        gate_up.silu_mul(x, None, out)
        assert_close(out, silu_mul(sums, x.dtype), 2 * SILU_TOLERANCE[x.dtype], f"{m} rows, SiLU")


def test_refuses() -> None:
    """Errors name what was given and what is allowed."""
    case = Case(64, 256, "block")
    with pytest.raises(ValueError, match="multiples of 16"):
        SkinnyWeight(case.rows[:, :136].contiguous(), scale=case.scale, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="k: got 64; allowed: 128"):
        SkinnyWeight(
            case.rows[:, :64].contiguous(), scale=case.scale[:, :1].contiguous(), dtype=torch.bfloat16
        )
    with pytest.raises(ValueError, match="scale"):
        SkinnyWeight(case.rows, scale=case.scale.half(), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="scale"):
        SkinnyWeight(case.rows, scale=case.scale.repeat(1, 2), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="multiple of 16"):
        ops.float8_columns(case.rows[:, :136].contiguous())
