"""Engine settings that cut the same work into steps and blocks in many ways."""

from __future__ import annotations

from typing import Any

MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 8},
    "unchunked": {"enable_chunked_prefill": False},
    "no-prefix-caching": {"enable_prefix_caching": False},
    "large-blocks": {"block_size": 64},
    "odd-blocks": {"block_size": 3},
}
