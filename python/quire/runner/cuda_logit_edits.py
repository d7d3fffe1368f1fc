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
from quire.sample_ops import num_mask_words

_DTYPES = {"int32": torch.int32, "float32": torch.float32}


class CudaLogitEdits:
    """The tables that the sampler keeps (`_core.BatchEdits`), and a batch's edits on their way to it.

    All of it is taken at the start, and is in the ledger: where the KV cache has what was left, the first
    request with a penalty would find no memory, and end the engine. The tables need no initial value.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device, num_copies: int) -> None:
        num_rows = max_num_seqs + 1
        num_words = num_mask_words(vocab_size)
        self._token_counts = torch.empty((num_rows, vocab_size), dtype=torch.uint16, device=device)
        self._allowed_masks = torch.empty((num_rows, num_words), dtype=torch.int32, device=device)
        self._is_pinned = device.type == "cuda"
        self._layout = _core.EditsLayout(max_num_seqs)
        num_bytes = self._layout.num_bytes
        self._host = [self._pinned(num_bytes) for _ in range(num_copies)]
        self._device = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._fields = {name: self._view(*field) for name, field in self._layout.arrays.items()}
        self._fields["repetition_penalty"].fill_(1)
        self._fields["allowed_rows"].fill_(-1)
        self._rows_host = [self._pinned(0) for _ in range(num_copies)]
        self._rows = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def num_logprobs(self) -> Tensor:
        """``[max_num_seqs]`` int32, those of the batch uploaded last."""
        return self._fields["num_logprobs"]

    def sampler_arguments(self) -> dict[str, int]:
        """Addresses, of `ops.sample`: always the same."""
        tensors = {name: tensor for name, tensor in self._fields.items() if name != "num_logprobs"}
        tensors |= {"token_counts": self._token_counts, "allowed_masks": self._allowed_masks}
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    def upload(self, copy: int, batch: _core.Batch, num_sampled: int) -> None:
        """Bring what the batch asks for, as if it had `num_sampled` samples, on the current stream. What the
        same copy held before must have been computed."""
        host, fields = self._host[copy], self._layout.arrays
        num_biases = batch.pack_edits(self._layout, host.data_ptr(), num_sampled)
        used = fields["bias_ids"][0] + 4 * num_biases
        self._device[:used].copy_(host[:used], non_blocking=True)
        if num_biases:
            part = slice(fields["biases"][0], fields["biases"][0] + 4 * num_biases)
            self._device[part].copy_(host[part], non_blocking=True)
        edits = batch.edits
        if edits is not None and edits.num_table_row_bytes:
            self._write_rows(copy, edits)

    def _write_rows(self, copy: int, edits: _core.BatchEdits) -> None:
        """Writes this batch's rows of token_counts and allowed_masks."""
        num_bytes = edits.num_table_row_bytes
        if self._rows_host[copy].numel() < num_bytes:
            self._rows_host[copy] = self._pinned(2 * num_bytes)
        if self._rows.numel() < num_bytes:
            # Taken and given back on the stream that computes, so nothing that it still does is disturbed.
            self._rows = torch.empty(2 * num_bytes, dtype=torch.uint8, device=self._rows.device)
        host = self._rows_host[copy]
        offsets = edits.pack_table_rows(host.data_ptr())
        self._rows[:num_bytes].copy_(host[:num_bytes], non_blocking=True)
        address = {name: self._rows.data_ptr() + offset for name, offset in offsets.items()}
        if num_counted := len(edits.counted_rows):
            ops.token_counts(
                self._token_counts,
                num_counted,
                rows=address["counted_rows"],
                token_offsets=address["counted_offsets"],
                prompt_lens=address["counted_prompt_lens"],
                token_ids=address["counted_token_ids"],
            )
        num_mask_bytes = 4 * self._allowed_masks.size(1)
        for i, row in enumerate(edits.masked_rows.tolist()):
            begin = offsets["masks"] + i * num_mask_bytes
            self._allowed_masks[row].copy_(self._rows[begin : begin + num_mask_bytes].view(torch.int32))

    def _pinned(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=self._is_pinned)

    def _view(self, offset: int, count: int, dtype: str) -> Tensor:
        return self._device[offset : offset + 4 * count].view(_DTYPES[dtype])
