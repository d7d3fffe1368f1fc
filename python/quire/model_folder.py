"""What is in a folder that is no complete model folder, and the way to one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from quire.errors import ModelError, describe
from quire.model_files import INDEX_LIMIT, download_hint, read_json_object

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GGUF = "model.gguf"  # of a folder that was made from a GGUF file
# Beside config.json: ModelOpt's description of quantised weights, GPTQ's and AWQ's.
HF_QUANT_CONFIG = "hf_quant_config.json"
QUANTIZE_CONFIG = "quantize_config.json"
QUANT_CONFIG = "quant_config.json"

_CONVERT = (
    "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{0}')"
    ".save_pretrained('{0}')\""
)

# Weights that are not read: patterns of their files, what they are, and the way to what is read. The first
# that fits counts.
_OTHER_WEIGHTS: tuple[tuple[str, str, str], ...] = (
    ("pytorch_model*.bin", "PyTorch pickles", f"safetensors, which `{_CONVERT}` writes"),
    ("consolidated*", "weights in their maker's own form", "the Hugging Face form of the model"),
    ("*-of-*.safetensors", f"shards without {INDEX}", "all files of the repository"),
    ("*.gguf", "GGUF files", "the path of one of them"),
    ("*.safetensors", "safetensors of another name", f"{SINGLE}: rename the one to be served"),
    ("*.bin", "weights of another framework", "safetensors"),
    ("tf_model*", "TensorFlow weights", "safetensors"),
    ("flax_model*", "Flax weights", "safetensors"),
    ("*.onnx", "an ONNX model", "safetensors"),
)


class Found(NamedTuple):
    """What a folder holds in place of a model's files, and what would serve in its place."""

    what: str
    allowed: str


def describe_folder(folder: Path) -> Found | None:
    """None where nothing in the folder tells what it is."""
    names = sorted(path.name for path in folder.iterdir())
    if found := describe_files(names, folder):
        return found
    broken = [name for name in names if not os.path.exists(folder / name)]  # noqa: PTH110 - no error, whatever the name
    if broken:
        what = f"links to files that are not there: {listed(broken)}"
    elif next((folder / ".cache" / "huggingface").rglob("*.incomplete"), None):
        what = "a download that did not end"
    elif download_hint(folder):
        what = "a part of the repository only"
    else:
        return None
    return Found(what, f"a complete download{download_hint(folder) or ': run the same `hf download` again'}")


def describe_files(names: Sequence[str], folder: Path) -> Found | None:
    """What files tell by their names. folder: for the way out, and what tells the base of an adapter."""
    if "adapter_config.json" in names:
        base = describe(_base_model(folder))
        return Found(f"adapter_config.json: a LoRA adapter of {base}", "its base model, or both merged")
    for pattern, what, allowed in _OTHER_WEIGHTS:
        if files := [name for name in names if fnmatchcase(name, pattern)]:
            return Found(f"{what}: {listed(files)}", allowed.format(folder) + download_hint(folder))
    return None


def shard_names(folder: Path) -> list[str]:
    """The files that the index names. Raises FileNotFoundError, or ModelError for an index that is none."""
    index = folder / INDEX
    weight_map = read_json_object(index, INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        allowed = "an object of tensor name -> file name"
        raise ModelError(f"{index}: weight_map: got {describe(weight_map)}; allowed: {allowed}")
    for name in weight_map.values():
        # A plain name: an index must not lead out of its folder.
        if not isinstance(name, str) or name != Path(name).name or "\0" in name:
            allowed = f"names of files in {folder}"
            raise ModelError(f"{index}: weight_map: got {describe(name)}; allowed: {allowed}")
    return sorted(set(weight_map.values()))


def _base_model(folder: Path) -> object:
    try:
        return read_json_object(folder / "adapter_config.json").get("base_model_name_or_path")
    except (ModelError, OSError):
        return None


def listed(names: Sequence[str], shown: int = 4) -> str:
    """Name the first few of many."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"
