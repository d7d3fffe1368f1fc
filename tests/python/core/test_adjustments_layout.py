"""What samples ask for, packed to fixed places for graphs that take a number of samples."""

from __future__ import annotations

import pytest
from adjustments_buffers import NEUTRAL_ROW, packed_samples
from core_helpers import make_core
from quire import _core


def test_samples_padded_to_a_graph() -> None:
    """Padding asks for nothing; a batch without adjustments, or without logprobs, has neutral ones."""
    core = make_core()
    core.add_request(1, [1, 2], _core.SamplingParams(logprobs=3))
    core.add_request(2, [3], _core.SamplingParams())
    batch = core.schedule()
    assert not batch.has_adjustments
    arrays = packed_samples(batch, 7)
    assert arrays["num_logprobs"].tolist() == [3, 0, 0, 0, 0, 0, 0]
    for name, value in NEUTRAL_ROW.items():
        assert name == "num_logprobs" or (arrays[name] == value).all()
    core = make_core()
    core.add_request(3, [1], _core.SamplingParams(min_p=0.5, logit_bias=[(9, 1.5), (4, -2.0)]))
    batch = core.schedule()
    arrays = packed_samples(batch, 3)
    assert not batch.has_logprobs
    assert arrays["num_logprobs"].tolist() == [0, 0, 0]
    assert arrays["min_p"].tolist() == [0.5, 0, 0]
    assert arrays["bias_offsets"].tolist() == [0, 2, 2, 2]
    for num_sampled in (0, 65):
        with pytest.raises(_core.InvalidArgument, match=r"num_sampled: got \d+; allowed: 1 .* to 64"):
            batch.pack(_core.BatchLayout.for_adjustments(8), 0, num_sampled=num_sampled)


def test_as_many_biases_as_there_may_be() -> None:
    """Every row of the largest batch has room for the most that a request can ask for."""
    core = make_core(vocab_size=4096, max_num_seqs=3)
    for request_id in range(3):
        params = _core.SamplingParams(logit_bias=[(i, 1.0) for i in range(1024)])
        core.add_request(request_id, [1, 2], params)
    batch = core.schedule()
    assert len(batch.biases) == 3 * 1024
    arrays = packed_samples(batch, 3)
    assert arrays["biases"].tolist() == batch.biases.tolist()
    assert _core.BatchLayout.for_adjustments(3).arrays["biases"].count == 3 * 1024
