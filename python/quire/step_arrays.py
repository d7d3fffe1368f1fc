"""A step as the CUDA kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepArrays:
    """One step's arrays on the device (those of `_core.Batch`), padded to the sizes of a captured graph.

    Padding tokens have slot -1, padding requests no query tokens, padding samples the spare row of
    `last_token_ids`.
    """

    header: Tensor  # [4] int32: num_reqs, num_tokens, num_sampled, num_block_table_updates; not padded
    token_ids: Tensor  # [num_tokens] int32; ~row: the last id sampled for that row
    positions: Tensor  # [num_tokens] int32
    slot_mapping: Tensor  # [num_tokens] int64
    block_copies: Tensor  # [2 * capacity] int32: pairs of source and destination
    query_start_loc: Tensor  # [num_reqs + 1] int32
    seq_lens: Tensor  # [num_reqs] int32
    block_table_rows: Tensor  # [num_reqs] int32
    sample_token_idx: Tensor  # [num_sampled] int32
    sample_rows: Tensor  # [num_sampled] int32
    temperature: Tensor  # [num_sampled] float32
    top_p: Tensor  # [num_sampled] float32
    top_k: Tensor  # [num_sampled] int32
    seed: Tensor  # [num_sampled] uint64, as int64
    output_idx: Tensor  # [num_sampled] int32
    mask_offsets: Tensor  # [num_sampled + 1] int32
    mask_ids: Tensor  # [capacity] int32
    block_table_updates: Tensor  # [2 * capacity] int32: pairs of flat index, block id

    @property
    def num_tokens(self) -> int:
        return self.token_ids.size(0)

    @property
    def num_sampled(self) -> int:
        return self.sample_rows.size(0)
