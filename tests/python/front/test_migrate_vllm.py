"""`quire migrate`: model folders of Triton's vLLM backend as people write them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from checked_repository import checked_model
from migrating import migrate
from quire.cli import app
from quire.model_folder import CONFIG
from quire.tokenizer_files import TOKENIZER
from quire.triton.check import check_repository
from typer.testing import CliRunner

MODEL_KIND = 'backend: "vllm"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n'
SPELLED_OUT = """
backend: "vllm"
max_batch_size: 32
model_transaction_policy { decoupled: True }
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true },
  { name: "image" data_type: TYPE_STRING dims: [ -1 ] optional: true }
]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_GPU gpus: [ 0 ] } ]
"""


def make(repository: Path, name: str, config: str | None, arguments: Any, file: str = "1/model.json") -> Path:
    folder = repository / name
    (folder / file).parent.mkdir(parents=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    (folder / file).write_text(arguments if isinstance(arguments, str) else json.dumps(arguments))
    return folder


def verdicts(report: Any, index: int = 0) -> dict[str, str]:
    return {finding["key"]: finding["verdict"] for finding in report["models"][index]["findings"]}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "old"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new"


ARGUMENTS: list[dict[str, Any]] = [
    {"disable_log_requests": "true", "gpu_memory_utilization": 0.5},
    {"disable_log_requests": "true", "gpu_memory_utilization": 1},
    {"gpu_memory_utilization": "0.5", "dtype": "bfloat16", "download_dir": "/workspace/cache"},
    {"tokenizer_mode": "auto", "dtype": "auto", "max_model_len": 32, "tensor_parallel_size": 1},
    {"max_model_len": 32, "disable_log_requests": True, "enforce_eager": True, "swap_space": 4},
    {"gpu_memory_utilization": 0.9, "enforce_eager": "false"},
    {"enable_lora": "false", "max_lora_rank": 8, "distributed_executor_backend": "ray", "quantization": None},
]


@pytest.mark.parametrize(
    "config", [MODEL_KIND, SPELLED_OUT, 'platform: "vllm"\n', 'backend: "vllm"', "", None]
)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_what_asks_for_nothing_moves(
    tmp_path: Path, repository: Path, output: Path, config: str | None, arguments: dict[str, Any]
) -> None:
    """Every setting is taken or neutral, and the model's new settings hold what was taken."""
    make(repository, "chat", config, {"model": "org/small"} | arguments)
    status, report = migrate(repository, "--output", output)
    assert status == 0, report
    assert set(verdicts(report).values()) <= {"taken", "neutral"}
    assert set(arguments) | {"model"} <= set(verdicts(report))
    settings = json.loads((output / "chat-generation" / "1" / "model.json").read_text())
    assert settings == report["models"][0]["settings"]
    assert settings["model"] == "org/small"
    taken = {key for key, verdict in verdicts(report).items() if verdict == "taken" and key in arguments}
    assert taken == settings.keys() & arguments.keys()
    assert report["written"] == sorted(folder.name for folder in output.iterdir())


def test_it_can_be_served(tmp_path: Path, repository: Path, output: Path) -> None:
    """The new repository passes `quire check`, under the old names, one of them and both."""
    model = checked_model(tmp_path / "model")
    for name in ("vllm_model", "second"):
        make(repository, name, MODEL_KIND, {"model": str(model), "max_model_len": 32})
    assert migrate(repository, "--output", output)[0] == 0
    assert check_repository(output) == []
    assert {"vllm_model", "second"} <= {folder.name for folder in output.iterdir()}
    assert migrate(repository / "second", "--output", tmp_path / "one")[0] == 0
    assert check_repository(tmp_path / "one") == []
    assert not (tmp_path / "one" / "vllm_model").exists()


def test_old_defaults_stay(repository: Path, output: Path) -> None:
    """What the old backend gave a request that says nothing: 16 tokens, and no checkpoint's sampling."""
    make(repository, "chat", MODEL_KIND, {"model": "org/small", "generation_config": "auto"})
    make(repository, "long", MODEL_KIND, {"model": "org/small", "default_max_tokens": 64})
    assert migrate(repository, "--output", output)[0] == 0
    for name, length in (("chat", 16), ("long", 64)):
        settings = json.loads((output / f"{name}-generation" / "1" / "model.json").read_text())
        assert (settings["default_max_tokens"], settings["generation_config"]) == (length, "vllm")


