"""The kernels on torch tensors: shapes, types and layout are checked here, then raw pointers go to C++.

Layouts, everywhere: activations `[num_tokens, ...]` with a contiguous last axis, KV memory
`[num_blocks, num_layers, 2, block_size, num_kv_heads, head_dim]`, index arrays int32 (slots int64), all on
the CPU.
float32 and bfloat16. What one step shares by all layers is checked once, in `BatchInfo`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core
from quire._core import cpu_isa, set_cpu_isa, set_num_threads, supported_cpu_isas
from quire._tensor_checks import check as _check
from quire._tensor_checks import describe as _describe
from quire._tensor_checks import dtype_id as _dtype_id
from quire.qk_norm import QkNorm
from quire.sample_ops import logprobs, sample, token_counts

__all__ = [
    "BatchInfo",
    "KVCache",
    "RopeTable",
    "cpu_isa",
    "embedding",
    "logprobs",
    "paged_attention",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "set_cpu_isa",
    "set_num_threads",
    "silu_mul",
    "supported_cpu_isas",
    "token_counts",
]


class BatchInfo:
    """Where each token of one step belongs: a batch's index arrays, checked once and shared by all layers.

    Request i owns tokens [query_start_loc[i], query_start_loc[i + 1]); its last one stands at position
    seq_lens[i] - 1. The tensors are kept alive; changing their contents between kernels changes the batch.
    """

    def __init__(
        self,
        *,
        positions: Tensor,  # [num_tokens] int32
        slot_mapping: Tensor,  # [num_tokens] int64; -1: not stored
        query_start_loc: Tensor,  # [num_reqs + 1] int32
        seq_lens: Tensor,  # [num_reqs] int32, tokens with KV after this step
        block_tables: Tensor,  # [max_num_seqs, max_blocks_per_request] int32; past a request's end: unused
        block_table_rows: Tensor,  # [num_reqs] int32
    ) -> None:
        self.num_tokens = positions.size(0)
        self.num_reqs = seq_lens.size(0)
        _check("positions", positions, torch.int32, (self.num_tokens,), "num_tokens")
        _check("slot_mapping", slot_mapping, torch.int64, (self.num_tokens,), "num_tokens")
        _check("query_start_loc", query_start_loc, torch.int32, (self.num_reqs + 1,), "num_reqs + 1")
        _check("seq_lens", seq_lens, torch.int32, (self.num_reqs,), "num_reqs")
        _check("block_table_rows", block_table_rows, torch.int32, (self.num_reqs,), "num_reqs")
        if block_tables.dtype is not torch.int32 or block_tables.ndim != 2 or block_tables.stride(1) != 1:
            raise ValueError(
                f"block_tables: got {_describe(block_tables)}; "
                "allowed: torch.int32[max_num_seqs, max_blocks_per_request] with contiguous rows"
            )
        self._tensors = (positions, slot_mapping, query_start_loc, seq_lens, block_tables, block_table_rows)
        self._token_args = (positions.data_ptr(), slot_mapping.data_ptr())
        self._request_args = (
            self.num_reqs,
            block_tables.data_ptr(),
            block_tables.stride(0),
            block_table_rows.data_ptr(),
            query_start_loc.data_ptr(),
            seq_lens.data_ptr(),
        )


class KVCache:
    """One layer's keys and values: a view `[num_blocks, 2, block_size, num_kv_heads, head_dim]` of the KV
    memory, whose blocks may lie apart.

    Slot s is offset s % block_size of block s // block_size.
    """

    def __init__(self, layer: Tensor) -> None:
        self.dtype = layer.dtype
        self._dtype_id = _dtype_id("KV cache", layer)
        axes = "2, block_size, num_kv_heads, head_dim"
        if layer.ndim != 5 or layer.size(1) != 2:
            raise ValueError(f"KV cache: got {_describe(layer)}; allowed: [num_blocks, {axes}]")
        _check("a block of the KV cache", layer[0], self.dtype, tuple(layer.shape[1:]), axes)
        self.key_cache, self.value_cache = layer.unbind(1)
        self.num_blocks, self.block_size, self.num_kv_heads, self.head_dim = self.key_cache.shape
        self.num_slots = self.num_blocks * self.block_size
        self.stride_block = layer.stride(0)
        self._args = (self.key_cache.data_ptr(), self.value_cache.data_ptr())


class RopeTable:
    """Cosines and sines of each position's angles, `[max_position, head_dim / 2]` float32.

    A scaled RoPE (llama3, linear, yarn) is just another table.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        shape = (cos.size(0), cos.size(1))
        _check("cos", cos, torch.float32, shape, "max_position, head_dim / 2")
        _check("sin", sin, torch.float32, shape, "max_position, head_dim / 2")
        self.max_position = shape[0]
        self.head_dim = 2 * shape[1]
        self._tensors = (cos, sin)
        self._args = (cos.data_ptr(), sin.data_ptr(), self.max_position)


