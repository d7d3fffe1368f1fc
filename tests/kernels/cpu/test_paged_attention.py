"""Paged attention against softmax(q kᵀ) v over a cache whose unused parts are poison."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from kernel_reference import (
    TOLERANCE,
    AttentionOptions,
    PagedCase,
    assert_close,
    attention,
    make_case,
)
from quire import ops
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]

Lens = tuple[tuple[int, int], ...]  # (query_len, seq_len) per request


def ragged(block_size: int) -> Lens:
    """Decode, chunks and whole prompts, at each edge of a block, with requests that have nothing to do."""
    b = block_size
    decode = tuple((1, s) for s in (1, 2, b - 1, b, b + 1, 2 * b, 100))
    prompts = tuple((s, s) for s in (b - 1, b, b + 1, 2 * b + 1, 67))
    chunks = ((3, b + 2), (b, 3 * b), (40, 41), (33, 90))
    idle = ((0, 0), (0, 7))
    return decode[:3] + idle[:1] + prompts + decode[3:] + idle[1:] + chunks


@functools.cache
def case_and_reference(
    lens: Lens, num_q_heads: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> tuple[PagedCase, Tensor]:
    case = make_case(
        list(lens),
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
    )
    return case, attention(case)


def run(case: PagedCase) -> Tensor:
    out = torch.full(case.query.shape, math.nan, dtype=case.query.dtype)
    return case.run(out)


def request_alone(case: PagedCase, i: int, begin: int, end: int) -> Tensor:
    """Queries [begin, end) of request i as the only work of a step."""
    before = case.seq_lens[i] - case.query_lens[i]
    start = sum(case.query_lens[:i])
    num_tokens = end - begin
    batch = ops.BatchInfo(
        positions=torch.arange(before + begin, before + end, dtype=torch.int32),
        slot_mapping=torch.full((num_tokens,), -1, dtype=torch.int64),
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([before + end], dtype=torch.int32),
        block_tables=case.block_tables,
        block_table_rows=case.block_table_rows[i : i + 1].clone(),
    )
    query = case.query[start + begin : start + end]
    return case.attention(query, case.cache, batch, sinks=case.options.sinks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_mixed_batch(head_dim: int, block_size: int, dtype: torch.dtype) -> None:
    """Decode, chunks and whole prompts in one call equal the reference, whatever lies in unused slots."""
    case, expected = case_and_reference(ragged(block_size), 4, 2, head_dim, block_size, dtype)
    assert_close(run(case), expected, TOLERANCE[dtype], f"attention head_dim {head_dim} block {block_size}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads"), [(1, 1), (4, 4), (6, 2), (8, 1), (7, 1), (96, 1)])
def test_head_groups(num_q_heads: int, num_kv_heads: int, dtype: torch.dtype) -> None:
    """Any number of query heads per KV head, more than one tile holds included."""
    lens = ((1, 50), (20, 20), (9, 77), (1, 1))
    case, expected = case_and_reference(lens, num_q_heads, num_kv_heads, 64, 16, dtype)
    assert_close(run(case), expected, TOLERANCE[dtype], f"attention {num_q_heads}/{num_kv_heads} heads")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [1, 5, 48])
def test_odd_block_sizes_and_head_dim(block_size: int, dtype: torch.dtype) -> None:
    """Block sizes and head_dims that no vector width divides."""
    case, expected = case_and_reference(((1, 50), (20, 20), (9, 77)), 4, 2, 72, block_size, dtype)
    assert_close(run(case), expected, TOLERANCE[dtype], f"attention block {block_size}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_context(dtype: torch.dtype) -> None:
    """Thousands of tokens of context, decode and the last chunk of a prompt."""
    case, expected = case_and_reference(((1, 3001), (37, 2050)), 4, 2, 64, 16, dtype)
    assert_close(run(case), expected, TOLERANCE[dtype], "attention over a long context")


ALL_OPTIONS = {
    "scale": AttentionOptions(scale=0.3),
    "window": AttentionOptions(window=21),
    "window of 1": AttentionOptions(window=1),
    "window of 64": AttentionOptions(window=64),
    "window past all": AttentionOptions(window=10**9),
    "soft cap": AttentionOptions(soft_cap=1.5),
    "sinks": AttentionOptions(sinks=torch.tensor([-30.0, 0.5, 3.0, 40.0])),
    "all": AttentionOptions(scale=0.2, window=50, soft_cap=20.0, sinks=torch.tensor([0.0, 1.0, 2.0, -1.0])),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 72, 256])
@pytest.mark.parametrize("options", ALL_OPTIONS.values(), ids=ALL_OPTIONS)
def test_options(options: AttentionOptions, head_dim: int, dtype: torch.dtype) -> None:
    """Scale, window, cap and sinks equal the reference in a mixed batch; what left the window is not read."""
    lens = [*ragged(16), (300, 300), (1, 400), (40, 500)]
    case = make_case(lens, head_dim=head_dim, dtype=dtype, options=options)
    loud = replace(case, query=case.query * 3)
    assert_close(run(loud), attention(loud), 2 * TOLERANCE[dtype], "attention with options")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_in_chunks(dtype: torch.dtype) -> None:
    """With a window, a cap and sinks too, a prompt's rows are bitwise the same whole and in chunks."""
    case = make_case([(150, 190)], dtype=dtype, options=ALL_OPTIONS["all"])
    whole = run(case)
    for size in (1, 7, 64):
        chunks = [request_alone(case, 0, b, min(b + size, 150)) for b in range(0, 150, size)]
        assert torch.equal(torch.cat(chunks), whole), f"chunks of {size}"


