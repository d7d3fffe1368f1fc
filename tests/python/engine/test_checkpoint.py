"""Safetensors: every tensor lands in its place, and every one that cannot is named before any is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quire.errors import ModelError, ModelNotFound
from quire.models.checkpoint import fill_dummy, load_checkpoint
from quire.models.sources import Place, Source, Stored, Target
from safetensors.torch import save_file
from torch import Tensor


def tensors() -> dict[str, Tensor]:
    return {"a": torch.randn(3, 4), "b": torch.randn(5), "c": torch.randn(2, 2)}


def places(root: str = "") -> dict[str, Place]:
    """Room for tensors(), whose names begin with `root`; `a` lies transposed inside a larger matrix."""
    views = {"a": torch.zeros(4, 8)[:, 2:5].t(), "b": torch.zeros(5), "c": torch.zeros(2, 2)}
    return {root + name: place(root + name, view) for name, view in views.items()}


def place(name: str, view: Tensor, **target: Any) -> Place:
    shape = tuple(view.shape)
    stored = (Stored(name=name, shape=shape),)
    targets = (Target(name=name, begin=0, size=shape[0], **target),)
    return Place(views=(view,), source=Source(stored=stored, targets=targets))


def save_sharded(folder: Path, given: dict[str, Tensor]) -> None:
    weight_map = {}
    for i, (name, tensor) in enumerate(given.items()):
        save_file({name: tensor}, folder / f"model-{i}.safetensors")
        weight_map[name] = f"model-{i}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [False, True])
def test_loads_into_views(tmp_path: Path, sharded: bool) -> None:
    """Single and sharded checkpoints fill the views that the model gives."""
    given, room = tensors(), places()
    if sharded:
        save_sharded(tmp_path, given)
    else:
        save_file(given, tmp_path / "model.safetensors")
    load_checkpoint(tmp_path, room)
    for name, tensor in given.items():
        assert torch.equal(room[name].views[0], tensor)


def test_converts_dtype(tmp_path: Path) -> None:
    """A bfloat16 checkpoint fills float32 weights without loss."""
    given = {name: tensor.bfloat16() for name, tensor in tensors().items()}
    save_file(given, tmp_path / "model.safetensors")
    room = places()
    load_checkpoint(tmp_path, room)
    assert torch.equal(room["a"].views[0], given["a"].float())


def test_rows_in_another_order_and_transposed(tmp_path: Path) -> None:
    """What a family says of a tensor's rows, and of one stored the other way round, is done while loading."""
    given = {"a": torch.randn(3, 4), "b": torch.randn(3)}
    save_file(given, tmp_path / "model.safetensors")
    stored = (Stored(name="a", shape=(3, 4), is_transposed=True),)
    target = Target(name="a", begin=0, size=4, order=(3, 1, 0, 2))
    source = Source(stored=stored, targets=(target,))
    room = {"a": Place(views=(torch.zeros(4, 3),), source=source)}
    room["b"] = place("b", torch.zeros(3), order=(2, 0, 1))
    load_checkpoint(tmp_path, room)
    assert torch.equal(room["a"].views[0], given["a"].t()[[3, 1, 0, 2]])
    assert torch.equal(room["b"].views[0], given["b"][[2, 0, 1]])


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    """A tensor that the architecture needs and the files lack."""
    save_file({"a": tensors()["a"]}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"tensors missing from the checkpoint: b, c$"):
        load_checkpoint(tmp_path, places())


