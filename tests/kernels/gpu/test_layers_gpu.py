"""RMSNorm, SiLU * mul, the embedding and RoPE with the cache write on the GPU, against float32 references."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from kernel_reference import assert_close
from quire import ops
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
        ops.rms_norm(wide[:, :size], weight, 1e-5, out=out)
        assert_close(out, llama_norm(before[:, :size], weight, 1e-5), TOLERANCE[dtype], f"rms_norm of {size}")
        assert torch.equal(wide, before), "x changed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 16384])
def test_rms_norm_with_residual(size: int, dtype: torch.dtype) -> None:
    """The residual becomes residual + x, rounded, and the norm is of that; out may be x."""
    weight = normal(size, dtype=dtype, seed=size) + 1
    x, residual = normal(5, size, dtype=dtype), normal(5, size, dtype=dtype, seed=1)
    total = residual + x
    ops.rms_norm(x, weight, 1e-6, residual, out=x)
    assert torch.equal(residual, total)
    assert_close(x, llama_norm(total, weight, 1e-6), TOLERANCE[dtype], f"rms_norm of {size} with residual")


def test_rms_norm_of_tiny_and_zero_rows() -> None:
    """eps keeps rows near zero finite."""
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-20), torch.full((64,), 1e3)]).cuda()
    weight = torch.ones(64, device="cuda")
    assert_close(ops.rms_norm(x, weight, 1e-5), llama_norm(x, weight, 1e-5), 1e-6, "tiny rows")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 14336])
def test_silu_mul(size: int, dtype: torch.dtype) -> None:
    """silu(gate) rounded, times up; gate first; small and large inputs, rows aligned or not."""
    scale = torch.tensor([0.01, 1, 5, 15, 30], dtype=dtype, device="cuda")[:, None]
    for apart in (0, 9, 16):
        gate_up = (normal(5, 2 * size + apart, dtype=dtype) * scale)[:, : 2 * size]
        gate, up = gate_up[:, :size].float(), gate_up[:, size:].float()
        out = torch.full((5, size), math.nan, dtype=dtype, device="cuda")
        ops.silu_mul(gate_up, out)
        expected = ((gate * torch.sigmoid(gate)).to(dtype).float() * up).to(dtype)
        assert_close(out, expected, TOLERANCE[dtype], f"silu_mul of {size}")


def test_silu_mul_at_the_ends_of_float() -> None:
    """Saturates like silu: 0 far below, the gate itself far above; NaN stays NaN."""
    gate = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30, math.nan]]).cuda()
    out = ops.silu_mul(torch.cat([gate, torch.ones_like(gate)], 1)).cpu()
    assert torch.equal(out[0, :5], torch.tensor([0.0, 0.0, 0.0, 200.0, 1e30]))
    assert out[0, 5].isnan()


def rms_norm_float8(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    scale = torch.full((x.size(0),), torch.nan, device="cuda")
    return ops.rms_norm(x, weight, eps, residual, out_scale=scale), scale


def silu_mul_float8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.full((gate_up.size(0),), torch.nan, device="cuda")
    return ops.silu_mul(gate_up, out_scale=scale), scale


def rope_and_cache(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    positions: Tensor,
    slots: Tensor,
    cache: ops.KVCache,
    qk_norm: ops.QkNorm | None = None,
    *,
    places_are_settled: bool = False,
) -> None:
    nothing = torch.zeros(2, dtype=torch.int32, device="cuda")
    batch = ops.BatchInfo(
        positions=positions,
        slot_mapping=slots,
        query_start_loc=nothing,
        seq_lens=nothing[:1],
        block_tables=nothing[:, None],
        block_table_rows=nothing[:1],
        places_are_settled=places_are_settled,
    )
    ops.rope_and_cache(qkv, ops.RopeTable(*angles), cache, batch, qk_norm)


def assert_quantized(out: Tensor, scale: Tensor, expected: Tensor, what: str) -> None:
    """out and scale are what the row's result in its own type gives, bit for bit."""
    largest = expected.float().abs().amax(1).clamp_min(1e-12)
    # One rounding each, of which torch's division by a constant may differ in the last bit.
    torch.testing.assert_close(scale, largest / 448, rtol=3e-7, atol=0)
    inverse = torch.full_like(largest, 448) / largest
    assert torch.equal(out.float(), (expected.float() * inverse[:, None]).to(torch.float8_e4m3fn).float()), (
        what
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 14336])
def test_float8_outputs(size: int, dtype: torch.dtype) -> None:
    """What the kernels store in their own type, quantised with one scale per row; zeros, NaN."""
    weight = normal(size, dtype=dtype, seed=size) + 1
    row_scale = torch.tensor([1e-3, 1, 0, 30, 1, 1], dtype=dtype, device="cuda")[:, None]
    x, residual = (normal(6, size, dtype=dtype, seed=seed) * row_scale for seed in (0, 1))
    updated = residual.clone()
    expected = ops.rms_norm(x, weight, 1e-5, updated)
    out, scale = rms_norm_float8(x, weight, 1e-5, residual)
    assert torch.equal(residual, updated)
    assert_quantized(out, scale, expected, f"rms_norm of {size}")
    assert not out[2].float().any()
    for apart in (0, 9):
        if apart and size > 8192:
            continue
        gate_up = (normal(6, 2 * size + apart, dtype=dtype) * row_scale)[:, : 2 * size]
        assert_quantized(*silu_mul_float8(gate_up), ops.silu_mul(gate_up), f"silu_mul of {size}")
    gate_up[4, size - 1] = math.nan
    out, scale = silu_mul_float8(gate_up)
    assert out[4, size - 1].float().isnan()
    assert out.float().isnan().sum() == 1, "one NaN spreads"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 37, 256, 4096])
