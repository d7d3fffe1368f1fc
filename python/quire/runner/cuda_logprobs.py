"""Logprobs of a step on a GPU: kernels of their own behind the step's graph, so that a step without them has
the same graph and the same copies as ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quire import _core
from quire import ops_cuda as ops
from quire.models.activations_cuda import CudaActivations
from quire.models.llama_cuda import CudaLlama
from quire.runner.sampled import PROMPT_PIECE, Logprobs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NUM_INPUTS = 3
_NUM_TOP = 20


class CudaLogprobs:
    """Buffers on the device, and pinned ones for each batch that may be out. Made at first use."""

    def __init__(self, max_num_seqs: int, max_num_tokens: int, device: torch.device, num_copies: int) -> None:
        self._sampled = _Rows(max_num_seqs, device, num_copies)
        self._prompt = _Rows(max_num_tokens, device, num_copies)

    def launch(
        self,
        copy: int,
        batch: _core.Batch,
        sampled: Tensor,
        model: CudaLlama,
        activations: CudaActivations,
    ) -> None:
        """Compute and copy back what the batch asks for, behind its step on the current stream. What the
        same copy held before must have been collected. Overwrites `activations.logits` where prompts ask."""
        if batch.has_logprobs:
            rows, num_rows = self._sampled, batch.num_sampled
            (num_logprobs,) = rows.upload(copy, batch.num_logprobs)
            ops.logprobs(activations.logits[:num_rows], sampled, num_logprobs, out=rows.out(0, num_rows))
            rows.download(copy, num_rows)
        if batch.num_prompt_rows:
            rows, num_rows = self._prompt, batch.num_prompt_rows
            inputs = rows.upload(
                copy, batch.prompt_token_idx, batch.prompt_next_ids, batch.prompt_num_logprobs
            )
            size = min(PROMPT_PIECE, activations.logits.size(0))
            for begin in range(0, num_rows, size):
                end = min(begin + size, num_rows)
                index, next_ids, num_logprobs = (tensor[begin:end] for tensor in inputs)
                logits = model.logits_of(index, activations)
                ops.logprobs(logits, next_ids, num_logprobs, out=rows.out(begin, end))
            rows.download(copy, num_rows)

    def sampled(self, copy: int, num_rows: int) -> Logprobs:
        """Once the batch is there; valid until the copy's next launch()."""
        return self._sampled.host(copy, num_rows)

    def prompt(self, copy: int, num_rows: int) -> Logprobs:
        """As sampled()."""
        return self._prompt.host(copy, num_rows)


class _Rows:
    """What the kernel reads and writes for rows of logits."""

    def __init__(self, max_num_rows: int, device: torch.device, num_copies: int) -> None:
        def outputs(**kind: object) -> list[Tensor]:
            return [
                torch.zeros(max_num_rows, dtype=torch.float32, **kind),  # type: ignore[call-overload]
                torch.zeros(max_num_rows, dtype=torch.int32, **kind),  # type: ignore[call-overload]
                torch.zeros(max_num_rows, _NUM_TOP, dtype=torch.int32, **kind),  # type: ignore[call-overload]
                torch.zeros(max_num_rows, _NUM_TOP, dtype=torch.float32, **kind),  # type: ignore[call-overload]
            ]

        is_pinned = device.type == "cuda"
        size = (_NUM_INPUTS, max_num_rows)
        self._inputs = torch.zeros(size, dtype=torch.int32, device=device)
        self._host_inputs = [
            torch.zeros(size, dtype=torch.int32, pin_memory=is_pinned) for _ in range(num_copies)
        ]
        self._outputs = outputs(device=device)
        self._host_outputs = [outputs(pin_memory=is_pinned) for _ in range(num_copies)]

    def upload(self, copy: int, *arrays: NDArray[np.int32]) -> list[Tensor]:
        """The arrays on the device, ``[num_rows]`` each."""
        num_rows = len(arrays[0])
        tensors = []
        for host, device, array in zip(self._host_inputs[copy], self._inputs, arrays, strict=False):
            host[:num_rows].numpy()[:] = array
            tensors.append(device[:num_rows].copy_(host[:num_rows], non_blocking=True))
        return tensors

    def out(self, begin: int, end: int) -> tuple[Tensor, ...]:
        return tuple(tensor[begin:end] for tensor in self._outputs)

    def download(self, copy: int, num_rows: int) -> None:
        for host, device in zip(self._host_outputs[copy], self._outputs, strict=True):
            host[:num_rows].copy_(device[:num_rows], non_blocking=True)

    def host(self, copy: int, num_rows: int) -> Logprobs:
        logprobs, ranks, top_ids, top_logprobs = (t.numpy()[:num_rows] for t in self._host_outputs[copy])
        return logprobs, ranks, top_ids, top_logprobs
