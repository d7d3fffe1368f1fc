"""The tables that samplers keep: what penalties know of each request, and which tokens it may sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quire.ops.sampling import num_mask_words, token_counts


def table_bytes(max_num_seqs: int, vocab_size: int) -> int:
    """What the tables take."""
    return (max_num_seqs + 1) * (2 * vocab_size + 4 * num_mask_words(vocab_size))


class SamplerTables:
    """token_counts and token_masks, one row per row of the block tables: quire/logit_adjustments.h and
    quire/token_mask.h say what they hold and when batches write to them. They need no initial value."""

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        num_rows = max_num_seqs + 1
        self.token_counts = torch.empty((num_rows, vocab_size), dtype=torch.uint16, device=device)
        self.token_masks = torch.empty(
            (num_rows, num_mask_words(vocab_size)), dtype=torch.int32, device=device
        )

    def update(self, columns: Mapping[str, Tensor]) -> None:
        """Write what a batch brings: its columns of `BatchLayout.for_tables`, on the device."""
        if columns["counted_rows"].numel():
            token_counts(
                self.token_counts,
                rows=columns["counted_rows"],
                token_offsets=columns["counted_offsets"],
                prompt_lens=columns["counted_prompt_lens"],
                token_ids=columns["counted_token_ids"],
            )
        if columns["mask_updates"].numel():
            places, words = columns["mask_updates"].view(-1, 2).unbind(1)
            self.token_masks.view(-1)[places.long()] = words
