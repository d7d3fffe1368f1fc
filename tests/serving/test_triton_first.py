"""What Triton refuses before any model sees it, in its own words: docs/clients.md lists them. When a newer
Triton says something else, that page changes with this test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from client import HttpError, generate
from quire.triton.server import TritonServer

CLIENTS_PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
NO_INTEGER = "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"
NO_STRING = "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
NO_BOOLEAN = "Unable to parse 'data': attempt to access JSON non-boolean as boolean"
NO_PARAMETER = "parameter '{}' has invalid type. It should be either 'int', 'bool', or 'string'."
NO_SHAPE = "The schema can not convert input '{}' to tensor with proper shape"

CASES: list[tuple[dict[str, Any], int, str]] = [
    ({"stop_token_ids": "[5]"}, 500, NO_INTEGER),
    ({"stop_token_ids": [1.5]}, 500, NO_INTEGER),
    ({"allowed_token_ids": [True]}, 500, NO_INTEGER),
    ({"stop": [1]}, 500, NO_STRING),
    ({"bad_words": 5}, 500, NO_STRING),
    ({"text_input": 5}, 500, NO_STRING),
    ({"sampling_parameters": {"top_k": 1}}, 500, NO_STRING),
    ({"strict": "yes"}, 500, NO_BOOLEAN),
    ({"stream": 1}, 500, NO_BOOLEAN),
    ({"return_logprobs": None}, 500, NO_BOOLEAN),
    ({"strict": [True, False]}, 400, NO_SHAPE.format("strict")),
    ({"text_input": ["a", "b"]}, 400, NO_SHAPE.format("text_input")),
    ({"logit_bias": {"3": 1}}, 400, NO_PARAMETER.format("logit_bias")),
    ({"temperature": [1]}, 400, NO_PARAMETER.format("temperature")),
    ({"top_k": None}, 400, NO_PARAMETER.format("top_k")),
]


@pytest.mark.parametrize(("given", "status", "message"), CASES, ids=[str(given) for given, _, _ in CASES])
def test_the_message_is_tritons(
    server: TritonServer, given: dict[str, Any], status: int, message: str
) -> None:
    """Word for word, and so on the page; the next request works."""
    with pytest.raises(HttpError) as error:
        generate(server.http_url, {"text_input": "x", "max_tokens": 1, **given})
    assert (error.value.status, error.value.message) == (status, message)
    [name] = given
    assert message.replace(f"'{name}'", "'NAME'") in CLIENTS_PAGE.read_text()
    generate(server.http_url, {"text_input": "x", "max_tokens": 1})


@pytest.mark.parametrize("model", ["ensemble", "ensemble_unary"])
@pytest.mark.parametrize("given", [2**40, 2**32 + 5, -(2**40)])
def test_ids_past_32_bits_arrive_whole(server: TritonServer, model: str, given: int) -> None:
    """And are refused by name, as a key of generate and in sampling_parameters: Triton's JSON reader would
    cut those of an INT32 input."""
    for name in ("stop_token_ids", "allowed_token_ids"):
        for fields in ({name: [5, given]}, {"sampling_parameters": json.dumps({name: [5, given]})}):
            with pytest.raises(HttpError, match=rf"{name}: got \[5, {given}\]"):
                generate(server.http_url, {"text_input": "x", "max_tokens": 1, **fields}, model)
    with pytest.raises(HttpError, match=f"input_ids: got id {given} at 1; allowed: ids 0 to "):
        generate(server.http_url, {"input_ids": [5, given], "max_tokens": 1}, model)


def test_an_id_past_32_bits_is_cut(server: TritonServer) -> None:
    """By Triton's JSON reader, where the input is INT32: 2**32 + 5 arrives as 5."""
    body = {"max_tokens": 1, "temperature": 0.0}
    cut, whole = (
        generate(server.http_url, {**body, "input_ids": [given]}, "generation")["output_ids"]
        for given in (2**32 + 5, 5)
    )
    assert cut == whole
