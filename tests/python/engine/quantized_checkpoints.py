"""Quantised checkpoints made from plain ones by plain arithmetic, each with the plain one of its dequantised
weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from quire.models.checkpoint import load_checkpoint
from quire.models.config import load_model_config
from quire.models.parameters import Weights
from safetensors.torch import load_file, save_file
from torch import Tensor

CPU = torch.device("cpu")

# The projections that are quantised: all but the head and the routers.
INNER = re.compile(r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)\.weight")


class Stored(NamedTuple):
    """A weight's tensors by their suffixes (".weight"), and the numbers that they stand for, in float32."""

    tensors: Mapping[str, Tensor]
    values: Tensor


def fp8_tensor(weight: Tensor, suffix: str = "_scale", shape: tuple[int, ...] = ()) -> Stored:
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    tensors = {".weight": codes, f".weight{suffix}": scale.reshape(shape)}
    return Stored(tensors | {".input_scale": torch.tensor(0.5)}, codes.float() * scale)


def fp8_channel(weight: Tensor, scale_dtype: torch.dtype = torch.float32) -> Stored:
    scale = (weight.abs().amax(1, keepdim=True) / 448).to(scale_dtype)
    codes = (weight / scale.float()).to(torch.float8_e4m3fn)
    return Stored({".weight": codes, ".weight_scale": scale}, codes.float() * scale.float())


def fp8_block(weight: Tensor, suffix: str = "_scale", has_unit_axes: bool = False) -> Stored:
    """A scale for each 128 x 128, also of those at the edges that are smaller."""
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // 128), -(-columns // 128))
    values = torch.empty_like(weight)
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(scale.size(0)):
        for j in range(scale.size(1)):
            block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scale[i, j] = weight[block].abs().max() / 448
            codes[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
            values[block] = codes[block].float() * scale[i, j]
    stored = scale[:, None, :, None] if has_unit_axes else scale
    return Stored({".weight": codes, f".weight{suffix}": stored}, values)


def quantize_folder(
    source: Path,
    folder: Path,
    stored_as: Callable[[Tensor], Stored],
    *,
    config: Mapping[str, Any],
    is_quantized: Callable[[str], bool] = lambda name: INNER.fullmatch(name) is not None,
    files: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """The quantised copy of a plain model, and the plain copy with its dequantised weights, in float32.

    config: keys for config.json. files: other JSON files.
    """
    quantized, plain = folder / "quantized", folder / "plain"
    for copy in (quantized, plain):
        shutil.copytree(source, copy)
    tensors: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if is_quantized(name):
            stored = stored_as(tensor.float())
            root = name.removesuffix(".weight")
            tensors |= {f"{root}{suffix}": each.contiguous() for suffix, each in stored.tensors.items()}
            values[name] = stored.values
        else:
            tensors[name] = values[name] = tensor.float()
    save_file(tensors, quantized / "model.safetensors", metadata={"format": "pt"})
    save_file(values, plain / "model.safetensors", metadata={"format": "pt"})
    write_json(quantized / "config.json", config)
    for name, content in (files or {}).items():
        write_json(quantized / name, content)
    return quantized, plain


def write_json(file: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of a JSON object, or make one."""
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | dict(changes)))


def change_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Save the model's tensors as `edit` changes them."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(edit(tensors), file, metadata={"format": "pt"})


def changed_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Spoils a folder: one of its tensors becomes another."""
    return lambda folder: change_tensors(
        folder, lambda tensors: tensors | {name: change(tensors[name]).contiguous()}
    )


def without_tensor(name: str) -> Callable[[Path], None]:
    return lambda folder: change_tensors(
        folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}
    )


def with_config(**changes: Any) -> Callable[[Path], None]:
    """Changes keys of quantization_config."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        found = json.loads(file.read_text())["quantization_config"]
        write_json(file, {"quantization_config": found | changes})

    return change


def loaded(folder: Path, dtype: torch.dtype, device: torch.device = CPU) -> dict[str, Tensor]:
    """All parameters, laid out as for a device of this type."""
    table = load_model_config(folder).parameters(dtype, device)
    weights = Weights(table, CPU)
    load_checkpoint(folder, weights.places(), table.ignored)
    return weights._tensors
