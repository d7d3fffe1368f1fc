"""A batch's adjustments as they are packed for a device, read back."""

from __future__ import annotations

import numpy as np
from quire import _core

NEUTRAL_ROW = {
    "num_logprobs": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


def packed_samples(batch: _core.Batch, num_sampled: int) -> dict[str, np.ndarray]:
    """What its samples ask for, padded to so many: as a graph that takes that many reads it."""
    layout = _core.BatchLayout.for_adjustments(max(num_sampled, 8))
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