def test_embedding(size: int, dtype: torch.dtype) -> None:
    """out[i] = table[ids[i]], first and last row included; ids outside the vocabulary give NaN."""
    table = normal(50, size, dtype=dtype)
    ids = torch.tensor([49, 0, 7, 7, -1, 50], dtype=torch.int32, device="cuda")
    out = torch.zeros((6, size), dtype=dtype, device="cuda")
    ops.embedding(ids, table, out)
    assert torch.equal(out[:4], table[ids[:4].long()])
    assert out[4:].isnan().all()


def test_embedding_of_last_token_ids() -> None:
    """~row is the id that last_token_ids holds for the row; no such row and no such id give NaN."""
    table = normal(50, 72, dtype=torch.bfloat16)
    last = torch.tensor([3, 49, -1, 50, 0], dtype=torch.int32, device="cuda")
    ids = torch.tensor([~0, 5, ~1, ~4, ~2, ~3, ~5, -(2**31), 50], dtype=torch.int32, device="cuda")
    out = torch.zeros((9, 72), dtype=torch.bfloat16, device="cuda")
    ops.embedding(ids, table, out, last_token_ids=last)
    assert torch.equal(out[:4], table[[3, 5, 49, 0]])
    assert out[4:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "width2"), [(1, 1), (64, 2048), (4096, 256), (36, 8), (256, 0)])
def test_gather_rows(width: int, width2: int, dtype: torch.dtype) -> None:
    """out[j] = x[indices[j]] of both tensors, rows apart, repeats; an index outside gives NaN."""
    wide, wide2 = normal(20, width + 8, dtype=dtype), normal(20, width2 + 3, dtype=dtype, seed=1)
    tensors = [wide[:, :width], wide2[:, :width2]] if width2 else [wide[:, :width]]
    indices = torch.tensor([19, 0, 7, 7, 3, -1, 20], dtype=torch.int32, device="cuda")
    outs = [torch.zeros((7, x.size(1)), dtype=dtype, device="cuda") for x in tensors]
    pairs = [tensor for pair in zip(tensors, outs, strict=True) for tensor in pair]
    ops.gather_rows(indices, *pairs)
    for x, out in zip(tensors, outs, strict=True):
        assert torch.equal(out[:5], x[indices[:5].long()])
        assert out[5:].isnan().all()


