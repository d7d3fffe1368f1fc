"""Batches over poisoned paged caches, and what attention should give for them, in plain float32."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from quire import ops
from torch import Tensor

ABSURD_BLOCK_ID = 2**31 - 1
# Probabilities are rounded to the cache's type before they meet the values, and so is the output.
TOLERANCE = {torch.bfloat16: 6e-3, torch.float16: 1e-3}
# (query_len, seq_len): decode and prompts at and around blocks and tiles, behind a prefix, and empty.
RAGGED = [(1, 1), (1, 15), (0, 0), (1, 16), (1, 17), (1, 63), (1, 64), (1, 65), (1, 1000), (5, 5), (2, 40)]
RAGGED += [(33, 33), (0, 50), (7, 130), (128, 128), (1, 333), (200, 777), (301, 301), (64, 2000), (1, 3)]


@dataclass
class Case:
    attention: ops.PagedAttention
    lens: list[tuple[int, int]]
    query: Tensor  # [num_tokens, num_q_heads * head_dim], a slice of a wider activation
    kv_memory: Tensor  # [num_blocks, num_layers, 2, block_size, num_kv_heads, head_dim]; read: the last layer
    keys: list[Tensor]  # per request [seq_len, num_kv_heads, head_dim]
    values: list[Tensor]
    block_tables: Tensor
    geometry: tuple[Tensor, Tensor, Tensor, Tensor]  # num_seqs, query_start_loc, seq_lens, block_table_rows
    num_heads: tuple[int, int]  # of queries, of keys and values
    k_scale: float = 1.0  # what the caches hold times this is the key, the value
    v_scale: float = 1.0
    soft_cap: float | None = None
    window: int | None = None
    sinks: Tensor | None = None

    @property
    def key_cache(self) -> Tensor:
        return self.kv_memory[:, -1, 0]

    @property
    def value_cache(self) -> Tensor:
        return self.kv_memory[:, -1, 1]

    @property
    def cache(self) -> ops.KVCache:
        return ops.KVCache(self.kv_memory[:, -1], k_scale=self.k_scale, v_scale=self.v_scale)

    @property
    def batch(self) -> ops.BatchInfo:
        return make_batch(self.query, self.block_tables, self.geometry, max(q for q, _ in self.lens))

    def plan(self) -> None:
        self.attention.plan(self.batch)

    def run(self, *, follows_layer: bool = False) -> Tensor:
        """The output [num_tokens, num_q_heads * head_dim]; checks that it was written and nothing beside."""
        n, width = self.query.shape
        out = torch.full((n + 3, width + 8), torch.nan, dtype=self.query.dtype, device="cuda")
        self.attend(out[:n, :width], follows_layer=follows_layer)
        assert out[n:].isnan().all()
        assert out[:, width:].isnan().all()
        return out[:n, :width]

    def attend(self, out: Tensor, *, follows_layer: bool = False) -> None:
        self.attention(self.query, self.cache, self.batch, out, sinks=self.sinks, follows_layer=follows_layer)

    def reference(self) -> Tensor:
        (num_q_heads, num_kv_heads), head_dim = self.num_heads, self.kv_memory.size(-1)
        rows, first = [], 0
        for (query_len, seq_len), keys, values in zip(self.lens, self.keys, self.values, strict=True):
            q = self.query[first : first + query_len].float().view(query_len, num_q_heads, head_dim)
            first += query_len
            group = num_q_heads // num_kv_heads
            k = keys.float().repeat_interleave(group, dim=1)
            v = values.float().repeat_interleave(group, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * (head_dim**-0.5 * self.k_scale)
            if self.soft_cap is not None:
                scores = self.soft_cap * (scores / self.soft_cap).tanh()
            positions = torch.arange(seq_len - query_len, seq_len, device="cuda")[:, None]
            at = torch.arange(seq_len, device="cuda")[None, :]
            hidden = at > positions
            if self.window is not None:
                hidden |= at <= positions - self.window
            scores.masked_fill_(hidden, -torch.inf)
            if self.sinks is not None:
                sinks = self.sinks.view(-1, 1, 1).expand(-1, query_len, 1)
                scores, v = torch.cat([scores, sinks], -1), torch.cat([v, torch.zeros_like(v[:1])])
            probabilities = scores.softmax(dim=-1)
            out = torch.einsum("hqk,khd->qhd", probabilities, v) * self.v_scale
            rows.append(out.flatten(1))
        return torch.cat(rows)

    def check(self) -> None:
        assert_close(self.run(), self.reference(), TOLERANCE[self.query.dtype])


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    a, e = actual.double(), expected.double()
    assert not a.isnan().any(), f"{int(a.isnan().any(dim=1).sum())} of {len(a)} rows have NaN"
    error = ((a - e).norm() / e.norm().clamp_min(1e-30)).item()
    by_row = (a - e).norm(dim=1) / e.norm(dim=1).clamp_min(1e-30)
    assert error <= tolerance, (
        f"relative error {error:.3g}; worst row {int(by_row.argmax())}: {by_row.max():.3g}"
    )
    assert by_row.max().item() <= 5 * tolerance, f"row {int(by_row.argmax())}: {by_row.max():.3g}"


def make_batch(
    query: Tensor, block_tables: Tensor, geometry: tuple[Tensor, ...], max_query_len: int
) -> ops.BatchInfo:
    """geometry: as Case has it. Attention does not look at positions and slots."""
    num_seqs, query_start_loc, seq_lens, block_table_rows = geometry
    places = torch.zeros(query.size(0), dtype=torch.int64, device=query.device)
    return ops.BatchInfo(
        positions=places.int(),
        slot_mapping=places,
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        block_tables=block_tables,
        block_table_rows=block_table_rows,
        num_seqs=num_seqs,
        max_query_len=max_query_len,
    )


def make_case(
    lens: list[tuple[int, int]],
    *,
    num_q_heads: int = 8,
    num_kv_heads: int = 2,
    head_dim: int = 128,
    block_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    split_keys: int = 0,
    num_blocks: int = 0,
    num_sms: int = 0,
    padded_seqs: int = 2,
    seed: int = 0,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    float8: bool = False,
) -> Case:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    needed = [-(-seq_len // block_size) for _, seq_len in lens]
    num_blocks = num_blocks or sum(needed) + 8
    shape = (num_blocks, 2, 2, block_size, num_kv_heads, head_dim)
    kv_dtype = torch.float8_e4m3fn if float8 else dtype
    kv_memory = torch.full(shape, torch.nan, dtype=dtype, device="cuda").to(kv_dtype)
    free = rng.sample(range(num_blocks), sum(needed))
    if num_blocks > sum(needed) + 8:
        free[0] = num_blocks - 1  # far out: offsets pass 2^31
    rows = rng.sample(range(len(lens) + 3), len(lens))
    tables = torch.full((len(lens) + 3, max(needed) + 5), ABSURD_BLOCK_ID, dtype=torch.int32)
    stored: list[list[Tensor]] = [[], []]
    for (_, seq_len), count, row in zip(lens, needed, rows, strict=True):
        ids = [free.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(ids, dtype=torch.int32)
        positions = torch.arange(seq_len)
        blocks = torch.tensor(ids, dtype=torch.long)[positions // block_size].cuda()
        for cache, kept in zip(kv_memory[:, -1].unbind(1), stored, strict=True):
            x = torch.randn(seq_len, num_kv_heads, head_dim, device="cuda").to(kv_dtype)
            places = cache.view(torch.uint8) if float8 else cache
            places[blocks, (positions % block_size).cuda()] = x.view(torch.uint8) if float8 else x
            kept.append(x)
    starts = [0]
    for query_len, _ in lens:
        starts.append(starts[-1] + query_len)
    width = num_q_heads * head_dim
    activation = torch.full(
        (starts[-1], width + 2 * num_kv_heads * head_dim), torch.nan, dtype=dtype, device="cuda"
    )
    activation[:, :width] = 2 * torch.randn(starts[-1], width, device="cuda").to(dtype)

    def to_gpu(x: list[int]) -> Tensor:
        return torch.tensor(x, dtype=torch.int32, device="cuda")

    garbage = [-12345] * padded_seqs  # past num_seqs nothing is read
    geometry = (
        to_gpu([len(lens)]),
        to_gpu(starts + garbage),
        to_gpu([s for _, s in lens] + garbage),
        to_gpu(rows + garbage),
    )
    attention = ops.PagedAttention(
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_num_seqs=len(lens) + padded_seqs,
        max_num_tokens=starts[-1] + 5,
        max_seq_len=max(s for _, s in lens),
        split_keys=split_keys,
        num_sms=num_sms,
        window=window,
        soft_cap=soft_cap,
        device=torch.device("cuda"),
    )
    attention.workspace.fill_(0x7F)
    return Case(
        attention,
        lens,
        activation[:, :width],
        kv_memory,
        *stored,
        block_tables=tables.cuda(),
        geometry=geometry,
        num_heads=(num_q_heads, num_kv_heads),
        window=window,
        k_scale=0.7 if float8 else 1.0,
        v_scale=1.9 if float8 else 1.0,
        soft_cap=soft_cap,
        sinks=sinks,
    )
