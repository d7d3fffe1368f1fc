"""A batch on its way to the GPU: packed into pinned memory by the core, copied in one piece."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core
from quire.runner.step_shapes import StepShape
from quire.step_arrays import StepArrays

_DTYPES = {
    "int32": torch.int32,
    "int64": torch.int64,
    "uint64": torch.int64,  # torch has few operations on uint64; the kernels read the bits
    "float32": torch.float32,
}


class StepBuffers:
    """The device's copy of a batch, at fixed addresses, and pinned memory for each batch that may be out."""

    def __init__(self, core_config: _core.EngineConfig, device: torch.device, num_copies: int) -> None:
        self._layout = _core.BatchLayout(core_config)
        num_bytes = self._layout.num_bytes
        self._dump_row = core_config.max_num_seqs
        is_pinned = device.type == "cuda"
        self._host = [
            torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=is_pinned) for _ in range(num_copies)
        ]
        self._device = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._fields = {name: self._view(*field) for name, field in self._layout.arrays.items()}
        self._arrays: dict[StepShape, StepArrays] = {}

    def upload(self, copy: int, batch: _core.Batch, shape: StepShape) -> None:
        """Pad the batch to `shape` and copy it to the device, on the current stream. What was uploaded from
        the same pinned copy before must have been computed."""
        host = self._host[copy]
        used = batch.pack(self._layout, host.data_ptr(), shape.num_tokens, shape.num_reqs, shape.num_sampled)
        self._device[:used].copy_(host[:used], non_blocking=True)

    def fill_with_padding(self, shape: StepShape) -> None:
        """A step of `shape` without requests."""
        self._device.zero_()
        self._fields["slot_mapping"].fill_(-1)
        self._fields["sample_rows"].fill_(self._dump_row)

    def arrays(self, shape: StepShape) -> StepArrays:
        """The device's arrays, cut to `shape`."""
        arrays = self._arrays.get(shape)
        if arrays is None:
            lengths = {
                "token_ids": shape.num_tokens,
                "positions": shape.num_tokens,
                "slot_mapping": shape.num_tokens,
                "query_start_loc": shape.num_reqs + 1,
                "seq_lens": shape.num_reqs,
                "block_table_rows": shape.num_reqs,
                "mask_offsets": shape.num_sampled + 1,
            }
            samples = (
                "sample_token_idx",
                "sample_rows",
                "temperature",
                "top_p",
                "top_k",
                "seed",
                "output_idx",
            )
            lengths |= dict.fromkeys(samples, shape.num_sampled)
            arrays = StepArrays(
                **{name: field[: lengths.get(name, field.size(0))] for name, field in self._fields.items()}
            )
            if shape.is_decode:  # such steps come again
                self._arrays[shape] = arrays
        return arrays

    def _view(self, offset: int, count: int, dtype: str) -> Tensor:
        kind = _DTYPES[dtype]
        return self._device[offset : offset + count * kind.itemsize].view(kind)
