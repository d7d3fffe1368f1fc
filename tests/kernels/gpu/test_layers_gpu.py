"""RMSNorm, SiLU * mul, the embedding and RoPE with the cache write on the GPU, against float32 references."""

from __future__ import annotations

import math

import gpu_ops
import pytest
import torch
from kernel_reference import assert_close
from torch import Tensor

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The references round where the kernels do; a sum in another order may turn a rounding here and there.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-4, torch.float16: 3e-5}
# One rounding: half a unit of the type at most.
ROUNDED_ONCE = {torch.float32: 1e-6, torch.bfloat16: 2e-3, torch.float16: 3e-4}
SIZES = [1, 7, 8, 33, 250, 256, 1000, 2048, 4096, 8192]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def llama_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32, each step rounded as in Hugging Face's Llama."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return (weight.float() * normed.to(x.dtype).float()).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm(size: int, dtype: torch.dtype) -> None:
    """Rounding order of Hugging Face, rows that lie apart, out poisoned, x unchanged."""
    weight = normal(size, dtype=dtype, seed=size) + 1
    for apart in (0, 9, 16):  # 9: rows that are not aligned
        wide = normal(5, size + apart, dtype=dtype)
        before = wide.clone()
        out = torch.full((5, size), math.nan, dtype=dtype, device="cuda")
        gpu_ops.rms_norm(wide[:, :size], weight, 1e-5, out=out)
        assert_close(out, llama_norm(before[:, :size], weight, 1e-5), TOLERANCE[dtype], f"rms_norm of {size}")
        assert torch.equal(wide, before), "x changed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 16384])
def test_rms_norm_with_residual(size: int, dtype: torch.dtype) -> None:
    """The residual becomes residual + x, rounded, and the norm is of that; out may be x."""
    weight = normal(size, dtype=dtype, seed=size) + 1
    x, residual = normal(5, size, dtype=dtype), normal(5, size, dtype=dtype, seed=1)
    total = residual + x
    gpu_ops.rms_norm(x, weight, 1e-6, residual, out=x)
    assert torch.equal(residual, total)
    assert_close(x, llama_norm(total, weight, 1e-6), TOLERANCE[dtype], f"rms_norm of {size} with residual")


def test_rms_norm_of_tiny_and_zero_rows() -> None:
    """eps keeps rows near zero finite."""
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-20), torch.full((64,), 1e3)]).cuda()
    weight = torch.ones(64, device="cuda")
    assert_close(gpu_ops.rms_norm(x, weight, 1e-5), llama_norm(x, weight, 1e-5), 1e-6, "tiny rows")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 14336])
def test_silu_mul(size: int, dtype: torch.dtype) -> None:
    """silu(gate) rounded, times up; gate first; small and large inputs, rows aligned or not."""
    scale = torch.tensor([0.01, 1, 5, 15, 30], dtype=dtype, device="cuda")[:, None]
    for apart in (0, 9, 16):
        gate_up = (normal(5, 2 * size + apart, dtype=dtype) * scale)[:, : 2 * size]
        gate, up = gate_up[:, :size].float(), gate_up[:, size:].float()
        out = torch.full((5, size), math.nan, dtype=dtype, device="cuda")
        gpu_ops.silu_mul(gate_up, out)
        expected = ((gate * torch.sigmoid(gate)).to(dtype).float() * up).to(dtype)
        assert_close(out, expected, TOLERANCE[dtype], f"silu_mul of {size}")


def test_silu_mul_at_the_ends_of_float() -> None:
    """Saturates like silu: 0 far below, the gate itself far above; NaN stays NaN."""
    gate = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30, math.nan]]).cuda()
    out = gpu_ops.silu_mul(torch.cat([gate, torch.ones_like(gate)], 1)).cpu()
    assert torch.equal(out[0, :5], torch.tensor([0.0, 0.0, 0.0, 200.0, 1e30]))
    assert out[0, 5].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 37, 256, 4096])
def test_embedding(size: int, dtype: torch.dtype) -> None:
    """out[i] = table[ids[i]], first and last row included; ids outside the vocabulary give NaN."""
    table = normal(50, size, dtype=dtype)
    ids = torch.tensor([49, 0, 7, 7, -1, 50], dtype=torch.int32, device="cuda")
    out = torch.zeros((6, size), dtype=dtype, device="cuda")
    gpu_ops.embedding(ids, table, out)
    assert torch.equal(out[:4], table[ids[:4].long()])
    assert out[4:].isnan().all()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [num_tokens, num_heads, head_dim] in float32, as Hugging Face's rotate_half."""
    a, b = x.float().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 40, 64, 72, 80, 96, 128, 256])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads"), [(6, 2), (1, 1), (32, 8)])
