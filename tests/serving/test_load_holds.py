"""What a load has read holds until the next load, and ids of one tokenizer never reach another's engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from client import HttpError, generate, metrics, wait_until
from processes import children
from quire.triton.server import TritonServer

MODEL = Path(__file__).parents[2] / "models" / "quire-8m"
MODELS = ["ensemble", "ensemble_unary"]
BODY = {"text_input": "def f(", "temperature": 0, "max_tokens": 12}


def other_model(folder: Path) -> Path:
    """The embedded model with a tokenizer.json that is another file."""
    shutil.copytree(MODEL, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = "a", "b"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def engine_pids(server: TritonServer) -> list[int]:
    return [pid for pid, command in children(server.pid).items() if "quire.engine" in command]


def kill_engine(server: TritonServer) -> None:
    (pid,) = engine_pids(server)
    before = metrics(server.metrics_url)["quire:engine_restarts_total"]
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: metrics(server.metrics_url)["quire:engine_restarts_total"] > before, what="a new engine"
    )


def error_of(server: TritonServer, model: str = "ensemble") -> str:
    with pytest.raises(HttpError) as error:
        generate(server.http_url, BODY, model)
    return error.value.message


def test_edits_of_a_running_server(make_repository: Callable[..., Path], tmp_path: Path) -> None:
    """Another model, or nonsense, in model.json means nothing to a new engine; a changed tokenizer stops it
    with an error that says so. After loads the edit holds, once both sides have it."""
    served = tmp_path / "served"
    shutil.copytree(MODEL, served)
    other = other_model(tmp_path / "other")
    repository = make_repository(num_gpu_blocks_override=256, model=str(served))
    settings = repository / "generation" / "1" / "model.json"
    with TritonServer(repository, models=MODELS) as server:
        expected = generate(server.http_url, BODY)["text_output"]
        for text in (settings.read_text().replace(str(served), str(other)), "{"):
            settings.write_text(text)
            kill_engine(server)
            assert generate(server.http_url, BODY)["text_output"] == expected
            assert generate(server.http_url, BODY, "ensemble_unary")["text_output"] == expected
        settings.write_text(json.dumps({"model": str(other), "num_gpu_blocks_override": 256}))
        server.load_model("generation")
        for model in MODELS:
            message = error_of(server, model)
            assert (
                "vocabulary: got ids of the tokenizer of model 'served'; allowed: of model 'other'" in message
            )
        server.unload_model("tokenizer")
        server.load_model("tokenizer")
        for model in MODELS:
            assert "def f(" in generate(server.http_url, BODY, model)["text_output"]
        (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
        wait_until(lambda: len(engine_pids(server)) == 1, what="the engine of the load before has ended")
        (pid,) = engine_pids(server)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "than when it was loaded (tokenizer.json)" in error_of(server), what="a refusal")
