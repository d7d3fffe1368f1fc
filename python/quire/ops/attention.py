"""Attention over the paged KV cache, and what it needs: the cache, the step's batch, the rotation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from quire import _core
from quire._tensor_checks import address, check, describe, dtype_id, has_cuda_kernels, stream_of

if has_cuda_kernels():
    from quire import _cuda


class BatchInfo:
    """Where each token of one step belongs: a batch's index arrays, checked once and shared by all layers.

    Sequence i owns tokens [query_start_loc[i], query_start_loc[i + 1]); its last one stands at position
    seq_lens[i] - 1. The tensors are kept alive; changing their contents between kernels changes the batch.

    The last three are for a GPU, where a captured step serves other batches too.
    """

    def __init__(
        self,
        *,
        positions: Tensor,  # [num_tokens] int32
        slot_mapping: Tensor,  # [num_tokens] int64; -1: not stored
        query_start_loc: Tensor,  # [num_seqs + 1] int32
        seq_lens: Tensor,  # [num_seqs] int32, tokens with KV after this step
        block_tables: Tensor,  # [max_num_seqs, max_blocks_per_request] int32; past a sequence's end: unused
        block_table_rows: Tensor,  # [num_seqs] int32
        num_seqs: Tensor | None = None,  # its first element, int32: how many of the sequences there are
        max_query_len: int = 0,  # no sequence of this step, nor of a replay of its graph, has more tokens
        places_are_settled: bool = False,  # a copy, not a kernel, wrote positions and slot_mapping
    ) -> None:
        self.num_tokens = positions.size(0)
        self.num_seqs = seq_lens.size(0)
        device = positions.device.type
        check("positions", positions, torch.int32, (self.num_tokens,), "num_tokens", device)
        check("slot_mapping", slot_mapping, torch.int64, (self.num_tokens,), "num_tokens", device)
        check("query_start_loc", query_start_loc, torch.int32, (self.num_seqs + 1,), "num_seqs + 1", device)
        check("seq_lens", seq_lens, torch.int32, (self.num_seqs,), "num_seqs", device)
        check("block_table_rows", block_table_rows, torch.int32, (self.num_seqs,), "num_seqs", device)
        if block_tables.dtype is not torch.int32 or block_tables.ndim != 2 or block_tables.stride(1) != 1:
            raise ValueError(
                f"block_tables: got {describe(block_tables)}; "
                "allowed: torch.int32[max_num_seqs, max_blocks_per_request] with contiguous rows"
            )
        self._tensors = positions, slot_mapping, query_start_loc, seq_lens, block_tables, block_table_rows
        self.num_reqs_on_device = num_seqs
        self.max_query_len = max_query_len
        self.places_are_settled = places_are_settled
        self.position_ids = positions
        self.positions = positions.data_ptr()
        self.slot_mapping = slot_mapping.data_ptr()
        self.query_start_loc = query_start_loc.data_ptr()
        self.seq_lens = seq_lens.data_ptr()
        self.block_table_rows = block_table_rows.data_ptr()
        self.block_tables = block_tables.data_ptr()
        self.stride_block_table = block_tables.stride(0)


class KVCache:
    """One layer's keys and values: a view `[num_blocks, 2, block_size, num_kv_heads, head_dim]` of the KV
    memory, whose blocks may lie apart. Of the activations' type, or on a GPU float8 e4m3 of x / scale.

    Slot s is offset s % block_size of block s // block_size.
    """

    def __init__(self, layer: Tensor, *, k_scale: float = 1.0, v_scale: float = 1.0) -> None:
        self.dtype = layer.dtype
        self.is_float8 = layer.is_cuda and layer.dtype is torch.float8_e4m3fn
        self.dtype_id = (
            0 if self.is_float8 else dtype_id("KV cache", layer)
        )  # the activations', but for float8
        axes = "2, block_size, num_kv_heads, head_dim"
        if layer.ndim != 5 or layer.size(1) != 2:
            raise ValueError(f"KV cache: got {describe(layer)}; allowed: [num_blocks, {axes}]")
        shape = tuple(layer.shape[1:])
        check("a block of the KV cache", layer[0], self.dtype, shape, axes, layer.device.type)
        self.key_cache, self.value_cache = layer.unbind(1)
        self.num_blocks, self.block_size, self.num_kv_heads, self.head_dim = self.key_cache.shape
        self.num_slots = self.num_blocks * self.block_size
        self.stride_block = layer.stride(0)
        self.k_scale, self.v_scale = k_scale, v_scale
        self.key_address, self.value_address = self.key_cache.data_ptr(), self.value_cache.data_ptr()


class RopeTable:
    """Cosines and sines of each position's angles, `[max_position, head_dim / 2]` float32.

    A scaled RoPE (llama3, linear, yarn) is just another table.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        shape = (cos.size(0), cos.size(1))
        check("cos", cos, torch.float32, shape, "max_position, head_dim / 2", cos.device.type)
        check("sin", sin, torch.float32, shape, "max_position, head_dim / 2", cos.device.type)
        self.max_position = shape[0]
        self.head_dim = 2 * shape[1]
        self._tensors = (cos, sin)
        self.cos, self.sin = cos.data_ptr(), sin.data_ptr()


