"""A bad request gets an error that names the field, what was given, what is allowed; the next one works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from client import GrpcStream, HttpError, generate, stream_error, text_inputs
from quire.errors import PortInUse, ServerStartError
from quire.triton.server import TritonServer

# request body, and what the error must say
BAD_REQUESTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "empty prompt": ({"text_input": ""}, ["text_input", "empty"]),
    "prompt past the context": ({"text_input": "x = 1\n" * 2000}, ["text_input", "max_model_len", "2047"]),
    "malformed JSON": (
        {"text_input": "x", "sampling_parameters": '{"temperature": }'},
        ["sampling_parameters", "JSON"],
    ),
    "JSON that is no object": (
        {"text_input": "x", "sampling_parameters": "[1]"},
        ["sampling_parameters", "object"],
    ),
    "unknown field": ({"text_input": "x", "temprature": 0.5}, ["temprature", "temperature"]),
    "unknown field in JSON": (
        {"text_input": "x", "sampling_parameters": '{"max_token": 5}'},
        ["max_token", "max_tokens"],
    ),
    "temperature too high": ({"text_input": "x", "temperature": 2.5}, ["temperature", "2.5", "2"]),
    "temperature negative": ({"text_input": "x", "temperature": -0.1}, ["temperature", "-0.1"]),
    "temperature as text": ({"text_input": "x", "temperature": "hot"}, ["temperature", "hot"]),
    "top_p zero": ({"text_input": "x", "top_p": 0}, ["top_p", "0", "1"]),
    "top_k below off": ({"text_input": "x", "top_k": -2}, ["top_k", "-2"]),
    "max_tokens zero": ({"text_input": "x", "max_tokens": 0}, ["max_tokens", "0"]),
    "max_tokens fraction": ({"text_input": "x", "max_tokens": 1.5}, ["max_tokens", "1.5"]),
    "max_tokens true": ({"text_input": "x", "max_tokens": True}, ["max_tokens", "true"]),
    "min over max": ({"text_input": "x", "max_tokens": 2, "min_tokens": 3}, ["min_tokens", "3", "2"]),
    "empty stop string": ({"text_input": "x", "sampling_parameters": '{"stop": [""]}'}, ["stop"]),
    "stop token outside the vocabulary": (
        {"text_input": "x", "sampling_parameters": '{"stop_token_ids": [99999999]}'},
        ["stop_token_ids", "99999999"],
    ),
    "a key that is also in parameters": (
        {"text_input": "x", "temperature": 0, "parameters": {"temperature": 2}},
        ["temperature: got two request parameters of that name; allowed: one"],
    ),
    "a request that forbids every token": (
        {"text_input": "x", "sampling_parameters": '{"min_tokens": 2, "allowed_token_ids": [1]}'},
        ["allowed_token_ids: got only tokens that are forbidden", "min_tokens"],
    ),
    "a field of vLLM that asks for something": (
        {"text_input": "x", "use_beam_search": True},
        ["use_beam_search: got a field that is not supported yet; allowed: null or false"],
    ),
    "sequences of a greedy answer": (
        {"text_input": "x", "temperature": 0, "n": 2},
        ["n: got 2 with temperature 0", "1 (greedy"],
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_names_its_field_and_the_next_one_works(server: TritonServer, name: str) -> None:
    """Status 400 over generate, and the same message inside a stream."""
    body, words = BAD_REQUESTS[name]
    with pytest.raises(HttpError) as error:
        generate(server.http_url, body)
    assert 400 == error.value.status
    for word in words:
        assert word in error.value.message
    message = stream_error(server.http_url, body | {"stream": True})
    for word in words:
        assert word in message
    assert "text_output" in generate(server.http_url, {"text_input": "x", "max_tokens": 2})


def test_stream_with_the_prompt_included_is_an_error(server: TritonServer) -> None:
    """As in Triton's vLLM backend."""
    body = {"text_input": "x", "stream": True, "exclude_input_in_output": False}
    message = stream_error(server.http_url, body)
    assert "exclude_input_in_output" in message
    assert "stream" in message


def test_invalid_utf8_in_the_prompt_is_an_error(server: TritonServer) -> None:
    """Bytes that are no UTF-8 arrive over gRPC; the error names the tensor and the position."""
    with (
        GrpcStream(server.grpc_url, text_inputs(text_input=b"abc\xff\xfe")) as stream,
        pytest.raises(grpcclient.InferenceServerException, match="text_input") as error,
    ):
        list(stream)
    assert "UTF-8" in str(error.value)
    assert "text_output" in generate(server.http_url, {"text_input": "x", "max_tokens": 2})


