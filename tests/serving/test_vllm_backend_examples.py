"""What the public examples of Triton's vLLM backend do, done here against the real server: the client that
streams a file of prompts, the curl lines of its README, every combination of additional outputs."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as aio
from client import GrpcStream, generate, generate_stream, result_text, text_inputs
from quire.triton.server import TritonServer

PROMPTS = ["def fibonacci(n):\n", "import os\n", "class Stack:\n", "# Straße 敏捷\n"]
SAMPLING = {"temperature": "0", "top_p": "0.95", "max_tokens": "20"}  # numbers as strings


@pytest.fixture(scope="module")
def answers(server: TritonServer) -> dict[str, str]:
    """What each prompt is continued with."""
    body = {"max_tokens": 20, "temperature": 0, "exclude_input_in_output": True}
    return {text: generate(server.http_url, body | {"text_input": text})["text_output"] for text in PROMPTS}


def inputs_of(prompt: str, stream: bool, exclude: bool | None, in_tensor: bool) -> list[aio.InferInput]:
    """Prompt and flags; the settings as a tensor too, or as request parameters only."""
    values: dict[str, Any] = {"text_input": prompt, "stream": stream}
    if exclude is not None:
        values["exclude_input_in_output"] = exclude
    if in_tensor:
        values["sampling_parameters"] = json.dumps(SAMPLING)
    inputs = []
    for name, value in values.items():
        is_flag = isinstance(value, bool)
        array = np.array([value]) if is_flag else np.array([value.encode()], dtype=np.object_)
        inputs.append(aio.InferInput(name, [1], "BOOL" if is_flag else "BYTES"))
        inputs[-1].set_data_from_numpy(array)
    return inputs


async def stream_prompts(
    url: str, stream: bool, exclude: bool | None, in_tensor: bool, iterations: int
) -> dict[str, list[str]]:
    """All prompts over one gRPC stream, without waiting for answers; texts by request id."""
    texts: dict[str, list[str]] = {}

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(iterations * len(PROMPTS)):
            texts[str(number)] = []
            yield {
                "model_name": "ensemble",
                "inputs": inputs_of(PROMPTS[number % len(PROMPTS)], stream, exclude, in_tensor),
                "outputs": [aio.InferRequestedOutput("text_output")],
                "request_id": str(number),
                "parameters": SAMPLING,
            }

    async with aio.InferenceServerClient(url) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            texts[result.get_response().id] += [text.decode() for text in result.as_numpy("text_output")]
    return texts


@pytest.mark.parametrize(
    ("stream", "exclude", "in_tensor"),
    [
        (True, None, True),
        (True, True, False),
        (False, None, True),
        (False, True, True),
        (False, False, False),
    ],
)
def test_the_client_that_streams_prompts(
    server: TritonServer, answers: dict[str, str], stream: bool, exclude: bool | None, in_tensor: bool
) -> None:
    """Every answer under its own id; the prompt stands in front unless it streams or excludes it."""
    texts = asyncio.run(stream_prompts(server.grpc_url, stream, exclude, in_tensor, iterations=3))
    assert len(texts) == 3 * len(PROMPTS)
    for number, parts in texts.items():
        prompt = PROMPTS[int(number) % len(PROMPTS)]
        front = "" if stream or exclude else prompt
        assert front + answers[prompt] == "".join(parts)
        assert (len(parts) > 1) == stream


def test_the_curl_lines(server: TritonServer, answers: dict[str, str]) -> None:
    """Settings in `parameters`, which Triton takes apart, streaming and not."""
    prompt = PROMPTS[0]
    parameters = {"stream": False, "temperature": 0, "max_tokens": 20}
    answer = generate(server.http_url, {"text_input": prompt, "parameters": parameters})
    assert prompt + answers[prompt] == answer["text_output"]
    assert {"model_name": "ensemble", "model_version": "1"}.items() <= answer.items()
    parameters["exclude_input_in_output"] = True
    body = {"text_input": prompt, "parameters": parameters}
    assert answers[prompt] == generate(server.http_url, body)["text_output"]
    parameters["stream"] = True
    events = list(generate_stream(server.http_url, body))
    assert answers[prompt] == "".join(event["text_output"] for event in events)
    assert len(events) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_frontend(server: TritonServer, answers: dict[str, str], stream: bool) -> None:
    """With its backend vllm: all of OpenAI's fields in sampling_parameters, most as they are by default; the
    answer without the prompt."""
    prompt = PROMPTS[0]
    defaults = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "logprobs": None, "n": 1, "top_p": 1.0}
    sampling = defaults | {"temperature": 0.0, "max_tokens": 20, "stop": ["never in there"], "seed": 7}
    inputs = text_inputs(
        text_input=prompt,
        stream=stream,
        exclude_input_in_output=True,
        sampling_parameters=sampling,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
    )
    with GrpcStream(server.grpc_url, inputs) as requested:
        results = list(requested)
    assert (len(results) > 1) == stream
    assert answers[prompt] == "".join(map(result_text, results))
    assert 20 == sum(int(result.as_numpy("num_output_tokens")[0]) for result in results)
    assert all(result.as_numpy("num_input_tokens").dtype == np.uint32 for result in results)


FLAGS = (
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
# Some of all combinations, the same in each run.
COMBINATIONS = random.Random(7).sample(
    list(itertools.product([True, False], [None, 0, 2], itertools.product([None, True, False], repeat=5))), 80
)


@pytest.mark.parametrize(("stream", "logprobs", "asked"), COMBINATIONS, ids=str)
def test_additional_outputs(
    server: TritonServer,
    answers: dict[str, str],
    stream: bool,
    logprobs: int | None,
    asked: tuple[bool | None, ...],
) -> None:
    """Each is there where it is asked for, in every response, and not otherwise."""
    prompt = PROMPTS[0]
    given = {name: value for name, value in zip(FLAGS, asked, strict=True) if value is not None}
    sampling = SAMPLING if logprobs is None else SAMPLING | {"logprobs": logprobs}
    inputs = text_inputs(text_input=prompt, stream=stream, sampling_parameters=sampling, **given)
    with GrpcStream(server.grpc_url, inputs) as requested:
        results = list(requested)
    front = "" if stream else prompt
    assert front + answers[prompt] == "".join(map(result_text, results))
    for flag, value in zip(FLAGS, asked, strict=True):
        name = flag.removeprefix("return_")
        values = [result.as_numpy(name) for result in results]
        if not value:
            assert values == [None] * len(results)
        elif name == "finish_reason":
            assert [item[0] for item in values] == [b"None"] * (len(results) - 1) + [b"length"]
        elif name == "cumulative_logprob":
            sums = [float(item[0]) for item in values]
            assert sums == sorted({*sums, 0.0}, reverse=True)[1:]
        elif name == "logprobs" and logprobs is None:
            assert [item[0] for item in values] == [b"null"] * len(results)
        elif name == "logprobs":
            assert 20 == sum(len(json.loads(item[0])) for item in values)
        elif name == "num_input_tokens":
            assert len({item[0] for item in values}) == 1
        else:
            assert sum(int(item[0]) for item in values) == 20
            assert all(item[0] > 0 for item in values)
