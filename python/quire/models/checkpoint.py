"""Safetensors checkpoints: every tensor goes to its place, and every one that has none is named.

The model says where each tensor belongs (`destinations`); names and shapes of all files are checked before
the first weight is read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire.config import EngineConfig
from quire.errors import ModelError, ModelNotFound
from quire.models.config import ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


# What checkpoints carry beside the weights: tables that we compute ourselves, and a tied head stored twice.
_IGNORED = ("rotary_emb.inv_freq",)


def load_model_weights(config: EngineConfig, model: ModelConfig, destinations: Mapping[str, Tensor]) -> None:
    """Fill a model's weights as `load_format` says."""
    if config.load_format == "dummy":
        fill_dummy(destinations, config.seed)
    else:
        ignored = (*_IGNORED, "lm_head.weight") if model.tie_word_embeddings else _IGNORED
        load_checkpoint(model.folder, destinations, ignored)


def load_checkpoint(folder: Path, destinations: Mapping[str, Tensor], ignored: Iterable[str] = ()) -> None:
    """Copy the folder's tensors into `destinations`, converting dtype.

    destinations: name in the checkpoint -> tensor (or view) of the checkpoint's shape.
    ignored: ends of names that may be present and are not needed.
    """
    ignored = tuple(ignored)
    with ExitStack() as stack:
        files = {file: stack.enter_context(_open(file)) for file in _files(folder)}
        owners: dict[str, Path] = {}
        extra = []
        for file, tensors in files.items():
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name in destinations:
                    given = list(tensors.get_slice(name).get_shape())
                    expected = list(destinations[name].shape)
                    if given != expected:
                        raise ModelError(
                            f"{file}: {name}: got shape {given}; allowed: {expected}, as config.json says"
                        )
                    owners[name] = file
                elif not name.endswith(ignored):
                    extra.append(name)
        missing = [name for name in destinations if name not in owners]
        if missing:
            raise ModelError(f"{folder}: tensors missing from the checkpoint: {_names(missing)}")
        if extra:
            raise ModelError(
                f"{folder}: tensors that the architecture in config.json does not have: {_names(extra)}"
            )
        _copy(files, owners, destinations)


def _copy(
    files: Mapping[Path, safe_open], owners: Mapping[str, Path], destinations: Mapping[str, Tensor]
) -> None:
    """Copy with a progress bar, which appears on a terminal only."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in destinations.values())
    columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("weights", total=total)
        for name, destination in destinations.items():
            try:
                tensor = files[owners[name]].get_tensor(name)  # type: ignore[no-untyped-call]
                destination.copy_(tensor)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{owners[name]}: {name}: not readable: {error}") from None
            progress.advance(task, destination.numel() * destination.element_size())


def _files(folder: Path) -> list[Path]:
    """The checkpoint's files: those of the index when there is one, else the single file."""
    index = folder / INDEX
    if not index.exists():
        single = folder / SINGLE
        if not single.exists():
            raise ModelNotFound(f"{folder}: no weights; allowed: {SINGLE}, or {INDEX} and its files")
        return [single]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{index}: weight_map: not an object of tensor name -> file name: {error!r}"
        ) from None
    for name in names:
        if not isinstance(name, str) or not (folder / name).exists():
            raise ModelNotFound(f"{index}: weight_map: got {name}; allowed: files that are in {folder}")
    return [folder / name for name in names]


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: not readable as safetensors: {error}") from None


def _names(names: list[str], shown: int = 4) -> str:
    """Name the first few of many."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


def fill_dummy(destinations: Mapping[str, Tensor], seed: int = 0) -> None:
    """Random weights of a trained model's order of magnitude, for timing without a checkpoint; norms are
    one."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, destination in destinations.items():
        device = destination.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        if destination.dim() == 1 and "norm" in name:
            destination.fill_(1.0)
        else:
            destination.normal_(0.0, 0.02, generator=generators[device])