@pytest.mark.parametrize("num_updates", [0, 1, 255, 300, 20000, 20001])
def test_update_block_tables(num_updates: int) -> None:
    """The first num_updates pairs and no more; an index outside the tables is skipped; fits in a graph."""
    max_updates, rows, stride = 20000, 300, 100
    generator = torch.Generator().manual_seed(num_updates)
    updates = torch.empty((max_updates, 2), dtype=torch.int32)
    updates[:, 0] = torch.randperm(rows * stride, generator=generator)[:max_updates]
    updates[:, 1] = torch.arange(max_updates)
    updates[::7, 0] = torch.tensor([-1, rows * stride, -(2**31), 2**31 - 1])[
        torch.arange(len(updates[::7])) % 4
    ].to(torch.int32)
    tables = torch.full((rows + 1, stride), -5, dtype=torch.int32, device="cuda")
    count = torch.zeros(1, dtype=torch.int32, device="cuda")
    on_device = torch.zeros_like(updates, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.update_block_tables(tables[:rows], on_device, count)
    on_device.copy_(updates)
    count.fill_(num_updates)
    graph.replay()
    expected = torch.full((rows + 1, stride), -5, dtype=torch.int32)
    kept = [(i, b) for i, b in updates[:num_updates].tolist() if 0 <= i < rows * stride]
    for i, block in kept:
        expected.view(-1)[i] = block
    assert torch.equal(tables.cpu(), expected)


@pytest.mark.parametrize("shape", [(40, 1, 2, 16, 1, 8), (40, 5, 2, 16, 8, 128), (40, 32, 2, 64, 8, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_copy_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Keys and values of every layer, all bytes of a block and no byte more; a source may be copied twice; a
    block outside the cache is skipped; nothing to copy is fine."""
    cache = torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8).cuda()
    expected = cache.clone()
    pairs = [(3, 7), (3, 0), (39, 1), (12, 38), (-1, 5), (40, 5), (5, -1), (5, 40)]
    for source, destination in pairs[:4]:
        expected[destination] = cache[source]
    # Two more pairs that are not asked for.
    copies = torch.tensor([*pairs, (3, 20), (3, 21)], dtype=torch.int32, device="cuda").flatten()
    ops.copy_blocks(cache.view(dtype), copies[:0])
    ops.copy_blocks(cache.view(dtype), copies[: 2 * len(pairs)])
    assert torch.equal(cache, expected)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [num_tokens, num_heads, head_dim] in float32, as Hugging Face's rotate_half."""
    a, b = x.float().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def as_e4m3(x: Tensor, scale: float) -> Tensor:
    """What a float8 cache holds of x, as float32. torch does not saturate by itself."""
    one = torch.tensor(1.0)  # the kernel's reciprocal is that of a float32
    inverse = (one / torch.tensor(scale)).to(x.device)
    return (x.float() * inverse).clamp(-448, 448).to(torch.float8_e4m3fn).float()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 40, 64, 72, 80, 96, 128, 256])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads"), [(6, 2), (1, 1), (32, 8)])
@pytest.mark.parametrize("has_norm", [False, True], ids=["", "qk-norm"])
@pytest.mark.parametrize("is_float8", [False, True], ids=["", "float8"])
def test_rope_and_cache(
    num_q_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, has_norm: bool, is_float8: bool
) -> None:
    """Queries in place, keys and values in their slots, slot -1 skipped, all else untouched."""
    num_tokens, max_position, num_blocks, block_size = 37, 300, 7, 16
    generator = torch.Generator().manual_seed(head_dim)
    angles = torch.rand((max_position, head_dim // 2), generator=generator) * 100
    cos, sin = angles.cos().cuda(), angles.sin().cuda()
    positions = torch.randint(0, max_position, (num_tokens,), generator=generator, dtype=torch.int32).cuda()
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens].cuda()
    slots[::5] = -1
    shape = (num_blocks, 3, 2, block_size, num_kv_heads, head_dim)
    stored_as = torch.float8_e4m3fn if is_float8 else dtype
    kv_memory = torch.full(shape, math.nan, device="cuda").to(stored_as)
    k_scale, v_scale = (0.005, 0.25) if is_float8 else (1.0, 1.0)  # the larger keys saturate
    cache = ops.KVCache(kv_memory[:, 1], k_scale=k_scale, v_scale=v_scale)
    key_cache, value_cache = cache.key_cache, cache.value_cache
    weights = [normal(head_dim, dtype=dtype, seed=seed) + 1 for seed in (8, 9)]
    qk_norm = ops.QkNorm(weights[0], weights[1], 1e-5) if has_norm else None
    width = (num_q_heads + 2 * num_kv_heads) * head_dim
    activation = normal(num_tokens, width + 24, dtype=dtype, seed=1)  # rows lie apart
    before = activation.clone()

    torch.cuda.synchronize()  # so that the places are settled
    settled = num_q_heads == 6
    qkv = activation[:, :width]
    rope_and_cache(qkv, (cos, sin), positions, slots, cache, qk_norm, places_are_settled=settled)

    q, k, v = before[:, :width].split([num_q_heads * head_dim, *[num_kv_heads * head_dim] * 2], 1)
    c, s = cos[positions.long()], sin[positions.long()]
    q_width = num_q_heads * head_dim
    heads = [x.reshape(num_tokens, -1, head_dim) for x in (q, k)]
    if has_norm:
        heads = [llama_norm(x, weight, 1e-5) for x, weight in zip(heads, weights, strict=True)]
    expected_q, expected_k = (rotated(x, c, s).flatten(1) for x in heads)
    assert_close(activation[:, :q_width], expected_q, ROUNDED_ONCE[dtype], "rotated query")
    assert torch.equal(activation[:, q_width:], before[:, q_width:]), "only the query part of qkv may change"
    assert kv_memory[:, ::2].float().isnan().all(), "another layer's block was written"
    keys = key_cache.float().reshape(num_blocks * block_size, -1)
    values = value_cache.float().reshape(num_blocks * block_size, -1)
    stored = slots >= 0
    if is_float8:
        expected_k, expected_v = as_e4m3(expected_k, k_scale), as_e4m3(v, v_scale)
        assert (expected_k[stored].abs() == 448).any(), "nothing saturates"
        # A sum in another order turns a rounding here and there, by 1/16.
        assert_close(keys[slots[stored]], expected_k[stored], 6e-3, "keys")
        assert torch.equal(values[slots[stored]], expected_v[stored])
    else:
        assert_close(keys[slots[stored]], expected_k[stored], ROUNDED_ONCE[dtype], "keys")
        assert torch.equal(values[slots[stored]], v[stored].float())
    untouched = torch.ones(num_blocks * block_size, dtype=torch.bool, device="cuda")
    untouched[slots[stored]] = False
    assert keys[untouched].isnan().all(), "a slot that no token owns was written"
    assert values[untouched].isnan().all(), "a slot that no token owns was written"


def test_rope_out_of_range_harms_nothing() -> None:
    """A position outside the table rotates to NaN, a slot outside the cache is not written."""
    cos = torch.ones((10, 32), device="cuda")
    memory = torch.zeros((2, 2, 16, 1, 64), device="cuda")
    qkv = torch.ones((4, 3 * 64), device="cuda")
    positions = torch.tensor([3, 10, -1, 3], dtype=torch.int32, device="cuda")
    slots = torch.tensor([32, -1, -(2**60), 2**60], device="cuda")
    rope_and_cache(qkv, (cos, cos), positions, slots, ops.KVCache(memory))
    assert [False, True, True, False] == qkv[:, :64].isnan().all(1).tolist()
    assert not memory.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_mates_change_nothing(dtype: torch.dtype) -> None:
    """Each row is bitwise the same alone and in a batch."""
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
            *(x.float() for x in rms_norm_float8(x[rows], weight, 1e-5)),
            *(x.float() for x in silu_mul_float8(gate_up[rows])),
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
        ops.embedding(ids, x, out)
        ops.rms_norm(out, weight, 1e-5, out=out)
        ops.silu_mul(out, half)
    ids.copy_(ids.flip(0))
    graph.replay()
    assert torch.equal(half, ops.silu_mul(ops.rms_norm(x.flip(0), weight, 1e-5)))


def test_no_rows_and_refused_sizes() -> None:
    """Zero rows are fine; sizes without a kernel are named."""
    zeros = torch.zeros((0, 8), device="cuda")
    assert ops.rms_norm(zeros, torch.ones(8, device="cuda"), 1e-5).shape == (0, 8)
    assert ops.silu_mul(zeros).shape == (0, 4)
    big = torch.zeros((1, 40000), device="cuda")
    with pytest.raises(ValueError, match=r"hidden_size: got 40000; allowed: 1 to 16384"):
        ops.rms_norm(big, big, 1e-5)
    position = torch.zeros(1, dtype=torch.int32, device="cuda")

    def rope(head_dim: int, v_scale: float = 1.0) -> None:
        qkv, angles = (torch.zeros((1, width), device="cuda") for width in (3 * head_dim, head_dim // 2))
        cache = ops.KVCache(torch.zeros((1, 2, 16, 1, head_dim), device="cuda"), v_scale=v_scale)
        rope_and_cache(qkv, (angles, angles), position, position.long(), cache)

    with pytest.raises(ValueError, match=r"head_dim: got 36; allowed: multiples of 8 from 32 to 256"):
        rope(36)
    with pytest.raises(ValueError, match=r"k_scale, v_scale: got 0\.0+; allowed: above 0"):
        rope(32, v_scale=0.0)
    zeros_of = "dtype num_tokens qkv stride_token cos sin max_position positions slot_mapping key_cache"
    arguments = dict.fromkeys(f"{zeros_of} value_cache num_slots".split(), 0)
    arguments |= {"num_q_heads": 1, "num_kv_heads": 1, "head_dim": 32, "block_size": 16, "stride_block": 512}
    with pytest.raises(ValueError, match=r"q_norm and k_norm: got one of them; allowed: both or none"):
        importlib.import_module("quire._cuda").rope_and_cache(**arguments, q_norm=16)
