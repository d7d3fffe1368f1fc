"""The GEMM for more than 32 rows with weights widened in registers: against their values in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from float8_cases import KINDS as FLOAT8_KINDS
from float8_cases import Case as Float8Case
from four_bits_cases import E2M1
from four_bits_cases import KINDS as FOUR_BITS_KINDS
from four_bits_cases import Case as FourBitsCase
from gemm_cases import (
    DTYPES,
    SILU_TOLERANCE,
    TOLERANCE,
    check_overlap,
    normal,
    product,
    silu_mul,
    tuning,
    widened_gemm,
)
from kernel_reference import assert_close
from quire import ops
from quire.ops.gemm import SkinnyWeight
from torch import Tensor

pytestmark = pytest.mark.gpu

# Fewer rows than a tile has, whole tiles, ragged ones, several.
ROWS = [1, 33, 64, 65, 96, 97, 128, 131, 256, 300, 600]
# n x k: whole tiles, fewer rows of W than a tile, ragged; k of one stage, of less, of more, ragged.
FLOAT8_SIZES = [(128, 128), (256, 256), (16, 144), (400, 1104), (2064, 2048)]
FOUR_BITS_SIZES = [(128, 512), (16, 384), (400, 1152), (2064, 2048)]
KINDS = [*FLOAT8_KINDS, *FOUR_BITS_KINDS]
KIND_SIZES = [(kind, *size) for kind in FLOAT8_KINDS for size in FLOAT8_SIZES] + [
    (kind, *size) for kind in FOUR_BITS_KINDS for size in FOUR_BITS_SIZES
]
CUTS = [None] + [
    {"parts": parts, "columns": columns, "rows": rows}
    for parts, columns, rows in itertools.product((1, 2, 3, 8), (64, 128), (64, 96, 128))
]


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype, device="cuda")


def weight_of(
    n: int, k: int, kind: str, dtype: torch.dtype, *, fused: bool = False, seed: int = 0
) -> tuple[SkinnyWeight, Tensor]:
    """A weight, and what it is worth."""
    if kind in FLOAT8_KINDS:
        float8 = Float8Case(n, k, kind, seed=seed)
        return float8.weight(dtype, silu_mul=fused), float8.value
    four_bits = FourBitsCase(n, k, kind, dtype, seed=seed)
    return four_bits.weight(silu_mul=fused), four_bits.value


def checked(x: Tensor, weight: SkinnyWeight, cut: dict[str, int] | None, bias: Tensor | None) -> Tensor:
    """The result for rows of x that lie apart, after a check that nothing beside it was touched."""
    m, n = x.size(0), weight.out_size
    room = poisoned(m + 1, n + 8, dtype=x.dtype)
    apart = torch.cat([x, torch.full_like(x[:, :8], math.nan)], 1)[:, : x.size(1)]
    settings = {} if cut is None else {"tuning": tuning("Split", **cut)}
    widened_gemm(apart, weight, out=room[:m, :n], bias=bias, **settings)
    assert room[m:].isnan().all(), "wrote below out"
    assert room[:, n:].isnan().all(), "wrote beside out"
    return room[:m, :n]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [64, 128])
def test_every_float8_code_is_widened_exactly(columns: int, dtype: torch.dtype) -> None:
    """Each of the 254 numbers of e4m3, subnormal ones too, in every column and row of a tile."""
    codes = torch.arange(256, device="cuda", dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    rows = torch.stack([codes.roll(i) for i in range(128)])
    stored = ops.float8_columns(rows.clone()).view(torch.float8_e4m3fn)
    weight = SkinnyWeight(stored, scale=torch.ones(128, device="cuda"), dtype=dtype)
    unit = torch.eye(256, dtype=dtype, device="cuda")
    value = rows.view(torch.float8_e4m3fn).to(dtype)
    assert torch.equal(widened_gemm(unit, weight, tuning=tuning("Split", columns=columns)), value.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("is_mxfp4", [False, True])
def test_every_four_bit_code_is_widened_exactly(is_mxfp4: bool, columns: int, dtype: torch.dtype) -> None:
    """In every column and row of a tile, and with it the order of both."""
    n, k = 128, 512
    generator = torch.Generator("cuda").manual_seed(1)
    codes = torch.randint(0, 16, (n, k), generator=generator, device="cuda", dtype=torch.uint8)
    scale = torch.ones(n, k // 32, dtype=dtype, device="cuda")
    weight = SkinnyWeight(
        ops.four_bit_columns(codes[:, ::2] | codes[:, 1::2] << 4),
        scale=ops.by_group(scale),
        is_mxfp4=is_mxfp4,
    )
    unit = torch.eye(k, dtype=dtype, device="cuda")
    numbers = torch.tensor(E2M1, device="cuda")[codes.long()] if is_mxfp4 else codes.float() - 8
    out = widened_gemm(unit, weight, tuning=tuning("Split", columns=columns))
    assert torch.equal(out, numbers.to(dtype).T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "n", "k"), KIND_SIZES)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "silu_mul"])
def test_product(kind: str, n: int, k: int, fused: bool, dtype: torch.dtype) -> None:
    """x times the dequantised weight plus bias, for every cut."""
    weight, value = weight_of(n, k, kind, dtype, fused=fused, seed=n)
    bias = normal(n, dtype=dtype, seed=1)
    tolerance = (SILU_TOLERANCE if fused else TOLERANCE)[dtype]
    for m in ROWS:
        # SiLU of large sums is 0 or the sum: keep some between.
        x = normal(m, k, dtype=dtype, seed=m) * (0.5 / math.sqrt(k))
        for b in (None, bias):
            expected = product(x, value) + (0 if b is None else b.float())
            expected = silu_mul(expected, dtype) if fused else expected.to(dtype)
            for cut in CUTS:
                assert_close(checked(x, weight, cut, b), expected, tolerance, f"{m} rows, {cut}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 14336), (3072, 2048), (2048, 8192)])
def test_a_models_size(n: int, k: int, kind: str) -> None:
    """Right, repeats, and looks at no other row."""
    weight, value = weight_of(n, k, kind, torch.bfloat16)
    for m in (72, 256, 520):
        x = normal(m, k, dtype=torch.bfloat16, seed=m) * 0.01
        out = widened_gemm(x, weight)
        assert_close(out, product(x, value).bfloat16(), TOLERANCE[x.dtype], f"{m} rows")
        for _ in range(10):
            assert torch.equal(widened_gemm(x, weight), out), "does not repeat"
        beside = torch.full_like(x, math.nan)
        beside[3:60] = x[3:60]
        assert torch.equal(widened_gemm(beside, weight)[3:60], out[3:60]), "depends on the other rows"


@pytest.mark.parametrize("kind", ["block", "128 with zeros"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "silu_mul"])
def test_a_row_has_the_same_bits_in_every_batch_where_k_is_not_cut(fused: bool, kind: str) -> None:
    """Wherever it lies in a tile, whatever is beside it, for every size of tiles."""
    weight, _ = weight_of(2048, 1152, kind, torch.bfloat16, fused=fused)
    x = normal(600, 1152, dtype=torch.bfloat16) * 0.01
    whole = widened_gemm(x, weight, tuning=tuning("Split", parts=1))
    for first, last in ((0, 1), (3, 260), (77, 600), (599, 600)):
        for columns, rows in itertools.product((64, 128), (64, 96, 128)):
            cut = tuning("Split", parts=1, columns=columns, rows=rows)
            assert torch.equal(widened_gemm(x[first:last], weight, tuning=cut), whole[first:last])


@pytest.mark.parametrize("kind", ["block", "128 with zeros"])
@pytest.mark.parametrize("m", [72, 300])
def test_overlapping_chain_in_a_graph(m: int, kind: str) -> None:
    """Kernels that start early see what the kernels before them wrote: the bits of launches in order."""
    hidden, inter = 512, 2048
    layers = [
        (
            weight_of(2 * inter, hidden, kind, torch.bfloat16, fused=True, seed=i)[0],
            weight_of(hidden, inter, kind, torch.bfloat16, seed=9 + i)[0],
        )
        for i in range(6)
    ]
    norm_weight = torch.full((hidden,), 0.01, dtype=torch.bfloat16, device="cuda")

    def chain(x: Tensor, overlaps: bool) -> Tensor:
        for gate_up, down in layers:
            y = ops.rms_norm(x, norm_weight, 1e-5)
            if not overlaps:
                torch.cuda.synchronize()
            y = widened_gemm(y, gate_up, overlaps=overlaps)
            x = widened_gemm(y, down, overlaps=overlaps)
        return x

    check_overlap(chain, normal(m, hidden, dtype=torch.bfloat16))


def test_refuses() -> None:
    """Errors name what was given and what is allowed."""
    weight = weight_of(64, 128, "block", torch.bfloat16)[0]
    x = normal(4, 128, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"weight.format: got 0 \(16 bits\); allowed: 1 \(float8\)"):
        widened_gemm(x, SkinnyWeight(normal(64, 128, dtype=torch.bfloat16)))
    with pytest.raises(ValueError, match="columns of out: got 60; allowed: multiples of 8"):
        widened_gemm(x, weight_of(60, 128, "block", torch.bfloat16)[0], out=poisoned(4, 64, dtype=x.dtype))
    with pytest.raises(ValueError, match="stride_x: got 132; allowed: multiples of 8"):
        widened_gemm(normal(4, 132, dtype=torch.bfloat16)[:, :128], weight)
    with pytest.raises(ValueError, match="stride_out: got 68; allowed: multiples of 8"):
        widened_gemm(x, weight, out=normal(4, 68, dtype=torch.bfloat16)[:, :64])
    with pytest.raises(ValueError, match="columns: got 32; allowed: 0, 64, 128"):
        widened_gemm(x, weight, tuning=tuning("Split", columns=32))
    assert widened_gemm(normal(0, 128, dtype=torch.bfloat16), weight).shape == (0, 64)
