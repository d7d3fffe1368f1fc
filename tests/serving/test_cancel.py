"""A client that goes away frees its blocks: by gRPC cancellation, streaming or not, and by HTTP disconnect
of a stream, through the ensemble and direct."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import pytest
from client import GrpcStream, generate, generate_stream, metrics, text_inputs, wait_until
from quire.triton.server import TritonServer

LONG = {"max_tokens": 1900, "min_tokens": 1900, "ignore_eos": True, "temperature": 0}


class Watch:
    """Counts what the engine generates from here on."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self.before = metrics(server.metrics_url)["vllm:generation_tokens_total"]

    def running(self) -> bool:
        return metrics(self.server.metrics_url)["vllm:num_requests_running"] > 0

    def wait_until_gone(self) -> float:
        """Tokens made until the sequence is gone and its blocks are free."""
        wait_until(lambda: not self.running(), what="the request leaves the engine")
        values = metrics(self.server.metrics_url)
        assert values["quire:kv_blocks_total"] == values["quire:kv_blocks_free"]
        return values["vllm:generation_tokens_total"] - self.before

    def assert_ended_early(self) -> None:
        """The engine made a part of the request's tokens, and makes no more."""
        made = self.wait_until_gone()
        assert 0 < made < LONG["max_tokens"]
        time.sleep(0.2)
        assert made == self.wait_until_gone()


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize("model", ["ensemble", "generation"])
def test_grpc_cancellation_frees_the_blocks(server: TritonServer, model: str, stream: bool) -> None:
    """Cancelling the gRPC stream ends the sequence in the engine."""
    watch = Watch(server)
    prompt = {"text_input": "import os"} if model == "ensemble" else {"input_ids": [*range(5, 20)]}
    fields = LONG | {"stream": stream}
    with GrpcStream(server.grpc_url, text_inputs(**prompt), model, fields) as requests:
        if stream:
            next(iter(requests))
        else:
            wait_until(watch.running, what="the request runs")
    watch.assert_ended_early()


@pytest.mark.parametrize("model", ["ensemble", "generation"])
def test_http_disconnect_frees_the_blocks(server: TritonServer, model: str) -> None:
    """Closing the HTTP connection of generate_stream ends the sequence in the engine."""
    watch = Watch(server)
    events = generate_stream(server.http_url, http_body(model, LONG | {"stream": True}), model)
    next(events)
    events.close()
    watch.assert_ended_early()


@pytest.mark.parametrize("model", ["ensemble", "generation"])
def test_http_disconnect_without_a_stream_is_seen_at_the_end(server: TritonServer, model: str) -> None:
    """Triton reads no connection between the request and its first response, so nobody can learn that the
    client of `generate` left; the sequence ends at its max_tokens and its blocks are free then."""
    watch = Watch(server)
    host, port = server.http_url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    fields = LONG | {"max_tokens": 300, "min_tokens": 300}
    connection.request("POST", f"/v2/models/{model}/generate", json.dumps(http_body(model, fields)))
    wait_until(watch.running, what="the request runs")
    connection.close()
    assert 300 == watch.wait_until_gone()


def http_body(model: str, fields: dict[str, Any]) -> dict[str, Any]:
    prompt = {"text_input": "import os"} if model == "ensemble" else {"input_ids": list(range(5, 20))}
    return prompt | fields


def test_the_others_of_the_batch_do_not_notice(server: TritonServer) -> None:
    """A batch mate of a cancelled request answers as it does alone."""
    body = {"text_input": "def main():", "temperature": 0, "max_tokens": 60, "exclude_input_in_output": True}
    alone = generate(server.http_url, body)["text_output"]
    events = generate_stream(server.http_url, {"text_input": "import os", "stream": True, **LONG})
    next(events)
    mate = generate_stream(
        server.http_url, {k: v for k, v in body.items() if k != "exclude_input_in_output"} | {"stream": True}
    )
    text = next(mate)["text_output"]
    events.close()
    assert alone == text + "".join(event["text_output"] for event in mate)
