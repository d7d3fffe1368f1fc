"""Paged attention on the GPU beside a plain float32 reference, over poisoned caches."""

from __future__ import annotations

import importlib

import pytest
import torch
from attention_case import ABSURD_BLOCK_ID, RAGGED, TOLERANCE, assert_close, make_batch, make_case
from quire import ops
from torch import Tensor

pytestmark = pytest.mark.gpu

# 64, 96, 128 and 256 have kernels of their own, those between are computed as the next larger one.
HEAD_DIMS = [32, 40, 64, 72, 80, 96, 112, 128, 136, 160, 256]


def late_copy(to: Tensor, source: Tensor, nanoseconds: int) -> None:
    """A copy of contiguous bytes by a kernel after whose beginning the next kernel may begin."""
    importlib.import_module("_cuda_parts").late_copy(
        to.data_ptr(),
        source.data_ptr(),
        to.numel() * to.element_size(),
        nanoseconds,
        torch.cuda.current_stream().cuda_stream,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_mixed_batch_equals_the_reference(head_dim: int, block_size: int, dtype: torch.dtype) -> None:
    case = make_case(RAGGED, head_dim=head_dim, block_size=block_size, dtype=dtype)
    case.plan()
    case.check()


@pytest.mark.parametrize(
    ("num_q_heads", "num_kv_heads"),
    [(1, 1), (8, 8), (3, 1), (14, 2), (10, 2), (16, 1), (24, 1), (64, 1), (6, 3)],
)
def test_any_number_of_heads_may_share_a_kv_head(num_q_heads: int, num_kv_heads: int) -> None:
    case = make_case(RAGGED, num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=64)
    case.plan()
    case.check()


@pytest.mark.parametrize(
    "lens",
    [
        [(1, 1)],
        [(1, 20000)],
        [(1, 9000), *[(1, 100)] * 40],
        [(1, 500 + 7 * i) for i in range(300)],
        [(4, 4000), (3, 17), (1, 4000)],
        [(1024, 1024)],
        [(17, 6000)],
        [(2500, 2500), (1, 700)],
        [(100, 100 + 50 * i) for i in range(30)],
        [(1, 40)] * 1300 + [(9, 30)] * 3,
    ],
    ids=["one", "long", "skewed", "many", "few_rows", "prompt", "chunk", "mixed", "chunks", "over_1024_reqs"],
)
def test_however_the_batch_is_cut(lens: list[tuple[int, int]]) -> None:
    case = make_case(lens)
    case.plan()
    case.check()


@pytest.mark.parametrize("num_sms", [1, 2, 7])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize(
    "lens",
    [[(1, 20000)], [(1, 1024)] * 33, [(1, 64 * i) for i in range(60, 0, -1)], [(1, 64)] * 500 + [(1, 9000)]],
    ids=["one", "equal", "falling", "short"],
)
def test_long_runs_of_few_workers(lens: list[tuple[int, int]], head_dim: int, num_sms: int) -> None:
    case = make_case(lens, head_dim=head_dim, num_sms=num_sms, num_kv_heads=4)
    case.plan()
    case.check()
    assert torch.equal(case.run(), case.run())


# Prompts at and around tiles of 128 packed rows and of 128 keys, and behind prefixes of any length.
TILE_EDGES = [(q, q) for q in (17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)]
TILE_EDGES += [(q, q + p) for q in (32, 33, 128) for p in (1, 63, 64, 95, 96, 97, 127, 128, 129, 500)]


@pytest.mark.parametrize("num_sms", [0, 1])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads"), [(8, 2), (2, 2), (7, 1), (64, 1)])
@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 16), (64, 64), (96, 32), (128, 16), (128, 128)])
def test_prompts_may_end_anywhere_in_a_tile(
    head_dim: int, block_size: int, num_q_heads: int, num_kv_heads: int, num_sms: int
) -> None:
    """Unused slots hold NaN, in the last block and in what tiles before left in shared memory."""
    case = make_case(
        TILE_EDGES,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        num_sms=num_sms,
    )
    case.plan()
    case.check()


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("lens", [[(20, 9000)], [(300, 9000), (5, 8000)], [(2000, 5000)]])
def test_a_chunk_behind_a_long_prefix_is_cut(lens: list[tuple[int, int]], head_dim: int) -> None:
    case = make_case(lens, head_dim=head_dim, num_q_heads=32, num_kv_heads=8)
    case.plan()
    case.check()
    first = case.run()
    for _ in range(5):
        assert torch.equal(first, case.run())


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads"), [(16, 8), (12, 6), (5, 5), (64, 4)])
def test_few_workers_with_many_pieces_each(num_q_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """A worker's run goes over the ends of KV heads and requests."""
    case = make_case(
        RAGGED + [(1, 90 * i) for i in range(1, 20)],
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        num_sms=3,
    )
    case.plan()
    case.check()


@pytest.mark.parametrize("split_keys", [64, 256, 1024])
def test_a_fixed_split_equals_the_reference(split_keys: int) -> None:
    case = make_case([*RAGGED, (1, 3000)], split_keys=split_keys)
    case.plan()
    case.check()


def test_with_a_fixed_split_a_result_does_not_depend_on_the_batch() -> None:
    lens = [(1, 3000), (1, 70), (40, 900), (1, 1500)]
    alone = make_case(lens, split_keys=512)
    together = make_case(lens + [(1, 100 + 37 * i) for i in range(200)], split_keys=512)
    together.query[:43] = alone.query
    for i in range(4):
        ids = together.block_tables[together.geometry[3][i]]
        for position in range(0, lens[i][1], 16):
            block = ids[position // 16]
            size = min(16, lens[i][1] - position)
            together.key_cache[block, :size] = alone.keys[i][position : position + size]
            together.value_cache[block, :size] = alone.values[i][position : position + size]
    alone.plan()
    together.plan()
    assert torch.equal(alone.run(), together.run()[:43])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("head_dim", [dim for dim in HEAD_DIMS if dim % 16 == 0])
def test_a_cache_of_8_bit_floats(head_dim: int, block_size: int, dtype: torch.dtype) -> None:
    case = make_case(RAGGED, head_dim=head_dim, block_size=block_size, dtype=dtype, float8=True)
    case.plan()
    case.check()


@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("window", [1, 16, 63, 64, 200, 100000])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 160, 256])
def test_a_window_hides_older_keys(head_dim: int, window: int, float8: bool) -> None:
    lens = [*RAGGED, (3, 900), (1, 5000), (900, 1500)]
    case = make_case(lens, head_dim=head_dim, window=window, float8=float8)
    # What lies wholly before the windows is not even loaded.
    for (query_len, seq_len), row in zip(lens, case.geometry[3].tolist(), strict=False):
        first_key = max(0, seq_len - query_len - window + 1) // 64 * 64
        case.block_tables[row, : first_key // 16] = ABSURD_BLOCK_ID
    case.plan()
    case.check()


def test_a_window_with_a_fixed_split() -> None:
    case = make_case([*RAGGED, (2, 3000), (700, 900)], window=300, split_keys=128)
    case.plan()
    case.check()


@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("soft_cap", [0.5, 5.0, 50.0])
def test_scores_are_capped(soft_cap: float, float8: bool) -> None:
    case = make_case(RAGGED, soft_cap=soft_cap, float8=float8)
    case.plan()
    case.check()


@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("split_keys", [0, 128])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (128, None), (300, 20.0)])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 160, 256])
def test_sinks(
    head_dim: int, window: int | None, soft_cap: float | None, split_keys: int, float8: bool
) -> None:
    """A sink counts once, whether decode or a prompt's tile is one piece or cut."""
    sinks = torch.tensor([-50.0, -1.0, 0.0, 1.0, 2.0, 4.0, 9.0, 300.0], device="cuda")
    lens = [*RAGGED, (1, 9000), (700, 3000)]
    case = make_case(
        lens,
        head_dim=head_dim,
        window=window,
        soft_cap=soft_cap,
        sinks=sinks,
        split_keys=split_keys,
        float8=float8,
    )
    case.plan()
    case.check()


