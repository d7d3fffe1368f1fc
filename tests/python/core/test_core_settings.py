"""EngineConfig of the core: what it refuses."""

from __future__ import annotations

import pytest
from core_helpers import make_core
from quire import _core


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_output_tokens", {"max_output_tokens": -1}),
        ("block_size", {"block_size": 0}),
        ("num_blocks", {"num_blocks": 0}),
        ("max_num_seqs", {"max_num_seqs": 0}),
        ("max_num_batched_tokens", {"max_num_batched_tokens": 0}),
        ("max_num_batched_tokens", {"enable_chunked_prefill": False, "max_num_batched_tokens": 127}),
        ("max_model_len", {"max_model_len": 1}),
        ("vocab_size", {"vocab_size": 0}),
        ("watermark", {"watermark": 1.0}),
        ("watermark", {"watermark": float("nan")}),
        ("eos_token_ids", {"eos_token_ids": [256]}),
        ("eos_token_ids", {"eos_token_ids": list(range(17))}),
        ("max_batches_in_flight", {"max_batches_in_flight": 0}),
        ("max_num_seqs", {"max_num_seqs": 2**27, "block_size": 4}),
    ],
)
def test_bad_setting_is_refused_by_name(field: str, values: dict[str, object]) -> None:
    """A setting out of range is an InvalidArgument that names it."""
    with pytest.raises(_core.InvalidArgument) as error:
        make_core(**values)
    assert field == error.value.field