@pytest.mark.parametrize(
    ("arguments", "config", "keys"),
    [
        ({"tensor_parallel_size": 8, "max_model_len": 32}, "", ["tensor_parallel_size"]),
        (
            {
                "tensor_parallel_size": 2,
                "enable_lora": "true",
                "max_lora_rank": 8,
                "trust_remote_code": "true",
            },
            "",
            ["tensor_parallel_size", "enable_lora"],
        ),
        ({"quantization": "bitsandbytes"}, "", ["quantization"]),
        ({"max_num_seq": 4}, "", ["max_num_seq"]),
        ({"kv_cache_dtype": "fp8_e5m2"}, "", ["kv_cache_dtype"]),
        ({}, "instance_group [ { count: 2 kind: KIND_MODEL } ]", ["instance_group.count"]),
        ({}, "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 1 ] } ]", ["instance_group.gpus"]),
        (
            {},
            "dynamic_batching { default_queue_policy { max_queue_size: 8 } }",
            ["dynamic_batching.max_queue_size"],
        ),
        ({}, "sequence_batching { }", ["sequence_batching"]),
        ({}, "response_cache { enable: true }", ["response_cache"]),
        ({}, 'parameters { key: "MINE" value { string_value: "1" } }', ["parameters.MINE"]),
        (
            {},
            'parameters { key: "GPU_DEVICE_IDS" value { string_value: "1" } }',
            ["parameters.GPU_DEVICE_IDS"],
        ),
        ({}, 'input [ { name: "mine" data_type: TYPE_STRING dims: [ 1 ] } ]', ["input.mine"]),
        ({}, 'input [ { name: "text_input" data_type: TYPE_INT32 dims: [ 1 ] } ]', ["input.text_input"]),
        ({}, "a_newer_field: 1", ["a_newer_field"]),
        ({}, 'name: "another"', ["name"]),
    ],
)
def test_what_has_no_counterpart(
    repository: Path, output: Path, arguments: dict[str, Any], config: str, keys: list[str]
) -> None:
    """Nothing is written while it is not named by --ignore, each by its key."""
    make(repository, "chat", f'backend: "vllm"\n{config}', {"model": "org/small"} | arguments)
    status, report = migrate(repository, "--output", output)
    assert (status, report["open"], report["written"]) == (1, keys, None)
    assert not output.exists()
    ignored = [option for key in keys for option in ("--ignore", key)]
    if len(keys) > 1:
        assert migrate(repository, "--output", output, *ignored[:2])[0] == 1
    status, report = migrate(repository, "--output", output, *ignored)
    assert (status, report["open"]) == (0, [])
    assert all(verdicts(report)[key] == "ignored" for key in keys)
    assert not set(keys) & report["models"][0]["settings"].keys()
    assert (output / "chat").is_dir()


def test_metrics_stay_on_or_off(repository: Path, output: Path) -> None:
    """REPORT_CUSTOM_METRICS goes to the model that has the metrics."""
    for value, expected in (("true", "yes"), ("0", "no")):
        name = f"model_{expected}"
        parameter = f'parameters: {{ key: "REPORT_CUSTOM_METRICS" value: {{ string_value: "{value}" }} }}'
        make(repository, name, f'backend: "vllm"\n{parameter}', {"model": "org/small"})
    assert migrate(repository, "--output", output)[0] == 0
    for expected in ("yes", "no"):
        text = (output / f"model_{expected}-generation" / "config.pbtxt").read_text()
        assert f'"REPORT_CUSTOM_METRICS" value: {{ string_value: "{expected}" }}' in text


def test_files_of_a_config_map(tmp_path: Path, repository: Path, output: Path) -> None:
    """Kubernetes mounts files as links into a hidden folder, which nobody may write to."""
    data = repository / "chat" / "..2026_01_01"
    make(repository / "chat", "..2026_01_01", MODEL_KIND, {"model": "org/small"})
    (repository / "chat" / "..data").symlink_to("..2026_01_01")
    (repository / "chat" / "config.pbtxt").symlink_to("..data/config.pbtxt")
    (repository / "chat" / "1").symlink_to("..data/1")
    for path in (data / "1" / "model.json", data / "config.pbtxt"):
        path.chmod(0o444)
    for path in (data / "1", data, repository / "chat", repository):
        path.chmod(0o555)
    try:
        (tmp_path / "mounted").symlink_to(repository)
        assert migrate(tmp_path / "mounted", "--output", output)[0] == 0
    finally:
        for path in (repository, repository / "chat", data, data / "1"):
            path.chmod(0o755)
    assert (output / "chat-generation" / "1" / "model.json").is_file()
    assert os.access(output / "chat" / "config.pbtxt", os.W_OK)


