"""A bad request gets an error with the field, what was given and what is allowed; the next one works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from backend_server import Server
from fake_engine import ERROR_ID
from tritonclient.utils import InferenceServerException

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": []}, "input_ids: got 0 ids; allowed: 1 to 4095 ids"),
    ({"input_ids": [1] * 4096}, "input_ids: got 4096 ids; allowed: 1 to 4095 ids"),
    ({"input_ids": [1, -1]}, "input_ids: got id -1 at 1; allowed: ids 0 to 999"),
    ({"input_ids": [1000]}, "input_ids: got id 1000 at 0; allowed: ids 0 to 999"),
    ({"max_tokens": -1}, "max_tokens: got -1"),
    ({"min_tokens": -1}, "min_tokens: got -1"),
    ({"temperature": -0.5}, "temperature: got -0.5"),
    ({"top_p": 0.0}, "top_p: got 0"),
    ({"top_p": 1.5}, "top_p: got 1.5"),
    ({"top_k": -2}, "top_k: got -2"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 257}, "stop: got 257 of them; allowed: "),
    ({"stop": ["a" * 1025]}, "stop: got a string of 1025 bytes; allowed: "),
    ({"stop": ["a" * 1000] * 17}, "stop: got 17000 bytes together; allowed: "),
    ({"stop_token_ids": [1000]}, "stop_token_ids"),
    ({"max_tokens": [1, 2]}, 'max_tokens: got "[1, 2]" (a string); allowed: an integer'),
    ({"input_ids": [ERROR_ID]}, "input_ids: got id 901; allowed: ids that the fake engine likes"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[next(iter(f)) for f, _ in BAD_FIELDS])
def test_bad_field(server: Server, fields: dict[str, Any], message: str) -> None:
    """Each setting that is out of range is refused with status 400."""
    status, error = server.generate_error("generation", **{"input_ids": [1], "max_tokens": 2} | fields)
    assert message in error
    assert status == 400
    assert server.generate("generation", input_ids=[1], max_tokens=2)["output_ids"] == [1, 1]


def test_error_through_the_ensemble(server: Server) -> None:
    """The ensemble's error is that of its step."""
    status, error = server.generate_error("ensemble", input_ids=[1000])
    assert (status, error) == (
        400,
        "in ensemble 'ensemble', input_ids: got id 1000 at 0; allowed: ids 0 to 999",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request", np.array([1], np.int32)),
        ("input_ids", np.array([[1, 2]], np.int32)),
        ("unknown", np.array([1], np.int32)),
    ],
)
def test_wrong_dtype_or_shape(server: Server, name: str, value: np.ndarray[Any, Any]) -> None:
    """A tensor of the wrong type or shape is refused by name."""
    tensors = {"input_ids": np.array([1], np.int32), name: value}
    inputs = []
    for key, array in tensors.items():
        tensor = grpc.InferInput(key, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        errors = []
        client.start_stream(lambda result, error: errors.append(error))
        client.async_stream_infer("generation", inputs)
        client.stop_stream()
    (error,) = errors
    assert isinstance(error, InferenceServerException)
    assert name in str(error)
    assert server.generate("generation", input_ids=[1], max_tokens=2)["output_ids"] == [1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "chunk, output_ids: got 0 of them; allowed: exactly one of them"),
        (
            {"chunk": [1, 2], "output_ids": [1, 2]},
            "chunk, output_ids: got 2 of them; allowed: exactly one of them",
        ),
        ({"chunk": [1, 2, 3]}, "chunk: got 3 bytes"),
        ({"chunk": [0] * 200}, "chunk: got 200 bytes with another seal"),
        ({"output_ids": [1] * 4097}, "output_ids: got 4097 ids; allowed: at most 4096 (max_model_len)"),
        ({"output_ids": [1, 1000]}, "output_ids: got id 1000; allowed: ids 0 to 999"),
    ],
)
def test_detokenizer(server: Server, fields: dict[str, Any], message: str) -> None:
    """The detokenizer refuses what is no chunk, and ids outside the vocabulary."""
    status, error = server.generate_error("detokenizer", **fields)
    assert message in error
    assert status == 400
    assert server.generate("detokenizer", output_ids=[1])["text_output"] == "t1"


def test_damaged_chunks(server: Server) -> None:
    """A chunk with a changed byte, or cut, is none: only the server can make one."""
    chunk = server.generate("generation", input_ids=[1, 2], max_tokens=3)["chunk"]
    for position in range(len(chunk)):
        damaged = chunk.copy()
        damaged[position] ^= 0xFF
        status, error = server.generate_error("detokenizer", chunk=damaged)
        assert (status, error[:11]) == (400, "chunk: got ")
    for size in range(2, len(chunk)):
        assert server.generate_error("detokenizer", chunk=chunk[:size])[0] == 400
    assert server.generate("detokenizer", chunk=chunk)["text_output"] == "t1 t2 t1"
