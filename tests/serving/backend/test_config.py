"""Wrong settings in config.pbtxt are refused at load, by name."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from backend_server import ROOT, Repository, StartServer

pytestmark = pytest.mark.serving

CASES = [
    (
        "generation",
        '"generation" }',
        '"generator" }',
        "parameters: role: got generator; allowed: generation, tokenizer, detokenizer, unary",
    ),
    (
        "generation",
        'key: "role"',
        'key: "rôle"',
        "parameters: role: got nothing; allowed: generation, tokenizer, detokenizer, unary",
    ),
    (
        "generation",
        'key: "engine_module"',
        'key: "engine_modul"',
        "parameters of role generation: got engine_modul; "
        "allowed: role, python, engine_module, forwarded_headers",
    ),
    (
        "detokenizer",
        'key: "generation_model"',
        'key: "python"',
        "parameters of role detokenizer: got python; allowed: role, generation_model",
    ),
    ("generation", "max_batch_size: 0", "max_batch_size: 4", "max_batch_size: got 4; allowed: 0"),
    (
        "detokenizer",
        "max_batch_size: 0",
        "max_batch_size: 0 dynamic_batching { }",
        "dynamic_batching: got a setting",
    ),
    ("generation", "decoupled: true", "decoupled: false", "decoupled }: got false; allowed: true"),
    ("generation", 'name: "top_k" ', 'name: "topk" ', "input: got topk; allowed: input_ids, n, max_tokens"),
    (
        "generation",
        'name: "temperature"                data_type: TYPE_FP32',
        'name: "temperature"                data_type: TYPE_FP64',
        "data_type of input temperature: got TYPE_FP64; allowed: TYPE_FP32",
    ),
    ("detokenizer", 'name: "text_output"', 'name: "text"', "output: got text; allowed: text_output"),
]


@pytest.mark.parametrize(("model", "old", "new", "message"), CASES, ids=[case[3][:40] for case in CASES])
def test_wrong_setting(
    start_server: StartServer, tmp_path: Path, model: str, old: str, new: str, message: str
) -> None:
    """The load fails with the setting, what was given and what is allowed."""
    repository = Repository(tmp_path / "models")
    repository.edit(model, old, new)
    server = start_server(repository)
    server.process.wait(60)
    assert server.process.returncode != 0
    assert message in server.log().replace("'", "")


def test_every_known_input_is_declared(start_server: StartServer, tmp_path: Path) -> None:
    """What the load names as allowed is what the two models' config.pbtxt declare."""
    for model, name in (("generation", "acknowledge"), ("generation_unary", "row_lengths")):
        repository = Repository(tmp_path / model / "models")
        if model == "generation_unary":
            shutil.copytree(ROOT / "model_repository" / model, repository.path / model)
        text = (ROOT / "model_repository" / model / "config.pbtxt").read_text()
        declared = re.findall(r'name: "(\w+)" .*dims', text.split("input [")[1].split("]\n\n")[0])
        repository.edit(model, f'name: "{name}" ', 'name: "nix" ')
        server = start_server(repository)
        server.process.wait(60)
        found = re.findall(r"input: got nix; allowed: ([\w, ]+)", server.log().replace("'", ""))
        known = max(found, key=len)  # the log has it several times, once in a table that is cut
        assert sorted(known.split(", ")) == sorted(declared)


def test_missing_interpreter(start_server: StartServer, tmp_path: Path) -> None:
    """An interpreter that does not exist is named, with where it is set."""
    repository = Repository(tmp_path / "models")
    repository.edit("generation", sys.executable, "/nowhere/python")
    server = start_server(repository)
    server.process.wait(60)
    assert "cannot start the engine: /nowhere/python: No such file or directory" in server.log().replace(
        "'", ""
    )
    assert "parameters: python" in server.log()
