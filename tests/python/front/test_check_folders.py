"""`quire check` of what people have in place of a model folder, and of checkpoints that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checked_repository import checked_model
from quire.triton.check import check_settings
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checked_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def problems_of(model: Path, **settings: object) -> list[str]:
    path = model.parent / "model.json"
    path.write_text(json.dumps({"model": str(model)} | settings))
    return [f"{'note: ' if problem.is_note else ''}{problem}" for problem in check_settings(path)]


def shard(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = names[::2], names[1::2]
    for file, half in zip(SHARDS, halves, strict=True):
        save_file({name: tensors[name] for name in half}, model / file)
    weight_map = {name: file for file, half in zip(SHARDS, halves, strict=True) for name in half}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def change(model: Path, edit: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file(edit(tensors) or tensors, model / "model.safetensors")


def configure(model: Path, file: str = "config.json", **values: Any) -> None:
    path = model / file
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


def rename_weights(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)


def only(model: Path, *names: str) -> None:
    """A folder with just these files, which hold nothing that anybody reads."""
    for file in model.iterdir():
        file.unlink()
    for name in names:
        (model / name).write_bytes(b"")


def without_a_shard(model: Path) -> None:
    shard(model)
    (model / SHARDS[1]).unlink()


def without_an_index(model: Path) -> None:
    shard(model)
    (model / "model.safetensors.index.json").unlink()


def as_pointer(model: Path, name: str) -> None:
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def as_adapter(model: Path) -> None:
    only(model, "adapter_model.safetensors")
    configure(model, "adapter_config.json", base_model_name_or_path="owner/base")


def broken_link(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("../blobs/0123")


def interrupted(model: Path) -> None:
    (model / "model.safetensors").unlink()
    part = model / ".cache" / "huggingface" / "download" / "x.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"")


def bare_head(tensors: Tensors) -> None:
    del tensors["lm_head.weight"]


def extra(tensors: Tensors) -> None:
    tensors["v_head.summary.weight"] = torch.ones(1)


def wide(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = torch.ones(700, 64)


def as_bytes(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)


# What a folder is turned into -> what the one problem says.
FORMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (without_a_shard, f'weight_map: got "{SHARDS[1]}"; allowed: files that are in '),
    "shards without index": (
        without_an_index,
        f"no weights but shards without model.safetensors.index.json: {SHARDS[0]}, {SHARDS[1]}; allowed: all",
    ),
    "consolidated": (
        lambda model: rename_weights(model, "consolidated.safetensors"),
        "no weights but weights in their maker's own form: consolidated.safetensors; allowed: the ",
    ),
    "variant": (
        lambda model: rename_weights(model, "model.fp16.safetensors"),
        "no weights but safetensors of another name: model.fp16.safetensors; allowed: model.safe",
    ),
    "pickle": (
        lambda model: rename_weights(model, "pytorch_model.bin"),
        "no weights but PyTorch pickles: pytorch_model.bin; allowed: safetensors, which `python -c ",
    ),
    "sharded pickles": (
        lambda model: only(model, "config.json", "pytorch_model-00001-of-00002.bin") or as_configured(model),
        "no weights but PyTorch pickles: pytorch_model-00001-of-00002.bin; allowed: safetensors, which",
    ),
    "own form": (
        lambda model: only(model, "params.json", "consolidated.00.pth"),
        "has no config.json but weights in their maker's own form: consolidated.00.pth; allowed: the Hugging",
    ),
    "adapter": (
        as_adapter,
        'has no config.json but adapter_config.json: a LoRA adapter of "owner/base"',
    ),
    "two GGUF files": (
        lambda model: only(model, "a.gguf", "b.gguf"),
        "has no config.json but GGUF files: a.gguf, b.gguf; allowed: the path of one of them",
    ),
    "damaged GGUF file": (
        lambda model: only(model, "a.gguf"),
        "a.gguf: got another beginning than GGUF; allowed: a GGUF file",
    ),
    "nothing": (lambda model: only(model), "has no config.json; allowed: a model folder"),
    "LFS weights": (
        lambda model: as_pointer(model, "model.safetensors"),
        "model.safetensors: got a Git LFS pointer; allowed: the file itself (`git lfs pull`)",
    ),
    "LFS tokenizer": (
        lambda model: as_pointer(model, "tokenizer.json"),
        "tokenizer.json: got a Git LFS pointer; allowed: the file itself (`git lfs pull`)",
    ),
    "truncated": (truncate, "(the file is truncated)"),
    "broken link": (
        broken_link,
        "model.safetensors: got a link to a file that is not there",
    ),
    "interrupted download": (interrupted, "no weights but a download that did not end; allowed: a complete"),
    "no head": (
        lambda model: change(model, bare_head),
        "tensors missing from the checkpoint: lm_head",
    ),
    "extra tensor": (lambda model: change(model, extra), "does not have: v_head.summary.weight"),
    "shape": (
        lambda model: change(model, wide),
        "lm_head.weight: got shape [700, 64]; allowed: [600, 64], as config.json says",
    ),
    "quantized tensor": (
        lambda model: change(model, as_bytes),
        "lm_head.weight: got dtype I8; allowed: ",
    ),
    "quantization_config": (
        lambda model: configure(model, quantization_config={"quant_method": "bitsandbytes"}),
        'config.json: quantization_config.quant_method: got "bitsandbytes"; allowed: "compressed-tensors", ',
    ),
    "compression_config": (
        lambda model: configure(model, compression_config={"format": "int-quantized"}),
        "config.json: compression_config.config_groups: got null; allowed: an object",
    ),
    "ModelOpt": (
        lambda model: configure(model, "hf_quant_config.json", quantization={"quant_algo": "NVFP4"}),
        'hf_quant_config.json: quantization.quant_algo: got "NVFP4"; allowed: "FP8", ',
    ),
    "GPTQ": (
        lambda model: configure(model, "quantize_config.json", bits=4, group_size=128),
        "quantize_config.json: group_size: got 128; allowed: a divisor of 64, the inputs of model.layers.0.",
    ),
    "eos beyond the vocabulary": (
        lambda model: configure(model, eos_token_id=5000),
        "eos_token_id of generation_config.json, else of config.json: got 5000; allowed: 0 to 599",
    ),
    "eos of the generation config": (
        lambda model: configure(model, "generation_config.json", eos_token_id=[1, 600]),
        "eos_token_id of generation_config.json, else of config.json: got 600; allowed: 0 to 599",
    ),
}


def as_configured(model: Path) -> None:
    """The config.json and the tokenizer of a good model again."""
    from checked_repository import LLAMA
    from sample_tokenizers import train_byte_level, write_model

    write_model(model, train_byte_level(), **LLAMA)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_is_named(model: Path, form: str) -> None:
    """A folder that cannot be served is one problem, which says what is there and the way out."""
    spoil, expected = FORMS[form]
    spoil(model)
    (problem,) = problems_of(model)
    assert not problem.startswith("note: ")
    assert expected in problem


def wrapped(prefix: str, head: str) -> Callable[[Tensors], Tensors]:
    def edit(tensors: Tensors) -> Tensors:
        renamed = {
            (head if name == "lm_head.weight" else prefix) + name.removeprefix("model."): tensor
            for name, tensor in tensors.items()
        }
        return renamed | {"vision_tower.patch.weight": torch.ones(2)}

    return edit


def stale_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')


SERVED: dict[str, Callable[[Path], object]] = {
    "as it is": lambda model: None,
    "sharded": shard,
    "a stale index beside the single file": stale_index,
    "architecture by model_type": lambda model: configure(model, architectures=None),
    "old capitals": lambda model: configure(model, architectures=["LLaMAForCausalLM"]),
    "adapter beside its base": lambda model: configure(model, "adapter_config.json", r=8),
    "pickles beside safetensors": lambda model: (model / "pytorch_model.bin").write_bytes(b""),
    "ModelOpt of the cache only": lambda model: configure(
        model, "hf_quant_config.json", quantization={"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    ),
    "language_model.model.": lambda model: change(model, wrapped("language_model.model.", "language_model.")),
    "model.language_model.": lambda model: change(model, wrapped("model.language_model.", "")),
}


@pytest.mark.parametrize("form", SERVED)
def test_what_is_served(model: Path, form: str) -> None:
    """Folders whose weights can be found are no problem, whatever lies beside them."""
    SERVED[form](model)
    assert problems_of(model) == []


@pytest.mark.parametrize("form", ["language_model.model.", "model.language_model."])
def test_vision_tensors_alone_are_passed_over(model: Path, form: str) -> None:
    """A tensor of the language model that its architecture does not have is a problem in a wrapper, too."""
    SERVED[form](model)
    name = f"{form}layers.0.self_attn.q_norm.weight"
    change(model, lambda tensors: tensors | {name: torch.ones(32)})
    (problem,) = problems_of(model)
    assert f"does not have: {name}" in problem


def test_a_snapshot_of_the_hub_names_its_command(model: Path, tmp_path: Path) -> None:
    """A folder of the hub's cache with a part of its files says which download completes it."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    without_a_shard(snapshot)
    (problem,) = problems_of(snapshot)
    assert problem.endswith("(`hf download owner/name`)")
    (snapshot / "model.safetensors.index.json").unlink()
    (snapshot / SHARDS[0]).unlink()
    (problem,) = problems_of(snapshot)
    expected = "a part of the repository only; allowed: a complete download (`hf download owner/name`)"
    assert f"no weights but {expected}" in problem


def copy_embedding(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def other_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = torch.ones(600, 64)


@pytest.mark.parametrize("is_other", [False, True])
def test_a_tied_head_that_is_stored(model: Path, is_other: bool) -> None:
    """A head that differs from the embedding it is tied to is used, with a note; one that is equal is not."""
    configure(model, tie_word_embeddings=True)
    change(model, other_head if is_other else copy_embedding)
    notes = problems_of(model)
    assert len(notes) == is_other
    assert all(note.startswith("note: ") and "that head is used" in note for note in notes)
