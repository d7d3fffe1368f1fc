"""Plain references for the kernels in float32, and the poisoned inputs that tests feed them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from quire import _core, ops
from torch import Tensor

ABSURD_BLOCK_ID = 2**31 - 1
REFUSED = _core.InvalidArgument  # by C++; ops.py itself raises ValueError and TypeError
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """||actual - expected|| / ||expected|| <= tolerance; says where it is worst and by how much."""
    a, e = actual.double(), expected.double()
    assert a.shape == e.shape, f"{what}: shape {list(a.shape)}, expected {list(e.shape)}"
    if e.numel() == 0:
        return
    difference = (a - e).abs().nan_to_num(nan=math.inf)
    error = (difference.norm() / e.norm().clamp_min(1e-30)).item()
    worst = int(difference.argmax())
    position = [int(i) for i in torch.unravel_index(torch.tensor(worst), e.shape)]
    assert error <= tolerance, (
        f"{what}: relative error {error:.3g} > {tolerance:.3g}; {int(a.isnan().sum())} of {a.numel()} NaN; "
        f"worst at {position}: got {a.flatten()[worst].item():.6g}, expected {e.flatten()[worst].item():.6g}"
    )


@dataclass
class PagedCase:
    """A mixed batch over a poisoned paged cache."""

    query: Tensor  # [num_tokens, num_q_heads * head_dim], a slice of a wider activation
    cache: ops.KVCache
    batch: ops.BatchInfo
    keys: list[Tensor]  # per request [seq_len, num_kv_heads, head_dim], as stored
    values: list[Tensor]
    query_lens: list[int]
    seq_lens: list[int]
    block_tables: Tensor
    block_table_rows: Tensor
    num_q_heads: int

    @property
    def attention(self) -> ops.PagedAttention:
        return paged_attention(self.num_q_heads, self.cache)

    def run(self, out: Tensor | None = None) -> Tensor:
        return self.attention(self.query, self.cache, self.batch, out)


def paged_attention(
    num_q_heads: int, cache: ops.KVCache, softmax_scale: float | None = None
) -> ops.PagedAttention:
    return ops.PagedAttention(
        num_q_heads=num_q_heads,
        num_kv_heads=cache.num_kv_heads,
        head_dim=cache.head_dim,
        device=cache.key_cache.device,
        softmax_scale=softmax_scale,
    )


def poisoned_cache(num_blocks: int, block_size: int, heads: int, dim: int, dtype: torch.dtype) -> ops.KVCache:
    """The middle one of three layers, so that its blocks lie apart; NaN everywhere."""
    memory = torch.full((num_blocks, 3, 2, block_size, heads, dim), math.nan, dtype=dtype)
    return ops.KVCache(memory[:, 1])


def make_case(
    lens: list[tuple[int, int]],  # (query_len, seq_len) per request
    *,
    num_q_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PagedCase:
    """Shuffled blocks and table rows, NaN in slots that no request owns, absurd ids in unused entries."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    query_lens = [q for q, _ in lens]
    seq_lens = [s for _, s in lens]
    num_tokens, num_seqs = sum(query_lens), len(lens)
    blocks_needed = [-(-s // block_size) for s in seq_lens]
    num_blocks = sum(blocks_needed) + 3
    block_ids = torch.randperm(num_blocks, generator=generator).tolist()
    max_num_seqs = num_seqs + 2
    rows = torch.randperm(max_num_seqs, generator=generator)[:num_seqs].to(torch.int32)

    cache = poisoned_cache(num_blocks, block_size, num_kv_heads, head_dim, dtype)
    block_tables = torch.full(
        (max_num_seqs, max(blocks_needed, default=0) + 2), ABSURD_BLOCK_ID, dtype=torch.int32
    )
    keys, values = [], []
    for i in range(num_seqs):
        keys.append(normal(seq_lens[i], num_kv_heads, head_dim))
        values.append(normal(seq_lens[i], num_kv_heads, head_dim))
        for b in range(blocks_needed[i]):
            block_id = block_ids.pop()
            block_tables[rows[i], b] = block_id
            begin, end = b * block_size, min((b + 1) * block_size, seq_lens[i])
            cache.key_cache[block_id, : end - begin] = keys[i][begin:end]
            cache.value_cache[block_id, : end - begin] = values[i][begin:end]

    positions = [p for q, s in lens for p in range(s - q, s)]
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    batch = ops.BatchInfo(
        positions=torch.tensor(positions, dtype=torch.int32),
        slot_mapping=torch.full((num_tokens,), -1, dtype=torch.int64),
        query_start_loc=starts.to(torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_tables=block_tables,
        block_table_rows=rows,
    )
    qkv = normal(num_tokens, (num_q_heads + 2 * num_kv_heads) * head_dim)
    return PagedCase(
        qkv[:, : num_q_heads * head_dim],
        cache,
        batch,
        keys,
        values,
        query_lens,
        seq_lens,
        block_tables,
        rows,
        num_q_heads,
    )


def attention(case: PagedCase) -> Tensor:
    """softmax(q k^T) v in float32, request by request, walking the block table in a loop."""
    cache = case.cache
    head_dim, block_size, group = cache.head_dim, cache.block_size, case.num_q_heads // cache.num_kv_heads
    out = [torch.empty((0, case.query.shape[1]))]
    start = 0
    for i, (query_len, seq_len) in enumerate(zip(case.query_lens, case.seq_lens, strict=True)):
        if query_len == 0:
            continue
        table = case.block_tables[case.block_table_rows[i]].tolist()
        slots = [(table[p // block_size], p % block_size) for p in range(seq_len)]
        keys = torch.stack([cache.key_cache[b, o] for b, o in slots]).float().repeat_interleave(group, dim=1)
        values = (
            torch.stack([cache.value_cache[b, o] for b, o in slots]).float().repeat_interleave(group, dim=1)
        )
        query = case.query[start : start + query_len].float().view(query_len, case.num_q_heads, head_dim)
        scores = torch.einsum("qhd,thd->hqt", query, keys) * case.cache.head_dim**-0.5
        positions = torch.arange(seq_len - query_len, seq_len)
        scores.masked_fill_(torch.arange(seq_len) > positions[:, None], -math.inf)
        out.append(torch.einsum("hqt,thd->qhd", scores.softmax(-1), values).flatten(1))
        start += query_len
    return torch.cat(out)
