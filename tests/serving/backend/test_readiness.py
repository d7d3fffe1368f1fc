"""The server's readiness, where libquire_guard.so is preloaded, and the gauge that needs no guard."""

from __future__ import annotations

import http.client
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
from backend_server import ROOT, Repository, Server, wait_for
from quire.triton.installation import find_guard_library

MODELS = ("generation", "ensemble", "generation_unary")


class HeldEngine:
    """A repository whose engine starts only while no file `hold` is there."""

    def __init__(self, path: Path) -> None:
        self.hold = path / "hold"
        python = path / "python"
        python.write_text(
            f'#!/bin/sh\nwhile [ -e "{self.hold}" ]; do sleep 0.02; done\nexec "{sys.executable}" "$@"\n'
        )
        python.chmod(0o755)
        self.repository = Repository(path / "models")
        self.repository.edit("generation", f'string_value: "{sys.executable}"', f'string_value: "{python}"')
        unary = (ROOT / "model_repository" / "generation_unary" / "config.pbtxt").read_text()
        (path / "models" / "generation_unary" / "1").mkdir(parents=True)
        (path / "models" / "generation_unary" / "config.pbtxt").write_text(unary)

    def kill(self) -> None:
        """End the engine; no other comes until `hold` is gone."""
        self.hold.touch()
        os.kill(self.repository.events("start")[-1]["pid"], signal.SIGKILL)


@pytest.fixture
def engine(tmp_path: Path) -> HeldEngine:
    return HeldEngine(tmp_path)


@pytest.fixture
def guarded(engine: HeldEngine, tmp_path: Path) -> Iterator[Server]:
    server = Server(engine.repository, tmp_path)
    try:
        yield server.wait_ready()
    finally:
        server.stop()


def statuses(server: Server) -> set[bool]:
    """Whether the server and each model that needs the engine say that they are ready; HTTP and gRPC."""
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        return {
            server.get("/v2/health/ready")[0] == http.client.OK,
            client.is_server_ready(),
            *(server.get(f"/v2/models/{model}/ready")[0] == http.client.OK for model in MODELS),
            *(client.is_model_ready(model) for model in MODELS),
        }


def test_ready_while_the_engine_serves(guarded: Server, engine: HeldEngine) -> None:
    """Server and models are ready while the engine takes requests, and not while it is gone."""
    assert {True} == statuses(guarded)
    engine.kill()
    wait_for(lambda: statuses(guarded) == {False}, 60)
    assert http.client.OK == guarded.get("/v2/health/live")[0]
    assert http.client.OK == guarded.get("/v2/models/detokenizer/ready")[0]
    engine.hold.unlink()
    wait_for(lambda: statuses(guarded) == {True}, 60)
    assert "t1 t1" == guarded.generate("ensemble", input_ids=[1], max_tokens=2)["text_output"]


def test_gauge(guarded: Server, engine: HeldEngine) -> None:
    """quire:engine_up is 1 while the engine takes requests, else 0."""
    assert 1 == guarded.metrics()["quire:engine_up"]
    engine.kill()
    wait_for(lambda: guarded.metrics()["quire:engine_up"] == 0, 60)
    engine.hold.unlink()
    wait_for(lambda: guarded.metrics()["quire:engine_up"] == 1, 60)


def test_models_that_are_not_there(guarded: Server) -> None:
    """A model that does not exist is not ready, as without the guard."""
    assert http.client.OK != guarded.get("/v2/models/nothing/ready")[0]


def test_children_do_not_inherit_the_guard(guarded: Server, engine: HeldEngine) -> None:
    """What is preloaded into tritonserver stays out of its children."""
    (started,) = engine.repository.events("start")
    environment = Path(f"/proc/{started['pid']}/environ").read_bytes().split(b"\0")
    assert not [entry for entry in environment if entry.startswith(b"LD_PRELOAD=")]
    assert str(find_guard_library()) in Path(f"/proc/{guarded.process.pid}/maps").read_text()
