"""The CUDA kernels on torch tensors, with the names of `quire.ops`: on torch's current stream.

Who calls them are the models and the runner, with buffers of their own making; shapes and types are not
checked again per call. The kernels themselves refuse sizes, types and alignments that they do not have, and
never read or write past what an index says is there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _cuda
from quire.qk_norm import QkNorm
from quire.step_arrays import StepArrays

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # quire::cuda::DType
_ATTENTION_DTYPES = {torch.bfloat16: 0, torch.float16: 1}  # quire::cuda::AttentionDType


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


class KVCache:
    """As `quire.ops.KVCache`: of the activations' type, or float8 e4m3."""

    def __init__(self, layer: Tensor) -> None:
        self.kv_dtype = int(layer.dtype is torch.float8_e4m3fn)  # quire::cuda::KVDType
        self.key_cache, self.value_cache = layer.unbind(1)
        self.num_blocks, self.block_size, self.num_kv_heads, self.head_dim = self.key_cache.shape
        self.num_slots = self.num_blocks * self.block_size
        self.stride_block = layer.stride(0)


class PagedAttention:
    """Attention of all layers of a model: one plan per step, then one call per layer."""

    def __init__(
        self,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_num_reqs: int,
        max_num_tokens: int,
        max_seq_len: int,
        device: torch.device,
        split_keys: int = 0,
    ) -> None:
        self.softmax_scale = head_dim**-0.5
        self._config = _cuda.PagedAttentionConfig(
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_num_reqs=max_num_reqs,
            max_num_tokens=max_num_tokens,
            max_seq_len=max_seq_len,
            num_sms=torch.cuda.get_device_properties(device).multi_processor_count,
            split_keys=split_keys,
        )
        num_bytes = _cuda.paged_attention_workspace_bytes(self._config)
        self.workspace = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def plan(self, step: StepArrays) -> None:
        """Cut the step's work into pieces; before the first layer."""
        _cuda.paged_attention_plan(
            self._config,
            step.header.data_ptr(),
            step.query_start_loc.data_ptr(),
            step.seq_lens.data_ptr(),
            step.block_table_rows.data_ptr(),
            self.workspace.data_ptr(),
            _stream(),
        )

    def __call__(
        self,
        query: Tensor,
        cache: KVCache,
        block_tables: Tensor,
        max_query_len: int,
        out: Tensor,
        *,
        follows_layer: bool,
    ) -> None:
        """query, out: `[num_tokens, num_q_heads * head_dim]`, rows may be apart. max_query_len: of no request
        of this step, nor of a replay of its graph, there are more query tokens. follows_layer: not the
        step's first layer, so that plan, block tables and the keys of earlier steps are there already."""
        _cuda.paged_attention(
            self._config,
            _ATTENTION_DTYPES[query.dtype],
            cache.block_size,
            self.softmax_scale,
            max_query_len,
            query.data_ptr(),
            query.stride(0),
            cache.key_cache.data_ptr(),
            cache.value_cache.data_ptr(),
            cache.stride_block,
            out.data_ptr(),
            out.stride(0),
            block_tables.data_ptr(),
            block_tables.stride(0),
            self.workspace.data_ptr(),
            _stream(),
            kv_dtype=cache.kv_dtype,
            follows_layer=follows_layer,
        )


MAX_SKINNY_ROWS: int = _cuda.SKINNY_GEMM_MAX_ROWS