def test_weights_inside_of_the_repository(tmp_path: Path, repository: Path, output: Path) -> None:
    """A path as the old server saw it is found, a relative one beside the model; --model names others."""
    make(repository, "mounted", MODEL_KIND, {"model": "/models/mounted/weights"})
    make(repository, "beside", MODEL_KIND, {"model": "weights", "tokenizer": "./words"})
    make(repository, "gone", MODEL_KIND, {"model": "/nowhere/at/all"})
    make(repository, "small", MODEL_KIND, {"model": "/w/small"})  # no weights in a folder of that name
    for folder, file in (
        ("mounted/weights", CONFIG),
        ("beside/weights", CONFIG),
        ("beside/1/words", TOKENIZER),
    ):
        (repository / folder).mkdir()
        (repository / folder / file).touch()
    status, report = migrate(repository, "--output", output, "--model", f"gone={tmp_path}")
    assert status == 0
    settings = {model["names"][0]: model["settings"] for model in report["models"]}
    assert settings["mounted"]["model"] == str(repository / "mounted" / "weights")
    assert settings["beside"]["model"] == str(repository / "beside" / "weights")
    assert settings["beside"]["tokenizer"] == str(repository / "beside" / "1" / "words")
    assert settings["gone"]["model"] == str(tmp_path)
    assert settings["small"]["model"] == "/w/small"


def test_versions(repository: Path, output: Path) -> None:
    """The version that Triton loads moves and keeps its number; several need a word."""
    folder = make(repository, "chat", MODEL_KIND, {"model": "org/old"})
    make(folder, "3", None, {"model": "org/new"}, "model.json")
    status, report = migrate(repository, "--output", output)
    assert (status, report["models"][0]["settings"]["model"]) == (0, "org/new")
    assert {path.name for path in output.glob("chat*/*") if path.is_dir()} == {"3"}
    (folder / "config.pbtxt").write_text(MODEL_KIND + "version_policy { specific { versions: [ 1 ] } }")
    status, report = migrate(repository, "--dry-run")
    assert (status, report["models"][0]["settings"]["model"]) == (0, "org/old")
    (folder / "config.pbtxt").write_text(MODEL_KIND + "version_policy { all {} }")
    status, report = migrate(repository, "--dry-run")
    assert (status, report["open"]) == (1, ["version_policy"])


@pytest.mark.parametrize("file", ["vllm_engine_args.json", "1/vllm_engine_args.json"])
def test_a_python_model_of_ones_own(repository: Path, output: Path, file: str) -> None:
    """The arguments move; the code does not, and that needs the user's word."""
    inputs = 'input [ { name: "PROMPT" data_type: TYPE_STRING dims: [ 1 ] } ]'
    folder = make(repository, "chat", f'backend: "python"\n{inputs}', {"model": "org/small"}, file)
    (folder / "1").mkdir(exist_ok=True)
    (folder / "1" / "model.py").write_text("import vllm")
    status, report = migrate(repository, "--output", output)
    assert (status, report["open"]) == (1, ["input.PROMPT", "model.py"])
    ignored = ("--ignore", "input.PROMPT", "--ignore", "model.py")
    status, report = migrate(repository, "--output", output, *ignored)
    assert (status, report["models"][0]["kind"]) == (0, "vLLM in a Python model")
    assert report["models"][0]["settings"]["model"] == "org/small"


def test_adapters(repository: Path, output: Path) -> None:
    """multi_lora.json is read where enable_lora says so, which is what is named."""
    folder = make(repository, "chat", MODEL_KIND, {"model": "org/small", "enable_lora": True})
    (folder / "1" / "multi_lora.json").write_text('{"sql": "/adapters/sql"}')
    status, report = migrate(repository, "--output", output)
    assert (status, report["open"]) == (1, ["enable_lora"])
    (folder / "1" / "model.json").write_text('{"model": "org/small", "enable_lora": false}')
    assert migrate(repository, "--output", output)[0] == 0


def test_other_models_stay(repository: Path, output: Path) -> None:
    """What no engine of ours could serve is named and left."""
    make(repository, "chat", MODEL_KIND, {"model": "org/small"})
    make(repository, "network", 'backend: "onnxruntime"', "", "1/model.onnx")
    make(repository, "mine", 'backend: "python"', "import numpy", "1/model.py")
    status, report = migrate(repository, "--output", output)
    assert (status, report["left"]) == (0, {"mine": "python backend", "network": "onnxruntime backend"})
    assert not (output / "network").exists()


