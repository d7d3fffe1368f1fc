"""Penalties, biases and allowed ids on a GPU: a second sampling behind the step's graph.

A step with such requests runs the graph of its shape as any step does, and then the sampler once more, with
what they ask for: the ids of the first sampling are overwritten before anybody reads them. So no graph knows
of these fields, none is captured while requests wait, and a step without them is the same as ever. What the
sampling in vain costs is a small part of a step: 8 to 100 us on an H200 (docs/kernels/sampling.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core
from quire import ops_cuda as ops
from quire.step_arrays import StepArrays


def num_bytes(max_num_seqs: int, vocab_size: int) -> int:
    """What the tables take on the device."""
    return (max_num_seqs + 1) * (2 * vocab_size + 4 * ops.num_mask_words(vocab_size))


class CudaLogitEdits:
    """The tables that the sampler keeps (`_core.BatchEdits`), and a batch's edits on their way to it.

    The tables are taken at the start, and are in the ledger: where the KV cache has what was left, the first
    request with a penalty would find no memory, and end the engine. They need no initial value.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device, num_copies: int) -> None:
        num_rows = max_num_seqs + 1
        num_words = ops.num_mask_words(vocab_size)
        self._token_counts = torch.empty((num_rows, vocab_size), dtype=torch.uint16, device=device)
        self._allowed_masks = torch.empty((num_rows, num_words), dtype=torch.int32, device=device)
        self._is_pinned = device.type == "cuda"
        self._device = torch.empty(0, dtype=torch.uint8, device=device)
        self._host = [torch.empty(0, dtype=torch.uint8) for _ in range(num_copies)]

    def sample(
        self,
        copy: int,
        batch: _core.Batch,
        edits: _core.BatchEdits,
        step: StepArrays,
        logits: Tensor,
        last_token_ids: Tensor,
        out: Tensor,
    ) -> None:
        """One id per sampled request, as `ops.sample`, on the current stream. What the same copy held before
        must have been computed. logits: of the step; rows past the batch's samples are not read."""
        num_sampled = batch.num_sampled
        offsets = self._upload(copy, edits)
        address = {name: self._device.data_ptr() + offset for name, offset in offsets.items()}
        if num_counted := len(edits.counted_rows):
            ops.token_counts(
                self._token_counts,
                num_counted,
                rows=address["counted_rows"],
                token_offsets=address["counted_offsets"],
                prompt_lens=address["counted_prompt_lens"],
                token_ids=address["counted_token_ids"],
            )
        if len(edits.masked_rows):
            num_bytes = 4 * self._allowed_masks.size(1)
            for i, row in enumerate(edits.masked_rows.tolist()):
                begin = offsets["masks"] + i * num_bytes
                self._allowed_masks[row].copy_(self._device[begin : begin + num_bytes].view(torch.int32))
        ops.sample(
            logits[:num_sampled],
            step,
            last_token_ids,
            out,
            min_p=address["min_p"],
            repetition_penalty=address["repetition_penalty"],
            presence_penalty=address["presence_penalty"],
            frequency_penalty=address["frequency_penalty"],
            token_counts=self._token_counts.data_ptr(),
            allowed_rows=address["allowed_rows"],
            allowed_masks=self._allowed_masks.data_ptr(),
            bias_offsets=address["bias_offsets"],
            bias_ids=address["bias_ids"],
            biases=address["biases"],
        )

    def _upload(self, copy: int, edits: _core.BatchEdits) -> dict[str, int]:
        """Copy the edits to the device; where each array lies there."""
        num_bytes = edits.num_bytes
        if self._host[copy].numel() < num_bytes:
            self._host[copy] = torch.empty(2 * num_bytes, dtype=torch.uint8, pin_memory=self._is_pinned)
        if self._device.numel() < num_bytes:
            # Taken and given back on the stream that computes, so nothing that it still does is disturbed.
            self._device = torch.empty(2 * num_bytes, dtype=torch.uint8, device=self._device.device)
        host = self._host[copy]
        offsets = edits.pack(host.data_ptr())
        self._device[:num_bytes].copy_(host[:num_bytes], non_blocking=True)
        return offsets
