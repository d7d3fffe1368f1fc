"""Wrong settings in config.pbtxt are refused at load, by name."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from backend_server import ROOT, Repository, StartServer

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
        "allowed: role, python, engine_module, forwarded_headers, REPORT_CUSTOM_METRICS, served_model_name",
    ),
    (
        "generation",
        "max_batch_size: 0",
        'max_batch_size: 0 parameters { key: "REPORT_CUSTOM_METRICS" value { string_value: "maybe" } }',
        "parameters: REPORT_CUSTOM_METRICS: got maybe; allowed: true, yes, false, no",
    ),
    (
        "generation_unary",
        "max_batch_size: 0",
        "max_batch_size: 0 response_cache { enable: true }",
        "response_cache { enable }: got true; allowed: false (its key leaves out request parameters",
    ),
    (
        "generation",
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        "instance_group [ { kind: KIND_CPU count: 1 rate_limiter { priority: 2 } } ]",
        "instance_group: rate_limiter: got a setting; allowed: none",
    ),
    (
        "detokenizer",
        "max_batch_size: 0",
        'max_batch_size: 0 default_model_filename: "other.json"',
        "default_model_filename: got other.json; allowed: none",
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
    (
        "generation",
        'name: "request" ',
        'name: "requests" ',
        "input: got requests; allowed: input_ids, request",
    ),
    (
        "generation",
        'name: "request"   data_type: TYPE_UINT8',
        'name: "request"   data_type: TYPE_INT8',
        "data_type of input request: got TYPE_INT8; allowed: TYPE_UINT8",
    ),
    ("detokenizer", 'name: "text_output"', 'name: "text"', "output: got text; allowed: text_output"),
]


@pytest.mark.parametrize(("model", "old", "new", "message"), CASES, ids=[case[3][:40] for case in CASES])
def test_wrong_setting(
    start_server: StartServer, tmp_path: Path, model: str, old: str, new: str, message: str
) -> None:
    """The load fails with the setting, what was given and what is allowed."""
    repository = Repository(tmp_path / "models")
    if model == "generation_unary":
        shutil.copytree(ROOT / "model_repository" / model, repository.path / model)
    repository.edit(model, old, new)
    server = start_server(repository)
    server.process.wait(60)
    assert server.process.returncode != 0
    assert message in server.log().replace("'", "")


def test_every_known_input_is_declared(start_server: StartServer, tmp_path: Path) -> None:
    """What the load names as allowed is what the two models' config.pbtxt declare."""
    for model, name in (("generation", "request"), ("generation_unary", "prompt_lengths")):
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
        assert sorted(known.strip().split(", ")) == sorted(declared)


@pytest.mark.parametrize(("value", "are_there"), [("no", False), ("False", False), ("yes", True)])
def test_report_custom_metrics(
    start_server: StartServer, tmp_path: Path, value: str, are_there: bool
) -> None:
    """The parameter of Triton's vLLM backend that takes this model's figures off /metrics."""
    repository = Repository(tmp_path / "models")
    new = f'parameters {{ key: "REPORT_CUSTOM_METRICS" value {{ string_value: "{value}" }} }}\n'
    repository.edit("generation", 'parameters { key: "role"', new + 'parameters { key: "role"')
    server = start_server(repository).wait_ready()
    server.generate("generation", input_ids=[1], max_tokens=2)
    assert ("vllm:num_requests_running" in server.metrics()) == are_there


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
