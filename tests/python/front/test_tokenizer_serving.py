"""The tokenizer model alone on a real tritonserver."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import _core_parts as core_parts
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from quire import _core
from quire.errors import ServerStartError
from quire.tokenizer import Tokenizer
from quire.triton.server import TritonServer

MakeRepository = Callable[[Path, Path], Path]

pytestmark = pytest.mark.serving

NOTHING_GIVEN = core_parts.decode_request(_core.encode_request({}))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, byte_level_model: Path, make_repository: MakeRepository
) -> Iterator[TritonServer]:
    repository = make_repository(tmp_path_factory.mktemp("serving"), byte_level_model)
    with TritonServer(repository, models=["tokenizer"]) as server:
        yield server


def infer(
    server: TritonServer, text: bytes, parameters: dict[str, object] | None = None
) -> tuple[list[int], dict[str, object]]:
    """The ids, and the fields of `request`."""
    tensor = grpc_client.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text], dtype=np.object_))
    with grpc_client.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("tokenizer", [tensor], parameters=parameters or {})
    fields = core_parts.decode_request(result.as_numpy("request").tobytes())
    given = {name: value for name, value in fields.items() if value != NOTHING_GIVEN[name]}
    return result.as_numpy("input_ids").tolist(), given


def test_tokenizes_as_the_library_does(server: TritonServer, byte_level_model: Path) -> None:
    """Ids are those of `tokenizers`; the prompt comes along because the answer will begin with it."""
    text = "def fibonacci(n): Straße 敏捷 👩‍👩‍👧‍👦"
    ids = Tokenizer(byte_level_model).encode(text)
    found, fields = infer(server, text.encode())
    assert 0 < fields.pop("tokenize_ns") < fields.pop("arrival_ns") < time.monotonic_ns()
    assert fields.pop("vocabulary")
    assert (found, fields) == (ids, {"acknowledge": True, "prompt_text": [text]})


def test_checked_fields_come_out(server: TritonServer) -> None:
    """Fields from request parameters arrive in `request` under their own names."""
    given = {
        "max_new_tokens": 5,
        "temperature": 0.5,
        "seed": -(2**62),
        "stop": '["a", "b"]',
        "stop_token_ids": "[1, 2]",
        "ignore_eos": True,
        "stream": True,
        "return_finish_reason": True,
    }
    _, fields = infer(server, b"hello", given)
    assert fields.pop("tokenize_ns")
    assert fields.pop("arrival_ns")
    assert fields.pop("vocabulary")
    assert fields == {
        "max_tokens": 5,
        "temperature": 0.5,
        "seed": -(2**62),
        "stop": ["a", "b"],
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "stream": True,
        "acknowledge": True,
        "return_finish_reason": True,
    }


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"text_input": ""}, "text_input"),
        ({"text_input": "word " * 200}, "text_input"),
        ({"text_input": "x", "temperatur": 1.0}, "temperatur"),
        ({"text_input": "x", "temperature": 3.0}, "temperature"),
        ({"text_input": "x", "sampling_parameters": '{"temperature": "hot"}'}, "temperature"),
        ({"text_input": "x", "sampling_parameters": '{"max_tokens": 1.5}'}, "max_tokens"),
        ({"text_input": "x", "sampling_parameters": '{"max_tokens": true}'}, "max_tokens"),
        ({"text_input": "x", "sampling_parameters": f'{{"seed": {2**64}}}'}, "seed"),
        ({"text_input": "x", "stop_token_ids": [-1]}, "stop_token_ids"),
        ({"text_input": "x", "sampling_parameters": '{"top_p": }'}, "sampling_parameters"),
        ({"text_input": "x", "sampling_parameters": '{"top_p": 0}'}, "top_p"),
        ({"text_input": "x", "top_k": 5, "sampling_parameters": '{"top_k": 6}'}, "top_k"),
        ({"text_input": "x", "stream": True, "exclude_input_in_output": False}, "exclude_input_in_output"),
        ({"text_input": "x", "bad_words": ["a", ""]}, "bad_words"),
        ({"text_input": "x", "logit_bias": '{"3": 101}'}, "logit_bias"),
        ({"text_input": ["x", ""]}, "text_input"),
    ],
)
def test_bad_requests_are_refused(server: TritonServer, payload: dict[str, object], field: str) -> None:
    """A bad request is a 400 that names the field, and the next request works."""
    status, answer = server.generate("tokenizer", payload)
    assert status == 400
    assert field in answer["error"]
    if "text_input" in payload and isinstance(payload["text_input"], str):
        assert answer["error"].startswith(f"{field}: got ")
        assert "; allowed: " in answer["error"]
    assert server.generate("tokenizer", {"text_input": "x", "stream": True})[0] == 200


def test_invalid_utf8_is_refused(server: TritonServer) -> None:
    """Bytes that are no UTF-8 are refused with their position."""
    status, answer = server.post("/v2/models/tokenizer/generate", b'{"text_input": "ab\xff"}')
    assert status == 400
    assert answer == {"error": "text_input: got invalid UTF-8 at byte 2 (0xff); allowed: a UTF-8 string"}


def test_parameters_of_triton_pass(server: TritonServer) -> None:
    """What Triton and its clients add to a request is not taken for a field of ours."""
    payload = {"text_input": "x", "id": "request 1", "priority": 1, "timeout": 5_000_000}
    assert server.generate("tokenizer", payload)[0] == 200
    tensor = grpc_client.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"x"], dtype=np.object_))
    with grpc_client.InferenceServerClient(server.grpc_url) as client:
        client.infer(
            "tokenizer",
            [tensor],
            request_id="r",
            priority=1,
            timeout=5_000_000,
            sequence_id=7,
            sequence_start=True,
        )


def test_unusable_settings_fail_the_load(
    tmp_path: Path, byte_level_model: Path, make_repository: MakeRepository
) -> None:
    """A wrong key in model.json stops the server with an error that names file and key."""
    repository = make_repository(tmp_path, byte_level_model)
    settings = repository / "generation" / "1" / "model.json"
    settings.write_text(json.dumps({"model": str(byte_level_model), "max_num_seq": 3}))
    server = TritonServer(repository, models=["tokenizer"])
    with (
        pytest.raises(ServerStartError, match=r'max_num_seq: unknown key \(did you mean "max_num_seqs"'),
        server,
    ):
        pass
    assert not server.is_running
