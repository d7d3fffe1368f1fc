"""A batch's adjustments on their way to a device, here the CPU: the ids are those of the batch's columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from quire import _core, ops
from quire.runner.cuda_logit_adjustments import CudaLogitAdjustments
from quire.runner.logit_adjustments import SamplerTables
from quire.runner.model_runner import _allow_read_only_views
from quire.runner.step_buffers import StepBuffers
from quire.runner.step_shapes import StepShape

VOCAB_SIZE = 256


def logprobs_of(num_rows: int) -> tuple[np.ndarray, ...]:
    """Such as nobody looks at."""
    few, many = (num_rows,), (num_rows, 20)
    return (
        np.zeros(few, np.float32),
        np.ones(few, np.int32),
        np.zeros(many, np.int32),
        np.zeros(many, np.float32),
    )


def test_the_same_ids_as_on_the_cpu() -> None:
    """Every kind of adjustment and none, requests that come and go, table rows that need more room than any
    before: from the same addresses, padded."""
    config = _core.EngineConfig(
        vocab_size=VOCAB_SIZE, block_size=4, num_blocks=64, max_model_len=64, max_num_seqs=6
    )
    table = _core.TokenTable(_core.DecoderKind.BYTE_LEVEL, [bytes([b]) for b in range(256)], [0] * 256)
    core = _core.EngineCore(config, table)
    buffers = StepBuffers(config, torch.device("cpu"), num_copies=2)
    adjustments = CudaLogitAdjustments(6, VOCAB_SIZE, torch.device("cpu"), 2)
    _allow_read_only_views()
    twin = SamplerTables(6, VOCAB_SIZE, torch.device("cpu"))
    params: list[dict[str, Any]] = [
        {"presence_penalty": 0.5, "frequency_penalty": 0.4},
        {},
        {"allowed_token_ids": list(range(50, 90)), "min_tokens": 3, "stop_token_ids": [60]},
        {"logit_bias": [(7, 4.0), (9, -100.0)], "min_p": 0.1, "logprobs": 3},
        {"repetition_penalty": 1.5, "bad_word_ids": [[3], [5, 6]], "allowed_token_ids": [2, 3, 4, 5, 6]},
    ]
    for request_id in range(15):
        values = params[request_id % 5] | {"max_tokens": 5 + request_id, "ignore_eos": True, "seed": 1}
        prompt = [(7 * request_id + i) % 256 for i in range(1 + 3 * request_id)]
        core.add_request(request_id, prompt, _core.SamplingParams(**values))
    core.add_request(15, [1], _core.SamplingParams(max_tokens=60, ignore_eos=True))
    rng = np.random.default_rng(3)
    addresses = {name: tensor.data_ptr() for name, tensor in adjustments.arguments(6).items()}
    num_steps = num_adjusted = num_masked = 0
    while core.has_unfinished_requests():
        batch = core.schedule()
        n = batch.num_sampled
        ids = torch.zeros(6, dtype=torch.int32)
        if n:
            shape = StepShape(batch.num_tokens, batch.num_seqs, 6, False)
            buffers.upload(num_steps % 2, batch, shape)
            logits = torch.from_numpy(rng.normal(size=(6, VOCAB_SIZE)).astype(np.float32))

            def columns(names: Iterable[str], batch: _core.Batch = batch) -> dict[str, torch.Tensor]:
                return {name: torch.from_numpy(getattr(batch, name)) for name in names}

            twin.update(columns(_core.BatchLayout.for_tables(batch).arrays))
            sampled = ("temperature", "top_k", "top_p", "seed", "output_idx", "mask_rows")
            given = columns(sampled)
            if batch.has_adjustments:
                names = set(_core.BatchLayout.for_adjustments(6).arrays) - {"num_logprobs"}
                given |= columns([*names, "sample_rows"]) | {"token_counts": twin.token_counts}
            ids = ops.sample(logits[:n], **given, token_masks=twin.token_masks)
            out = torch.full((6,), -7, dtype=torch.int32)
            last = torch.zeros(7, dtype=torch.int32)
            step = buffers.arrays(shape)
            padded = {name: getattr(step, name) for name in (*sampled, "sample_rows")}
            adjustments.upload(num_steps % 2, batch, 6)
            adjustments.write_tables(num_steps % 2, batch)
            padded |= adjustments.arguments(6) | {
                "last_token_ids": last,
                "token_masks": adjustments.token_masks,
            }
            num_logprobs = padded.pop("num_logprobs")
            ops.sample(logits, **padded, out=out)
            assert last[batch.sample_rows].tolist() == ids.tolist()
            assert out[:n].tolist() == ids.tolist()
            assert out[n:].tolist() == logits[n:].argmax(-1).tolist(), "padding is greedy"
            expected = batch.num_logprobs.tolist() if batch.has_logprobs else [0] * n
            assert num_logprobs.tolist() == [*expected, *[0] * (6 - n)]
            assert addresses == {name: tensor.data_ptr() for name, tensor in adjustments.arguments(6).items()}
            num_steps += 1
            num_adjusted += batch.has_adjustments
            num_masked += len(batch.mask_updates) > 0
        core.update(ids[:n].numpy(), logprobs_of(n) if batch.has_logprobs else None)
    assert num_steps > num_adjusted > 10
    assert num_masked > 6
