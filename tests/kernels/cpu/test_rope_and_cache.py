"""RoPE and the cache write against transformers' Llama, with the norms of query and key heads against its
Qwen3 and Gemma 3."""

from __future__ import annotations

import pytest
import torch
from kernel_reference import REFUSED, assert_close, poisoned_cache
from quire import ops
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

DTYPES = [torch.float32, torch.bfloat16]
# float32 tables in, one rounding out: half a unit of bfloat16 at most, so about 2^-9 / sqrt(3) in the norm.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-3}
# A norm's product is rounded before the rotation.
NORM_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3}
EPS = 0.1
MAX_POSITION = 300


def rotary(head_dim: int, scaling: dict[str, object] | None = None) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=MAX_POSITION,
        rope_parameters=scaling or {"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlamaRotaryEmbedding(config)


def table(embedding: LlamaRotaryEmbedding) -> ops.RopeTable:
    cos, sin = embedding(torch.zeros(1), torch.arange(MAX_POSITION)[None])
    half = cos.shape[-1] // 2
    return ops.RopeTable(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())


def batch_of(positions: Tensor, slots: Tensor) -> ops.BatchInfo:
    n = positions.numel()
    return ops.BatchInfo(
        positions=positions,
        slot_mapping=slots,
        query_start_loc=torch.tensor([0, n], dtype=torch.int32),
        seq_lens=torch.tensor([n], dtype=torch.int32),
        block_tables=torch.zeros((1, 1), dtype=torch.int32),
        block_table_rows=torch.zeros(1, dtype=torch.int32),
    )


def norm(kind: type[nn.Module], weight: Tensor) -> nn.Module:
    module: nn.Module = kind(weight.numel(), eps=EPS)
    module.weight.data.copy_(weight)
    return module


@torch.inference_mode()
def check(
    head_dim: int,
    dtype: torch.dtype,
    num_tokens: int = 37,
    num_q_heads: int = 6,
    num_kv_heads: int = 2,
    scaling: dict[str, object] | None = None,
    norm_kind: type[nn.Module] | None = None,
) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    embedding = rotary(head_dim, scaling)
    cache = poisoned_cache(7, 16, num_kv_heads, head_dim, dtype)
    positions = torch.randint(0, MAX_POSITION, (num_tokens,), generator=generator, dtype=torch.int32)
    slots = torch.randperm(cache.num_slots, generator=generator)[:num_tokens]
    slots[::5] = -1
    width = (num_q_heads + 2 * num_kv_heads) * head_dim
    activation = torch.randn((num_tokens, width + 24), generator=generator).to(dtype)  # rows lie apart
    qkv, before = activation[:, :width], activation.clone()

    qk_norm, tolerance = None, TOLERANCE[dtype]
    if norm_kind is not None:
        weights = 0.5 + torch.rand((2, head_dim), generator=generator).to(dtype)
        how: tuple[float, bool] = (1.0, True) if norm_kind is Gemma3RMSNorm else (0.0, False)
        qk_norm, tolerance = ops.QkNorm(weights[0], weights[1], EPS, *how), NORM_TOLERANCE[dtype]

    ops.rope_and_cache(qkv, table(embedding), cache, batch_of(positions, slots), qk_norm)

    q, k, v = before[:, :width].split(
        [num_q_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], 1
    )
    cos, sin = embedding(torch.zeros(1), positions[None].long())
    q_heads, k_heads = (x.float().view(num_tokens, -1, head_dim) for x in (q, k))
    if norm_kind is not None and qk_norm is not None:
        q_heads = norm(norm_kind, qk_norm.q_weight)(q_heads)
        k_heads = norm(norm_kind, qk_norm.k_weight)(k_heads)
    rotated_q, rotated_k = apply_rotary_pos_emb(q_heads, k_heads, cos[0], sin[0])
    q_width = num_q_heads * head_dim
    assert_close(qkv[:, :q_width], rotated_q.flatten(1), tolerance, f"rotated query, head_dim {head_dim}")
    assert torch.equal(activation[:, q_width:], before[:, q_width:]), "only the query part of qkv may change"

    stored = slots >= 0
    keys = cache.key_cache.reshape(cache.num_slots, -1)
    values = cache.value_cache.reshape(cache.num_slots, -1)
    assert_close(keys[slots[stored]], rotated_k.flatten(1)[stored], tolerance, f"keys, head_dim {head_dim}")
    assert torch.equal(values[slots[stored]], v[stored])
    untouched = torch.ones(cache.num_slots, dtype=torch.bool)
    untouched[slots[stored]] = False
    assert keys[untouched].isnan().all(), "a slot that no token owns was written"
    assert values[untouched].isnan().all(), "a slot that no token owns was written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 40, 64, 72, 80, 96, 128, 256])
def test_matches_llama(head_dim: int, dtype: torch.dtype) -> None:
    """Queries in place, keys and values in their slots, all else untouched."""
    check(head_dim, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 40, 64, 72, 80, 96, 128, 256])
