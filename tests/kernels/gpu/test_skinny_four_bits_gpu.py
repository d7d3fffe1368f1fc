"""The GEMM for few rows with weights of four bits: against the dequantised weight in float64."""

from __future__ import annotations

import math

import pytest
import torch
from four_bits_cases import KINDS, Case
from gemm_cases import DTYPES, SILU_TOLERANCE, TOLERANCE, normal, product, silu_mul, skinny_gemm, tuning
from kernel_reference import assert_close
from quire import ops
from quire.models.cuda.int4_linear import CudaInt4GateUp, CudaInt4Linear
from quire.ops.gemm import SkinnyWeight
from torch import Tensor

pytestmark = pytest.mark.gpu

ROWS = [1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32]
# n x k: half a load, ragged, odd, fewer tiles than SMs, many; the last load of one to four steps of x.
SIZES = [(128, 256), (64, 384), (1, 512), (13, 896), (1000, 1152), (2048, 2048), (5001, 640), (40000, 256)]


def sizes_of(kind: str, sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """And one whose k is of whole groups, but of no whole load nor step of x."""
    size = KINDS[kind][0] or 32
    return [*sizes, (192, 512 + size), (72, 1024 + 3 * size)]


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype, device="cuda")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("silu", [False, True])
def test_every_element_is_widened_exactly(dtype: torch.dtype, kind: str, silu: bool) -> None:
    """Each column of each row of tiles is the dequantised weight to the bit, with few rows and with many."""
    n, k = 256, 640
    case = Case(n, k, kind, dtype)
    weight = case.weight(silu_mul=silu)
    unit = torch.eye(k, dtype=dtype, device="cuda")
    expected = silu_mul(case.value.T, dtype) if silu else case.value.T
    for first in range(0, k, 32):
        right = expected[first : first + 32]
        for rows in (8, 32):
            out = torch.cat([skinny_gemm(x, weight) for x in unit[first : first + 32].split(rows)])
            if silu:
                assert_close(out, right, SILU_TOLERANCE[dtype], f"column {first}")
            else:
                assert torch.equal(out, right), f"column {first}, {rows} rows"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_product(dtype: torch.dtype, kind: str) -> None:
    """Every row and column is right and written once; nothing beside them is touched."""
    for n, k in sizes_of(kind, SIZES):
        case = Case(n, k, kind, dtype, seed=n)
        weight = case.weight()
        bias = normal(n, dtype=dtype, seed=1)
        for m in ROWS:
            x = normal(m, k + 24, dtype=dtype, seed=m)[:, 8 : k + 8] * 0.01  # rows that lie apart
            expected = product(x, case.of_few_rows)
            for apart in (0, 3):
                room = poisoned(m + 1, n + apart, dtype=dtype)
                skinny_gemm(x, weight, out=room[:m, :n])
                assert_close(room[:m, :n], expected.to(dtype), TOLERANCE[dtype], f"{n} x {k}, {m} rows")
                assert room[m:].isnan().all(), "wrote below out"
                assert room[:, n:].isnan().all(), "wrote beside out"
            with_bias = (expected + bias.float()).to(dtype)
            assert_close(skinny_gemm(x, weight, bias=bias), with_bias, TOLERANCE[dtype], f"{m} rows and bias")