def test_nothing_is_overwritten(tmp_path: Path, repository: Path, output: Path) -> None:
    """A name that is there already, the source as the target, an unknown name: one line, and nothing else."""
    make(repository, "chat", MODEL_KIND, {"model": "org/small"})
    assert migrate(repository, "--output", output)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in [*output.rglob("*"), *repository.rglob("*")]}
    for arguments, message in (
        ([repository, "--output", output], f"--output: got {output}, which has chat; allowed: "),
        ([repository, "--output", repository], f"--output: got {repository}, which is what moves; "),
        ([repository, "--output", repository / "chat"], "which is what moves; allowed: another folder"),
        ([repository, "--output", __file__], "--output: got "),
        ([tmp_path], f"REPOSITORY: got {tmp_path}, which has new (no config.pbtxt), old (no config.pbtxt); "),
        ([output], f"REPOSITORY: got {output}, which has chat ("),
        ([tmp_path / "none"], "REPOSITORY: got "),
        ([repository, "--ignore", "swap_space"], '--ignore: got "swap_space"; allowed: none: each setting'),
        ([repository, "--model", "cat=org/x"], '--model: got "cat=org/x"; allowed: NAME=MODEL with NAME one'),
        ([repository, "--model", "chat="], '--model: got "chat="; allowed: NAME=MODEL, each name once'),
    ):
        status, text = migrate(*arguments)
        assert status == 1
        assert message in text
    after = {path: path.stat().st_mtime_ns for path in [*output.rglob("*"), *repository.rglob("*")]}
    assert before == after


def test_names_that_meet(repository: Path) -> None:
    """A model that is called like a step of another one is named with it, before anything is written."""
    make(repository, "chat", MODEL_KIND, {"model": "org/small"})
    make(repository, "chat_unary", MODEL_KIND, {"model": "org/small"})
    status, text = migrate(repository, "--dry-run")
    assert status == 1
    assert "chat and chat_unary, which both need a model chat_unary; allowed: one of them" in text
    assert migrate(repository / "chat_unary", "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ("backend: ", "{}", "chat/config.pbtxt: line 1:"),
        (MODEL_KIND, "{", "chat/1/model.json: malformed JSON at line 1"),
        (MODEL_KIND, "[]", "chat/1/model.json: got []; allowed: a JSON object with engine arguments"),
        (MODEL_KIND, '{"model": "a", "model": "b"}', "chat/1/model.json: model: got the key twice"),
        ("max_batch_size: ${n}", "{}", "chat/config.pbtxt: got a template; allowed: the file that "),
    ],
)
def test_files_that_cannot_be_read(repository: Path, config: str, arguments: str, message: str) -> None:
    """The file is named, with the place in it."""
    make(repository, "chat", config, arguments)
    status, text = migrate(repository, "--dry-run")
    assert status == 1
    assert message in text


def test_a_folder_that_may_not_be_read(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named in one line."""

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    make(repository, "chat", MODEL_KIND, {"model": "org/small"})
    monkeypatch.setattr("quire.migrate.repository.model_folders", refuse)
    status, text = migrate(repository)
    assert status == 1
    assert text == f"REPOSITORY: got {repository}: Permission denied; allowed: folders to read\n"


def test_no_model(repository: Path, output: Path) -> None:
    """A model.json without a model, or none at all, waits for --model, and nothing else will do."""
    make(repository, "chat", MODEL_KIND, {"max_model_len": 32})
    status, report = migrate(repository, "--output", output)
    assert (status, report["open"]) == (1, ["model"])
    assert migrate(repository, "--output", output, "--ignore", "model")[0] == 1
    status, report = migrate(repository, "--output", output, "--model", "org/small")
    assert (status, report["models"][0]["settings"]["model"]) == (0, "org/small")


def test_what_is_shown(repository: Path, output: Path) -> None:
    """Without --json a table, and the next command; --dry-run writes nothing."""
    make(repository, "chat", MODEL_KIND, {"model": "org/small", "swap_space": 4})
    arguments = ["migrate", str(repository), "--output", str(output)]
    shown = CliRunner().invoke(app, [*arguments, "--dry-run"]).output
    assert "swap_space" in shown
    assert "nothing was written: --dry-run" in shown
    assert not output.exists()
    assert f"quire serve --repository {output}" in CliRunner().invoke(app, arguments).output
