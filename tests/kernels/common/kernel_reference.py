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


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    scale: float | None = None
    window: int | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None


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
    options: AttentionOptions

    @property
    def attention(self) -> ops.PagedAttention:
        options = self.options
        return ops.PagedAttention(
            num_q_heads=self.num_q_heads,
            num_kv_heads=self.cache.num_kv_heads,
            head_dim=self.cache.head_dim,
            device=self.cache.key_cache.device,
            scale=options.scale,
            window=options.window,
            soft_cap=options.soft_cap,
        )

    def run(self, out: Tensor | None = None, batch: ops.BatchInfo | None = None) -> Tensor:
        return self.attention(self.query, self.cache, batch or self.batch, out, sinks=self.options.sinks)


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
    options: AttentionOptions = AttentionOptions(),
) -> PagedCase:
    """Shuffled blocks and table rows, NaN in slots that no request owns, absurd ids in unused entries. With a
    window, what no query sees any more is poisoned too."""
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
        first_seen = max(0, seq_lens[i] - query_lens[i] + 1 - options.window) if options.window else 0
        for b in range(first_seen // block_size, blocks_needed[i]):
            block_id = block_ids.pop()
            block_tables[rows[i], b] = block_id
            begin, end = max(b * block_size, first_seen), min((b + 1) * block_size, seq_lens[i])
            slots = slice(begin - b * block_size, end - b * block_size)
            cache.key_cache[block_id, slots] = keys[i][begin:end]
            cache.value_cache[block_id, slots] = values[i][begin:end]

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
        options,
    )


def attention(case: PagedCase) -> Tensor:
    """softmax(q k^T) v in float32, request by request, walking the block table in a loop."""
    cache, options = case.cache, case.options
    head_dim, block_size, group = cache.head_dim, cache.block_size, case.num_q_heads // cache.num_kv_heads
    scale = head_dim**-0.5 if options.scale is None else options.scale
    out = [torch.empty((0, case.query.shape[1]))]
    start = 0
    for i, (query_len, seq_len) in enumerate(zip(case.query_lens, case.seq_lens, strict=True)):
        if query_len == 0:
            continue
        table = case.block_tables[case.block_table_rows[i]].tolist()
        positions = torch.arange(seq_len - query_len, seq_len)[:, None]
        seen = torch.arange(seq_len) <= positions
        if options.window is not None:
            seen &= torch.arange(seq_len) > positions - options.window
        # A token that nobody sees may have no place any more.
        at = [p if any_seen else None for p, any_seen in enumerate(seen.any(0).tolist())]
        slots = [p if p is None else (table[p // block_size], p % block_size) for p in at]
        keys, values = (
            torch.stack(
                [torch.zeros(cache.num_kv_heads, head_dim) if s is None else of[s].float() for s in slots]
            ).repeat_interleave(group, dim=1)
            for of in (cache.key_cache, cache.value_cache)
        )
        query = case.query[start : start + query_len].float().view(query_len, case.num_q_heads, head_dim)
        scores = torch.einsum("qhd,thd->hqt", query, keys) * scale
        if options.soft_cap is not None:
            scores = options.soft_cap * (scores / options.soft_cap).tanh()
        scores.masked_fill_(~seen, -math.inf)
        if options.sinks is not None:
            sinks = options.sinks.view(-1, 1, 1).expand(-1, query_len, 1)
            scores = torch.cat([scores, sinks], -1)
            values = torch.cat([values, torch.zeros_like(values[:1])])
        out.append(torch.einsum("hqt,thd->qhd", scores.softmax(-1), values).flatten(1))
        start += query_len
    return torch.cat(out)