def paged_attention(
    query: Tensor, cache: KVCache, batch: BatchInfo, softmax_scale: float, out: Tensor | None = None
) -> Tensor:
    """Causal attention of a mixed batch over the paged cache, which already holds this step's tokens.

    query: `[num_tokens, num_q_heads * head_dim]`, type of the cache; rows may be apart (the query part of a
    fused qkv activation). Query head h reads KV head h // (num_q_heads / num_kv_heads). Returns out, of
    the same shape. With block_size 16, position 35 is offset 3 of block `block_tables[row, 2]`.
    """
    num_tokens, width = query.size(0), query.size(1)
    if out is None:
        out = torch.empty((num_tokens, width), dtype=query.dtype)
    if (
        query.dtype is not cache.dtype
        or out.dtype is not cache.dtype
        or num_tokens != batch.num_tokens
        or width % cache.head_dim != 0
        or query.stride(1) != 1
        or out.size(0) != num_tokens
        or out.size(1) != width
        or out.stride(1) != 1
    ):
        raise ValueError(
            f"query, out: got {_describe(query)}, {_describe(out)}; allowed: {cache.dtype}[num_tokens, "
            f"num_q_heads * head_dim] with contiguous rows, num_tokens = {batch.num_tokens}, "
            f"head_dim = {cache.head_dim}"
        )
    _core.cpu_paged_attention(
        cache._dtype_id,
        query.data_ptr(),
        query.stride(0),
        *cache._args,
        cache.stride_block,
        out.data_ptr(),
        out.stride(0),
        width // cache.head_dim,
        cache.num_kv_heads,
        cache.head_dim,
        cache.block_size,
        softmax_scale,
        *batch._request_args,
    )
    return out