def test_extra_tensor_is_named(tmp_path: Path) -> None:
    """A tensor that has no place, unless it is known to be redundant."""
    save_file(
        tensors() | {"layers.0.rotary_emb.inv_freq": torch.ones(2), "q": torch.ones(1)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ModelError, match=r"does not have: q$"):
        load_checkpoint(tmp_path, places(), ["*rotary_emb.inv_freq"])
    load_checkpoint(tmp_path, places(), ["*rotary_emb.inv_freq", "q"])


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    """File, tensor, its shape and the one that config.json implies; nothing is loaded."""
    save_file(tensors() | {"c": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    room = places()
    with pytest.raises(ModelError, match=r"model\.safetensors: c: got shape \[2, 3\]; allowed: \[2, 2\]"):
        load_checkpoint(tmp_path, room)
    assert not room["a"].views[0].any()


def test_damaged_file_is_named(tmp_path: Path) -> None:
    """A truncated file."""
    save_file(tensors(), tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-8])
    with pytest.raises(ModelError, match=r"model\.safetensors: got 76 bytes of tensors; allowed: 84"):
        load_checkpoint(tmp_path, places())


def test_no_weights(tmp_path: Path) -> None:
    """A folder without either kind of file."""
    with pytest.raises(ModelNotFound, match=r"no weights; allowed: model\.safetensors, or"):
        load_checkpoint(tmp_path, places())


def test_missing_shard_is_named(tmp_path: Path) -> None:
    """The index names a file that is not there."""
    save_sharded(tmp_path, tensors())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"index\.json: weight_map: got \"model-1\.safetensors\""):
        load_checkpoint(tmp_path, places())


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": ["x"]}}'])
def test_malformed_index(tmp_path: Path, text: str) -> None:
    """An index that is not one is refused with what is wrong with it."""
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json: (weight_map|malformed JSON)"):
        load_checkpoint(tmp_path, places())


def test_dummy_weights_repeat() -> None:
    """Random weights depend on the seed only; norms are one."""
    first, second = places(), places()
    norm = place("layer.norm.weight", torch.zeros(4))
    fill_dummy(first | {"layer.norm.weight": norm}, seed=3)
    fill_dummy(second, seed=3)
    assert torch.equal(first["a"].views[0], second["a"].views[0])
    assert first["a"].views[0].any()
    assert torch.equal(norm.views[0], torch.ones(4))


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", ".."])
def test_an_index_does_not_lead_elsewhere(tmp_path: Path, name: str) -> None:
    """The files of an index are plain names in its folder, even where a file is there."""
    for folder in (tmp_path / "other", tmp_path / "model" / "sub"):
        folder.mkdir(parents=True)
        save_file(tensors(), folder / "model.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys("abc", name)}))
    with pytest.raises(ModelError, match=r"(weight_map|\.\.: got a folder)"):
        load_checkpoint(tmp_path / "model", places())


def test_a_tensor_twice_is_named(tmp_path: Path) -> None:
    """Two files with the same tensor: nobody can say which counts."""
    save_sharded(tmp_path, tensors())
    save_file(tensors(), tmp_path / "model-2.safetensors")
    with pytest.raises(ModelError, match=r"model-2\.safetensors: a: got it in model-0\.safetensors too"):
        load_checkpoint(tmp_path, places())


def test_quantized_weights_are_named(tmp_path: Path) -> None:
    """Integers in place of a weight would load as if they were its values."""
    save_file(tensors() | {"b": torch.ones(5, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"b: got dtype I8; allowed: F64, F32, F16, BF16"):
        load_checkpoint(tmp_path, places())


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model."])
def test_names_under_another_prefix(tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """A model without its head, or inside a multimodal one, has other beginnings of names; what other parts
    have is not read, and named in the log."""
    caplog.set_level("INFO")
    given = tensors()
    others = {"vision_tower.w": torch.ones(1)} if prefix else {}
    save_file({prefix + name: given[name] for name in given} | others, tmp_path / "model.safetensors")
    room = places("model.")
    load_checkpoint(tmp_path, room)
    assert torch.equal(room["model.a"].views[0], given["a"])
    assert ("of other parts than the language model: vision_tower.w" in caplog.text) == bool(prefix)
    assert "GB/s" in caplog.text


def test_the_single_file_wins(tmp_path: Path) -> None:
    """An index beside model.safetensors is not read, as in transformers."""
    save_sharded(tmp_path, {name: tensor + 1 for name, tensor in tensors().items()})
    given, room = tensors(), places()
    save_file(given, tmp_path / "model.safetensors")
    load_checkpoint(tmp_path, room)
    assert torch.equal(room["a"].views[0], given["a"])
