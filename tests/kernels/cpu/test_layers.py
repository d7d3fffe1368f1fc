"""RMSNorm, SiLU * mul and the embedding against torch and transformers."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_reference import assert_close
from quire import ops
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

DTYPES = [torch.float32, torch.bfloat16]
# With bfloat16 each step rounds as torch does; a sum in another order may turn a rounding here and there.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-4}
SIZES = [1, 7, 8, 16, 33, 256, 250, 1000, 4096]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def llama_norm(size: int, dtype: torch.dtype, eps: float) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(size, eps).to(dtype)
    norm.weight.data = normal(size, dtype=dtype, seed=size) + 1
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm(size: int, dtype: torch.dtype) -> None:
    """Equals LlamaRMSNorm, rounding order included, also for rows that lie apart and with out given."""
    norm = llama_norm(size, dtype, 1e-5)
    wide = normal(5, size + 9, dtype=dtype)
    x = wide[:, :size]
    out = torch.full((5, size), math.nan, dtype=dtype)
    assert ops.rms_norm(x, norm.weight.data, 1e-5, out=out) is out
    assert_close(out, norm(x).detach(), TOLERANCE[dtype], f"rms_norm of {size}")
    assert torch.equal(wide, normal(5, size + 9, dtype=dtype)), "x changed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_with_residual(size: int, dtype: torch.dtype) -> None:
    """The residual becomes residual + x, rounded, and the norm is of that; out may be x."""
    norm = llama_norm(size, dtype, 1e-6)
    x, residual = normal(5, size, dtype=dtype), normal(5, size, dtype=dtype, seed=1)
    total = residual + x
    out = ops.rms_norm(x, norm.weight.data, 1e-6, residual, out=x)
    assert torch.equal(residual, total)
    assert_close(out, norm(total).detach(), TOLERANCE[dtype], f"rms_norm of {size} with residual")


def test_rms_norm_of_tiny_and_zero_rows() -> None:
    """eps keeps rows near zero finite."""
    norm = llama_norm(64, torch.float32, 1e-5)
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-20), torch.full((64,), 1e3)])
    assert_close(ops.rms_norm(x, norm.weight.data, 1e-5), norm(x).detach(), 1e-6, "rms_norm of tiny rows")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_silu_mul(size: int, dtype: torch.dtype) -> None:
    """Equals torch's silu(gate) * up, gate first, over small and large inputs."""
    wide = normal(5, 2 * size + 9, dtype=dtype) * torch.tensor([0.01, 1, 5, 30, 100], dtype=dtype)[:, None]
    gate_up = wide[:, : 2 * size]
    out = torch.full((5, size), math.nan, dtype=dtype)
    assert ops.silu_mul(gate_up, out) is out
    expected = torch.nn.functional.silu(gate_up[:, :size]) * gate_up[:, size:]
    assert_close(out, expected, TOLERANCE[dtype], f"silu_mul of {size}")


def test_silu_mul_at_the_ends_of_float() -> None:
    """Saturates like silu: 0 far below, the gate itself far above; NaN stays NaN."""
    gate = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30, math.nan]])
    out = ops.silu_mul(torch.cat([gate, torch.ones_like(gate)], 1))
    assert torch.equal(out[0, :5], torch.tensor([0.0, 0.0, 0.0, 200.0, 1e30]))
    assert out[0, 5].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 37, 256])
def test_embedding(size: int, dtype: torch.dtype) -> None:
    """out[i] = table[ids[i]], first and last row included."""
    table = normal(50, size, dtype=dtype)
    ids = torch.tensor([49, 0, 7, 7], dtype=torch.int32)
    out = torch.full((4, size), math.nan, dtype=dtype)
    assert torch.equal(ops.embedding(ids, table, out), table[ids.long()])
    assert ops.embedding(ids[:0], table).shape == (0, size)


@pytest.mark.parametrize("token_id", [-1, 50])
def test_embedding_names_an_id_outside_the_vocabulary(token_id: int) -> None:
    """The error names the place, the id and the range, and nothing was written."""
    ids = torch.tensor([3, token_id], dtype=torch.int32)
    out = torch.full((2, 8), math.nan)
    with pytest.raises(
        (ValueError, RuntimeError), match=rf"token_ids\[1\]: got {token_id}; allowed: 0 to .* = 49"
    ):
        ops.embedding(ids, torch.zeros((50, 8)), out)
    assert out.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_batch_mates_change_nothing(dtype: torch.dtype) -> None:
    """Each row is bitwise the same with 1 and 2 threads, and alone."""
    weight = normal(512, dtype=dtype, seed=3)
    x, gate_up = normal(1500, 512, dtype=dtype), normal(1500, 1024, dtype=dtype, seed=4)
    residual = normal(1500, 512, dtype=dtype, seed=5)

    def run(rows: slice) -> list[Tensor]:
        updated = residual[rows].clone()
        return [
            ops.rms_norm(x[rows], weight, 1e-5),
            ops.rms_norm(x[rows], weight, 1e-5, updated),
            updated,
            ops.silu_mul(gate_up[rows]),
            ops.embedding(torch.arange(1500, dtype=torch.int32)[rows], x),
        ]

    one = run(slice(None))
    ops.set_num_threads(2)
    for actual, expected in zip(run(slice(None)), one, strict=True):
        assert torch.equal(actual, expected)
    for row in (0, 777, 1499):
        for actual, expected in zip(run(slice(row, row + 1)), one, strict=True):
            assert torch.equal(actual, expected[row : row + 1])


def test_no_rows() -> None:
    """Zero rows are fine."""
    assert ops.rms_norm(torch.zeros((0, 8)), torch.ones(8), 1e-5).shape == (0, 8)
    assert ops.silu_mul(torch.zeros((0, 8))).shape == (0, 4)


def test_wrong_tensors_are_named() -> None:
    """Types and sizes that do not fit are refused with what was given."""
    x = torch.zeros((2, 8))
    with pytest.raises(ValueError, match=r"x, weight, out: got .*torch.float32\[7\]"):
        ops.rms_norm(x, torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match=r"residual: got torch.bfloat16\[2, 8\].* = \[2, 8\]"):
        ops.rms_norm(x, torch.ones(8), 1e-5, x.bfloat16())
    with pytest.raises(TypeError, match=r"x: got torch.float16; allowed: torch.float32, torch.bfloat16"):
        ops.rms_norm(x.half(), torch.ones(8).half(), 1e-5)
    with pytest.raises(ValueError, match=r"gate_up, out: got torch.float32\[2, 7\]"):
        ops.silu_mul(torch.zeros((2, 7)))
    with pytest.raises(ValueError, match=r"token_ids: got torch.int64\[2\]"):
        ops.embedding(torch.zeros(2, dtype=torch.int64), x)
