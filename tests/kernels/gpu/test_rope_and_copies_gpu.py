"""RoPE with the cache write, and copies of blocks and of their tables, on the GPU."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import pytest
import torch
from kernel_reference import assert_close
from layer_cases import DTYPES, ROUNDED_ONCE, gemma_norm, llama_norm, normal
from quire import ops
from torch import Tensor

pytestmark = pytest.mark.gpu


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
@pytest.mark.parametrize("norm", [None, llama_norm, gemma_norm], ids=["", "qk-norm", "qk-norm-once"])
@pytest.mark.parametrize("is_float8", [False, True], ids=["", "float8"])
def test_rope_and_cache(
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    norm: Callable[[Tensor, Tensor, float], Tensor] | None,
    is_float8: bool,
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
    how: tuple[float, bool] = (1.0, True) if norm is gemma_norm else (0.0, False)
    qk_norm = ops.QkNorm(weights[0], weights[1], 1e-5, *how) if norm else None
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
    if norm:
        heads = [norm(x, weight, 1e-5) for x, weight in zip(heads, weights, strict=True)]
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


def test_refused_sizes() -> None:
    """Sizes and arguments without a kernel are named."""
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
