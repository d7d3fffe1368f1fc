"""`quire check`: every problem of a model repository, found without a server."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from checked_repository import LLAMA, checked_model, checked_repository, edit, problems_of
from quire.cli import app
from quire.triton.check import check_repository, check_settings
from sample_tokenizers import train_word_level, with_decoder, write_model
from tokenizers import decoders
from typer.testing import CliRunner


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return checked_repository(tmp_path / "repository")


def add(repository: Path, name: str, config: str | None, **files: str) -> None:
    """Another model beside ours; `files`: of its version 1, by name without ".py"."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    if config is not None:
        (repository / name / "config.pbtxt").write_text(config)
    for file, text in files.items():
        (version / f"{file}.py").write_text(text)


def test_models_of_others_are_notes(repository: Path) -> None:
    """What another backend makes of its models is Triton's business: noted at most, and an ensemble may use
    them."""
    add(repository, "python_without_config", None, model="")
    step = """{ model_name: "python_without_config" model_version: -1
        input_map { key: "a" value: "prompt_ids" } output_map { key: "b" value: "made_elsewhere" } },"""
    edit(
        repository / "ensemble" / "config.pbtxt",
        '{ model_name: "generation"',
        f'{step}{{ model_name: "generation"',
    )
    problems = check_repository(repository)
    assert all(problem.is_note for problem in problems), problems
    assert [str(problem).removeprefix(f"{repository}/").split(";")[0] for problem in problems] == [
        "python_without_config/config.pbtxt: no such file",
    ]


def add_second_llm(repository: Path) -> None:
    """`generation_b`, its tokenizer and detokenizer, and an ensemble of them, as a user copies them."""
    names = ("generation", "tokenizer", "detokenizer")
    for name in (*names, "ensemble"):
        shutil.copytree(repository / name, repository / f"{name}_b")
        config = repository / f"{name}_b" / "config.pbtxt"
        text = config.read_text().replace(f'name: "{name}"\n', f'name: "{name}_b"\n')
        if name in ("tokenizer", "detokenizer"):
            text = text.replace('string_value: "generation"', 'string_value: "generation_b"')
        for step in names if name == "ensemble" else ():
            text = text.replace(f'model_name: "{step}"', f'model_name: "{step}_b"')
        config.write_text(text)


def test_ids_are_followed_to_their_tokenizer(repository: Path) -> None:
    """A generation step that gets the ids of another model's tokenizer is a problem, whether its step was
    forgotten or the tokenizer's generation_model; and so is a unary model that does."""
    add_second_llm(repository)
    assert problems_of(repository) == []
    expected = (
        'ensemble_b/config.pbtxt: ensemble_scheduling.step[1].input_map["input_ids"]: got ids of {0}, whose '
        'generation_model is "generation"; allowed: ids of a tokenizer for "generation_b"'
    )
    config = repository / "ensemble_b" / "config.pbtxt"
    edit(config, 'model_name: "tokenizer_b"', 'model_name: "tokenizer"')
    assert problems_of(repository) == [expected.format("tokenizer")]
    edit(config, 'model_name: "tokenizer"', 'model_name: "tokenizer_b"')
    tokenizer = repository / "tokenizer_b" / "config.pbtxt"
    edit(tokenizer, 'string_value: "generation_b"', 'string_value: "generation"')
    assert problems_of(repository) == [expected.format("tokenizer_b")]
    edit(tokenizer, 'string_value: "generation"', 'string_value: "generation_b"')
    edit(
        repository / "ensemble_unary" / "config.pbtxt",
        'string_value: "tokenizer"',
        'string_value: "tokenizer_b"',
    )
    assert problems_of(repository) == [
        'ensemble_unary/config.pbtxt: parameters.tokenizer_model: got "tokenizer_b", whose generation_model '
        'is "generation_b"; allowed: a tokenizer for "generation", this model\'s own'
    ]


