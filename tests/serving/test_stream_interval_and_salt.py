"""stream_interval and cache_salt through the whole server."""

from __future__ import annotations

import uuid

import pytest
from client import generate, generate_stream, metrics
from quire.triton.server import TritonServer

PROMPT = "def fibonacci(n):"
BODY = {"text_input": PROMPT, "max_tokens": 33, "temperature": 0, "exclude_input_in_output": True}


@pytest.mark.parametrize("interval", [4, 10, 1000])
def test_a_stream_comes_in_runs_of_as_many_tokens(server: TritonServer, interval: int) -> None:
    """At least so many, but for the first and the last; the text is the same."""
    whole = generate(server.http_url, BODY)["text_output"]
    body = {**BODY, "stream": True, "stream_interval": interval, "return_num_output_tokens": True}
    events = list(generate_stream(server.http_url, body))
    counts = [event["num_output_tokens"] for event in events]
    assert whole == "".join(event["text_output"] for event in events)
    assert sum(counts) == 33
    assert all(count >= interval for count in counts[1:-1]), counts
    assert len(counts) <= 2 + 32 // interval


def test_a_salt_shares_prefixes_with_itself_only(server: TritonServer) -> None:
    """What the metrics say of tokens found in the cache."""

    def num_found(salt: str) -> float:
        before = metrics(server.metrics_url)["vllm:prefix_cache_hits_total"]
        body = {"text_input": "x = 1\n" * 40, "max_tokens": 1, "cache_salt": salt}
        assert generate(server.http_url, body)
        return metrics(server.metrics_url)["vllm:prefix_cache_hits_total"] - before

    one, other = uuid.uuid4().hex, uuid.uuid4().hex
    assert num_found(one) == 0
    assert num_found(other) == 0
    assert num_found(one) > 64
