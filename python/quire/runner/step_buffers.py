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


class PackedColumns:
    """A layout's columns on the device, at fixed addresses, as padding at first; and pinned memory for
    each batch in flight."""

    def __init__(self, layout: _core.BatchLayout, device: torch.device, num_copies: int) -> None:
        self.layout = layout
        self.host = [pinned(layout.num_bytes, device) for _ in range(num_copies)]
        self.device = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device)
        self.fields: dict[str, Tensor] = {}
        for name, array in layout.arrays.items():
            dtype = _DTYPES[array.dtype]
            part = self.device[array.offset : array.offset + array.count * dtype.itemsize]
            self.fields[name] = part.view(dtype)
        self.fill_with_padding()

    def fill_with_padding(self) -> None:
        for name, array in self.layout.arrays.items():
            self.fields[name].fill_(array.padding)

    def copy_to_device(self, copy: int, begin: int, end: int) -> None:
        """Bytes [begin, end) of a pinned copy, on the current stream."""
        self.device[begin:end].copy_(self.host[copy][begin:end], non_blocking=True)


def pinned(num_bytes: int, device: torch.device) -> Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


class StepBuffers:
    """What every step brings to the device."""

    def __init__(self, core_config: _core.EngineConfig, device: torch.device, num_copies: int) -> None:
        self._columns = PackedColumns(_core.BatchLayout(core_config), device, num_copies)
        self._arrays: dict[StepShape, StepArrays] = {}

    def upload(self, copy: int, batch: _core.Batch, shape: StepShape) -> None:
        """Pad the batch to `shape` and copy it to the device, on the current stream. What was uploaded from
        the same pinned copy before must have been computed."""
        columns = self._columns
        address = columns.host[copy].data_ptr()
        used = batch.pack(columns.layout, address, shape.num_tokens, shape.num_seqs, shape.num_sampled)
        columns.copy_to_device(copy, 0, used)

    def fill_with_padding(self) -> None:
        """A step without requests, of any shape."""
        self._columns.fill_with_padding()

    def arrays(self, shape: StepShape) -> StepArrays:
        """The device's arrays, cut to `shape`."""
        arrays = self._arrays.get(shape)
        if arrays is None:
            sizes = (shape.num_tokens, shape.num_seqs, shape.num_sampled)
            arrays = StepArrays(
                **{
                    name: self._columns.fields[name][: array.length(*sizes)]
                    for name, array in self._columns.layout.arrays.items()
                }
            )
            if shape.is_decode:  # such steps come again
                self._arrays[shape] = arrays
        return arrays