def test_the_request_goes_with_the_ids(repository: Path) -> None:
    """An ensemble that leaves out the tensor by which generation knows whose ids it gets is noted."""
    config = repository / "ensemble" / "config.pbtxt"
    both = '{ key: "input_ids" value: "prompt_ids" }, { key: "request" value: "request" }'
    edit(config, f"input_map [ {both}", 'input_map [ { key: "input_ids" value: "prompt_ids" }')
    notes = [problem for problem in check_repository(repository) if problem.is_note]
    expected = 'ensemble_scheduling.step[1].input_map: lacks "request" of tokenizer, by which generation '
    assert any(note.file == config and note.message.startswith(expected) for note in notes), notes


def test_a_step_after_the_detokenizer(repository: Path) -> None:
    """A step after the detokenizer with several instances is noted: it may put a stream's chunks into another
    order."""
    add(
        repository,
        "upper",
        """backend: "python" max_batch_size: 0 model_transaction_policy { decoupled: true }
        input [ { name: "text" data_type: TYPE_STRING dims: [ -1 ] } ]
        output [ { name: "upper" data_type: TYPE_STRING dims: [ -1 ] } ]
        instance_group [ { kind: KIND_CPU count: 2 } ]""",
        model="",
    )
    config = repository / "ensemble" / "config.pbtxt"
    edit(
        config,
        '{ key: "text_output" value: "text_output" }',
        '{ key: "text_output" value: "plain" }',
    )
    text = config.read_text().rstrip().removesuffix("}").rstrip().removesuffix("]").rstrip()
    config.write_text(
        f"""{text}, {{ model_name: "upper" model_version: -1 input_map {{ key: "text" value: "plain" }}
        output_map {{ key: "upper" value: "text_output" }} }} ] }}"""
    )
    (problem,) = check_repository(repository)
    assert problem.is_note
    assert "upper: a step after the detokenizer with 2 instances" in problem.message
    edit(repository / "upper" / "config.pbtxt", "count: 2", "count: 1")
    assert problems_of(repository) == []


@pytest.mark.parametrize("kind", ["FIFO", "folder", "loop", "device", "huge", "deep"])
def test_hostile_configurations(repository: Path, kind: str) -> None:
    """A config.pbtxt that is no regular file of a sane size and depth is a problem, not waited for."""
    path = repository / "ensemble" / "config.pbtxt"
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "deep":
        path.write_text("x { " * 100_000)
    elif kind == "huge":
        path.write_text("#" * 5_000_000)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    (problem,) = problems_of(repository)
    assert problem.startswith("ensemble/config.pbtxt: ")


def test_only_what_will_be_loaded(repository: Path) -> None:
    """Only the models asked for, and the steps of ensembles among them, are checked; one that is not there is
    named."""
    add(repository, "broken", "nonsense")
    assert [*check_repository(repository, ["ensemble"])] == []
    edit(repository / "generation" / "config.pbtxt", "max_batch_size: 0", "max_batch_size: 1")
    (problem,) = check_repository(repository, ["ensemble"])
    assert problem.file == repository / "generation" / "config.pbtxt"
    (problem,) = check_repository(repository, ["ensembel"])
    assert problem.message.startswith(
        '--load-model: got "ensembel" (did you mean "ensemble"?); allowed: broken'
    )


def test_missing_files(repository: Path) -> None:
    """Each file that is missing is named, all in one go."""
    (repository / "mine" / "1").mkdir(parents=True)
    (repository / "mine" / "config.pbtxt").write_text('backend: "python"')
    (repository / "detokenizer" / "config.pbtxt").unlink()
    (repository / "generation" / "1" / "model.json").unlink()
    shutil.rmtree(repository / "ensemble" / "1")
    problems = problems_of(repository)
    assert "mine/1/model.py: no such file; allowed: the model's Python code" in problems
    assert len(problems) == 4  # and none that only follows from another
    assert "detokenizer/config.pbtxt: no such file; allowed: the model's configuration" in problems
    assert "generation/1/model.json: no such file; allowed: a JSON file with engine settings" in problems
    assert "ensemble: has no version; allowed: a folder with a number as its name, such as 1" in problems


