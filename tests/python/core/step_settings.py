"""Engine settings that cut the same work into steps in every way."""

from __future__ import annotations

SETTINGS: dict[str, dict[str, object]] = {
    "plain": {"enable_prefix_caching": False},
    "prefix caching": {},
    "whole prompts": {"enable_chunked_prefill": False, "max_num_batched_tokens": 128},
    "small chunks": {"max_num_batched_tokens": 5},
    "one token a step": {"max_num_batched_tokens": 1},
    "one at a time": {"max_num_seqs": 1},
    "preemption": {"num_blocks": 32},
    "preemption without caching": {"num_blocks": 32, "enable_prefix_caching": False},
    "preemption in small chunks": {"num_blocks": 32, "max_num_batched_tokens": 9, "watermark": 0.1},
    "preemption of whole prompts": {
        "num_blocks": 32,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 128,
    },
    "odd block size": {"block_size": 7, "num_blocks": 19},
    "window": {"window": 9},
    "window, small chunks, few blocks": {"window": 9, "num_blocks": 33, "max_num_batched_tokens": 7},
    "window of one": {"window": 1, "block_size": 3, "num_blocks": 44},
    "block of one": {"block_size": 1, "num_blocks": 128},
}