def rope_and_cache(
    qkv: Tensor, rope: RopeTable, cache: KVCache, batch: BatchInfo, qk_norm: QkNorm | None = None
) -> None:
    """Rotates the queries in place, and writes rotated keys and the values to their slots of the cache.

    qkv: `[num_tokens, (num_q_heads + 2 * num_kv_heads) * head_dim]`: queries, keys, values; type of the
    cache. Its keys and values stay as they are. Tokens with slot -1 are not stored. qk_norm: applied to each
    query and key head first; weights `[head_dim]`, type of the cache.
    """
    num_heads, rest = divmod(qkv.size(1), cache.head_dim)
    num_q_heads = num_heads - 2 * cache.num_kv_heads
    if (
        qkv.dtype is not cache.dtype
        or qkv.size(0) != batch.num_tokens
        or rest != 0
        or num_q_heads <= 0
        or qkv.stride(1) != 1
    ):
        raise ValueError(
            f"qkv: got {_describe(qkv)}; allowed: {cache.dtype}[num_tokens, (num_q_heads + 2 * "
            f"num_kv_heads) * head_dim] with contiguous rows, num_tokens = {batch.num_tokens}, "
            f"num_kv_heads = {cache.num_kv_heads}, head_dim = {cache.head_dim}"
        )
    if rope.head_dim != cache.head_dim:
        raise ValueError(f"rope table: got head_dim {rope.head_dim}; allowed: the cache's {cache.head_dim}")
    q_norm, k_norm, norm_eps = 0, 0, 0.0
    if qk_norm is not None:
        _check("qk_norm.q_weight", qk_norm.q_weight, cache.dtype, (cache.head_dim,), "head_dim")
        _check("qk_norm.k_weight", qk_norm.k_weight, cache.dtype, (cache.head_dim,), "head_dim")
        q_norm, k_norm, norm_eps = qk_norm.q_weight.data_ptr(), qk_norm.k_weight.data_ptr(), qk_norm.eps
    _core.cpu_rope_and_cache(
        cache._dtype_id,
        batch.num_tokens,
        num_q_heads,
        cache.num_kv_heads,
        cache.head_dim,
        qkv.data_ptr(),
        qkv.stride(0),
        *rope._args,
        *batch._token_args,
        *cache._args,
        cache.num_slots,
        cache.block_size,
        cache.stride_block,
        q_norm=q_norm,
        k_norm=k_norm,
        norm_eps=norm_eps,
    )


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight per row of x `[num_rows, hidden_size]`; weight `[hidden_size]`.

    With a residual (shape of x, contiguous): residual += x first, in place, and the norm is of the sum.
    """
    num_rows, hidden_size = x.size(0), x.size(1)
    dtype = x.dtype
    if out is None:
        out = torch.empty((num_rows, hidden_size), dtype=dtype)
    if (
        x.stride(1) != 1
        or weight.dtype is not dtype
        or weight.numel() != hidden_size
        or not weight.is_contiguous()
        or out.dtype is not dtype
        or out.size(0) != num_rows
        or out.size(1) != hidden_size
        or not out.is_contiguous()
    ):
        raise ValueError(
            f"x, weight, out: got {_describe(x)}, {_describe(weight)}, {_describe(out)}; allowed: one type, "
            "[num_rows, hidden_size] with contiguous rows, contiguous [hidden_size], contiguous [num_rows, "
            "hidden_size]"
        )
    residual_address = 0
    if residual is not None:
        if (
            residual.dtype is not dtype
            or residual.size(0) != num_rows
            or residual.size(1) != hidden_size
            or not residual.is_contiguous()
        ):
            raise ValueError(
                f"residual: got {_describe(residual)}; "
                f"allowed: contiguous {dtype}[num_rows, hidden_size] = [{num_rows}, {hidden_size}]"
            )
        residual_address = residual.data_ptr()
    _core.cpu_rms_norm(
        dtype=_dtype_id("x", x),
        num_rows=num_rows,
        hidden_size=hidden_size,
        eps=eps,
        x=x.data_ptr(),
        stride_x=x.stride(0),
        residual=residual_address,
        weight=weight.data_ptr(),
        out=out.data_ptr(),
    )
    return out


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up for gate_up `[num_rows, 2 * intermediate_size]`: gate first, then up."""
    num_rows, width = gate_up.size(0), gate_up.size(1)
    if out is None:
        out = torch.empty((num_rows, width // 2), dtype=gate_up.dtype)
    if (
        width % 2 != 0
        or gate_up.stride(1) != 1
        or out.dtype is not gate_up.dtype
        or out.size(0) != num_rows
        or out.size(1) * 2 != width
        or not out.is_contiguous()
    ):
        raise ValueError(
            f"gate_up, out: got {_describe(gate_up)}, {_describe(out)}; allowed: one type, [num_rows, "
            "2 * intermediate_size] with contiguous rows, contiguous [num_rows, intermediate_size]"
        )
    _core.cpu_silu_mul(
        dtype=_dtype_id("gate_up", gate_up),
        num_rows=num_rows,
        intermediate_size=width // 2,
        gate_up=gate_up.data_ptr(),
        stride_gate_up=gate_up.stride(0),
        out=out.data_ptr(),
    )
    return out


def embedding(token_ids: Tensor, table: Tensor, out: Tensor | None = None) -> Tensor:
    """out[i] = table[token_ids[i]]: token_ids `[num_tokens]` int32, table `[vocab_size, hidden_size]`."""
    num_tokens = token_ids.size(0)
    vocab_size, hidden_size = table.size(0), table.size(1)
    if out is None:
        out = torch.empty((num_tokens, hidden_size), dtype=table.dtype)
    _check("token_ids", token_ids, torch.int32, (num_tokens,), "num_tokens")
    _check("table", table, table.dtype, (vocab_size, hidden_size), "vocab_size, hidden_size")
    _check("out", out, table.dtype, (num_tokens, hidden_size), "num_tokens, hidden_size")
    _core.cpu_embedding(
        dtype=_dtype_id("table", table),
        num_tokens=num_tokens,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        token_ids=token_ids.data_ptr(),
        table=table.data_ptr(),
        out=out.data_ptr(),
    )
    return out
