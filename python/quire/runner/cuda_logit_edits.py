"""Penalties, biases, allowed ids and the like on a GPU: what the sampler of a full step reads beside the
step's arrays.

All of it lies at fixed addresses, as graphs want it; lengths are among the arrays. A batch with such a
request brings its own in one copy, in two where it has biases. The tables' rows are written in front of the
step, outside of its graph: they are as long as prompts and vocabularies, and a request has its rows written
when it samples first, not in every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core
from quire import ops_cuda as ops
from quire.runner.step_buffers import PackedColumns, pinned
from quire.sample_ops import num_mask_words


class CudaLogitEdits:
    """The tables that the sampler keeps (quire/logit_edits.h), and a batch's edits on their way to it.

    All of it is taken at the start, and is in the ledger: where the KV cache has what was left, the first
    request with a penalty would find no memory, and end the engine. The tables need no initial value.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device, num_copies: int) -> None:
        num_rows = max_num_seqs + 1
        num_words = num_mask_words(vocab_size)
        self._token_counts = torch.empty((num_rows, vocab_size), dtype=torch.uint16, device=device)
        self._allowed_masks = torch.empty((num_rows, num_words), dtype=torch.int32, device=device)
        self._columns = PackedColumns(_core.BatchLayout.for_edits(max_num_seqs), device, num_copies)
        self._rows_host = [pinned(0, device) for _ in range(num_copies)]
        self._rows = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def num_logprobs(self) -> Tensor:
        """``[max_num_seqs]`` int32, those of the batch uploaded last."""
        return self._columns.fields["num_logprobs"]

    def sampler_arguments(self) -> dict[str, int]:
        """Addresses, of `ops.sample`: always the same."""
        tensors = {name: tensor for name, tensor in self._columns.fields.items() if name != "num_logprobs"}
        tensors |= {"token_counts": self._token_counts, "allowed_masks": self._allowed_masks}
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    def upload(self, copy: int, batch: _core.Batch, num_sampled: int) -> None:
        """Bring what the batch asks for, as if it had `num_sampled` samples, on the current stream. What the
        same copy held before must have been computed."""
        columns, num_bias_bytes = self._columns, batch.bias_ids.nbytes
        batch.pack(columns.layout, columns.host[copy].data_ptr(), num_sampled=num_sampled)
        columns.copy_to_device(copy, 0, columns.layout.arrays["bias_ids"].offset + num_bias_bytes)
        if num_bias_bytes:
            begin = columns.layout.arrays["biases"].offset
            columns.copy_to_device(copy, begin, begin + num_bias_bytes)
        if batch.has_edits:
            self._write_rows(copy, batch)

    def _write_rows(self, copy: int, batch: _core.Batch) -> None:
        """Writes this batch's rows of token_counts and allowed_masks."""
        layout = _core.BatchLayout.for_table_rows(batch)
        num_bytes = layout.num_bytes
        if not num_bytes:
            return
        if self._rows_host[copy].numel() < num_bytes:
            self._rows_host[copy] = pinned(2 * num_bytes, self._rows.device)
        if self._rows.numel() < num_bytes:
            # Taken and given back on the stream that computes, so nothing that it still does is disturbed.
            self._rows = torch.empty(2 * num_bytes, dtype=torch.uint8, device=self._rows.device)
        host = self._rows_host[copy]
        batch.pack(layout, host.data_ptr())
        self._rows[:num_bytes].copy_(host[:num_bytes], non_blocking=True)
        offsets = {name: array.offset for name, array in layout.arrays.items()}
        address = {name: self._rows.data_ptr() + offset for name, offset in offsets.items()}
        if num_counted := len(batch.counted_rows):
            ops.token_counts(
                self._token_counts,
                num_counted,
                rows=address["counted_rows"],
                token_offsets=address["counted_offsets"],
                prompt_lens=address["counted_prompt_lens"],
                token_ids=address["counted_token_ids"],
            )
        num_mask_bytes = 4 * self._allowed_masks.size(1)
        for i, row in enumerate(batch.masked_rows.tolist()):
            begin = offsets["masks"] + i * num_mask_bytes
            self._allowed_masks[row].copy_(self._rows[begin : begin + num_mask_bytes].view(torch.int32))
