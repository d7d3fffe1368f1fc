"""The tables that a sampler keeps for penalties and allowed ids: quire/logit_edits.h says what they are and
when their rows are written."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core, ops
from quire.sample_ops import num_mask_words


def table_bytes(max_num_seqs: int, vocab_size: int) -> int:
    """What the tables take."""
    return (max_num_seqs + 1) * (2 * vocab_size + 4 * num_mask_words(vocab_size))


class LogitEdits:
    """Made for the first request that needs it. The tables need no initial value: pages of rows that no such
    request had are never touched."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        num_rows = max_num_seqs + 1
        self._token_counts = torch.empty((num_rows, vocab_size), dtype=torch.uint16)
        self._allowed_masks = torch.empty((num_rows, num_mask_words(vocab_size)), dtype=torch.int32)

    def arguments(self, batch: _core.Batch) -> dict[str, Tensor]:
        """What `ops.sample` needs for the batch's batch. Writes the rows that the batch asks for."""
        view = torch.from_numpy
        if len(batch.counted_rows):
            ops.token_counts(
                self._token_counts,
                rows=view(batch.counted_rows),
                token_offsets=view(batch.counted_offsets),
                prompt_lens=view(batch.counted_prompt_lens),
                token_ids=view(batch.counted_token_ids),
            )
        if len(batch.masked_rows):
            masks = view(batch.masks.view("int32")).view(-1, self._allowed_masks.size(1))
            self._allowed_masks[view(batch.masked_rows).long()] = masks
        return {
            "min_p": view(batch.min_p),
            "repetition_penalty": view(batch.repetition_penalty),
            "presence_penalty": view(batch.presence_penalty),
            "frequency_penalty": view(batch.frequency_penalty),
            "token_counts": self._token_counts,
            "sample_rows": view(batch.sample_rows),
            "allowed_rows": view(batch.allowed_rows),
            "allowed_masks": self._allowed_masks,
            "bias_offsets": view(batch.bias_offsets),
            "bias_ids": view(batch.bias_ids),
            "biases": view(batch.biases),
        }