def test_refused_options() -> None:
    """A window, a cap or a scale that is not above 0, and sinks of another shape, are refused by name."""
    case = make_case([(1, 5)])
    for name in ("window", "soft_cap", "scale"):
        with pytest.raises(ValueError, match=f"{name}: got 0; allowed: None, or a number above 0"):
            replace(case, options=AttentionOptions(**{name: 0})).run()
    with pytest.raises(
        ValueError, match=r"sinks: .*allowed: contiguous torch.float32\[num_q_heads\] = \[4\]"
    ):
        replace(case, options=AttentionOptions(sinks=torch.zeros(3))).run()


def test_large_scores() -> None:
    """Scores of several hundred neither overflow nor vanish."""
    case, _ = case_and_reference(((1, 60), (30, 30)), 4, 2, 64, 16, torch.float32)
    loud = replace(case, query=case.query * 100)
    assert_close(run(loud), attention(loud), 2e-5, "attention with large scores")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_mates_change_nothing(dtype: torch.dtype) -> None:
    """A request's rows are bitwise the same alone and in a batch."""
    case, _ = case_and_reference(ragged(16), 4, 2, 64, 16, dtype)
    together = run(case)
    start = 0
    for i, query_len in enumerate(case.query_lens):
        alone = request_alone(case, i, 0, query_len)
        assert torch.equal(alone, together[start : start + query_len]), f"request {i}"
        start += query_len


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_change_nothing(dtype: torch.dtype) -> None:
    """A prompt's rows are bitwise the same whole, in chunks, and token by token."""
    case, _ = case_and_reference(((90, 130),), 6, 2, 80, 16, dtype)
    whole = run(case)
    for size in (1, 7, 32, 64):
        chunks = [request_alone(case, 0, b, min(b + size, 90)) for b in range(0, 90, size)]
        assert torch.equal(torch.cat(chunks), whole), f"chunks of {size}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_repeats_change_nothing(dtype: torch.dtype) -> None:
    """Bitwise the same with 1, 2 and 3 threads, and on every repeat."""
    case, _ = case_and_reference((*ragged(16), (300, 300), (1, 2000)), 4, 2, 64, 16, dtype)
    expected = run(case)
    for num_threads in (2, 3):
        ops.set_num_threads(num_threads)
        for _ in range(20):
            assert torch.equal(run(case), expected), f"{num_threads} threads"