def test_sinks_of_folded_heads() -> None:
    """Two KV heads that decode takes together have their own heads' sinks."""
    sinks = torch.linspace(-2, 5, 16, device="cuda")
    case = make_case([*RAGGED, (1, 9000)], num_q_heads=16, num_kv_heads=4, head_dim=64, sinks=sinks)
    case.plan()
    case.check()


def test_scores_far_apart() -> None:
    """The maximum that the probabilities are relative to rises late and by much, and in small steps."""
    case = make_case([(1, 700), (2, 3000), (130, 600)])
    for (_, seq_len), keys, row in zip(case.lens, case.keys, case.geometry[3].tolist(), strict=False):
        for position in range(seq_len):
            keys[position] *= 0.02 * position if position < 300 else 3.0
        for first in range(0, seq_len, 16):
            part = keys[first : first + 16]
            case.key_cache[case.block_tables[row, first // 16], : len(part)] = part
    case.plan()
    case.check()


@pytest.mark.parametrize("lens", [RAGGED, [(1, 600 + i) for i in range(40)], [(1, 1), (2, 3000), (1, 64)]])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_later_layer_begins_early(head_dim: int, lens: list[tuple[int, int]]) -> None:
    """The keys of this step's tokens, and the queries, are written between the two layers' launches."""
    case = make_case(lens, head_dim=head_dim)
    case.plan()
    expected = case.run()
    new: list[tuple[Tensor, Tensor]] = []
    for (query_len, seq_len), row in zip(lens, case.geometry[3].tolist(), strict=False):
        at = torch.arange(seq_len - query_len, seq_len, device="cuda")
        new.append((case.block_tables[row][at // 16].long(), at % 16))
    blocks, slots = (torch.cat(x) for x in zip(*new, strict=True))
    full = case.kv_memory.clone()
    query = case.query.clone()
    case.query = torch.empty_like(query)  # contiguous
    out = torch.empty_like(query)

    for _ in range(3):
        case.query.fill_(torch.nan)
        out.fill_(torch.nan)
        for cache in (case.key_cache, case.value_cache):
            cache[blocks, slots] = torch.nan
        case.plan()
        case.attend(out)
        late_copy(case.query, query, 20000)
        late_copy(case.kv_memory, full, 20000)
        case.attend(out, follows_layer=True)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("num_sms", [0, 2])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_repeats_are_equal_bit_for_bit(head_dim: int, num_sms: int) -> None:
    """Also over the layers that share a plan."""
    lens = [*RAGGED, (1, 5000), (1024, 1024), *[(1, 300 + i) for i in range(30)]]
    case = make_case(lens, head_dim=head_dim, num_sms=num_sms)
    case.plan()
    first = case.run()
    for i in range(20):
        assert torch.equal(first, case.run(follows_layer=i % 2 == 1))
    case.plan()
    assert torch.equal(first, case.run())


@pytest.mark.parametrize("split_keys", [0, 256])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_not_a_number_stays_in_its_request(head_dim: int, split_keys: int) -> None:
    """Its pieces are written and waited for as any other's, and leave nothing behind."""
    case = make_case([(1, 300), (1, 20000), (1, 500), (2, 3000)], head_dim=head_dim, split_keys=split_keys)
    case.plan()
    expected, query = case.run(), case.query.clone()
    for number in (torch.nan, torch.inf):
        case.query[1] = number
        out = case.run()
        assert out[1].isnan().all()
        assert torch.equal(out[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])
        case.query.copy_(query)
        assert torch.equal(case.run(), expected)


def test_a_captured_graph_serves_other_batches() -> None:
    case = make_case(RAGGED, padded_seqs=0)
    other = make_case(RAGGED[::-1], padded_seqs=0, seed=1)
    other.attention = case.attention
    query, tables = case.query.clone(), case.block_tables.clone()
    kv_memory = case.kv_memory.clone()
    cache = ops.KVCache(kv_memory[:, -1])
    geometry = tuple(x.clone() for x in case.geometry)
    batch = make_batch(query, tables, geometry, max(q for q, _ in case.lens))
    out = torch.empty_like(query)
    case.plan()
    case.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.attention.plan(batch)
        case.attention(query, cache, batch, out)
    for c in (case, other, case):
        pairs = [(query, c.query), (tables, c.block_tables), *zip(geometry, c.geometry, strict=True)]
        pairs.append((kv_memory, c.kv_memory))
        for to, source in pairs:
            to.copy_(source)
        out.fill_(torch.nan)
        graph.replay()
        assert_close(out, c.reference(), TOLERANCE[torch.bfloat16])


def test_an_empty_batch_writes_nothing() -> None:
    case = make_case(RAGGED)
    case.geometry[0].zero_()
    case.plan()
    assert case.run().isnan().all()


def test_offsets_into_the_cache_may_pass_2_31() -> None:
    case = make_case([(1, 16), (20, 20)], num_kv_heads=8, num_blocks=2**31 // (16 * 8 * 128) + 64)
    case.plan()
    case.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 84}, "head_dim"),
        ({"num_q_heads": 7}, "num_q_heads"),
        ({"split_keys": 100}, "split_keys"),
    ],
)
def test_unsupported_sizes_are_refused(change: dict[str, int], message: str) -> None:
    sizes = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64, "max_num_seqs": 1, "max_num_tokens": 1}
    with pytest.raises(ValueError, match=message):
        ops.PagedAttention(**{**sizes, "max_seq_len": 16, **change}, device=torch.device("cuda"))


def test_an_unsupported_block_size_is_refused() -> None:
    case = make_case([(1, 16)], block_size=8)
    with pytest.raises(ValueError, match="block_size"):
        case.run()
