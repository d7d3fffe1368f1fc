"""One response for each request: HTTP infer, unary gRPC, and several prompts in one request."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from client import HttpError, generate, metrics, wait_until
from quire.triton.server import TritonServer

PROMPTS = ["def fibonacci(n):", "import os\n", "class Tree:\n    def ", "# Straße, 三\n", "x"]
GREEDY = '{"temperature": 0, "max_tokens": 24}'
_TYPES: dict[str, Any] = {"BYTES": np.object_, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}


@pytest.fixture(scope="module")
def expected(server: TritonServer) -> list[str]:
    """What `ensemble` answers to each prompt, which comes first in the text."""
    body = {"temperature": 0, "max_tokens": 24}
    return [
        str(generate(server.http_url, {"text_input": prompt, **body})["text_output"]) for prompt in PROMPTS
    ]


def inputs(library: Any, shape_of_one: list[int], **fields: tuple[str, Any]) -> list[Any]:
    """Inputs of tritonclient's `library`; a list has shape [n, *shape_of_one[1:]]."""
    entries = []
    for name, (dtype, value) in fields.items():
        values = value if isinstance(value, list) else [value]
        items = [item.encode() if isinstance(item, str) else item for item in values]
        shape = [len(items), *shape_of_one[1:]]
        entry = library.InferInput(name, shape, dtype)
        entry.set_data_from_numpy(np.asarray(items, _TYPES[dtype]).reshape(shape))
        entries.append(entry)
    return entries


def texts(result: Any) -> list[str]:
    return [text.decode() for text in result.as_numpy("text_output")]


def prompts(library: Any, text: Any, **more: tuple[str, Any]) -> list[Any]:
    return inputs(library, [1], text_input=("BYTES", text), sampling_parameters=("BYTES", GREEDY), **more)


def test_http_infer(server: TritonServer, expected: list[str]) -> None:
    """The plain client over HTTP, with one prompt and with all; tensors as bytes and as JSON."""
    with httpclient.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
        assert expected[:1] == texts(client.infer("ensemble_unary", prompts(httpclient, PROMPTS[0])))
        assert expected == texts(client.infer("ensemble_unary", prompts(httpclient, PROMPTS)))
        output = httpclient.InferRequestedOutput("text_output", binary_data=False)
        result = client.infer("ensemble_unary", prompts(httpclient, PROMPTS[:2]), outputs=[output])
        assert expected[:2] == [str(text) for text in result.as_numpy("text_output")]


def test_unary_grpc_infer_with_all_outputs(server: TritonServer, expected: list[str]) -> None:
    """Every output has an element for each prompt, in order."""
    flags = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
    more = dict.fromkeys((*flags, "exclude_input_in_output"), ("BOOL", True))
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("ensemble_unary", prompts(grpcclient, PROMPTS, **more))
        assert [text.removeprefix(prompt) for text, prompt in zip(expected, PROMPTS, strict=True)] == texts(
            result
        )
        assert len(PROMPTS) == result.as_numpy("finish_reason").size
        assert set(result.as_numpy("finish_reason")) <= {b"length", b"stop"}
        counts = result.as_numpy("num_output_tokens")
        assert (np.uint32, (len(PROMPTS),)) == (counts.dtype, counts.shape)
        assert all(
            count == 24
            for count, reason in zip(counts, result.as_numpy("finish_reason"), strict=True)
            if reason == b"length"
        )
        lengths = [
            client.infer("tokenizer", inputs(grpcclient, [1], text_input=("BYTES", prompt)))
            .as_numpy("input_ids")
            .size
            for prompt in PROMPTS
        ]
        assert lengths == result.as_numpy("num_input_tokens").tolist()


def test_generate_takes_a_list_of_prompts(server: TritonServer, expected: list[str]) -> None:
    """`generate` answers a list with a list; ids instead of text are one prompt."""
    body: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    answer = generate(server.http_url, {"text_input": PROMPTS, **body}, "ensemble_unary")
    assert expected == answer["text_output"]
    ids = generate(server.http_url, {"text_input": PROMPTS[0]}, "tokenizer")["input_ids"]
    answer = generate(server.http_url, {"input_ids": ids, **body}, "ensemble_unary")
    assert expected[0] == PROMPTS[0] + answer["text_output"]


