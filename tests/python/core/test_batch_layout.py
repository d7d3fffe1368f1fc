"""BatchLayout and pack(): every array at its place, padded, and sizes that do not fit refused."""

from __future__ import annotations

import numpy as np
import pytest
from core_helpers import make_core
from quire import _core


def test_arrays_lie_apart_and_aligned() -> None:
    """Offsets are multiples of 256, arrays follow one another, and the variable ones are the last."""
    config = make_core(max_num_seqs=100, max_num_batched_tokens=1000).config
    layout = _core.BatchLayout(config)
    end = 0
    for array in layout.arrays.values():
        assert array.offset % 256 == 0
        assert array.offset >= end
        end = array.offset + array.count * np.dtype(array.dtype).itemsize
    assert end <= layout.num_bytes < end + 256
    counts = {name: array.count for name, array in layout.arrays.items()}
    assert list(counts)[-2:] == ["block_copies", "block_table_updates"]
    assert counts["seq_lens"] == counts["sample_rows"] == 128
    assert counts["query_start_loc"] == 129
    assert counts["slot_mapping"] == 1024
    assert counts["block_table_updates"] == 2 * 100 * 32


def test_layout_of_bad_settings() -> None:
    """A setting out of range is an InvalidArgument that names it."""
    with pytest.raises(_core.InvalidArgument, match="block_size: got 0"):
        _core.BatchLayout(_core.EngineConfig(num_blocks=1, max_model_len=8, vocab_size=8, block_size=0))


def test_sizes_that_do_not_fit_are_refused() -> None:
    """Padded sizes may be no smaller than the batch's and no larger than the layout's; nothing is written."""
    core = make_core(max_num_batched_tokens=64, max_num_seqs=8)
    for request_id in range(3):
        core.add_request(request_id, [1, 2], _core.SamplingParams())
    batch = core.schedule()
    layout = _core.BatchLayout(core.config)
    buffer = np.full(layout.num_bytes, 7, dtype=np.uint8)
    for sizes, field in (
        ((5, 3, 3), "num_tokens"),
        ((65, 3, 3), "num_tokens"),
        ((6, 2, 3), "num_seqs"),
        ((6, 65, 3), "num_seqs"),
        ((6, 3, 2), "num_sampled"),
        ((6, 3, 65), "num_sampled"),
    ):
        with pytest.raises(_core.InvalidArgument, match=f"{field}: got") as error:
            batch.pack(layout, buffer.ctypes.data, *sizes)
        assert error.value.field == field
    assert (buffer == 7).all()
    assert batch.pack(layout, buffer.ctypes.data, 64, 64, 64) <= layout.num_bytes


def test_every_value_arrives() -> None:
    """What a batch says is what the buffer holds, types included; the largest tables fit."""
    core = make_core(
        max_num_seqs=4,
        max_num_batched_tokens=512,
        num_blocks=128,
    )
    for request_id in range(4):
        params = _core.SamplingParams(
            temperature=0.25 * request_id,
            top_p=0.5 + 0.1 * request_id,
            top_k=request_id,
            seed=-1 - request_id,
            min_tokens=request_id % 2,
            stop_token_ids=[7],
        )
        core.add_request(request_id, [request_id] * 127, params)
    batch = core.schedule()
    assert len(batch.block_table_updates) == 4 * 32
    assert batch.mask_rows.tolist() == [-1, batch.sample_rows[1], -1, batch.sample_rows[3]]
    layout = _core.BatchLayout(core.config)
    buffer = np.zeros(layout.num_bytes, dtype=np.uint8)
    used = batch.pack(layout, buffer.ctypes.data, batch.num_tokens, batch.num_seqs, batch.num_sampled)
    assert used == layout.arrays["block_table_updates"].offset + 8 * 4 * 32
    assert batch.header.tolist() == [4, 4 * 127, 4, 4 * 32]
    for name, array in layout.arrays.items():
        expected = getattr(batch, name).reshape(-1)
        assert expected.dtype == array.dtype
        assert np.frombuffer(buffer, array.dtype, len(expected), array.offset).tolist() == expected.tolist()


def test_a_decode_s_prefix_has_no_table() -> None:
    """Without one a step copies the fixed part alone."""
    core = make_core(max_num_seqs=256, max_num_batched_tokens=2048)
    core.add_request(1, [1], _core.SamplingParams())
    core.schedule()
    core.update(np.array([1], dtype=np.int32))
    batch = core.schedule()
    layout = _core.BatchLayout(core.config)
    buffer = np.zeros(layout.num_bytes, dtype=np.uint8)
    used = batch.pack(layout, buffer.ctypes.data, 8, 8, 8)
    assert used == layout.arrays["slot_mapping"].offset + 8 * 8
