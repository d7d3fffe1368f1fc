"""Batches on their way to a device: what the kernels read is the batch, padded."""

from __future__ import annotations

import numpy as np
import torch
from quire import _core
from quire.runner.step_buffers import StepBuffers
from quire.runner.step_shapes import StepShape, StepShapes

SIZES = {"num_blocks": 32, "max_model_len": 64, "max_num_seqs": 6, "max_num_batched_tokens": 40}
SHAPES = StepShapes(6, 40)
DUMP_ROW = 6


def make() -> tuple[_core.EngineCore, StepBuffers]:
    config = _core.EngineConfig(vocab_size=256, block_size=4, max_batches_in_flight=2, **SIZES)
    table = _core.TokenTable(_core.DecoderKind.BYTE_LEVEL, [bytes([b]) for b in range(256)], [0] * 256)
    return _core.EngineCore(config, table), StepBuffers(config, torch.device("cpu"), num_copies=2)


def check(buffers: StepBuffers, batch: _core.Batch, shape: StepShape) -> None:
    """Every array begins with the batch's; the rest is padding that computes nothing."""
    arrays = buffers.arrays(shape)
    counts = [batch.num_seqs, batch.num_tokens, batch.num_sampled, len(batch.block_table_updates)]
    assert arrays.header.tolist() == counts
    padding = {
        "token_ids": 0,
        "positions": 0,
        "slot_mapping": -1,
        "seq_lens": 0,
        "block_table_rows": 0,
        "sample_token_idx": 0,
        "sample_rows": DUMP_ROW,
        "temperature": 0,
        "top_p": 1,
        "top_k": 0,
        "seed": 0,
        "output_idx": 0,
    }
    for name, pad in padding.items():
        given, actual = getattr(batch, name), getattr(arrays, name).numpy()
        actual = actual.view(given.dtype)  # seeds: uint64 on one side
        assert np.array_equal(actual[: len(given)], given), name
        assert (actual[len(given) :] == pad).all(), name
    starts = arrays.query_start_loc
    assert starts.tolist() == [
        *batch.query_start_loc,
        *[batch.num_tokens] * (shape.num_seqs - batch.num_seqs),
    ]
    updates = arrays.block_table_updates[: 2 * len(batch.block_table_updates)]
    assert np.array_equal(updates.numpy().reshape(-1, 2), batch.block_table_updates)
    sizes = (arrays.num_tokens, arrays.seq_lens.size(0), arrays.num_sampled)
    assert sizes == (shape.num_tokens, shape.num_seqs, shape.num_sampled)


def test_batches_arrive_padded() -> None:
    """Prompts in parts, decode steps and both, two batches in flight, in the shapes that are captured."""
    core, buffers = make()
    params = _core.SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    for request_id, length in enumerate((3, 30, 17, 1, 9, 40)):
        core.add_request(request_id, list(range(length)), params)
    out: list[int] = []
    kinds = set()
    copy = 0
    while core.has_unfinished_requests():
        while core.num_batches_in_flight() < 2:
            batch = core.schedule()
            if not batch.num_tokens:
                break
            shape = SHAPES.fit(batch.num_tokens, batch.num_sampled)
            buffers.upload(copy, batch, shape)
            check(buffers, batch, shape)
            kinds.add((shape.is_decode, bool((batch.token_ids < 0).any())))
            out.append(batch.num_sampled)
            copy = 1 - copy
        core.update(np.full(out.pop(0), 7, dtype=np.int32))
    assert kinds >= {(True, True), (False, False), (False, True)}


def test_a_step_without_requests() -> None:
    """What graphs are captured with: nothing is stored, nothing sampled is kept."""
    _, buffers = make()
    for shape in SHAPES.all():
        buffers.fill_with_padding()
        arrays = buffers.arrays(shape)
        assert arrays.header.tolist() == [0, 0, 0, 0]
        assert set(arrays.slot_mapping.tolist()) == {-1}
        assert set(arrays.sample_rows.tolist()) == {DUMP_ROW}
