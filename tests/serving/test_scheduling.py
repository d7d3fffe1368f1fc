"""Priority, deadlines and receipts on a real server."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from client import GrpcStream, HttpError, generate, generate_stream, metrics, text_inputs, wait_until
from quire.triton.server import TritonServer

LONG = {"max_tokens": 1900, "min_tokens": 1900, "ignore_eos": True, "temperature": 0}
STAGES = ("tokenize_ms", "queue_ms", "prefill_ms", "decode_ms", "detokenize_ms")


@pytest.fixture(scope="module")
def two_rows(make_repository: Callable[..., Path]) -> Iterator[TritonServer]:
    """Two requests run at once; the others wait, and better ones push worse ones out."""
    with TritonServer(make_repository(max_num_seqs=2, scheduling_policy="priority")) as running:
        yield running


@pytest.fixture
def both_rows_taken(two_rows: TritonServer) -> Iterator[list[Iterator[dict[str, Any]]]]:
    """Two long streams of priority 5 that run."""
    with ExitStack() as stack:
        streams = []
        for text in ("import os", "def main():"):
            body = {"text_input": text, "stream": True, "priority": 5, **LONG}
            events = generate_stream(two_rows.http_url, body)
            stack.callback(events.close)
            next(events)
            streams.append(events)
        yield streams
    wait_until(lambda: metrics(two_rows.metrics_url)["vllm:num_requests_running"] == 0)
    values = metrics(two_rows.metrics_url)
    assert values["quire:kv_blocks_total"] == values["quire:kv_blocks_free"]


def check_times(receipt: dict[str, Any]) -> None:
    assert all(receipt[name] >= 0 for name in STAGES)
    assert receipt["total_ms"] == pytest.approx(sum(receipt[name] for name in STAGES), rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 7},
        {"parameters": {"priority": 7}},
        {"sampling_parameters": json.dumps({"priority": 7})},
    ],
    ids=["key", "parameter", "sampling_parameters"],
)
def test_priority_needs_the_policy(server: TritonServer, fields: dict[str, Any]) -> None:
    """By every way it may come, it reaches the engine, which names the setting that allows it."""
    with pytest.raises(HttpError, match=r'priority: got 7; allowed: 0, unless .*"scheduling_policy"'):
        generate(server.http_url, {"text_input": "x", "max_tokens": 1, **fields})


def test_priority_over_grpc(server: TritonServer) -> None:
    """In sampling_parameters it is the request's; tritonclient's own argument is for Triton's schedulers, and
    says nothing to a model that has none."""
    inputs = text_inputs(text_input="x", sampling_parameters={"priority": 7})
    with (
        pytest.raises(grpcclient.InferenceServerException, match="priority: got 7"),
        GrpcStream(server.grpc_url, inputs) as requests,
    ):
        list(requests)
    tensor = grpcclient.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"x"], dtype=np.object_))
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        assert client.infer("ensemble_unary", [tensor], priority=7).as_numpy("text_output").size == 1


def test_a_better_request_does_not_wait(
    two_rows: TritonServer, both_rows_taken: list[Iterator[dict[str, Any]]]
) -> None:
    """It takes a row from a worse one, which goes on later with the same text."""
    before = metrics(two_rows.metrics_url)["vllm:num_preemptions_total"]
    body = {"text_input": "class Tree:", "max_tokens": 10, "temperature": 0, "return_receipt": True}
    answer = generate(two_rows.http_url, {**body, "priority": -1})
    receipt = json.loads(answer["receipt"])
    assert (receipt["output_tokens"], receipt["preemptions"]) == (10, 0)
    assert metrics(two_rows.metrics_url)["vllm:num_preemptions_total"] == before + 1
    for events in both_rows_taken:
        for _ in range(30):
            assert "error" not in next(events)


def test_deadline_while_waiting(
    two_rows: TritonServer, both_rows_taken: list[Iterator[dict[str, Any]]]
) -> None:
    """Behind two requests that are as good: the client hears of it when the time has passed, and not when one
    of them has ended."""
    begin = time.monotonic()
    with pytest.raises(HttpError, match="deadline exceeded: 300 ms"):
        generate(two_rows.http_url, {"text_input": "x", "priority": 5, "deadline_ms": 300})
    assert time.monotonic() - begin > 0.29
    values = metrics(two_rows.metrics_url)
    assert (values["vllm:num_requests_running"], values["vllm:num_requests_waiting"]) == (2, 0)


def test_deadline_status_of_unary_grpc(
    two_rows: TritonServer, both_rows_taken: list[Iterator[dict[str, Any]]]
) -> None:
    """CANCELLED, which nobody else gets to see."""
    inputs = text_inputs(text_input="x", sampling_parameters={"priority": 5, "deadline_ms": 200})
    with (
        grpcclient.InferenceServerClient(two_rows.grpc_url) as client,
        pytest.raises(grpcclient.InferenceServerException) as error,
    ):
        client.infer("ensemble_unary", inputs)
    assert error.value.status() == "StatusCode.CANCELLED"
    assert "deadline exceeded: 200 ms" in error.value.message()


def test_deadline_status_of_http_infer(
    two_rows: TritonServer, both_rows_taken: list[Iterator[dict[str, Any]]]
) -> None:
    fields = {"text_input": "x", "sampling_parameters": json.dumps({"priority": 5, "deadline_ms": 200})}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]} for name, value in fields.items()
    ]
    request = urllib.request.Request(
        f"{two_rows.http_url}/v2/models/ensemble_unary/infer", json.dumps({"inputs": inputs}).encode()
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    assert error.value.code == 400  # as Triton 2.51 says CANCELLED
    assert b"deadline exceeded: 200 ms" in error.value.read()


@pytest.mark.parametrize("model", ["ensemble", "ensemble_unary"])
def test_deadline_while_generating(two_rows: TritonServer, model: str) -> None:
    """The answer is the text so far, the beginning of what would have come; the blocks are free."""
    whole, seconds = whole_answer(two_rows, model)
    deadline_ms = int(1000 * seconds / 4)
    body = {"text_input": "import os\n", **LONG, "deadline_ms": deadline_ms, "return_finish_reason": True}
    begin = time.monotonic()
    answer = generate(two_rows.http_url, body | {"return_num_output_tokens": True}, model)
    assert 1000 * (time.monotonic() - begin) >= deadline_ms
    assert answer["finish_reason"] == "deadline"
    assert 0 < answer["num_output_tokens"] < 1900
    values = metrics(two_rows.metrics_url)
    assert values["quire:kv_blocks_total"] == values["quire:kv_blocks_free"]
    assert whole.startswith(answer["text_output"].rstrip("\ufffd"))


def whole_answer(server: TritonServer, model: str) -> tuple[str, float]:
    """The text without a deadline, and the seconds that it takes on this machine."""
    begin = time.monotonic()
    text = generate(server.http_url, {"text_input": "import os\n", **LONG}, model)["text_output"]
    return text, time.monotonic() - begin


def test_deadline_of_a_stream(two_rows: TritonServer) -> None:
    """It keeps what it had, and its last event says why it ended."""
    _, seconds = whole_answer(two_rows, "ensemble")
    deadline_ms = int(1000 * seconds / 4)
    body = {"text_input": "import os\n", **LONG, "deadline_ms": deadline_ms, "return_finish_reason": True}
    events = list(generate_stream(two_rows.http_url, body | {"stream": True}))
    assert len(events) > 2
    assert [event["finish_reason"] for event in events] == ["None"] * (len(events) - 1) + ["deadline"]


def test_cancelled_while_waiting(
    two_rows: TritonServer, both_rows_taken: list[Iterator[dict[str, Any]]]
) -> None:
    """A client that leaves gives its place in the queue up."""
    inputs = text_inputs(text_input="x", sampling_parameters={"priority": 5})
    with GrpcStream(two_rows.grpc_url, inputs):
        wait_until(lambda: metrics(two_rows.metrics_url)["vllm:num_requests_waiting"] == 1)
    wait_until(lambda: metrics(two_rows.metrics_url)["vllm:num_requests_waiting"] == 0)


def test_cancelled_in_the_tokenizer_s_queue(two_rows: TritonServer) -> None:
    """Long texts keep the tokenizer busy; who leaves before his turn is not generated for."""
    before = metrics(two_rows.metrics_url)["vllm:generation_tokens_total"]
    busy = [threading.Thread(target=self_refused, args=(two_rows,)) for _ in range(4)]
    for thread in busy:
        thread.start()
    time.sleep(0.05)
    with GrpcStream(two_rows.grpc_url, text_inputs(text_input="x", sampling_parameters=LONG)):
        time.sleep(0.01)
    for thread in busy:
        thread.join()
    time.sleep(0.3)
    assert metrics(two_rows.metrics_url)["vllm:generation_tokens_total"] - before < 300


def self_refused(server: TritonServer) -> None:
    """A text that is tokenized for long, and then too long."""
    with pytest.raises(HttpError, match="text_input"):
        generate(server.http_url, {"text_input": "x = 1\n" * 400_000})


@pytest.mark.parametrize("stream", [True, False])
def test_receipt(two_rows: TritonServer, stream: bool) -> None:
    """With the last event: times that add up and fit into what the client measures, and the counts."""
    text = f"import os{' ' * stream}\n" * 40
    body = {"text_input": text, "max_tokens": 30, "ignore_eos": True, "temperature": 0, "stream": stream}
    for is_cached in (False, True):
        begin = time.monotonic()
        events = list(generate_stream(two_rows.http_url, body | {"return_receipt": True}))
        measured_ms = 1000 * (time.monotonic() - begin)
        assert not any("receipt" in event for event in events[:-1])
        receipt = json.loads(events[-1]["receipt"])
        check_times(receipt)
        assert 0 < receipt["decode_ms"] < receipt["total_ms"] < measured_ms
        assert receipt["tokenize_ms"] > 0
        assert receipt["output_tokens"] == 30
        assert (receipt["cached_tokens"] > 0) == is_cached
        assert receipt["computed_tokens"] == receipt["prompt_tokens"] + 29 - receipt["cached_tokens"]
        assert (receipt["recomputed_tokens"], receipt["preemptions"]) == (0, 0)


def test_receipt_says_why_it_waited(
    two_rows: TritonServer, both_rows_taken: list[Iterator[dict[str, Any]]]
) -> None:
    """Steps in which the rows were taken."""
    answers: list[Any] = []
    body = {"text_input": "x", "priority": 5, "max_tokens": 2, "return_receipt": True}
    waiting = threading.Thread(target=lambda: answers.append(generate(two_rows.http_url, body)))
    waiting.start()
    wait_until(lambda: metrics(two_rows.metrics_url)["vllm:num_requests_waiting"] == 1)
    time.sleep(0.2)
    both_rows_taken[0].close()  # type: ignore[attr-defined]
    waiting.join()
    receipt = json.loads(answers[0]["receipt"])
    check_times(receipt)
    assert receipt["queue_ms"] > 200
    assert receipt["waited_steps"]["rows"] > 0
    assert receipt["waited_steps"]["blocks"] == 0


def test_receipts_of_rows(two_rows: TritonServer) -> None:
    """One for each prompt of a unary request."""
    tensor = grpcclient.InferInput("text_input", [3], "BYTES")
    tensor.set_data_from_numpy(np.array([b"x", b"import os\n", b"def f("], dtype=np.object_))
    parameters = {"max_tokens": 5, "return_receipt": True, "ignore_eos": True}
    with grpcclient.InferenceServerClient(two_rows.grpc_url) as client:
        answer = client.infer("ensemble_unary", [tensor], parameters=parameters)
    receipts = [json.loads(text) for text in answer.as_numpy("receipt")]
    assert [receipt["output_tokens"] for receipt in receipts] == [5, 5, 5]
    for receipt in receipts:
        check_times(receipt)
