"""Loading and unloading through Triton's repository API, and versions side by side."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
from backend_server import Repository, Server, StartServer, wait_for

ROUNDS = 20
EXPLICIT = "--model-control-mode=explicit"


def control(server: Server, action: str, model: str = "ensemble") -> None:
    body = {"parameters": {"unload_dependents": True}} if action == "unload" else {}
    status, text = server.request("POST", f"/v2/repository/models/{model}/{action}", body)
    assert status == 200, text


def resident_bytes(server: Server) -> int:
    fields = Path(f"/proc/{server.process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def num_descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def children(server: Server) -> list[str]:
    """The server's processes: engines."""
    found = []
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            found += (task / "children").read_text().split()
    return found


@pytest.mark.parametrize("is_asked", [True, False])
def test_unload_returns_everything(tmp_path: Path, is_asked: bool) -> None:
    """After each of 20 rounds of load, answer or none, and unload no engine is left, no more descriptors are
    open, and the server's memory is that of the first round within 1 MiB."""
    repository = Repository(tmp_path / "models")
    # One heap: with one for each thread, rounds fill first one and then another.
    environment = {"MALLOC_ARENA_MAX": "1"}
    server = Server(repository, tmp_path, EXPLICIT, environment=environment)
    try:
        server.wait_ready()
        memory, num_open = [], []
        for _ in range(ROUNDS):
            control(server, "load")
            if is_asked:
                answer = server.generate("ensemble", input_ids=[5, 6], max_tokens=4)
                assert answer["text_output"] == "t5 t6 t5 t6"
            control(server, "unload")
            wait_for(lambda: not children(server))
            num_open.append(num_descriptors(server))
            wait_for(lambda: num_descriptors(server) <= num_open[0])
            memory.append(resident_bytes(server))
    finally:
        server.stop()
    assert len(repository.events("start")) == ROUNDS
    assert max(memory) - memory[0] < 1 << 20, memory
    assert server.process.returncode == 0, server.log()


def test_versions_side_by_side(start_server: StartServer, tmp_path: Path) -> None:
    """With a version policy that loads both, each version answers under its number by an engine with its own
    settings, through an ensemble whose step names it too; a request that names none goes to the highest."""
    repository = Repository(tmp_path / "models")
    second = repository.path / "generation" / "2" / "model.json"
    second.parent.mkdir()
    second.write_text(json.dumps({"log": str(tmp_path / "second.jsonl")}))
    config = repository.config_path("generation")
    config.write_text(config.read_text() + "version_policy { all {} }\n")
    shutil.copytree(repository.path / "ensemble", repository.path / "ensemble_1")
    repository.edit("ensemble_1", 'name: "ensemble"', 'name: "ensemble_1"')
    repository.edit("ensemble_1", '"generation" model_version: -1', '"generation" model_version: 1')
    server = start_server(repository).wait_ready()
    for idx, (model, version) in enumerate(
        [("generation/versions/1", 1), ("ensemble_1", 1), ("generation/versions/2", 2), ("ensemble", 2)]
    ):
        answer = server.generate(model, input_ids=[10 + idx], max_tokens=2)
        if model.startswith("ensemble"):
            assert answer["text_output"] == f"t{10 + idx} t{10 + idx}"
        else:
            assert (answer["model_version"], answer["output_ids"]) == (str(version), [10 + idx] * 2)
        assert len(repository.events("add", prompt=[10 + idx])) == (version == 1)
    assert server.generate("generation", input_ids=[5], max_tokens=1)["model_version"] == "2"
    assert (tmp_path / "second.jsonl").read_text().count('"event": "add"') == 3