def test_rope_and_cache(num_q_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """Queries in place, keys and values in their slots, slot -1 skipped, all else untouched."""
    num_tokens, max_position, num_blocks, block_size = 37, 300, 7, 16
    generator = torch.Generator().manual_seed(head_dim)
    angles = torch.rand((max_position, head_dim // 2), generator=generator) * 100
    cos, sin = angles.cos().cuda(), angles.sin().cuda()
    positions = torch.randint(0, max_position, (num_tokens,), generator=generator, dtype=torch.int32).cuda()
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens].cuda()
    slots[::5] = -1
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    key_cache = torch.full(shape, math.nan, dtype=dtype, device="cuda")
    value_cache = key_cache.clone()
    width = (num_q_heads + 2 * num_kv_heads) * head_dim
    activation = normal(num_tokens, width + 24, dtype=dtype, seed=1)  # rows lie apart
    before = activation.clone()

    gpu_ops.rope_and_cache(
        activation[:, :width], cos, sin, positions, slots, key_cache, value_cache, num_q_heads
    )

    q, k, v = before[:, :width].split([num_q_heads * head_dim, *[num_kv_heads * head_dim] * 2], 1)
    c, s = cos[positions.long()], sin[positions.long()]
    q_width = num_q_heads * head_dim
    expected_q = rotated(q.reshape(num_tokens, -1, head_dim), c, s).flatten(1)
    expected_k = rotated(k.reshape(num_tokens, -1, head_dim), c, s).flatten(1)
    assert_close(activation[:, :q_width], expected_q, ROUNDED_ONCE[dtype], "rotated query")
    assert torch.equal(activation[:, q_width:], before[:, q_width:]), "only the query part of qkv may change"
    keys, values = key_cache.view(num_blocks * block_size, -1), value_cache.view(num_blocks * block_size, -1)
    stored = slots >= 0
    assert_close(keys[slots[stored]], expected_k[stored], ROUNDED_ONCE[dtype], "keys")
    assert torch.equal(values[slots[stored]], v[stored])
    untouched = torch.ones(num_blocks * block_size, dtype=torch.bool, device="cuda")
    untouched[slots[stored]] = False
    assert keys[untouched].isnan().all(), "a slot that no token owns was written"
    assert values[untouched].isnan().all(), "a slot that no token owns was written"


def test_rope_out_of_range_harms_nothing() -> None:
    """A position outside the table rotates to NaN, a slot outside the cache is not written."""
    cos = torch.ones((10, 32), device="cuda")
    key_cache = torch.zeros((2, 16, 1, 64), device="cuda")
    value_cache = key_cache.clone()
    qkv = torch.ones((4, 3 * 64), device="cuda")
    positions = torch.tensor([3, 10, -1, 3], dtype=torch.int32, device="cuda")
    slots = torch.tensor([32, -1, -(2**60), 2**60], device="cuda")
    gpu_ops.rope_and_cache(qkv, cos, cos, positions, slots, key_cache, value_cache, 1)
    assert [False, True, True, False] == qkv[:, :64].isnan().all(1).tolist()
    assert not key_cache.any()
    assert not value_cache.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_mates_change_nothing(dtype: torch.dtype) -> None:
    """Each row is bitwise the same alone and in a batch."""
    weight = normal(512, dtype=dtype, seed=3)
    x, gate_up = normal(1500, 512, dtype=dtype), normal(1500, 1024, dtype=dtype, seed=4)
    residual = normal(1500, 512, dtype=dtype, seed=5)

    def run(rows: slice) -> list[Tensor]:
        updated = residual[rows].clone()
        return [
            gpu_ops.rms_norm(x[rows], weight, 1e-5),
            gpu_ops.rms_norm(x[rows], weight, 1e-5, updated),
            updated,
            gpu_ops.silu_mul(gate_up[rows]),
        ]

    together = run(slice(None))
    for row in (0, 777, 1499):
        for actual, expected in zip(run(slice(row, row + 1)), together, strict=True):
            assert torch.equal(actual, expected[row : row + 1])


def test_graph_capture() -> None:
    """Every layer can be captured; a replay works on what the buffers hold then."""
    x, weight = normal(16, 256, dtype=torch.bfloat16), normal(256, dtype=torch.bfloat16, seed=1)
    ids = torch.arange(16, dtype=torch.int32, device="cuda")
    out = torch.empty_like(x)
    half = torch.empty((16, 128), dtype=torch.bfloat16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu_ops.embedding(ids, x, out)
        gpu_ops.rms_norm(out, weight, 1e-5, out=out)
        gpu_ops.silu_mul(out, half)
    ids.copy_(ids.flip(0))
    graph.replay()
    assert torch.equal(half, gpu_ops.silu_mul(gpu_ops.rms_norm(x.flip(0), weight, 1e-5)))


def test_no_rows_and_refused_sizes() -> None:
    """Zero rows are fine; sizes without a kernel are named."""
    zeros = torch.zeros((0, 8), device="cuda")
    assert gpu_ops.rms_norm(zeros, torch.ones(8, device="cuda"), 1e-5).shape == (0, 8)
    assert gpu_ops.silu_mul(zeros).shape == (0, 4)
    big = torch.zeros((1, 40000), device="cuda")
    with pytest.raises(ValueError, match=r"hidden_size: got 40000; allowed: 1 to 16384"):
        gpu_ops.rms_norm(big, big, 1e-5)
    cache = torch.zeros((1, 16, 1, 36), device="cuda")
    with pytest.raises(ValueError, match=r"head_dim: got 36; allowed: multiples of 8 from 32 to 256"):
        gpu_ops.rope_and_cache(big, big, big, big, big, cache, cache, 1)
