"""What LiteLLM's provider `triton` sends, by `generate`, `generate_stream` and `infer`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from client import HttpError, generate, generate_stream
from quire.triton.server import TritonServer

PROMPT = "def fibonacci(n):"


@pytest.fixture(scope="module")
def greedy(server: TritonServer) -> str:
    """The likeliest 16 tokens after PROMPT."""
    body = {"text_input": PROMPT, "max_tokens": 16, "temperature": 0, "exclude_input_in_output": True}
    return str(generate(server.http_url, body)["text_output"])


def test_generate(server: TritonServer, greedy: str) -> None:
    """The caller's max_completion_tokens counts; LiteLLM puts its own default of max_tokens beside it."""
    parameters = {"max_tokens": 2000, "max_completion_tokens": 16, "temperature": 0}
    body = {"text_input": PROMPT, "parameters": parameters, "stream": False}
    assert PROMPT + greedy == generate(server.http_url, body)["text_output"]
    assert greedy == generate(server.http_url, body, "ensemble_trtllm")["text_output"]
    for model in ("ensemble", "ensemble_trtllm"):
        events = generate_stream(server.http_url, body | {"stream": True}, model)
        assert greedy == "".join(event["text_output"] for event in events)


def test_infer(server: TritonServer, greedy: str) -> None:
    """Numbers as INT32 and FP32 tensors of one element; a bad one is refused by name."""
    assert PROMPT + greedy == infer(server, max_tokens=20, max_completion_tokens=16, temperature=0.0)
    assert PROMPT + greedy == infer(server, max_tokens=16, temperature=1.0, top_k=1)
    for fields, message in (
        ({"max_tokens": 0}, "max_tokens: got 0"),
        ({"temperature": 2.5}, "temperature: got 2.5"),
        ({"max_completion_tokens": -1}, "max_completion_tokens: got -1"),
    ):
        with pytest.raises(HttpError, match=message):
            infer(server, **fields)


def infer(server: TritonServer, **fields: Any) -> str:
    inputs: list[dict[str, Any]] = [
        {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [PROMPT]},
        *(
            {
                "name": name,
                "shape": [1],
                "datatype": "INT32" if isinstance(value, int) else "FP32",
                "data": [value],
            }
            for name, value in fields.items()
        ),
    ]
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/ensemble_unary/infer", json.dumps({"inputs": inputs}).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            first = json.load(response)["outputs"][0]  # it reads no other
    except urllib.error.HTTPError as error:
        with error:
            raise HttpError(error.code, error.read().decode()) from None
    return str(first["data"][0])