class QkNorm(NamedTuple):
    """The norm of each query and key head before it is rotated, as `rms_norm` computes it."""

    q_weight: Tensor  # [head_dim], type of the activations
    k_weight: Tensor  # [head_dim]
    eps: float
    weight_offset: float = 0.0
    rounds_once: bool = False


class PagedAttention:
    """Attention of all layers of a model that have the same window: one plan per step, then one call per
    layer.

    scale: scores are query . key * scale; None: head_dim**-0.5. window: how many keys a token sees, itself
    included; None: all. soft_cap: scores become soft_cap * tanh(score / soft_cap).

    The rest is for a GPU. The maxima are those of any step. split_keys: keys per piece of a context where
    results may not depend on the batch, 0: cut for the best balance. num_sms: multiprocessors to fill, 0: all
    of them.
    """

    def __init__(
        self,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        scale: float | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
        max_num_seqs: int = 0,
        max_num_tokens: int = 0,
        max_seq_len: int = 0,
        split_keys: int = 0,
        num_sms: int = 0,
    ) -> None:
        for name, value in (("scale", scale), ("window", window), ("soft_cap", soft_cap)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: got {value}; allowed: None, or a number above 0")
        self.num_q_heads = num_q_heads
        self.scale = head_dim**-0.5 if scale is None else scale
        self.soft_cap = soft_cap or 0.0
        self.workspace = torch.empty(0, dtype=torch.uint8, device=device)
        sizes = {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
        self._workspace_address = 0
        self._config: Any
        if not self.workspace.is_cuda:
            self._config = _core.PagedAttentionConfig(**sizes, window=window or 0)
            return
        self._config = _cuda.PagedAttentionConfig(
            **sizes,
            max_num_seqs=max_num_seqs,
            max_num_tokens=max_num_tokens,
            max_seq_len=max_seq_len,
            num_sms=num_sms or torch.cuda.get_device_properties(device).multi_processor_count,
            split_keys=split_keys,
            window=0 if window is None or window >= max_seq_len else window,
        )
        num_bytes = _cuda.paged_attention_workspace_bytes(self._config)
        self.workspace = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._workspace_address = self.workspace.data_ptr()

    def plan(self, batch: BatchInfo) -> None:
        """Cut the step's work into pieces, before the first layer; on the CPU each layer does."""
        if self.workspace.is_cuda:
            _cuda.paged_attention_plan(
                config=self._config,
                num_seqs=address(batch.num_reqs_on_device),
                query_start_loc=batch.query_start_loc,
                seq_lens=batch.seq_lens,
                block_table_rows=batch.block_table_rows,
                workspace=self._workspace_address,
                stream=stream_of(self.workspace),
            )

    def __call__(
        self,
        query: Tensor,
        cache: KVCache,
        batch: BatchInfo,
        out: Tensor | None = None,
        *,
        sinks: Tensor | None = None,
        follows_layer: bool = False,
    ) -> Tensor:
        """Causal attention of a mixed batch over the paged cache, which already holds this step's tokens.

        query: `[num_tokens, num_q_heads * head_dim]`; rows may be apart (the query part of a fused qkv
        activation). Query head h reads KV head h // (num_q_heads / num_kv_heads). Returns out, of the same
        shape. With block_size 16, position 35 is offset 3 of block `block_tables[row, 2]`.

        sinks: `[num_q_heads]` float32: a score per head that joins the softmax and has no value.
        follows_layer, on a GPU: not the step's first layer, so that plan, block tables and the keys of
        earlier steps are there already.
        """
        num_tokens, width = query.size(0), query.size(1)
        if out is None:
            out = torch.empty((num_tokens, width), dtype=query.dtype, device=query.device)
        if (
            (query.dtype is not cache.dtype and not cache.is_float8)
            or out.dtype is not query.dtype
            or num_tokens != batch.num_tokens
            or width != self.num_q_heads * cache.head_dim
            or query.stride(1) != 1
            or out.size(0) != num_tokens
            or out.size(1) != width
            or out.stride(1) != 1
        ):
            raise ValueError(
                f"query, out: got {describe(query)}, {describe(out)}; allowed: {cache.dtype}[num_tokens, "
                f"num_q_heads * head_dim] with contiguous rows, num_tokens = {batch.num_tokens}, "
                f"num_q_heads = {self.num_q_heads}, head_dim = {cache.head_dim}"
            )
        if sinks is not None:
            check("sinks", sinks, torch.float32, (self.num_q_heads,), "num_q_heads", out.device.type)
        is_cuda = query.is_cuda
        run = _cuda.paged_attention if is_cuda else _core.cpu_paged_attention
        run(
            config=self._config,
            dtype=dtype_id("query", query) if cache.is_float8 else cache.dtype_id,
            softmax_scale=self.scale,
            query=query.data_ptr(),
            stride_query_token=query.stride(0),
            key_cache=cache.key_address,
            value_cache=cache.value_address,
            block_size=cache.block_size,
            stride_block=cache.stride_block,
            out=out.data_ptr(),
            stride_out_token=out.stride(0),
            block_tables=batch.block_tables,
            stride_block_table=batch.stride_block_table,
            soft_cap=self.soft_cap,
            sinks=address(sinks),
            num_seqs=batch.num_seqs,
            query_start_loc=batch.query_start_loc,
            seq_lens=batch.seq_lens,
            block_table_rows=batch.block_table_rows,
            workspace=self._workspace_address,
            max_query_len=batch.max_query_len,
            kv_dtype=cache.is_float8,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
            follows_layer=follows_layer,
            stream=stream_of(out) if is_cuda else 0,
        )
        return out


def rope_and_cache(
    qkv: Tensor, rope: RopeTable, cache: KVCache, batch: BatchInfo, qk_norm: QkNorm | None = None
) -> None:
    """Rotates the queries in place, and writes rotated keys and the values to their slots of the cache.

    qkv: `[num_tokens, (num_q_heads + 2 * num_kv_heads) * head_dim]`: queries, keys, values; type of the
    cache. Its keys and values stay as they are. Tokens with slot -1 are not stored. qk_norm: applied to each
    query and key head first; weights `[head_dim]`, type of the activations.

    A position that the table does not have, or a slot that the cache does not have: an error on the CPU; on a
    GPU it rotates to NaN, and is not stored.
    """
    num_heads, rest = divmod(qkv.size(1), cache.head_dim)
    num_q_heads = num_heads - 2 * cache.num_kv_heads
    if (
        (qkv.dtype is not cache.dtype and not cache.is_float8)
        or qkv.size(0) != batch.num_tokens
        or rest != 0
        or num_q_heads <= 0
        or qkv.stride(1) != 1
    ):
        raise ValueError(
            f"qkv: got {describe(qkv)}; allowed: {cache.dtype}[num_tokens, (num_q_heads + 2 * "
            f"num_kv_heads) * head_dim] with contiguous rows, num_tokens = {batch.num_tokens}, "
            f"num_kv_heads = {cache.num_kv_heads}, head_dim = {cache.head_dim}"
        )
    if rope.head_dim != cache.head_dim:
        raise ValueError(f"rope table: got head_dim {rope.head_dim}; allowed: the cache's {cache.head_dim}")
    norm: dict[str, Any] = {}
    if qk_norm is not None:
        shape, device = (cache.head_dim,), qkv.device.type
        check("qk_norm.q_weight", qk_norm.q_weight, qkv.dtype, shape, "head_dim", device)
        check("qk_norm.k_weight", qk_norm.k_weight, qkv.dtype, shape, "head_dim", device)
        norm = {"q_norm": qk_norm.q_weight.data_ptr(), "k_norm": qk_norm.k_weight.data_ptr()}
        norm |= {"norm_eps": qk_norm.eps, "norm_weight_offset": qk_norm.weight_offset}
        norm |= {"norm_rounds_once": qk_norm.rounds_once}
    is_cuda = qkv.is_cuda
    run = _cuda.rope_and_cache if is_cuda else _core.cpu_rope_and_cache
    run(
        dtype=dtype_id("qkv", qkv) if cache.is_float8 else cache.dtype_id,
        num_tokens=batch.num_tokens,
        num_q_heads=num_q_heads,
        num_kv_heads=cache.num_kv_heads,
        head_dim=cache.head_dim,
        qkv=qkv.data_ptr(),
        stride_token=qkv.stride(0),
        cos=rope.cos,
        sin=rope.sin,
        max_position=rope.max_position,
        positions=batch.positions,
        slot_mapping=batch.slot_mapping,
        key_cache=cache.key_address,
        value_cache=cache.value_address,
        num_slots=cache.num_slots,
        block_size=cache.block_size,
        stride_block=cache.stride_block,
        kv_dtype=cache.is_float8,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
        **norm,
        places_are_settled=batch.places_are_settled,
        stream=stream_of(qkv) if is_cuda else 0,
    )