def test_many_batches_at_once(server: TritonServer, expected: list[str]) -> None:
    """Batches of different sizes beside single requests: every row gets its own answer."""

    def ask(index: int) -> bool:
        order = [(index + k) % len(PROMPTS) for k in range(1 + index % 7)]
        with httpclient.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
            result = client.infer("ensemble_unary", prompts(httpclient, [PROMPTS[k] for k in order]))
        single = generate(
            server.http_url, {"text_input": PROMPTS[index % 5], "temperature": 0, "max_tokens": 24}
        )
        return texts(result) == [expected[k] for k in order] and single["text_output"] == expected[index % 5]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(32)))
    wait_until(lambda: metrics(server.metrics_url)["vllm:num_requests_running"] == 0)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "empty prompt": ({"text_input": ["a", "", "b"]}, "text_input: got an empty string at 1"),
    "long prompt": ({"text_input": ["a", "x = 1\n" * 2000]}, "text_input: got "),
    "stream": ({"text_input": "a", "stream": True}, "stream: got true"),
    "temperature": ({"text_input": ["a", "b"], "temperature": 3}, "temperature: got 3"),
    "stop token": ({"text_input": ["a", "b"], "stop_token_ids": [99999999]}, "stop_token_ids: got 99999999"),
    "no prompt": ({"max_tokens": 3}, "text_input: got nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_name_their_field(server: TritonServer, name: str) -> None:
    """One error for the request, and the next one works."""
    body, message = BAD[name]
    with pytest.raises(HttpError) as error:
        generate(server.http_url, body, "ensemble_unary")
    assert message in error.value.message
    good = generate(server.http_url, {"text_input": ["a", "b"], "max_tokens": 2}, "ensemble_unary")
    assert 2 == len(good["text_output"])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([2, 2], "prompt_lengths: got a sum of 4"),
        ([0, 3], "prompt_lengths: got 0"),
        ([4, -1], "prompt_lengths: got -1"),
    ],
)
def test_lengths_that_do_not_fit(server: TritonServer, lengths: list[int], message: str) -> None:
    """generation_unary called directly."""
    body = {"input_ids": [5, 6, 7], "max_tokens": 2}
    with pytest.raises(HttpError, match=message):
        generate(server.http_url, {**body, "prompt_lengths": lengths}, "generation_unary")
    answer = generate(server.http_url, {**body, "prompt_lengths": [1, 2]}, "generation_unary")
    assert 2 == len(answer["text_output"])
    assert isinstance(generate(server.http_url, body, "generation_unary")["text_output"], str)
    with pytest.raises(HttpError, match="input_ids: got 0 ids"):
        generate(server.http_url, {"input_ids": [], "max_tokens": 2}, "generation_unary")


def test_a_cancelled_call_of_generation_unary_frees_its_blocks(server: TritonServer) -> None:
    """Every row ends; through the ensemble Triton does not tell."""
    body = inputs(
        grpcclient,
        [1],
        input_ids=("INT32", list(range(5, 15))),
        prompt_lengths=("INT32", [4, 6]),
    )
    fields = {"max_tokens": 1900, "min_tokens": 1900, "ignore_eos": True}
    before = metrics(server.metrics_url)["vllm:generation_tokens_total"]
    done = threading.Event()
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        call = client.async_infer(
            "generation_unary", body, callback=lambda result, error: done.set(), parameters=fields
        )
        wait_until(lambda: metrics(server.metrics_url)["vllm:num_requests_running"] == 2)
        call.cancel()
        assert done.wait(120)
        wait_until(lambda: metrics(server.metrics_url)["vllm:num_requests_running"] == 0)
    values = metrics(server.metrics_url)
    assert values["vllm:generation_tokens_total"] - before < 2 * 1900
    assert values["quire:kv_blocks_total"] == values["quire:kv_blocks_free"]


def test_a_batch_under_the_names_of_trtllm(server: TritonServer, expected: list[str]) -> None:
    """As TensorRT-LLM's end-to-end clients send it: every tensor with a row for each prompt."""
    count = len(PROMPTS)
    for library, address in (
        (grpcclient, server.grpc_url),
        (httpclient, server.http_url.removeprefix("http://")),
    ):
        body = inputs(
            library,
            [1, 1],
            text_input=("BYTES", PROMPTS),
            max_tokens=("INT32", [24] * count),
            bad_words=("BYTES", [""] * count),
            stop_words=("BYTES", [""] * count),
            repetition_penalty=("FP32", [1.0] * count),
            stream=("BOOL", [False] * count),
            exclude_input_in_output=("BOOL", [False] * count),
        )
        with library.InferenceServerClient(address) as client:
            assert expected == texts(client.infer("ensemble_trtllm_unary", body))
            body[1] = inputs(library, [1, 1], max_tokens=("INT32", [*range(1, count + 1)]))[0]
            with pytest.raises(Exception, match="max_tokens: got different values for the rows"):
                client.infer("ensemble_trtllm_unary", body)
