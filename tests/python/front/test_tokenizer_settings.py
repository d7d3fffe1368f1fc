"""What the load of a tokenizer model reads, and keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from quire.errors import ConfigError, InvalidArgument
from quire.tokenizer import Tokenizer
from quire.triton.tokenizer_settings import TokenizerSettings, newest_settings
from stage_requests import ask

MakeRepository = Callable[[Path, Path], Path]


def test_finds_its_model(tmp_path: Path, byte_level_model: Path, make_repository: MakeRepository) -> None:
    """The parameter generation_model leads to the settings of the newest version, whose limit counts."""
    repository = make_repository(tmp_path, byte_level_model)
    (repository / "generation").rename(repository / "llama")

    def read(parameters: dict[str, str]) -> TokenizerSettings:
        return TokenizerSettings.read(repository / "tokenizer", parameters)

    assert read({"generation_model": "llama"}).max_model_len == 64
    newer = repository / "llama" / "10" / "model.json"
    newer.parent.mkdir()
    newer.write_text(json.dumps({"model": str(byte_level_model), "max_model_len": 32}))
    assert newest_settings(repository / "llama") == newer
    assert read({"generation_model": "llama"}).max_model_len == 32
    with pytest.raises(ConfigError, match="no such file"):
        read({})


def test_files_that_change_mean_nothing(
    tmp_path: Path, byte_level_model: Path, make_repository: MakeRepository
) -> None:
    """Settings that went through the server give the stage of the load, whatever the files hold now."""
    repository = make_repository(tmp_path, byte_level_model)
    read = TokenizerSettings.read(repository / "tokenizer", {})
    (repository / "generation" / "1" / "model.json").write_text("{")
    kept = TokenizerSettings.from_bytes(read.to_bytes())
    assert kept == read
    ids = ask(kept.make_stage({}), {"text_input": "zwei Straßen"}).ids
    assert ids == Tokenizer(byte_level_model).encode("zwei Straßen")


def test_a_tokenizer_of_its_own(
    tmp_path: Path, byte_level_model: Path, make_repository: MakeRepository
) -> None:
    """The setting tokenizer says whose ids they are, the model's config.json how many there may be."""
    other = tmp_path / "other"
    shutil.copytree(byte_level_model, other)
    (other / "config.json").write_text('{"vocab_size": 1}')
    state = json.loads((other / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(state))
    repository = make_repository(tmp_path, byte_level_model)
    path = repository / "generation" / "1" / "model.json"
    path.write_text(json.dumps({"model": str(byte_level_model), "tokenizer": str(other)}))
    read = TokenizerSettings.read(repository / "tokenizer", {})
    assert read.vocab_size != 1
    asked = ask(read.make_stage({}), {"text_input": "DEF"})
    assert asked.ids == Tokenizer(byte_level_model).encode("def")


def test_the_prompt_in_answers(
    tmp_path: Path, byte_level_model: Path, make_repository: MakeRepository
) -> None:
    """exclude_input_in_output in config.pbtxt is for requests that do not say."""
    read = TokenizerSettings.read(make_repository(tmp_path, byte_level_model) / "tokenizer", {})
    for value, excludes in ((None, False), ("true", True), ("True", True), ("false", False)):
        stage = read.make_stage({} if value is None else {"exclude_input_in_output": value})
        for said in (None, True, False):
            inputs = {"text_input": "def"} | ({} if said is None else {"exclude_input_in_output": said})
            text = [] if (excludes if said is None else said) else ["def"]
            assert ask(stage, inputs).fields.get("prompt_text", []) == text


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dialect": "tgi"}, r'parameters: dialect: got "tgi"; allowed: vllm, trtllm'),
        (
            {"exclude_input_in_output": "on"},
            'parameters: exclude_input_in_output: got "on"; allowed: true or',
        ),
        ({"forwarded_headers": "("}, r'parameters: forwarded_headers: got "\(" .*; allowed: a regular'),
    ],
)
def test_bad_parameters(
    tmp_path: Path,
    byte_level_model: Path,
    make_repository: MakeRepository,
    parameters: dict[str, str],
    message: str,
) -> None:
    """A parameter of config.pbtxt that cannot be used is named with what is allowed."""
    read = TokenizerSettings.read(make_repository(tmp_path, byte_level_model) / "tokenizer", parameters)
    with pytest.raises(InvalidArgument, match=rf"^config\.pbtxt: {message}"):
        read.make_stage(parameters)
