"""A batch's edits as they are packed for a device, read back."""

from __future__ import annotations

import numpy as np
from quire import _core

NEUTRAL_ROW = {
    "num_logprobs": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "allowed_rows": -1,
}


def packed(batch: _core.Batch) -> dict[str, np.ndarray]:
    """The arrays of its edits, read back from the buffers that they were packed into, which were poisoned."""
    assert batch.has_edits
    layout = _core.BatchLayout.for_table_rows(batch)
    buffer = np.full(layout.num_bytes + 64, 0xCC, dtype=np.uint8)
    batch.pack(layout, buffer.ctypes.data)
    assert (buffer[layout.num_bytes :] == 0xCC).all()
    arrays = {}
    for name, array in layout.arrays.items():
        assert array.offset % 16 == 0
        given = getattr(batch, name)
        arrays[name] = buffer[array.offset : array.offset + given.nbytes].view(given.dtype)
        assert arrays[name].tolist() == given.tolist()
    per_sample = packed_samples(batch, batch.num_sampled)
    for name in (*NEUTRAL_ROW, "bias_offsets", "bias_ids", "biases"):
        if name != "num_logprobs":
            assert per_sample[name].tolist() == getattr(batch, name).tolist()
    return arrays | per_sample


def packed_samples(batch: _core.Batch, num_sampled: int) -> dict[str, np.ndarray]:
    """What its samples ask for, padded to so many: as a graph that takes that many reads it."""
    layout = _core.BatchLayout.for_edits(max(num_sampled, 8))
    buffer = np.full(layout.num_bytes, 0xCC, dtype=np.uint8)
    batch.pack(layout, buffer.ctypes.data, num_sampled=num_sampled)
    num_biases = len(batch.biases)
    arrays = {}
    for name, array in layout.arrays.items():
        count = num_biases if name in ("bias_ids", "biases") else array.length(0, 0, num_sampled)
        begin, end = array.offset, array.offset + 4 * count
        arrays[name] = buffer[begin:end].view(array.dtype)
        assert count <= array.count
        assert begin % 256 == 0
        assert (buffer[end : begin + 4 * array.count] == 0xCC).all()
    n = batch.num_sampled
    for name, value in NEUTRAL_ROW.items():
        assert arrays[name][n:].tolist() == [value] * (num_sampled - n)
    assert arrays["bias_offsets"][n:].tolist() == [num_biases] * (num_sampled + 1 - n)
    return arrays