BAD_TENSORS: dict[str, tuple[str, np.ndarray[Any, Any], str]] = {
    "wrong dtype": ("input_ids", np.array([1, 2, 3], dtype=np.int64), "INT64"),
    "wrong rank": ("input_ids", np.array([[1, 2, 3]], dtype=np.int32), "INT32"),
    "empty": ("input_ids", np.array([], dtype=np.int32), "INT32"),
    "id outside the vocabulary": ("input_ids", np.array([5, 1 << 30], dtype=np.int32), "INT32"),
    "negative id": ("input_ids", np.array([5, -1], dtype=np.int32), "INT32"),
    "no request": ("request", np.zeros(20, np.uint8), "UINT8"),
    "request of another dtype": ("request", np.zeros(20, np.int8), "INT8"),
    "a field as a tensor": ("top_p", np.array([0.5], dtype=np.float32), "FP32"),
    "unknown tensor": ("temprature", np.array([0.5], dtype=np.float32), "FP32"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_bad_tensor_of_generation_is_named(server: TritonServer, name: str) -> None:
    """Direct callers of `generation` get the same care."""
    tensor, value, dtype = BAD_TENSORS[name]
    arrays = {"input_ids": (np.array([5, 6, 7], dtype=np.int32), "INT32")} | {tensor: (value, dtype)}
    inputs = []
    for key, (array, kind) in arrays.items():
        entry = grpcclient.InferInput(key, list(array.shape), kind)
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    with (
        GrpcStream(server.grpc_url, inputs, "generation") as stream,
        pytest.raises(grpcclient.InferenceServerException, match=tensor),
    ):
        list(stream)
    good = generate(server.http_url, {"input_ids": [5, 6, 7], "max_tokens": 3}, "generation")
    assert 3 == len(good["output_ids"])


BAD_SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"max_model_length": 512}, ["model.json", "max_model_length", "max_model_len"]),
    "wrong type": ({"block_size": "big"}, ["model.json", "block_size", "big"]),
    "out of range": ({"max_num_seqs": 0}, ["model.json", "max_num_seqs", "0"]),
    "model folder missing": ({"model": "/nowhere/model"}, ["/nowhere/model"]),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_stops_the_start_and_says_what_to_change(
    make_repository: Callable[..., Path], name: str
) -> None:
    """The server's own error lines carry the engine's message."""
    settings, words = BAD_SETTINGS[name]
    with pytest.raises(ServerStartError) as error:
        TritonServer(make_repository(**settings)).start()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_model_file_is_named(
    make_repository: Callable[..., Path], tmp_path: Path, missing: str
) -> None:
    """Each file of the checkpoint, by its path."""
    source = Path(__file__).parents[2] / "models" / "quire-8m"
    for path in source.iterdir():
        if path.name != missing and path.is_file():
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ServerStartError) as error:
        TritonServer(make_repository(model=str(tmp_path))).start()
    assert missing in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_malformed_settings_name_the_line(make_repository: Callable[..., Path]) -> None:
    """model.json that is no JSON."""
    repository = make_repository()
    (repository / "generation" / "1" / "model.json").write_text('{\n  "model": "quire-8m"\n  "seed": 1\n}')
    with pytest.raises(ServerStartError, match=r"model\.json") as error:
        TritonServer(repository).start()
    assert "line 3" in str(error.value)


def test_an_occupied_port_is_named(server: TritonServer, make_repository: Callable[..., Path]) -> None:
    """Two servers would share a gRPC port without a word."""
    with pytest.raises(PortInUse) as error:
        TritonServer(make_repository(), grpc_port=server.grpc_port)
    assert str(server.grpc_port) in str(error.value)
    assert "--grpc-port" in str(error.value)


def test_a_bad_list_as_a_key_of_generate_is_named(server: TritonServer) -> None:
    """`stop` and `stop_token_ids` are tensors; our checks are those of sampling_parameters."""
    for body, words in (
        ({"stop": ["a", ""]}, ["stop", '["a", ""]']),
        ({"stop_token_ids": [5, -1]}, ["stop_token_ids", "[5, -1]"]),
        ({"stop_token_ids": [99999999]}, ["stop_token_ids", "99999999"]),
    ):
        with pytest.raises(HttpError) as error:
            generate(server.http_url, {"text_input": "x", **body})
        assert all(word in error.value.message for word in words)
