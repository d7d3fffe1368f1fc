"""n > 1 against the real server: arrays without stream, an index with it, the same texts every way."""

from __future__ import annotations

import json
from typing import Any

import _core_parts
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from client import GrpcStream, HttpError, generate, generate_stream, metrics, result_text, wait_until
from quire.triton.server import TritonServer

PROMPT = "def fibonacci(n):"
SAMPLING = {"temperature": 1, "max_tokens": 24, "ignore_eos": True}


def derived(seed: int, index: int) -> int:
    return int(np.uint64(_core_parts.sequence_seed(seed, index)).astype(np.int64))


@pytest.fixture(scope="module")
def expected(server: TritonServer) -> list[str]:
    """What each of three sequences with seed 7 must be: the answer to a request with its seed."""
    body = {"text_input": PROMPT, "exclude_input_in_output": True, **SAMPLING}
    return [str(generate(server.http_url, {**body, "seed": derived(7, i)})["text_output"]) for i in range(3)]


def test_generate(server: TritonServer, expected: list[str]) -> None:
    """Arrays in the order of the sequences, the prompt in front of each; the prompt is looked up once."""
    flags = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
    body = {"text_input": PROMPT, "n": 3, "seed": 7, **SAMPLING, **dict.fromkeys(flags, True)}
    before = metrics(server.metrics_url)
    answer = generate(server.http_url, body)
    after = metrics(server.metrics_url)
    assert answer["text_output"] == [PROMPT + text for text in expected]
    assert len(set(expected)) == 3
    assert answer["finish_reason"] == ["length"] * 3
    assert answer["num_output_tokens"] == [24] * 3
    name = "vllm:prefix_cache_queries_total"
    assert after[name] - before[name] == answer["num_input_tokens"]
    body["sampling_parameters"] = '{"n": "3"}'
    del body["n"]
    assert generate(server.http_url, body)["text_output"] == answer["text_output"]


@pytest.mark.parametrize("model", ["ensemble", "ensemble_unary"])
def test_token_outputs(server: TritonServer, model: str) -> None:
    """Log probabilities, stop reasons and ids of each sequence; those of the prompt once."""
    flags = ("return_logprobs", "return_cumulative_logprob", "return_stop_reason", "return_token_ids")
    body = {"text_input": PROMPT, "n": 3, "seed": 7, "logprobs": 1, "prompt_logprobs": 0, **SAMPLING}
    body |= dict.fromkeys((*flags, "return_num_output_tokens", "exclude_input_in_output"), True)
    answer = generate(server.http_url, body | {"stop": ["("], "max_tokens": 60}, model)
    lengths = answer["num_output_tokens"]
    ids = answer["output_ids"]
    assert len(ids) == sum(lengths)
    for index in range(3):
        places = json.loads(answer["logprobs"][index])
        own = ids[sum(lengths[:index]) :][: lengths[index]]
        assert [int(next(iter(place))) for place in places] == own
        total = sum(next(iter(place.values()))["logprob"] for place in places)
        assert answer["cumulative_logprob"][index] == pytest.approx(total, abs=1e-3)
        assert answer["stop_reason"][index] in ("(", "")
    assert "(" in answer["stop_reason"]
    assert json.loads(answer["prompt_logprobs"])[0] is None


def test_generate_stream(server: TritonServer, expected: list[str]) -> None:
    """Events of all sequences come while all still run, each with its index."""
    body = {"text_input": PROMPT, "n": 3, "seed": 7, "stream": True, "return_finish_reason": True, **SAMPLING}
    events = list(generate_stream(server.http_url, body))
    for index, text in enumerate(expected):
        mine = [event for event in events if event["index"] == index]
        assert "".join(event["text_output"] for event in mine) == text
        assert [event["finish_reason"] for event in mine[-2:]] == ["None", "length"]
    assert [event["index"] for event in events[:6]] != [0] * 6


def test_grpc_stream(server: TritonServer, expected: list[str]) -> None:
    """The output index is UINT32 [1]."""
    inputs = [
        tensor("text_input", [PROMPT], "BYTES", [1]),
        tensor("stream", [True], "BOOL", [1]),
    ]
    parameters = {"n": 3, "seed": 7, **SAMPLING}
    texts = [""] * 3
    with GrpcStream(server.grpc_url, inputs, parameters=parameters) as stream:
        for result in stream:
            index = result.as_numpy("index")
            assert (index.dtype, index.shape) == (np.uint32, (1,))
            texts[int(index[0])] += result_text(result)
    assert texts == expected


def test_rows_times_n(server: TritonServer, expected: list[str]) -> None:
    """ensemble_unary: the sequences of a prompt side by side, prompt after prompt."""
    inputs = [tensor("text_input", ["import os\n", PROMPT], "BYTES", [2])]
    flags = ("return_num_input_tokens", "return_num_output_tokens", "return_finish_reason")
    inputs += [tensor(name, [True], "BOOL", [1]) for name in (*flags, "exclude_input_in_output")]
    parameters = {"n": 3, "seed": 7, **SAMPLING}
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("ensemble_unary", inputs, parameters=parameters)
    texts = [text.decode() for text in result.as_numpy("text_output")]
    assert len(texts) == 6
    assert texts[3:] == expected
    assert result.as_numpy("num_output_tokens").tolist() == [24] * 6
    assert result.as_numpy("finish_reason").tolist() == [b"length"] * 6
    assert result.as_numpy("num_input_tokens").size == 2


def test_trtllm(server: TritonServer, expected: list[str]) -> None:
    """num_return_sequences and sequence_index are TensorRT-LLM's names of both; each sequence has a response
    of its own, also without stream."""
    body = {
        "text_input": PROMPT,
        "max_tokens": 24,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 7,
        "num_return_sequences": 3,
        "ignore_eos": True,
    }
    for stream in (False, True):
        events = list(generate_stream(server.http_url, body | {"stream": stream}, "ensemble_trtllm"))
        texts = [""] * 3
        for event in events:
            texts[event["sequence_index"]] += event["text_output"]
        assert texts == expected
        assert (len(events) > 3) == stream


def test_greedy_sequences_are_refused(server: TritonServer) -> None:
    for body in ({"temperature": 0}, {"sampling_parameters": '{"temperature": 0}'}):
        with pytest.raises(HttpError, match=r"n: got 3 with temperature 0; allowed: 1 .*the same") as error:
            generate(server.http_url, {"text_input": PROMPT, "n": 3, **body})
        assert error.value.status == 400


def test_a_client_that_goes_away_ends_all(server: TritonServer) -> None:
    body = {"text_input": PROMPT, "n": 9, "stream": True, "ignore_eos": True, "temperature": 1}
    events = generate_stream(server.http_url, body)
    next(events)
    events.close()  # type: ignore[attr-defined]
    wait_until(lambda: metrics(server.metrics_url)["vllm:num_requests_running"] == 0)
    stats = metrics(server.metrics_url)
    assert stats["quire:kv_blocks_free"] == stats["quire:kv_blocks_total"]


def tensor(name: str, values: list[Any], dtype: str, shape: list[int]) -> grpcclient.InferInput:
    items = [value.encode() if isinstance(value, str) else value for value in values]
    entry = grpcclient.InferInput(name, shape, dtype)
    entry.set_data_from_numpy(np.asarray(items, {"BYTES": np.object_, "BOOL": np.bool_}[dtype]))
    return entry