def test_versions_that_are_not_loaded(repository: Path) -> None:
    """Only the versions that Triton would load are checked: the highest, or what the version policy says."""
    (repository / "generation" / "2").mkdir()
    shutil.move(repository / "generation" / "1" / "model.json", repository / "generation" / "2")
    assert problems_of(repository) == []
    config = repository / "generation" / "config.pbtxt"
    text = config.read_text()
    for policy in ("all { }", "specific { versions: [ 1 ] }", "latest { num_versions: 2 }"):
        config.write_text(f"{text}\nversion_policy: {{ {policy} }}")
        (problem,) = problems_of(repository)
        assert problem.startswith("generation/1/model.json: no such file"), policy


def test_not_a_repository(tmp_path: Path) -> None:
    """A folder that is missing or empty is one problem."""
    assert problems_of(tmp_path / "none") == [
        f"{tmp_path / 'none'}: no such folder; allowed: a Triton model repository"
    ]
    assert len(problems_of(tmp_path)) == 1


def settings_problems(folder: Path, **settings: object) -> list[str]:
    path = folder / "model.json"
    path.write_text(json.dumps(settings))
    return [str(problem) for problem in check_settings(path)]


def test_settings_and_model_files(tmp_path: Path) -> None:
    """model.json, its model, the model's weights, tokenizer and limits."""
    model = checked_model(tmp_path / "model")
    assert settings_problems(tmp_path, model=str(model)) == []
    (problem,) = settings_problems(tmp_path, model=str(model), max_num_seq=3)
    assert problem.startswith(
        f'{tmp_path / "model.json"}: max_num_seq: unknown key (did you mean "max_num_seqs"?)'
    )
    (problem,) = settings_problems(tmp_path, model=str(model), max_model_len=1000)
    assert (
        problem == f"{tmp_path / 'model.json'}: max_model_len: got 1000; allowed: at most 64, the "
        "max_position_embeddings of model"
    )
    (problem,) = settings_problems(tmp_path, model="./nowhere")
    assert "there is no folder" in problem

    (model / "model.safetensors").unlink()
    (problem,) = settings_problems(tmp_path, model=str(model))
    assert problem.startswith(f"{model}: no weights; allowed: model.safetensors, or ")
    assert settings_problems(tmp_path, model=str(model), load_format="dummy") == []

    write_model(model, with_decoder(train_word_level(), decoders.BPEDecoder()), **LLAMA)
    (problem,) = settings_problems(tmp_path, model=str(model), load_format="dummy")
    assert problem.startswith(f"{model / 'tokenizer.json'}: decoder: got BPEDecoder; allowed: ByteLevel, ")


def test_models_on_the_hub_are_not_downloaded(tmp_path: Path) -> None:
    """A Hugging Face id that is not here yet is a note: the start will download it."""
    path = tmp_path / "model.json"
    path.write_text('{"model": "owner/name"}')
    (problem,) = check_settings(path)
    assert problem.is_note
    assert "`hf download owner/name`" in problem.message


def test_the_command(repository: Path) -> None:
    """Status 0 without problems; status 1 with all of them printed."""
    result = CliRunner().invoke(app, ["check", str(repository)])
    assert (0, f"{repository}: no problems\n") == (result.exit_code, result.output)
    (repository / "mine" / "1").mkdir(parents=True)
    (repository / "mine" / "config.pbtxt").write_text('backend: "python"')
    (repository / "generation" / "1" / "model.json").write_text('{"model": "m", "sed": 1}')
    result = CliRunner().invoke(app, ["check", str(repository)])
    assert result.exit_code == 1
    assert [
        f"{repository}/generation/1/model.json: sed: unknown key",
        f"{repository}/mine/1/model.py: no such file",
    ] == [line.split(" (did")[0].split("; ")[0] for line in result.output.splitlines()]