@pytest.mark.parametrize("norm_kind", [Qwen3RMSNorm, Gemma3RMSNorm])
def test_norms_of_heads(norm_kind: type[nn.Module], head_dim: int, dtype: torch.dtype) -> None:
    """Each query and key head is normalised before it is rotated; values are not."""
    check(head_dim, dtype, norm_kind=norm_kind)


def test_scaled_rope_is_only_a_table() -> None:
    """Llama 3 scaling needs no kernel of its own."""
    scaling: dict[str, object] = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    check(64, torch.float32, scaling=scaling)


@pytest.mark.parametrize("num_tokens", [0, 1, 1000])
def test_sizes_and_threads(num_tokens: int) -> None:
    """No token, one, and enough for two threads."""
    ops.set_num_threads(2)
    generator = torch.Generator().manual_seed(1)
    cache = poisoned_cache(num_tokens // 16 + 1, 16, 2, 64, torch.float32)
    qkv = torch.randn((num_tokens, 8 * 64), generator=generator)
    positions = torch.arange(num_tokens, dtype=torch.int32) % MAX_POSITION
    batch = batch_of(positions, torch.arange(num_tokens))
    one, two = qkv.clone(), qkv.clone()
    ops.rope_and_cache(two, table(rotary(64)), cache, batch)
    keys = cache.key_cache.clone()
    ops.set_num_threads(1)
    ops.rope_and_cache(one, table(rotary(64)), cache, batch)
    assert torch.equal(one, two)
    assert torch.equal(cache.key_cache.nan_to_num(9), keys.nan_to_num(9))
    assert not keys.view(-1, 128)[:num_tokens].isnan().any()


@pytest.mark.parametrize(
    ("position", "slot", "message"),
    [
        (MAX_POSITION, 0, r"positions\[1\]: got 300; allowed: 0 to max_position - 1 = 299"),
        (-1, 0, r"positions\[1\]: got -1"),
        (0, 112, r"slot_mapping\[1\]: got 112; allowed: -1 to num_slots - 1 = 111"),
        (0, -2, r"slot_mapping\[1\]: got -2"),
    ],
)
def test_out_of_range_is_named_before_anything_is_written(position: int, slot: int, message: str) -> None:
    """A position or slot outside its range is an error, and no memory has changed."""
    cache = poisoned_cache(7, 16, 2, 64, torch.float32)
    qkv = torch.ones((2, 8 * 64))
    batch = batch_of(torch.tensor([0, position], dtype=torch.int32), torch.tensor([5, slot]))
    with pytest.raises(REFUSED, match=message):
        ops.rope_and_cache(qkv, table(rotary(64)), cache, batch)
    assert torch.equal(qkv, torch.ones((2, 8 * 64)))
    assert cache.key_cache.isnan().all()


def test_wrong_tensors_are_named() -> None:
    """An activation or table that does not fit the cache is refused."""
    cache = poisoned_cache(2, 16, 2, 64, torch.float32)
    batch = batch_of(torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"qkv: got torch.float32\[1, 500\].*num_kv_heads = 2, head_dim = 64"
    ):
        ops.rope_and_cache(torch.zeros((1, 500)), table(rotary(64)), cache, batch)
    with pytest.raises(ValueError, match=r"rope table: got head_dim 32; allowed: the cache's 64"):
        ops.rope_and_cache(torch.zeros((1, 512)), table(rotary(32)), cache, batch)
    for weights in ((torch.ones(64), torch.ones(32)), (torch.ones(64).bfloat16(), torch.ones(64))):
        with pytest.raises(ValueError, match=r"qk_norm\.[qk]_weight: got .*torch.float32\[head_dim\]"):
            ops.rope_and_cache(
                torch.zeros((1, 512)), table(rotary(64)), cache, batch, ops.QkNorm(*weights, EPS)
            )
    with pytest.raises(
        ValueError, match=r"sin: got .*allowed: contiguous torch.float32\[max_position, head_dim / 2\]"
    ):
        ops.RopeTable(torch.zeros((4, 32)), torch.zeros((5, 32)))