@pytest.mark.parametrize("kind", ["32 with zeros", "128", "row with zeros", "mxfp4"])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_every_cut(parts: int, silu: bool, kind: str) -> None:
    """Each number of blocks per tile, with fewer blocks than tiles, with one load on its way and with all."""
    n, k = (3008 if silu else 1500), 2432
    case = Case(n, k, kind, torch.bfloat16)
    weight = case.weight(silu_mul=silu)
    for m in (1, 8, 11, 16, 21, 30, 32):
        x = normal(m, k, dtype=torch.bfloat16, seed=m) * 0.01
        expected = product(x, case.of_few_rows)
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
@pytest.mark.parametrize(("n", "k"), [(256, 256), (208, 512), (2 * 1000, 640), (16384, 2048)])
def test_silu_mul(n: int, k: int, dtype: torch.dtype, kind: str) -> None:
    """Each half is rounded, then silu(gate), rounded, times up."""
    case = Case(n, k, kind, dtype, seed=n)
    weight = case.weight(silu_mul=True)
    bias = normal(n, dtype=dtype, seed=1)
    for m in (1, 5, 8, 13, 29, 32):
        x = normal(m, k, dtype=dtype, seed=m) * (0.1 / math.sqrt(k))
        room = poisoned(m + 1, n // 2, dtype=dtype)
        skinny_gemm(x, weight, out=room[:m])
        expected = silu_mul(product(x, case.of_few_rows), dtype)
        assert_close(room[:m], expected, SILU_TOLERANCE[dtype], f"{m} rows")
        assert room[m:].isnan().all(), "wrote beside out"
        expected = silu_mul(product(x, case.of_few_rows) + bias.float(), dtype)
        assert_close(skinny_gemm(x, weight, bias=bias), expected, SILU_TOLERANCE[dtype], f"{m} rows and bias")


def test_rows() -> None:
    """Rows of x in any order, some twice; an index out of range reads zeros."""
    n, k = 1000, 1152
    weight = Case(n, k, "128 with zeros", torch.bfloat16).weight()
    x = normal(300, k + 8, dtype=torch.bfloat16, seed=1)[:, :k]
    for m in (1, 8, 20, 32):
        rows = torch.randint(0, 300, (m,), dtype=torch.int32, device="cuda")
        rows[0] = 299
        assert torch.equal(
            skinny_gemm(x, weight, rows=rows), skinny_gemm(x[rows.long()].contiguous(), weight)
        )
        rows[-1] = 300
        assert (skinny_gemm(x, weight, rows=rows, out=poisoned(m, n, dtype=x.dtype))[-1] == 0).all()


@pytest.mark.parametrize("kind", ["32 with zeros", "128", "mxfp4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k", "silu"), [(6144, 4096, False), (2048, 8192, False), (4096, 1024, True)])
def test_a_row_has_the_same_bits_in_every_batch(
    n: int, k: int, silu: bool, dtype: torch.dtype, kind: str
) -> None:
    """Alone, in any number of rows, and in every repeat."""
    weight = Case(n, k, kind, dtype).weight(silu_mul=silu)
    x = normal(32, k, dtype=dtype, seed=1) * 0.01
    whole = skinny_gemm(x, weight, is_invariant=True)
    for _ in range(20):
        assert torch.equal(skinny_gemm(x, weight, is_invariant=True), whole)
    for m in ROWS:
        first = 32 - m
        assert torch.equal(skinny_gemm(x[first:], weight, is_invariant=True), whole[first:]), f"{m} rows"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_invariant", [False, True])
@pytest.mark.parametrize("has_columns", [False, True])
def test_projections(kind: str, is_invariant: bool, has_columns: bool) -> None:
    """The classes of the executor take the weight in its own order of columns and any number of rows."""
    n, k = 1024, 512
    case = Case(n, k, kind, torch.bfloat16)
    bias = normal(n, dtype=torch.bfloat16, seed=3)
    columns = torch.randperm(k, device="cuda", dtype=torch.int32) if has_columns else None

    def given() -> tuple[Tensor, Tensor, Tensor | None]:
        return case.bytes.clone(), case.scale, case.zero

    linear = CudaInt4Linear(
        *given(), bias, group_size=case.group_size, columns=columns, is_invariant=is_invariant
    )
    gate_up = CudaInt4GateUp(*given(), group_size=case.group_size, columns=columns, is_invariant=is_invariant)
    for m in (1, 32, 33, 64, 65, 300):
        x = normal(m, k, dtype=torch.bfloat16, seed=m) * 0.01
        sums = product(x if columns is None else x[:, columns.long()], case.value)
        expected = (sums + bias.float()).to(x.dtype)
        assert_close(linear(x), expected, 2 * TOLERANCE[x.dtype], f"{m} rows")
        out = poisoned(m, n // 2, dtype=x.dtype)
        gate_up.silu_mul(x, None, out)
        assert_close(out, silu_mul(sums, x.dtype), 2 * SILU_TOLERANCE[x.dtype], f"{m} rows, SiLU")


def test_refuses() -> None:
    """Errors name what was given and what is allowed."""
    case = Case(64, 512, "128 with zeros", torch.bfloat16)
    rows, scale = ops.four_bit_columns(case.bytes.clone()), ops.by_group(case.scale)
    with pytest.raises(ValueError, match="num_scales: got 3; allowed: k / 32"):
        SkinnyWeight(rows, scale=scale[:3].contiguous())
    with pytest.raises(ValueError, match="num_scales: got 4; allowed: k / 32"):
        SkinnyWeight(rows, scale=scale, is_mxfp4=True)
    with pytest.raises(ValueError, match="k: got 128; allowed: 256"):
        SkinnyWeight(rows[:, :64].contiguous(), scale=scale[:1].contiguous())
    with pytest.raises(ValueError, match="multiples of 32"):
        SkinnyWeight(rows[:, :136].contiguous(), scale=scale[:1].contiguous())
    with pytest.raises(ValueError, match="scale"):
        SkinnyWeight(rows, scale=case.scale)
    with pytest.raises(ValueError, match="zero"):
        SkinnyWeight(rows, scale=scale, zero=scale)
    with pytest.raises(TypeError, match=r"scale: got torch\.uint8"):
        SkinnyWeight(rows, scale=scale.to(torch.uint8))
    with pytest.raises(ValueError, match=r"num_rows: got 33; allowed: 0.*32"):
        skinny_gemm(normal(33, 512, dtype=torch.bfloat16), SkinnyWeight(rows, scale=scale))
    with pytest.raises(ValueError, match="allowed: 512 columns of weight"):
        CudaInt4Linear(case.bytes, case.scale, group_size=64)
