"""A batch's edits as they are packed for a device, read back."""

from __future__ import annotations

import numpy as np
from quire import _core


def edits_of(batch: _core.Batch) -> _core.BatchEdits:
    assert batch.edits is not None
    return batch.edits


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
    edits = edits_of(batch)
    buffer = np.full(edits.num_table_row_bytes + 64, 0xCC, dtype=np.uint8)
    offsets = edits.pack_table_rows(buffer.ctypes.data)
    assert (buffer[edits.num_table_row_bytes :] == 0xCC).all()
    arrays = {}
    for name, offset in offsets.items():
        assert offset % 16 == 0
        given = getattr(edits, name)
        num_bytes = given.nbytes if edits.num_table_row_bytes else 0
        arrays[name] = buffer[offset : offset + num_bytes].view(given.dtype)
        assert arrays[name].tolist() == (given.tolist() if num_bytes else [])
    per_sample = packed_samples(batch, batch.num_sampled)
    for name in (*NEUTRAL_ROW, "bias_offsets", "bias_ids", "biases"):
        if name != "num_logprobs":
            assert per_sample[name].tolist() == getattr(edits, name).tolist()
    return arrays | per_sample


def packed_samples(batch: _core.Batch, num_sampled: int) -> dict[str, np.ndarray]:
    """What its samples ask for, padded to so many: as a graph that takes that many reads it."""
    layout = _core.EditsLayout(max(num_sampled, 8))
    buffer = np.full(layout.num_bytes, 0xCC, dtype=np.uint8)
    num_biases = batch.pack_edits(layout, buffer.ctypes.data, num_sampled)
    counts = {"bias_offsets": num_sampled + 1, "bias_ids": num_biases, "biases": num_biases}
    arrays = {}
    for name, (offset, capacity, dtype) in layout.arrays.items():
        count = counts.get(name, num_sampled)
        arrays[name] = buffer[offset : offset + 4 * count].view(dtype)
        assert count <= capacity
        assert offset % 256 == 0
        assert (buffer[offset + 4 * count : offset + 4 * capacity] == 0xCC).all()
    n = batch.num_sampled
    for name, value in NEUTRAL_ROW.items():
        assert arrays[name][n:].tolist() == [value] * (num_sampled - n)
    assert arrays["bias_offsets"][n:].tolist() == [num_biases] * (num_sampled + 1 - n)
    return arrays
