"""Requests that end tritonserver 2.51 when it runs without the guard: with it each is an error of its own."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from client import GrpcStream, generate
from quire.triton.server import TritonServer

GENERATE = "/v2/models/ensemble/generate"
BYTES_REFUSED = "class result not available for output due to unsupported type 'BYTES'"


@pytest.fixture(autouse=True)
def survives(server: TritonServer) -> Iterator[None]:
    """After each request the same process answers."""
    pid = server.pid
    yield
    assert server.is_running, server.log
    assert server.pid == pid
    assert generate(server.http_url, {"text_input": "a", "max_tokens": 1})["text_output"].startswith("a")


def post(server: TritonServer, path: str, body: Any, **options: Any) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=300)
    try:
        connection.request("POST", path, body, **options)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATE, '{"text_input": ' + "[" * 2_000_000 + "]" * 2_000_000 + "}"),
        (GENERATE, '{"text_input": "a", "x": ' + '{"a": ' * 200_000 + "1" + "}" * 200_000 + "}"),
        (GENERATE, "[" * 1_000_000),
        ("/v2/models/ensemble_unary/infer", '{"inputs": ' + "[" * 200_000 + "]" * 200_000 + "}"),
        ("/v2/repository/index", "[" * 200_000),
    ],
    ids=["lists", "objects", "unclosed", "infer", "index"],
)
def test_deeply_nested_json(server: TritonServer, path: str, body: str) -> None:
    """An error of the client, wherever the server reads JSON."""
    status, answer = post(server, path, body)
    assert 400 <= status <= 500
    assert json.loads(answer)["error"]


def test_a_body_of_many_chunks(server: TritonServer) -> None:
    """The server keeps a list of a body's chunks on its stack: a million are an error, or a body like any."""
    chunks = b"1\r\n \r\n" * 1_000_000 + b"0\r\n\r\n"
    headers = {"Transfer-Encoding": "chunked"}
    status, answer = post(server, GENERATE, chunks, headers=headers, encode_chunked=False)
    assert 400 <= status <= 500
    assert json.loads(answer)["error"]


def test_a_load_with_a_config_of_the_client_s_own(server: TritonServer) -> None:
    """Is refused unless the server was started with the load API."""
    body = json.dumps({"parameters": {"config": '{"backend": "python"}'}})
    for path in ("/v2/repository/models/generation/load", "/v2/repository/models/x/load"):
        status, answer = post(server, path, body)
        assert (status, "not allowed" in answer) == (503, True)


@pytest.mark.parametrize("output", ["text_output", "finish_reason"])
def test_classification_of_text_over_http(server: TritonServer, output: str) -> None:
    """Largest values of an output that is text: an error that says so."""
    text = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    asked = {"name": output, "parameters": {"classification": 2}}
    parameters = {"max_tokens": 2, "return_finish_reason": True}
    body = {"inputs": [text], "outputs": [asked], "parameters": parameters}
    status, answer = post(server, "/v2/models/ensemble_unary/infer", json.dumps(body))
    assert (status, json.loads(answer)["error"]) == (400, BYTES_REFUSED)


def test_classification_of_text_over_grpc(server: TritonServer) -> None:
    """In a unary call and in a stream."""
    text = grpc.InferInput("text_input", [1], "BYTES").set_data_from_numpy(np.array([b"a"], np.object_))
    outputs = [grpc.InferRequestedOutput("text_output", class_count=2)]
    with (
        grpc.InferenceServerClient(server.grpc_url) as client,
        pytest.raises(grpc.InferenceServerException, match=BYTES_REFUSED),
    ):
        client.infer("ensemble_unary", [text], outputs=outputs)
    with (
        pytest.raises(grpc.InferenceServerException, match=BYTES_REFUSED),
        GrpcStream(server.grpc_url, [text], outputs=outputs) as responses,
    ):
        list(responses)


def test_classification_of_numbers(server: TritonServer) -> None:
    """Is answered as ever: value and place."""
    text = grpc.InferInput("text_input", [1], "BYTES").set_data_from_numpy(np.array([b"a"], np.object_))
    outputs = [grpc.InferRequestedOutput("num_output_tokens", class_count=1)]
    parameters = {"max_tokens": 2, "ignore_eos": True, "return_num_output_tokens": True}
    with grpc.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("ensemble_unary", [text], outputs=outputs, parameters=parameters)
    assert result.as_numpy("num_output_tokens").tolist() == [b"2:0"]
