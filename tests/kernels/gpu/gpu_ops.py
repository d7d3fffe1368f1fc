"""The sampling kernels of the GPU on torch tensors, as the tests call them: nothing is checked."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from quire._tensor_checks import DTYPE_IDS
from torch import Tensor


class _Module:
    """quire._cuda, imported by the first call: tests are collected on machines that do not build it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("quire._cuda"), name)


_cuda = _Module()


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
