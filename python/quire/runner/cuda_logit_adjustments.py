"""What the sampler reads on a GPU beside the step's arrays: its tables, and a batch's penalties, biases and
the like.

All of it lies at fixed addresses, as graphs want it; lengths are among the arrays. A batch with penalties or
the like brings them in one copy, in two where it has biases. The tables are written before the step, outside
of its graph: what is written is as long as prompts and vocabularies, and comes when a request samples first
or its mask changes, not in every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core
from quire.runner.logit_adjustments import SamplerTables
from quire.runner.step_buffers import PackedColumns, pinned


class CudaLogitAdjustments:
    """The sampler's tables, and a batch's penalties and the like on their way to it.

    All of it is taken at the start, and is in the ledger: where the KV cache has what was left, the first
    request with a penalty would find no memory, and end the engine.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device, num_copies: int) -> None:
        self._tables = SamplerTables(max_num_seqs, vocab_size, device)
        self._columns = PackedColumns(_core.BatchLayout.for_adjustments(max_num_seqs), device, num_copies)
        self._updates_host = [pinned(0, device) for _ in range(num_copies)]
        self._updates = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def token_masks(self) -> Tensor:
        """``[max_num_seqs + 1, num_mask_words]`` int32."""
        return self._tables.token_masks

    def arguments(self, num_sampled: int) -> dict[str, Tensor]:
        """What `ops.sample` takes of a batch that has so many samples, and num_logprobs: at addresses that
        are always the same."""
        arguments = {
            name: self._columns.fields[name][: array.length(0, 0, num_sampled)]
            for name, array in self._columns.layout.arrays.items()
        }
        return arguments | {"token_counts": self._tables.token_counts}

    def upload(self, copy: int, batch: _core.Batch, num_sampled: int) -> None:
        """Bring what the batch asks for, as if it had `num_sampled` samples, on the current stream. What the
        same copy held before must have been computed."""
        columns, num_bias_bytes = self._columns, batch.bias_ids.nbytes
        batch.pack(columns.layout, columns.host[copy].data_ptr(), num_sampled=num_sampled)
        columns.copy_to_device(copy, 0, columns.layout.arrays["bias_ids"].offset + num_bias_bytes)
        if num_bias_bytes:
            begin = columns.layout.arrays["biases"].offset
            columns.copy_to_device(copy, begin, begin + num_bias_bytes)

    def write_tables(self, copy: int, batch: _core.Batch) -> None:
        """Write what the batch brings for the tables, on the current stream."""
        layout = _core.BatchLayout.for_tables(batch)
        num_bytes = layout.num_bytes
        if not num_bytes:
            return
        if self._updates_host[copy].numel() < num_bytes:
            self._updates_host[copy] = pinned(2 * num_bytes, self._updates.device)
        if self._updates.numel() < num_bytes:
            # Taken and given back on the stream that computes, so nothing that it still does is disturbed.
            self._updates = torch.empty(2 * num_bytes, dtype=torch.uint8, device=self._updates.device)
        host = self._updates_host[copy]
        batch.pack(layout, host.data_ptr())
        self._updates[:num_bytes].copy_(host[:num_bytes], non_blocking=True)
        words = self._updates.view(torch.int32)
        self._tables.update(
            {
                name: words[array.offset // 4 : array.offset // 4 + array.count]
                for name, array in layout.arrays.items()
            }
        )
