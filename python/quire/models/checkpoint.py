"""Safetensors checkpoints: every tensor goes to its place, and every one that has none is named.

The model's table of parameters says where each tensor belongs; files, names, types and shapes are checked
before the first weight is read, and before the memory for it is taken (`check_checkpoint`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from safetensors import SafetensorError, safe_open

from quire.config import EngineConfig
from quire.errors import ModelError, ModelNotFound, describe
from quire.model_files import INDEX_LIMIT, read_json_object
from quire.models.config import ModelConfig
from quire.models.parameters import Place
from quire.models.safetensors_header import read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# What becomes the engine's type by a mere conversion. Others are of quantized checkpoints.
_DTYPES = ("F64", "F32", "F16", "BF16")


def load_model_weights(config: EngineConfig, model: ModelConfig, places: Mapping[str, Place]) -> None:
    """Fill a model's weights as `load_format` says."""
    if config.load_format == "dummy":
        fill_dummy(places, config.seed)
    else:
        load_checkpoint(model.folder, places, model.spec.ignored)


def check_checkpoint(config: EngineConfig, model: ModelConfig) -> None:
    """All that load_model_weights() refuses, found without reading a weight."""
    if config.load_format != "dummy":
        shapes = model.parameters(torch.float32).checkpoint_shapes  # whatever the type
        find_tensors(model.folder, shapes, model.spec.ignored)


def load_checkpoint(folder: Path, places: Mapping[str, Place], ignored: Iterable[str] = ()) -> None:
    """Copy the folder's tensors, by their names, to their places, converting dtype.

    ignored: patterns of names that may be present and are not needed.
    """
    shapes = {name: place.source.shape for name, place in places.items()}
    owners = find_tensors(folder, shapes, ignored)
    with ExitStack() as stack:
        files = {file: stack.enter_context(_open(file)) for file in sorted(set(owners.values()))}
        _copy(files, owners, places)


def find_tensors(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()
) -> Mapping[str, Path]:
    """Name -> the file that has it, of every tensor that the model needs. Raises ModelError for what is wrong
    with a file, missing, of another shape or type, or more than the model has."""
    ignored = tuple(ignored)
    owners: dict[str, Path] = {}
    extra = []
    for file in _files(folder):
        for name, tensor in read_header(file).items():
            if name not in shapes:
                if not any(fnmatchcase(name, pattern) for pattern in ignored):
                    extra.append(name)
                continue
            if tensor.shape != shapes[name]:
                given, expected = list(tensor.shape), list(shapes[name])
                raise ModelError(
                    f"{file}: {name}: got shape {given}; allowed: {expected}, as config.json says"
                )
            if tensor.dtype not in _DTYPES:
                allowed = f"{', '.join(_DTYPES)} (unquantized weights)"
                raise ModelError(f"{file}: {name}: got dtype {tensor.dtype}; allowed: {allowed}")
            if name in owners:
                raise ModelError(f"{file}: {name}: got it in {owners[name].name} too; allowed: once")
            owners[name] = file
    missing = [name for name in shapes if name not in owners]
    if missing:
        raise ModelError(f"{folder}: tensors missing from the checkpoint: {_names(missing)}")
    if extra:
        raise ModelError(
            f"{folder}: tensors that the architecture in config.json does not have: {_names(extra)}"
        )
    return owners


def _copy(files: Mapping[Path, safe_open], owners: Mapping[str, Path], places: Mapping[str, Place]) -> None:
    """Copy with a progress bar, which appears on a terminal only."""
    total = sum(place.view.nbytes for place in places.values())
    columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("weights", total=total)
        for name, place in places.items():
            try:
                place.fill(files[owners[name]].get_tensor(name))  # type: ignore[no-untyped-call]
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{owners[name]}: {name}: not readable: {error}") from None
            progress.advance(task, place.view.nbytes)


def _files(folder: Path) -> list[Path]:
    """The checkpoint's files: those of the index when there is one, else the single file."""
    index, single = folder / INDEX, folder / SINGLE
    try:
        weight_map = read_json_object(index, INDEX_LIMIT).get("weight_map")
    except FileNotFoundError:
        if not os.path.lexists(single):
            raise ModelNotFound(
                f"{folder}: no weights; allowed: {SINGLE}, or {INDEX} and its files"
            ) from None
        return [single]
    if not isinstance(weight_map, dict) or not weight_map:
        allowed = "an object of tensor name -> file name"
        raise ModelError(f"{index}: weight_map: got {describe(weight_map)}; allowed: {allowed}")
    names = {name: None for name in weight_map.values() if isinstance(name, str)}
    for name in weight_map.values():
        # A plain name: an index must not lead out of its folder.
        if not isinstance(name, str) or name != Path(name).name or "\0" in name:
            raise ModelError(
                f"{index}: weight_map: got {describe(name)}; allowed: names of files in {folder}"
            )
    for name in names:
        if not os.path.exists(folder / name):  # noqa: PTH110 - unlike Path.exists(), no error for a name of any length
            raise ModelNotFound(
                f"{index}: weight_map: got {describe(name)}; allowed: files that are in {folder}"
            )
    return [folder / name for name in sorted(names)]


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: not readable as safetensors: {error}") from None


def _names(names: list[str], shown: int = 4) -> str:
    """Name the first few of many."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


def fill_dummy(places: Mapping[str, Place], seed: int = 0) -> None:
    """Random weights of a trained model's order of magnitude, for timing without a checkpoint; norms are
    one."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, place in places.items():
        device = place.view.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        if place.view.dim() == 1 and "norm" in name:
            place.view.fill_(1.0)
        else:
            place.view.normal_(0.0, 0.02, generator=generators[device])
