"""A client of the unary models that cancels its gRPC call, in every stage: nothing more is computed for it,
its blocks are free, and others do not notice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from client import HttpError, generate, generate_stream, metrics, wait_until
from quire.triton.server import TritonServer

LONG = {"max_tokens": 1900, "min_tokens": 1900, "ignore_eos": True, "temperature": 0.7}
NUM_PLACES = 5  # of which rows of one request leave one to others
MODELS = ("ensemble_unary", "ensemble_trtllm_unary")
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
STEPS, OUTPUT_TOKENS = "quire:engine_steps_total", "vllm:generation_tokens_total"


@pytest.fixture(scope="module")
def server(make_repository: Callable[..., Path]) -> Iterator[TritonServer]:
    """Few rows, so that requests wait, and small steps, so that a long prompt takes many."""
    settings = {"max_num_seqs": NUM_PLACES, "max_num_batched_tokens": 16, "enable_prefix_caching": False}
    with TritonServer(make_repository(**settings)) as running:
        yield running


class Watch:
    """What the engine does from here on."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self.before = metrics(server.metrics_url)

    def now(self, name: str) -> float:
        return metrics(self.server.metrics_url)[name]

    def made(self, name: str) -> float:
        return self.now(name) - self.before[name]

    def assert_idle(self) -> None:
        """Nothing runs or waits, all blocks are free, and it stays so."""
        wait_until(lambda: self.now(RUNNING) == self.now(WAITING) == 0, what="the engine is idle")
        made = [self.made(name) for name in (STEPS, OUTPUT_TOKENS)]
        time.sleep(0.2)
        values = metrics(self.server.metrics_url)
        assert values["quire:kv_blocks_total"] == values["quire:kv_blocks_free"]
        assert made == [self.made(name) for name in (STEPS, OUTPUT_TOKENS)]


class Call:
    """A request on its way; leaving the block cancels it. Then `status` says how it ended."""

    def __init__(self, server: TritonServer, model: str, texts: list[str], **fields: Any) -> None:
        self.client = grpcclient.InferenceServerClient(server.grpc_url)
        shape = [len(texts), 1] if "trtllm" in model else [len(texts)]
        text_input = grpcclient.InferInput("text_input", shape, "BYTES")
        text_input.set_data_from_numpy(np.array([t.encode() for t in texts], np.object_).reshape(shape))
        self.status = ""
        self.is_over = threading.Event()
        parameters = {"sampling_parameters": json.dumps(LONG | fields)}
        self.call = self.client.async_infer(model, [text_input], callback=self.done, parameters=parameters)

    def done(self, result: Any, error: Any) -> None:
        self.status = str(error.status()).removeprefix("StatusCode.") if error else "OK"
        self.is_over.set()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.call.cancel()
        assert self.is_over.wait(120)
        assert self.status == "CANCELLED"
        self.client.close()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("num_rows", "n"), [(1, 1), (2, 1), (2, 2)])
def test_in_decode(server: TritonServer, model: str, num_rows: int, n: int) -> None:
    """Every sequence of every row ends."""
    watch = Watch(server)
    with Call(server, model, ["import os", "def f("][:num_rows], n=n):
        wait_until(lambda: watch.now(RUNNING) == num_rows * n)
        wait_until(lambda: watch.made(OUTPUT_TOKENS) > 20)
    watch.assert_idle()
    assert watch.made(OUTPUT_TOKENS) < LONG["max_tokens"], "one sequence that went on would have made as many"


@pytest.mark.parametrize("model", MODELS)
def test_in_prefill(server: TritonServer, model: str) -> None:
    """Of prompts that take two thousand steps the rest is not computed."""
    watch = Watch(server)
    with Call(server, model, ["x = 1\n" * 300] * 20, max_tokens=10, min_tokens=10):
        wait_until(lambda: watch.made(STEPS) > 4)
    watch.assert_idle()
    assert watch.made(STEPS) < 1000
    assert watch.made(OUTPUT_TOKENS) == 0


@pytest.fixture
def all_rows_taken(server: TritonServer) -> Iterator[list[Iterator[dict[str, Any]]]]:
    """Long streams that run."""
    with ExitStack() as stack:
        streams = []
        for index in range(NUM_PLACES):
            body = {"text_input": f"import m{index}", "stream": True, **LONG}
            events = generate_stream(server.http_url, body)
            stack.callback(events.close)
            next(events)
            streams.append(events)
        yield streams
    Watch(server).assert_idle()


@pytest.mark.parametrize("model", MODELS)
def test_in_the_engine_s_queue(
    server: TritonServer, all_rows_taken: list[Iterator[dict[str, Any]]], model: str
) -> None:
    """Every row gives its place up; what runs goes on."""
    watch = Watch(server)
    with Call(server, model, ["x", "y", "z"]):
        wait_until(lambda: watch.now(WAITING) == 3)
    wait_until(lambda: watch.now(WAITING) == 0)
    assert watch.now(RUNNING) == NUM_PLACES
    for events in all_rows_taken:
        assert "error" not in next(events)


@pytest.mark.parametrize("model", MODELS)
def test_in_the_tokenizer_s_queue(server: TritonServer, model: str) -> None:
    """Long texts keep the tokenizer busy and wait for it; who leaves before his turn is not generated for."""
    watch = Watch(server)

    def long() -> None:  # cut by the tokenizer, then refused by generation
        fields = {"truncate_prompt_tokens": 5, "allowed_token_ids": [999_999]}
        body = {"text_input": "x = 1\n" * 30_000, "sampling_parameters": json.dumps(fields)}
        with pytest.raises(HttpError, match="allowed_token_ids"):
            generate(server.http_url, body, model)

    busy = [threading.Thread(target=long) for _ in range(4)]
    for thread in busy:
        thread.start()
    wait_until(lambda: watch.now("nv_inference_pending_request_count") > 1)
    with Call(server, model, ["x"]):
        time.sleep(0.02)
    for thread in busy:
        thread.join()
    watch.assert_idle()
    assert watch.made(STEPS) == 0


@pytest.mark.parametrize("model", MODELS)
def test_the_others_of_the_batch_do_not_notice(server: TritonServer, model: str) -> None:
    """A batch mate of cancelled requests answers as it does alone."""
    body = {"text_input": "def main():", "temperature": 0, "max_tokens": 60}
    alone = generate(server.http_url, body, "ensemble_unary")["text_output"]
    answers: list[str] = []
    mate = threading.Thread(
        target=lambda: answers.append(generate(server.http_url, body, "ensemble_unary")["text_output"])
    )
    watch = Watch(server)
    with Call(server, model, ["import os", "def f("]):
        wait_until(lambda: watch.now(RUNNING) == 2)
        mate.start()
        wait_until(lambda: watch.now(RUNNING) == 3 or not mate.is_alive())
    mate.join()
    assert answers == [alone]
    watch.assert_idle()
