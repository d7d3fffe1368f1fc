"""strict: false lets names pass that Quire does not know, and says so in the response."""

from __future__ import annotations

import json
from typing import Any

import pytest
from client import GrpcStream, HttpError, generate, generate_stream, result_text, text_inputs
from quire.triton.server import TritonServer

PROMPT = "def fibonacci(n):"
GREEDY = {"temperature": 0, "max_tokens": 24}
UNKNOWN = {"temprature": 0.5, "lora_name": "x"}
WARNINGS = [
    'temprature: ignored, an unknown field (did you mean "temperature"?)',
    "lora_name: ignored, a field that is not supported yet",
]


@pytest.fixture(scope="module")
def expected(server: TritonServer) -> str:
    body = {"text_input": PROMPT, "exclude_input_in_output": True, **GREEDY}
    return str(generate(server.http_url, body)["text_output"])


@pytest.mark.parametrize("nested", [False, True])
def test_generate_answers_with_warnings(server: TritonServer, expected: str, nested: bool) -> None:
    """As keys and inside sampling_parameters; without strict: false the same is an error."""
    given: dict[str, Any] = {**UNKNOWN, **GREEDY, "exclude_input_in_output": True}
    lenient = given | {"strict": False}
    if nested:
        given, lenient = ({"sampling_parameters": json.dumps(values)} for values in (given, lenient))
    answer = generate(server.http_url, {"text_input": PROMPT, **lenient})
    assert (expected, WARNINGS) == (answer["text_output"], answer["warnings"])
    with pytest.raises(HttpError, match="temprature: got an unknown field"):
        generate(server.http_url, {"text_input": PROMPT, **given})


@pytest.mark.parametrize("model", ["ensemble_unary", "ensemble_trtllm", "ensemble_trtllm_unary"])
def test_every_ensemble_answers_with_warnings(server: TritonServer, expected: str, model: str) -> None:
    """In sampling_parameters, which all of them know."""
    given = json.dumps(UNKNOWN | GREEDY | {"strict": False, "exclude_input_in_output": True})
    answer = generate(server.http_url, {"text_input": PROMPT, "sampling_parameters": given}, model)
    assert (expected, WARNINGS) == (answer["text_output"], answer["warnings"])


def test_one_warning_and_none(server: TritonServer) -> None:
    """Where nothing was ignored there is no such output."""
    body = {"text_input": PROMPT, "strict": False, **GREEDY}
    assert "warnings" not in generate(server.http_url, body)
    answer = generate(server.http_url, body | {"xyzzy": 1})
    assert answer["warnings"] == "xyzzy: ignored, an unknown field"  # as Triton writes a list of one


def test_a_stream_begins_with_its_warnings(server: TritonServer, expected: str) -> None:
    """Once, with the first text; over HTTP and, with `strict` as a tensor, over gRPC."""
    body = {"text_input": PROMPT, "stream": True, "strict": False, **UNKNOWN, **GREEDY}
    events = list(generate_stream(server.http_url, body))
    assert expected == "".join(event["text_output"] for event in events)
    assert [WARNINGS, *[None] * (len(events) - 1)] == [event.get("warnings") for event in events]
    inputs = text_inputs(
        text_input=PROMPT, stream=True, strict=False, sampling_parameters={**UNKNOWN, **GREEDY}
    )
    with GrpcStream(server.grpc_url, inputs) as stream:
        results = list(stream)
    assert expected == "".join(map(result_text, results))
    assert results[0].as_numpy("warnings").tolist() == [warning.encode() for warning in WARNINGS]
    assert all(result.as_numpy("warnings") is None for result in results[1:])


def test_values_are_checked_all_the_same(server: TritonServer) -> None:
    """strict: false forgives names only; and it is true or false itself."""
    for given, field in (({"strict": False, "top_p": 2}, "top_p"), ({"strict": "no"}, "strict")):
        body = {"text_input": "x", "sampling_parameters": json.dumps(given | UNKNOWN)}
        with pytest.raises(HttpError, match=rf"{field}: got ") as error:
            generate(server.http_url, body)
        assert 400 == error.value.status
