"""The CUDA kernels on torch tensors, with the names of `quire.ops`: on torch's current stream.

Who calls them are the models and the runner, with buffers of their own making; shapes and types are not
checked again per call. The kernels themselves refuse sizes, types and alignments that they do not have, and
never read or write past what an index says is there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _cuda
from quire._tensor_checks import DTYPE_IDS
from quire.step_arrays import StepArrays


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


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
        DTYPE_IDS[logits.dtype],
        logits.size(0),
        logits.size(1),
        logits.data_ptr(),
        logits.stride(0),
        token_ids.data_ptr(),
        num_logprobs.data_ptr(),
        *[*(tensor.data_ptr() for tensor in out), _stream()],
    )
    return out


def sample(
    logits: Tensor, step: StepArrays, last_token_ids: Tensor, token_masks: Tensor, out: Tensor, **edits: int
) -> None:
    """As `quire.ops.sample`; each id also becomes its row's entry of `last_token_ids`. A row that is not
    finite gets -1. edits: addresses of min_p, penalties, biases and the like."""
    _cuda.sample(
        DTYPE_IDS[logits.dtype],
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