class SkinnyWeight:
    """A weight `[out_size, in_size]` as the GEMM for few rows wants it described; the tensor stays as it is.

    silu_mul: the result is SiLU(gate) * up, `[num_rows, out_size / 2]`; gate is the weight's first half.
    is_invariant: a row of the result has the same bits in any number of rows.
    """

    def __init__(self, weight: Tensor, *, silu_mul: bool = False, is_invariant: bool = False) -> None:
        self._weight = weight
        self._is_invariant = is_invariant
        self._handle = _cuda.SkinnyGemmWeight(
            weight.data_ptr(), weight.size(0), weight.size(1), DTYPES[weight.dtype], silu_mul
        )

    def __call__(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """x: `[num_rows, in_size]`, at most MAX_SKINNY_ROWS rows, which may be apart."""
        _cuda.skinny_gemm(
            self._handle,
            x.size(0),
            x.data_ptr(),
            x.stride(0),
            0 if bias is None else bias.data_ptr(),
            0,
            0,
            out.data_ptr(),
            out.stride(0),
            _stream(),
            is_invariant=self._is_invariant,
        )


class WideWeight:
    """The same for the GEMM for many rows. Out's columns and in_size: multiples of 8; in_size at least 64."""

    def __init__(self, weight: Tensor, *, silu_mul: bool = False) -> None:
        self._weight = weight
        self._handle = _cuda.WideGemmWeight(
            weight.data_ptr(), weight.size(0), weight.size(1), DTYPES[weight.dtype], silu_mul
        )

    @staticmethod
    def takes(weight: Tensor, *, silu_mul: bool = False) -> bool:
        out_size, in_size = weight.shape
        return out_size % (16 if silu_mul else 8) == 0 and in_size % 8 == 0 and in_size >= 64

    def __call__(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """x: `[num_rows, in_size]`, rows may be apart."""
        _cuda.wide_gemm(self._handle, *self._arguments(x, bias, out))

    def split(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """The same without silu_mul for some 65 to 256 rows: k is cut, and how depends on the rows."""
        _cuda.split_gemm(self._handle, *self._arguments(x, bias, out))

    @staticmethod
    def _arguments(x: Tensor, bias: Tensor | None, out: Tensor) -> tuple[int, ...]:
        return (
            x.size(0),
            x.data_ptr(),
            x.stride(0),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            out.stride(0),
            _stream(),
        )


def update_block_tables(block_tables: Tensor, step: StepArrays) -> None:
    """Bring the device's copy of the block tables, ``[max_num_seqs, max_blocks_per_request]``, up to date."""
    _cuda.update_block_tables(
        step.block_table_updates.data_ptr(),
        step.header[3:].data_ptr(),
        step.block_table_updates.size(0) // 2,
        block_tables.data_ptr(),
        block_tables.numel(),
        _stream(),
    )


def copy_blocks(kv_memory: Tensor, copies: Tensor) -> None:
    """Copy whole blocks, keys and values of all layers. kv_memory: ``[num_blocks, num_layers, 2, block_size,
    num_kv_heads, head_dim]``; copies: ``[2 * num_copies]`` int32, pairs of source and destination."""
    _cuda.copy_blocks(
        copies.data_ptr(),
        copies.size(0) // 2,
        kv_memory.data_ptr(),
        kv_memory.size(0),
        kv_memory.stride(0) * kv_memory.itemsize,
        _stream(),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None, out: Tensor) -> None:
    """As `quire.ops.rms_norm`."""
    _cuda.rms_norm(
        DTYPES[x.dtype],
        x.size(0),
        x.size(1),
        eps,
        x.data_ptr(),
        x.stride(0),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        _stream(),
    )


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    """As `quire.ops.silu_mul`."""
    _cuda.silu_mul(
        DTYPES[gate_up.dtype],
        gate_up.size(0),
        gate_up.size(1) // 2,
        gate_up.data_ptr(),
        gate_up.stride(0),
        out.data_ptr(),
        _stream(),
    )


def embedding(token_ids: Tensor, table: Tensor, last_token_ids: Tensor, out: Tensor) -> None:
    """out[i] = table[token_ids[i]]; a negative id stands for `last_token_ids[~id]`."""
    _cuda.embedding(
        DTYPES[table.dtype],
        token_ids.size(0),
        table.size(0),
        table.size(1),
        token_ids.data_ptr(),
        table.data_ptr(),
        out.data_ptr(),
        _stream(),
        last_token_ids.data_ptr(),
        last_token_ids.size(0),
    )


def gather_rows(indices: Tensor, x: Tensor, out: Tensor, x2: Tensor, out2: Tensor) -> None:
    """out[i] = x[indices[i]], and the same of a second pair."""
    _cuda.gather_rows(
        DTYPES[x.dtype],
        indices.size(0),
        x.size(0),
        indices.data_ptr(),
        x.data_ptr(),
        x.stride(0),
        x.size(1),
        out.data_ptr(),
        _stream(),
        x2.data_ptr(),
        x2.stride(0),
        x2.size(1),
        out2.data_ptr(),
    )


def rope_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: KVCache,
    step: StepArrays,
    qk_norm: QkNorm | None = None,
) -> None:
    """As `quire.ops.rope_and_cache`; cos, sin: `[max_position, head_dim / 2]` float32."""
    num_q_heads = qkv.size(1) // cache.head_dim - 2 * cache.num_kv_heads
    _cuda.rope_and_cache(
        DTYPES[qkv.dtype],
        qkv.size(0),
        num_q_heads,
        cache.num_kv_heads,
        cache.head_dim,
        qkv.data_ptr(),
        qkv.stride(0),
        cos.data_ptr(),
        sin.data_ptr(),
        cos.size(0),
        step.positions.data_ptr(),
        step.slot_mapping.data_ptr(),
        cache.key_cache.data_ptr(),
        cache.value_cache.data_ptr(),
        cache.num_slots,
        cache.block_size,
        cache.stride_block,
        _stream(),
        kv_dtype=cache.kv_dtype,
        q_norm=0 if qk_norm is None else qk_norm.q_weight.data_ptr(),
        k_norm=0 if qk_norm is None else qk_norm.k_weight.data_ptr(),
        norm_eps=0.0 if qk_norm is None else qk_norm.eps,
        places_are_settled=True,  # a copy in front of the step wrote them
    )


def token_counts(
    token_counts: Tensor, *, rows: Tensor, token_offsets: Tensor, prompt_lens: Tensor, token_ids: Tensor
) -> None:
    """As `quire.ops.token_counts`."""
    _cuda.token_counts(
        rows.size(0),
        token_counts.size(1),
        rows.data_ptr(),
        token_offsets.data_ptr(),
        prompt_lens.data_ptr(),
        token_ids.data_ptr(),
        token_counts.data_ptr(),
        _stream(),
    )


def logprobs(
    logits: Tensor, token_ids: Tensor, num_logprobs: Tensor, out: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """As `quire.ops.logprobs`."""
    _cuda.logprobs(
        DTYPES[logits.dtype],
        logits.size(0),
        logits.size(1),
        logits.data_ptr(),
        logits.stride(0),
        token_ids.data_ptr(),
        num_logprobs.data_ptr(),
        *(tensor.data_ptr() for tensor in out),
        _stream(),
    )
    return out


def sample(
    logits: Tensor, step: StepArrays, last_token_ids: Tensor, token_masks: Tensor, out: Tensor, **edits: int
) -> None:
    """As `quire.ops.sample`; each id also becomes its row's entry of `last_token_ids`. A row that is not
    finite gets -1. edits: addresses of min_p, penalties, biases and the like."""
    _cuda.sample(
        DTYPES[logits.dtype],
        logits.size(0),
        logits.size(1),
        logits.data_ptr(),
        logits.stride(0),
        step.temperature.data_ptr(),
        step.top_k.data_ptr(),
        step.top_p.data_ptr(),
        step.seed.data_ptr(),
        step.output_idx.data_ptr(),
        out.data_ptr(),
        _stream(),
        step.sample_rows.data_ptr(),
        last_token_ids.data_ptr(),
        mask_rows=step.mask_rows.data_ptr(),
        token_masks=token_masks.data_ptr(),
        **edits,
    )
