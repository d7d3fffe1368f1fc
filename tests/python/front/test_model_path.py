"""What the setting `model` means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quire import model_path
from quire.config import EngineConfig
from quire.errors import ModelNotFound
from quire.model_path import data_folder, resolve_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_paths(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path, or one relative to the settings' folder, or to the working directory without one."""
    assert resolve_model(str(model)) == model
    assert resolve_model("../models/small", tmp_path / "models") == model
    assert resolve_model("models/small", tmp_path) == model
    monkeypatch.chdir(tmp_path)
    assert resolve_model("models/small") == model
    settings = tmp_path / "model.json"
    settings.write_text('{"model": "models/small"}')
    monkeypatch.chdir("/")
    assert EngineConfig.from_file(settings).model_folder() == model


def test_missing_paths(model: Path, tmp_path: Path) -> None:
    """What is missing is named: the folder, or config.json in it."""
    with pytest.raises(ModelNotFound, match=f"there is no folder {tmp_path / 'nothing'}"):
        resolve_model("./nothing", tmp_path)
    with pytest.raises(ModelNotFound, match=f"there is no file {tmp_path / 'nothing.gguf'}"):
        resolve_model("nothing.gguf", tmp_path)
    (model / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"small has no config\.json"):
        resolve_model(str(model))


def test_the_tokenizer(model: Path, tmp_path: Path) -> None:
    """The model's own, or a folder of its own, which need not be a model's."""
    path = tmp_path / "model.json"

    def folder(**settings: str) -> Path:
        path.write_text(json.dumps({"model": "models/small"} | settings))
        return EngineConfig.from_file(path).tokenizer_folder(model)

    assert folder() == folder(tokenizer="models/small") == folder(tokenizer=str(model)) == model
    (tmp_path / "words").mkdir()
    assert folder(tokenizer="./words") == tmp_path / "words"
    with pytest.raises(ModelNotFound, match=f"tokenizer: got 'nothing', and there is no folder {tmp_path}"):
        folder(tokenizer="nothing")


def test_embedded(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is an embedded model; an unknown one is answered with the nearest."""
    monkeypatch.setattr(model_path, "data_folder", lambda name: tmp_path / name)
    assert resolve_model("small", tmp_path) == model
    with pytest.raises(ModelNotFound, match=r'did you mean "small"\?.*an embedded model \(small\)'):
        resolve_model("smal", tmp_path)


def test_files_of_the_checkout() -> None:
    """In a source checkout, the model repository is the checkout's own."""
    assert data_folder("model_repository") == Path(__file__).resolve().parents[3] / "model_repository"
    assert data_folder("nothing") is None
