"""The tables that the CPU's sampler keeps for penalties and allowed ids: `_core.BatchEdits` says what they
are and when their rows are written."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core, ops
from quire.sample_ops import num_mask_words


class LogitEdits:
    """Made for the first request that needs it. The tables need no initial value: pages of rows that no such
    request had are never touched."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        num_rows = max_num_seqs + 1
        self._token_counts = torch.empty((num_rows, vocab_size), dtype=torch.uint16)
        self._allowed_masks = torch.empty((num_rows, num_mask_words(vocab_size)), dtype=torch.int32)

    def arguments(self, batch: _core.Batch, edits: _core.BatchEdits) -> dict[str, Tensor]:
        """What `ops.sample` needs for the batch's edits. Writes the rows that the batch asks for."""
        view = torch.from_numpy
        if len(edits.counted_rows):
            ops.token_counts(
                self._token_counts,
                rows=view(edits.counted_rows),
                token_offsets=view(edits.counted_offsets),
                prompt_lens=view(edits.counted_prompt_lens),
                token_ids=view(edits.counted_token_ids),
            )
        if len(edits.masked_rows):
            masks = view(edits.masks.view("int32")).view(-1, self._allowed_masks.size(1))
            self._allowed_masks[view(edits.masked_rows).long()] = masks
        return {
            "min_p": view(edits.min_p),
            "repetition_penalty": view(edits.repetition_penalty),
            "presence_penalty": view(edits.presence_penalty),
            "frequency_penalty": view(edits.frequency_penalty),
            "token_counts": self._token_counts,
            "sample_rows": view(batch.sample_rows),
            "allowed_rows": view(edits.allowed_rows),
            "allowed_masks": self._allowed_masks,
            "bias_offsets": view(edits.bias_offsets),
            "bias_ids": view(edits.bias_ids),
            "biases": view(edits.biases),
        }
