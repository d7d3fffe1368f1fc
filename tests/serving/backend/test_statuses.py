"""Errors that clients can tell apart: what a status means on each front end, as docs/clients.md says."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from backend_server import ROOT, Repository, Server, StartServer, wait_for
from fake_engine import STALL_ID

UNARY = "generation_unary"
NO_ROOM = "the engine does not start: no room"


@pytest.fixture
def server(start_server: StartServer, tmp_path: Path) -> Server:
    """With the model that answers once, which HTTP and gRPC infer may call."""
    repository = Repository(tmp_path / "models")
    shutil.copytree(ROOT / "model_repository" / UNARY, repository.path / UNARY)
    return start_server(repository).wait_ready()


def ids_tensor(*ids: int) -> grpc.InferInput:
    return grpc.InferInput("input_ids", [len(ids)], "INT32").set_data_from_numpy(np.array(ids, np.int32))


def http_infer(server: Server, model: str, ids: list[int], **parameters: Any) -> tuple[int, str]:
    tensor = {"name": "input_ids", "shape": [len(ids)], "datatype": "INT32", "data": ids}
    path = f"/v2/models/{model}/infer"
    status, text = server.request("POST", path, {"inputs": [tensor], "parameters": parameters})
    return status, str(json.loads(text).get("error", ""))


def grpc_infer(server: Server, model: str, ids: list[int], **parameters: Any) -> tuple[str, str]:
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        try:
            client.infer(model, [ids_tensor(*ids)], parameters=parameters)
        except grpc.InferenceServerException as error:
            return str(error.status()), str(error.message())
    return "", ""


def test_what_the_client_got_wrong(server: Server) -> None:
    """Invalid argument: 400 and INVALID_ARGUMENT."""
    message = "temperature: got 5; allowed: a number in [0, 2]"
    assert http_infer(server, UNARY, [1], temperature=5) == (400, message)
    assert grpc_infer(server, UNARY, [1], temperature=5) == ("StatusCode.INVALID_ARGUMENT", message)
    assert server.generate_error("generation", input_ids=[1], max_tokens=0)[0] == 400


def test_what_the_server_cannot_do_now(server: Server) -> None:
    """Unavailable: 503 and UNAVAILABLE where an answer has one status; `generate` says 400 and the reason."""
    server.repository.set_engine(start_error="no room")
    os.kill(int(server.repository.events("start")[-1]["pid"]), signal.SIGKILL)
    wait_for(lambda: http_infer(server, UNARY, [1]) == (503, NO_ROOM))
    assert grpc_infer(server, UNARY, [1]) == ("StatusCode.UNAVAILABLE", NO_ROOM)
    assert server.generate_error("generation", input_ids=[1]) == (400, NO_ROOM)


def test_a_model_that_is_not_there(server: Server) -> None:
    """Not found: 404 and NOT_FOUND, of Triton's own."""
    assert http_infer(server, "nix", [1])[0] == 404
    assert grpc_infer(server, "nix", [1])[0] == "StatusCode.NOT_FOUND"


def test_a_cancelled_request(server: Server) -> None:
    """Cancelled: CANCELLED; and DEADLINE_EXCEEDED where gRPC's own deadline has passed."""
    errors: list[Any] = []
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        inputs = [ids_tensor(7, STALL_ID)]
        call = client.async_infer(UNARY, inputs, callback=lambda result, error: errors.append(error))
        wait_for(lambda: server.repository.events("add", prompt=[7, STALL_ID]))
        call.cancel()
        wait_for(lambda: errors)
        with pytest.raises(grpc.InferenceServerException) as late:
            client.infer(UNARY, [ids_tensor(8, STALL_ID)], client_timeout=3)
    assert errors[0].status() in ("CANCELLED", "StatusCode.CANCELLED")
    assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    for prompt in ([7, STALL_ID], [8, STALL_ID]):
        (event,) = server.repository.events("add", prompt=prompt)
        request_id = event["request_id"]
        wait_for(lambda i=request_id: server.repository.events("cancel", request_id=i))
