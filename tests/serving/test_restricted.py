"""SECURITY.md's way to keep the load API from clients, on a real server in explicit mode."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from client import generate
from quire.triton.server import TritonServer

APIS = "model-repository,shared-memory,trace,logging"
HEADER, SECRET = "x-admin-key", "a secret"
# tritonserver expects metadata of this prefix from gRPC clients, as gRPC gateways forward HTTP headers.
GRPC_HEADER = f"triton-grpc-protocol-{HEADER}"


@pytest.fixture(scope="module")
def server(make_repository: Callable[..., Path]) -> Iterator[TritonServer]:
    kinds = ("http-restricted-api", "grpc-restricted-protocol")
    flags = [f"--{kind}={APIS}:{HEADER}={SECRET}" for kind in kinds]
    repository = make_repository(num_gpu_blocks_override=256)
    with TritonServer(repository, models=["ensemble"], arguments=flags) as running:
        yield running


def post(server: TritonServer, path: str, body: Any, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(server.http_url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_load_that_runs_a_program(server: TritonServer, tmp_path: Path) -> None:
    """Whoever may load a model may run programs; without the secret nobody may load one."""
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\nexit 7\n")
    program.chmod(0o755)
    config = json.loads(server.get("/v2/models/generation/config")[1])
    config["parameters"]["python"] = {"string_value": str(program)}
    path = "/v2/repository/models/generation/load"
    body = {"parameters": {"config": json.dumps(config)}}
    for headers in ({}, {HEADER: "another"}):
        status, answer = post(server, path, body, **headers)
        assert (status, "restricted" in answer) == (403, True)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for metadata in ({}, {GRPC_HEADER: "another"}):
            with pytest.raises(grpc.InferenceServerException, match="restricted"):
                client.load_model("generation", headers=metadata, config=json.dumps(config))
        assert not ran.exists()
        with pytest.raises(grpc.InferenceServerException, match="exited with code 7"):
            client.load_model("generation", headers={GRPC_HEADER: SECRET}, config=json.dumps(config))
    assert ran.exists()
    assert post(server, path, {}, **{HEADER: SECRET})[0] == 200


def test_the_other_restricted_calls(server: TritonServer) -> None:
    """Shared memory, trace and log settings want the secret too; requests, readiness and metadata do not."""
    region = {"key": "/x", "offset": 0, "byte_size": 64}
    for path in ("/v2/systemsharedmemory/region/x/register", "/v2/trace/setting", "/v2/logging"):
        assert post(server, path, region if "memory" in path else {})[0] == 403
        assert post(server, path, region if "memory" in path else {}, **{HEADER: SECRET})[0] != 403
    assert generate(server.http_url, {"text_input": "a", "max_tokens": 1})
    assert server.get("/v2/health/ready")[0] == server.get("/v2/models/ensemble")[0] == 200
