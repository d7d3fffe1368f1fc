"""The CUDA kernels on torch tensors, as the tests call them: on the current stream, nothing checked."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

DTYPE_IDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # quire::cuda::DType
KV_DTYPE_IDS = {torch.float8_e4m3fn: 1}  # quire::cuda::KVDType; others are the activations' type


class _Module:
    """quire._cuda, imported by the first call: tests are collected on machines that do not build it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("quire._cuda"), name)


_cuda = _Module()


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _cuda.rms_norm(
        DTYPE_IDS[x.dtype],
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
    return out


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    size = gate_up.size(1) // 2
    if out is None:
        out = torch.empty((gate_up.size(0), size), dtype=gate_up.dtype, device=gate_up.device)
    _cuda.silu_mul(
        DTYPE_IDS[gate_up.dtype],
        gate_up.size(0),
        size,
        gate_up.data_ptr(),
        gate_up.stride(0),
        out.data_ptr(),
        _stream(),
    )
    return out


def float8_rows(rows: int, size: int) -> tuple[Tensor, Tensor]:
    """e4m3 values and the scale of each row, poisoned."""
    values = torch.full((rows, size), torch.nan, device="cuda").to(torch.float8_e4m3fn)
    return values, torch.full((rows,), torch.nan, device="cuda")


def rms_norm_float8(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    outs: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    out, scale = outs or float8_rows(x.size(0), x.size(1))
    _cuda.rms_norm(
        DTYPE_IDS[x.dtype],
        x.size(0),
        x.size(1),
        eps,
        x.data_ptr(),
        x.stride(0),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        _stream(),
        out_scale=scale.data_ptr(),
    )
    return out, scale


def silu_mul_float8(gate_up: Tensor, outs: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    size = gate_up.size(1) // 2
    out, scale = outs or float8_rows(gate_up.size(0), size)
    _cuda.silu_mul(
        DTYPE_IDS[gate_up.dtype],
        gate_up.size(0),
        size,
        gate_up.data_ptr(),
        gate_up.stride(0),
        out.data_ptr(),
        _stream(),
        out_scale=scale.data_ptr(),
    )
    return out, scale


def embedding(
    token_ids: Tensor, table: Tensor, out: Tensor | None = None, last_token_ids: Tensor | None = None
) -> Tensor:
    if out is None:
        out = torch.empty((token_ids.numel(), table.size(1)), dtype=table.dtype, device=table.device)
    _cuda.embedding(
        DTYPE_IDS[table.dtype],
        token_ids.numel(),
        table.size(0),
        table.size(1),
        token_ids.data_ptr(),
        table.data_ptr(),
        out.data_ptr(),
        _stream(),
        0 if last_token_ids is None else last_token_ids.data_ptr(),
        0 if last_token_ids is None else last_token_ids.numel(),
    )
    return out


def gather_rows(indices: Tensor, *tensors: Tensor, outs: list[Tensor] | None = None) -> list[Tensor]:
    """Rows of one or two tensors."""
    if outs is None:
        outs = [torch.empty((indices.numel(), x.size(1)), dtype=x.dtype, device=x.device) for x in tensors]
    rows: list[int] = []
    for x, out in zip(tensors, outs, strict=True):
        rows += [x.data_ptr(), x.stride(0), x.size(1), out.data_ptr()]
    x = tensors[0]
    _cuda.gather_rows(
        DTYPE_IDS[x.dtype],
        indices.numel(),
        x.size(0),
        indices.data_ptr(),
        *rows[:4],
        _stream(),
        *rows[4:],
    )
    return outs


def copy_blocks(kv_memory: Tensor, copies: Tensor) -> None:
    _cuda.copy_blocks(
        copies.data_ptr(),
        copies.size(0) // 2,
        kv_memory.data_ptr(),
        kv_memory.size(0),
        kv_memory.stride(0) * kv_memory.itemsize,
        _stream(),
    )


def update_block_tables(updates: Tensor, num_updates: Tensor, block_tables: Tensor) -> None:
    _cuda.update_block_tables(
        updates.data_ptr(),
        num_updates.data_ptr(),
        updates.size(0),
        block_tables.data_ptr(),
        block_tables.numel(),
        _stream(),
    )


def rope_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_q_heads: int,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 0.0,
    places_are_settled: bool = False,
) -> None:
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    _cuda.rope_and_cache(
        DTYPE_IDS[qkv.dtype],
        qkv.size(0),
        num_q_heads,
        num_kv_heads,
        head_dim,
        qkv.data_ptr(),
        qkv.stride(0),
        cos.data_ptr(),
        sin.data_ptr(),
        cos.size(0),
        positions.data_ptr(),
        slot_mapping.data_ptr(),
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        num_blocks * block_size,
        block_size,
        key_cache.stride(0),
        _stream(),
        kv_dtype=KV_DTYPE_IDS.get(key_cache.dtype, 0),
        k_scale=k_scale,
        v_scale=v_scale,
        q_norm=0 if q_norm is None else q_norm.data_ptr(),
        k_norm=0 if k_norm is None else k_norm.data_ptr(),
        norm_eps=norm_eps,
        places_are_settled=places_are_settled,
    )


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    output_idx: Tensor,
    sample_rows: Tensor | None = None,
    last_token_ids: Tensor | None = None,
    min_p: Tensor | None = None,
    repetition_penalty: Tensor | None = None,
    presence_penalty: Tensor | None = None,
    frequency_penalty: Tensor | None = None,
    token_counts: Tensor | None = None,
    mask_rows: Tensor | None = None,
    token_masks: Tensor | None = None,
    bias_offsets: Tensor | None = None,
    bias_ids: Tensor | None = None,
    biases: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    if out is None:
        out = torch.full((logits.size(0),), -7, dtype=torch.int32, device=logits.device)
    _cuda.sample(
        DTYPE_IDS[logits.dtype],
        logits.size(0),
        logits.size(1),
        logits.data_ptr(),
        logits.stride(0),
        temperature.data_ptr(),
        top_k.data_ptr(),
        top_p.data_ptr(),
        seed.data_ptr(),
        output_idx.data_ptr(),
        out.data_ptr(),
        _stream(),
        sample_rows=_address(sample_rows),
        last_token_ids=_address(last_token_ids),
        min_p=_address(min_p),
        repetition_penalty=_address(repetition_penalty),
        presence_penalty=_address(presence_penalty),
        frequency_penalty=_address(frequency_penalty),
        token_counts=_address(token_counts),
        mask_rows=_address(mask_rows),
        token_masks=_address(token_masks),
        bias_offsets=_address(bias_offsets),
        bias_ids=_address(bias_ids),
        biases=_address(biases),
    )
    return out


def token_counts(
    counts: Tensor, *, rows: Tensor, token_offsets: Tensor, prompt_lens: Tensor, token_ids: Tensor
) -> None:
    _cuda.token_counts(
        rows.size(0),
        counts.size(1),
        rows.data_ptr(),
        token_offsets.data_ptr(),
        prompt_lens.data_ptr(),
        token_ids.data_ptr(),
        counts.data_ptr(),
        _stream(),
    )


def logprobs(
    logits: Tensor,
    *,
    token_ids: Tensor,
    num_logprobs: Tensor,
    out: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _cuda.logprobs(
        DTYPE_IDS[logits.dtype],
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
