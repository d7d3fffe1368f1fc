"""The GEMMs for some and for many rows with float8 operands: against float32 sums of the same operands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gemm_cases import (
    DTYPES,
    check_overlap,
    dequantized,
    float8_tolerance,
    float8_weight,
    normal,
    product,
    silu_mul,
    split_gemm,
    tuning,
    wide_gemm,
)
from kernel_reference import assert_close
from quire import ops
from quire.ops.gemm import WideWeight
from torch import Tensor

pytestmark = pytest.mark.gpu

# One row, whole tiles, ragged ones, several tiles, more units than clusters.
ROWS = [1, 17, 32, 33, 64, 65, 97, 128, 131, 256, 300, 1000]
# Columns of out x k: whole tiles, fewer columns than a tile, ragged; k of one step, of fewer steps than the
# rings have stages, ragged.
SIZES = [(128, 128), (256, 256), (8, 144), (392, 1104), (2056, 2048)]


def quantized(m: int, k: int, dtype: torch.dtype, seed: int = 0) -> ops.QuantizedRows:
    """Rows of very different sizes."""
    size = 2.0 ** (torch.arange(m, device="cuda") % 9 - 4)
    return ops.quantize_rows((normal(m, k, dtype=torch.float32, seed=seed) * size[:, None]).to(dtype))


def apart(rows: ops.QuantizedRows) -> ops.QuantizedRows:
    """The same rows with NaN between them."""
    m, k = rows.values.shape
    room = torch.full((m, k + 32), 0x7F, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    room[:, 16 : k + 16].copy_(rows.values)
    return ops.QuantizedRows(room[:, 16 : k + 16], rows.scales)


def written(
    gemm: Callable[..., Tensor], x: ops.QuantizedRows, weight: WideWeight, dtype: torch.dtype, **settings: Any
) -> Tensor:
    """The result, after a check that nothing beside it was touched."""
    m, n = x.values.size(0), weight.out_size
    room = torch.full((m + 1, n + 8), math.nan, dtype=dtype, device="cuda")
    gemm(x, weight, out=room[:m, :n], **settings)
    assert room[m:].isnan().all(), "wrote below out"
    assert room[:, n:].isnan().all(), "wrote beside out"
    return room[:m, :n]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "silu_mul"])
def test_wide_product(n: int, k: int, fused: bool, dtype: torch.dtype) -> None:
    """Sums times both scales plus bias, with the same bits however the work is spread."""
    n *= 1 + fused
    weight, w = float8_weight(n, k, dtype=dtype, silu_mul=fused, seed=n)
    bias = normal(n, dtype=dtype, seed=1)
    tolerance = float8_tolerance(k, dtype, silu_mul=fused)
    for m in ROWS:
        x = quantized(m, k, dtype, seed=m)
        # SiLU of large sums is 0 or the sum: keep some between.
        x.scales.mul_(1 / (4 * math.sqrt(k)))
        for b in (None, bias):
            expected = product(dequantized(x), w) + (0 if b is None else b.float())
            expected = silu_mul(expected, dtype) if fused else expected.to(dtype)
            first = written(wide_gemm, apart(x), weight, dtype, bias=b)
            assert_close(first, expected, tolerance, f"{m} rows")
            for cut in ({"pair": 0, "halves": 0}, {"pair": 1, "group": 1}, {"pair": 1, "columns": 112}):
                settings = {"bias": b, "tuning": tuning("Wide", **cut)}
                assert torch.equal(written(wide_gemm, x, weight, dtype, **settings), first), cut


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_split_product(n: int, k: int, dtype: torch.dtype) -> None:
    """Sums times both scales plus bias, for every cut: k whole, in unequal parts, in one for each 8 rows."""
    weight, w = float8_weight(n, k, dtype=dtype, seed=n)
    bias = normal(n, dtype=dtype, seed=1)
    cuts = [None] + [
        tuning("Split", parts=parts, columns=columns, rows=rows, blocks_per_sm=per_sm)
        for parts, columns, rows, per_sm in itertools.product(
            (1, 2, 3, 4, 8), (64, 128), (32, 64, 96, 128), (1, 2)
        )
        if parts <= rows // 8 and (per_sm == 1 or rows <= 64)
    ]
    for m in ROWS:
        x = quantized(m, k, dtype, seed=m)
        for b in (None, bias):
            expected = (product(dequantized(x), w) + (0 if b is None else b.float())).to(dtype)
            for cut in cuts:
                out = written(split_gemm, apart(x), weight, dtype, bias=b, tuning=cut)
                assert_close(out, expected, float8_tolerance(k, dtype), f"{m} rows")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_split_product_with_scales_of_blocks(n: int, k: int, dtype: torch.dtype) -> None:
    """Each 128 columns of x and W have scales of their own, for every cut."""
    blocks = -(-k // 128)
    values = normal(n, k, dtype=torch.float32, seed=n).to(torch.float8_e4m3fn)
    scale = 2.0 ** (torch.arange(n * blocks, device="cuda") % 7 - 3).view(n, blocks)
    w = values.float() * scale.repeat_interleave(128, 1)[:, :k]
    weight = WideWeight(ops.float8_columns(values), scale=scale, dtype=dtype)
    bias = normal(n, dtype=dtype, seed=1)
    cuts = [None] + [
        tuning("Split", parts=parts, columns=columns, rows=rows)
        for parts, columns, rows in itertools.product((1, 3), (64, 128), (32, 64, 96, 128))
    ]
    for m in ROWS:
        column_sizes = 2.0 ** (torch.arange(k, device="cuda") // 128 % 5 - 2)
        x = ops.quantize_rows(
            (normal(m, k, dtype=torch.float32, seed=m) * column_sizes).to(dtype), num_scales=blocks
        )
        expected = (product(dequantized(x), w) + bias.float()).to(dtype)
        for cut in cuts:
            out = written(split_gemm, apart(x), weight, dtype, bias=bias, tuning=cut)
            # Only the sum of 128 columns is one of few bits.
            assert_close(out, expected, float8_tolerance(128, dtype), f"{m} rows")


@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 14336), (3072, 2048), (2048, 8192)])
def test_a_models_size(n: int, k: int) -> None:
    """Both GEMMs are right, repeat, and look at no other row."""
    weight, w = float8_weight(n, k, dtype=torch.bfloat16)
    for m in (24, 64, 72, 256, 520):
        x = quantized(m, k, torch.bfloat16, seed=m)
        expected = product(dequantized(x), w).bfloat16()
        beside = ops.QuantizedRows(x.values.clone(), torch.full_like(x.scales, math.nan))
        beside.values.view(torch.uint8).fill_(0x7F)  # NaN
        beside.values[3:20].copy_(x.values[3:20])
        beside.scales[3:20].copy_(x.scales[3:20])
        for gemm in (split_gemm, wide_gemm):
            out = gemm(x, weight)
            assert_close(out, expected, float8_tolerance(k, torch.bfloat16), f"{m} rows")
            for _ in range(10):
                assert torch.equal(gemm(x, weight), out), "does not repeat"
            assert torch.equal(gemm(beside, weight)[3:20], out[3:20]), "depends on the other rows"


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "silu_mul"])
def test_a_row_of_the_wide_gemm_has_the_same_bits_in_every_batch(fused: bool) -> None:
    """Wherever it lies in a tile, whatever is beside it."""
    weight, _ = float8_weight(2048, 1024, dtype=torch.bfloat16, silu_mul=fused)
    x = quantized(1100, 1024, torch.bfloat16)
    whole = wide_gemm(x, weight)
    for first, last in ((0, 1), (3, 260), (77, 600), (500, 1100), (1099, 1100)):
        part = ops.QuantizedRows(x.values[first:last], x.scales[first:last])
        assert torch.equal(wide_gemm(part, weight), whole[first:last])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_silu_mul_equals_the_kernels_apart(dtype: torch.dtype) -> None:
    """Bit for bit, at the shape of a 1B model."""
    weight, _ = float8_weight(2 * 8192, 2048, dtype=dtype)
    fused = WideWeight(weight.tensor, silu_mul=True, scale=weight.scale, dtype=dtype)
    for m in (160, 544, 2048):
        x = quantized(m, 2048, dtype, seed=m)
        x.scales.mul_(2048**-0.5)
        assert torch.equal(wide_gemm(x, fused), ops.act_mul(wide_gemm(x, weight)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [*SIZES, (28672, 4096)])
def test_split_silu_mul(n: int, k: int, dtype: torch.dtype) -> None:
    """Up to 64 rows: right, and bit for bit the sums and act_mul apart."""
    plain, w = float8_weight(2 * n, k, dtype=dtype, seed=n)
    fused = WideWeight(plain.tensor, silu_mul=True, scale=plain.scale, dtype=dtype)
    bias = normal(2 * n, dtype=dtype, seed=1)
    for m in (1, 17, 32, 33, 64):
        x = quantized(m, k, dtype, seed=m)
        x.scales.mul_(1 / (4 * math.sqrt(k)))
        for b, parts in itertools.product((None, bias), (1, 2)):
            settings = {"bias": b, "tuning": tuning("Split", parts=parts, columns=128)}
            out = written(split_gemm, apart(x), fused, dtype, **settings)
            assert torch.equal(out, ops.act_mul(split_gemm(x, plain, **settings)))
            expected = product(dequantized(x), w) + (0 if b is None else b.float())
            tolerance = float8_tolerance(k, dtype, silu_mul=True)
            assert_close(out, silu_mul(expected, dtype), tolerance, f"{m} rows")


@pytest.mark.parametrize("m", [20, 64, 72, 300])
def test_overlapping_chain_in_a_graph(m: int) -> None:
    """Kernels that start early see what the kernels before them wrote: the bits of launches in order."""
    hidden, inter = 512, 2048
    layers = [
        (
            float8_weight(2 * inter, hidden, dtype=torch.bfloat16, silu_mul=True, seed=i)[0],
            float8_weight(hidden, inter, dtype=torch.bfloat16, seed=9 + i)[0],
        )
        for i in range(6)
    ]
    norm_weight = torch.ones(hidden, dtype=torch.bfloat16, device="cuda")

    def chain(x: Tensor, overlaps: bool) -> Tensor:
        for gate_up, down in layers:
            scales = torch.empty(m, device="cuda")
            normed = ops.rms_norm(x, norm_weight, 1e-5, out_scale=scales)
            if not overlaps:
                torch.cuda.synchronize()
            inner = wide_gemm(ops.QuantizedRows(normed, scales), gate_up, overlaps=overlaps)
            rows = ops.quantize_rows(inner)
            if not overlaps:
                torch.cuda.synchronize()
            x = split_gemm(rows, down, overlaps=overlaps)
        return x

    check_overlap(chain, normal(m, hidden, dtype=torch.bfloat16))


def test_refuses() -> None:
    """Errors name what was given and what is allowed."""
    weight, w = float8_weight(64, 128, dtype=torch.bfloat16)
    x = quantized(4, 128, torch.bfloat16)
    plain = WideWeight(w.bfloat16())
    for gemm in (wide_gemm, split_gemm):
        with pytest.raises(ValueError, match=r"x_scale: got none; allowed: a scale per row"):
            gemm(x.values, weight)
        with pytest.raises(ValueError, match=r"x_scale: got scales; allowed: none"):
            gemm(x, plain)
        with pytest.raises(ValueError, match=r"stride_x: got 136; allowed: multiples of 16"):
            gemm(
                ops.QuantizedRows(
                    torch.empty(4, 136, device="cuda").to(torch.float8_e4m3fn)[:, :128], x.scales
                ),
                weight,
            )
        assert gemm(quantized(0, 128, torch.bfloat16), weight).shape == (0, 64)
    for k, allowed in ((64, "128 to"), (136, "multiples of 16")):
        with pytest.raises(ValueError, match=f"k: got {k}; allowed: {allowed}"):
            WideWeight(
                torch.zeros(64, k, device="cuda").to(torch.float8_e4m3fn),
                scale=weight.scale,
                dtype=torch.bfloat16,
            )
    blocked = WideWeight(
        torch.zeros(64, 256, device="cuda").to(torch.float8_e4m3fn),
        scale=torch.ones(64, 2, device="cuda"),
        dtype=torch.bfloat16,
    )
    with pytest.raises(ValueError, match=r"num_scales: got 2; allowed: 1"):
        wide_gemm(ops.quantize_rows(normal(4, 256, dtype=torch.bfloat16), num_scales=2), blocked)
    fused = WideWeight(weight.tensor, silu_mul=True, scale=weight.scale, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"silu_mul: got true; allowed: false, but for up to 64 rows"):
        split_gemm(quantized(65, 128, torch.bfloat16), fused)
    with pytest.raises(ValueError, match=r"tuning.blocks_per_sm: got 2"):
        split_gemm(quantized(65, 128, torch.bfloat16), weight, tuning=tuning("Split", blocks_per_sm=2))
    with pytest.raises(ValueError, match=r"tuning.parts: got 5; allowed: 1 to 4"):
        split_gemm(
            ops.quantize_rows(normal(4, 1024, dtype=torch.bfloat16)),
            float8_weight(64, 1024, dtype=torch.bfloat16)[0],
            tuning=tuning("Split", parts=5, rows=32),
        )
    with pytest.raises(ValueError, match="scale: got"):
        WideWeight(weight.tensor, scale=torch.ones(63, device="cuda"), dtype=torch.bfloat16)
