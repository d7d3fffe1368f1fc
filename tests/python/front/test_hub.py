"""Names of Hugging Face repositories: what is downloaded, and what a part of a repository says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from quire.config import EngineConfig
from quire.errors import ModelNotFound
from quire.model_path import resolve_model
from quire.triton.check import check_settings

SMALL = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {"model.safetensors.index.json", FIRST, SECOND}
COPIES = {"consolidated.safetensors", "original/model.safetensors", "original/params.json", "onnx/model.onnx"}


class Hub:
    """Stands in for huggingface_hub: a repository, and the cache that holds a part of it."""

    def __init__(self, cache: Path, files: set[str]) -> None:
        self.folder = cache / "models--owner--name" / "snapshots" / "0123"
        self.files = files
        self.is_reachable = True
        self.revisions: list[str | None] = []
        self.caches: list[Path | None] = []

    def snapshot_download(
        self,
        model: str,
        *,
        revision: str | None,
        cache_dir: Path | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        local_files_only: bool,
    ) -> str:
        assert model == "owner/name"
        self.revisions.append(revision)
        self.caches.append(cache_dir)
        if self.is_reachable and not local_files_only:
            wanted = filter_repo_objects(
                sorted(self.files), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
            )
            for name in wanted:
                self.write(name)
        if not self.folder.is_dir():
            raise LocalEntryNotFoundError("Cannot find the snapshot\nmore")
        return str(self.folder)

    def write(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        index = {"weight_map": {"a": FIRST, "b": SECOND}} if name.endswith("index.json") else {}
        path.write_text(json.dumps(index))

    def list_repo_files(self, model: str, *, revision: str | None) -> list[str]:
        if not self.is_reachable:
            raise OSError("no network")
        return sorted(self.files)

    def names(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str]], Hub]:
    def make(files: set[str]) -> Hub:
        hub = Hub(tmp_path, files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        return hub

    return make


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("weights", [{"model.safetensors"}, SHARDS])
def test_one_copy_of_the_weights(hub: Callable[[set[str]], Hub], weights: set[str]) -> None:
    """What the index names, or the single file, and the small files; nothing of other forms."""
    ours = hub(SMALL | weights | COPIES | {"additional_chat_templates/tools.jinja"})
    assert resolve_model("owner/name") == ours.folder
    assert ours.names() == SMALL | weights | {"additional_chat_templates/tools.jinja"}


def test_a_stale_index(hub: Callable[[set[str]], Hub]) -> None:
    """Beside the single file no shard is downloaded, as none would be read."""
    ours = hub(SMALL | SHARDS | {"model.safetensors"})
    resolve_model("owner/name")
    assert ours.names() == SMALL | {"model.safetensors", "model.safetensors.index.json"}


def test_random_weights_need_no_download(hub: Callable[[set[str]], Hub]) -> None:
    ours = hub(SMALL | {"model.safetensors"})
    resolve_model("owner/name", has_weights=False)
    assert ours.names() == SMALL


def test_the_revision(hub: Callable[[set[str]], Hub]) -> None:
    """Every download is of the revision that the settings name, and messages name it."""
    ours = hub(SMALL | SHARDS)
    resolve_model("owner/name", revision="v1")
    assert set(ours.revisions) == {"v1"}
    (ours.folder / SECOND).unlink()
    ours.is_reachable = False
    with pytest.raises(ModelNotFound, match=r'"owner/name" at revision "v1", of which.*name --revision v1`'):
        resolve_model("owner/name", revision="v1")


def test_where_downloads_are_kept(hub: Callable[[set[str]], Hub], tmp_path: Path) -> None:
    """In download_dir, relative to model.json, those of model and tokenizer; messages name it."""
    ours = hub(SMALL | SHARDS)
    path = tmp_path / "model.json"
    path.write_text('{"model": "owner/name", "download_dir": "kept", "tokenizer_revision": "v2"}')
    config = EngineConfig.from_file(path)
    assert config.tokenizer_folder(config.model_folder()) == ours.folder
    assert ours.revisions == [None, None, "v2"]
    assert set(ours.caches) == {tmp_path / "kept"}
    (ours.folder / SECOND).unlink()
    with pytest.raises(ModelNotFound, match=f"`hf download owner/name --cache-dir {tmp_path}/kept`"):
        config.model_folder(download=False)


def test_the_tokenizer_of_a_repository(hub: Callable[[set[str]], Hub], model: Path) -> None:
    """Only small files are downloaded, whatever else there is; without a network it is named as the
    tokenizer's."""
    ours = hub({"tokenizer.json", "model.safetensors"})
    config = EngineConfig(model=str(model), tokenizer="owner/name")
    assert config.tokenizer_folder(model) == ours.folder
    assert ours.names() == {"tokenizer.json"}
    shutil.rmtree(ours.folder)
    path = model.parent / "model.json"
    path.write_text(config.model_dump_json())
    [note] = check_settings(path)
    assert note.is_note
    assert note.message.startswith('tokenizer: got "owner/name", which is no local folder and not in the ')


def test_a_part_of_a_repository(hub: Callable[[set[str]], Hub], tmp_path: Path) -> None:
    """Without a network it is refused with what is missing; with one the rest is downloaded, so that a check,
    which downloads nothing, only notes it."""
    ours = hub(SMALL | SHARDS)
    for name in SHARDS - {SECOND}:
        ours.write(name)
    ours.write("config.json")
    ours.is_reachable = False
    expected = f"a part, without {SECOND}, and the hub cannot be reached; allowed: `hf download owner/name`"
    with pytest.raises(ModelNotFound, match=expected):
        resolve_model("owner/name")
    settings = tmp_path / "model.json"
    settings.write_text('{"model": "owner/name"}')
    (note,) = check_settings(settings)
    assert note.is_note
    assert f"without {SECOND}; allowed: `hf download owner/name` (the first start" in note.message
    ours.is_reachable = True
    resolve_model("owner/name")
    assert ours.names() == SMALL | SHARDS


CONTENTS: list[tuple[set[str], str]] = [
    (
        {"a.Q4_0.gguf", "a.Q8_0.gguf"},
        r"has GGUF files: a\.Q4_0\.gguf, a\.Q8_0\.gguf; allowed: the path of ",
    ),
    ({"config.json", "pytorch_model.bin"}, r"has PyTorch pickles: pytorch_model\.bin; allowed: safetensors"),
    ({"adapter_config.json", "adapter_model.safetensors"}, r"has adapter_config\.json: a LoRA adapter of"),
    ({"config.json"}, r"has no model\.safetensors; allowed: a repository that has it"),
]


@pytest.mark.parametrize(("files", "expected"), CONTENTS)
def test_a_repository_without_safetensors(
    hub: Callable[[set[str]], Hub], files: set[str], expected: str
) -> None:
    """What the repository has is named, though it is not downloaded."""
    ours = hub(files | {"README.md"})
    ours.folder.mkdir(parents=True)
    with pytest.raises(ModelNotFound, match=expected):
        resolve_model("owner/name")


def test_no_network_and_no_cache(hub: Callable[[set[str]], Hub]) -> None:
    """The error says what to do."""
    ours: Any = hub(SMALL)
    ours.is_reachable = False
    expected = r"cannot be reached \(Cannot find the snapshot\); allowed: .*`hf download owner/name`"
    with pytest.raises(ModelNotFound, match=expected):
        resolve_model("owner/name")