def test_block_ids_past_32_bits_of_elements() -> None:
    """A block whose offset in elements does not fit 32 bits is read from the right place."""
    num_blocks, head_dim = 2**31 // (2 * 16 * 256) + 2, 256
    # Two bytes per element, of which only the pages of one block are ever touched.
    layer = torch.empty((num_blocks, 2, 16, 1, head_dim), dtype=torch.bfloat16)
    layer[-1, 0], layer[-1, 1] = 0, torch.arange(16.0).view(16, 1, 1).expand(16, 1, head_dim)
    batch = ops.BatchInfo(
        positions=torch.tensor([4], dtype=torch.int32),
        slot_mapping=torch.tensor([-1]),
        query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=torch.tensor([5], dtype=torch.int32),
        block_tables=torch.tensor([[num_blocks - 1]], dtype=torch.int32),
        block_table_rows=torch.tensor([0], dtype=torch.int32),
    )
    query = torch.ones((1, head_dim), dtype=torch.bfloat16)
    cache = ops.KVCache(layer)
    attention = ops.PagedAttention(
        num_q_heads=1, num_kv_heads=1, head_dim=head_dim, device=query.device, scale=1.0
    )
    out = attention(query, cache, batch)
    assert torch.equal(torch.full((1, head_dim), 2.0, dtype=torch.bfloat16), out)


def test_empty_batch() -> None:
    """No request, or only requests without tokens: nothing happens."""
    for lens in ([], [(0, 0), (0, 9)]):
        assert run(make_case(lens)).numel() == 0


def test_unsupported_head_dim_is_named() -> None:
    """The error names head_dim, its value and the supported ones."""
    with pytest.raises(
        (ValueError, RuntimeError), match=r"head_dim: got 20; allowed: multiples of 8 from 32 to 256"
    ):
        run(make_case([(1, 5)], head_dim=20))


def test_unsupported_head_groups_are_named() -> None:
    """Query heads that do not divide among the KV heads are refused."""
    with pytest.raises(
        (ValueError, RuntimeError), match=r"num_q_heads: got 3; allowed: a multiple of num_kv_heads = 2"
    ):
        run(make_case([(1, 5)], num_q_heads=3))


def test_wrong_tensors_are_named() -> None:
    """A query of another type or size is refused with what was given and what is allowed."""
    case, _ = case_and_reference(((1, 60), (30, 30)), 4, 2, 64, 16, torch.float32)
    with pytest.raises(
        ValueError,
        match=r"query, out: got torch.bfloat16\[31, 256\].*num_q_heads = 4, head_dim = 64",
    ):
        case.attention(case.query.bfloat16(), case.cache, case.batch)
    with pytest.raises(ValueError, match=r"query, out: got torch.float32\[30, 256\]"):
        case.attention(case.query[1:], case.cache, case.batch)
    layer = torch.zeros(3, 2, 16, 2, 64)
    with pytest.raises(ValueError, match=r"KV cache: got .*allowed: \[num_blocks, 2, block_size"):
        ops.KVCache(layer[:, 0])
    with pytest.raises(
        ValueError, match=r"a block of the KV cache: got .*allowed: contiguous torch.float32\[2, block_size"
    ):
        ops.KVCache(layer[..., :1, :])
    with pytest.raises(
        TypeError, match=r"KV cache: got torch.float16; allowed: torch.float32, torch.bfloat16"
    ):
        ops.KVCache(layer.half())
    with pytest.raises(ValueError, match=r"seq_lens: got torch.int64\[1\]"):
        ops.BatchInfo(
            positions=torch.zeros(1, dtype=torch.int32),
            slot_mapping=torch.zeros(1, dtype=torch.int64),
            query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
            seq_lens=torch.ones(1, dtype=torch.int64),
            block_tables=torch.zeros((1, 1), dtype=torch.int32),
            block_table_rows=torch.zeros(1, dtype=torch.int32),
        )
