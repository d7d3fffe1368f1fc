"""`quire check` of models and folders that are not ours: what they are, and which command to run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checked_repository import checked_model, checked_repository, problems_of
from quire.cli import app
from quire.triton.check import check_repository
from typer.testing import CliRunner


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return checked_repository(tmp_path / "repository")


def add(repository: Path, config: str | None, **files: str) -> Path:
    version = repository / "llm" / "1"
    version.mkdir(parents=True)
    if config is not None:
        (repository / "llm" / "config.pbtxt").write_text(config)
    for file, text in files.items():
        (version / file.replace("__", ".")).write_text(text)
    return repository


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ('backend: "vllm"', 'backend: got "vllm", a model of Triton\'s vLLM backend; '),
        ('platform: "vllm"', 'platform: got "vllm", a model of Triton\'s vLLM backend; '),
        ('backend: "tensorrtllm"', 'backend: got "tensorrtllm", a model of TensorRT-LLM; '),
    ],
)
def test_llms_of_other_backends(repository: Path, config: str, what: str) -> None:
    """A model of a backend that serves LLMs is named with the command that moves it."""
    add(repository, config, model__json=json.dumps({"model": "org/small"}))
    (problem,) = problems_of(repository)
    assert problem == (
        f"llm/config.pbtxt: {what}tritonserver does not have that here and will refuse it; allowed: "
        f"what `quire migrate {repository} --output DIR` writes"
    )


def test_arguments_without_a_configuration(repository: Path) -> None:
    """A model.json alone says whose it is."""
    add(repository, None, model__json="{}")
    (problem,) = problems_of(repository)
    assert problem.startswith(
        'llm/config.pbtxt: no such file; allowed: one with `backend: "vllm"`, and then '
    )
    assert f"`quire migrate {repository} --output DIR`" in problem


def test_vllm_in_a_python_model(repository: Path) -> None:
    """The form before Triton had a vLLM backend: it needs vLLM's package."""
    add(repository, 'backend: "python"', model__py="import vllm")
    assert problems_of(repository) == []
    (repository / "llm" / "vllm_engine_args.json").write_text("{}")
    (problem,) = problems_of(repository)
    assert problem.startswith(
        "llm/config.pbtxt: backend: got a model.py that runs vLLM, by vllm_engine_args.json; tritonserver "
        "does not have the package vllm here and will refuse it; allowed: what `quire migrate "
    )


@pytest.mark.parametrize(
    ("config", "file", "problem"),
    [
        (
            'backend: "onnxruntime"',
            "model__onnx",
            'backend: got "onnxruntime"; tritonserver does not have that',
        ),
        ('platform: "tensorrt_plan"', "model__plan", 'platform: got "tensorrt_plan"; tritonserver does not'),
        (None, "model__onnx", "no such file, and a model of the backend onnxruntime; tritonserver does not"),
    ],
)
def test_backends_that_are_not_here(repository: Path, config: str | None, file: str, problem: str) -> None:
    """tritonserver ends when it cannot load a model, so its missing backend is a problem."""
    add(repository, config, **{file: ""})
    (found,) = problems_of(repository)
    assert found.startswith(f"llm/config.pbtxt: {problem}")


def test_folders_that_are_no_repository(tmp_path: Path, repository: Path) -> None:
    """A model's folder, of Triton or of Hugging Face, is told what it is."""
    (problem,) = check_repository(repository / "ensemble")
    assert problem.message == (
        f"is the folder of one model; allowed: the repository that it is in, {repository}"
    )
    (problem, *_) = [
        each for each in check_repository(tmp_path) if each.file.parent == repository
    ]  # beside whatever else is there
    assert problem.message.endswith(f"{repository} holds models: `quire check {repository}`")
    model = checked_model(tmp_path / "weights")
    (problem,) = check_repository(model)
    assert problem.message == f"is a model, and no repository of models: `quire serve --model {model}`"
    (model / "rank0.engine").touch()
    (problem,) = check_repository(model)
    assert problem.message.startswith("is an engine that TensorRT-LLM compiled; ")


def test_the_status(repository: Path) -> None:
    """1 where a start would fail."""
    add(repository, 'backend: "vllm"')
    result = CliRunner().invoke(app, ["check", str(repository)])
    assert result.exit_code == 1
    assert f"quire migrate {repository} --output DIR" in result.output
