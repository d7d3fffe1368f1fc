"""Checkpoints: every tensor goes to its place, and every one that has none is named.

The model's table of parameters says where each tensor belongs; files, names, types and shapes are checked
before the first weight is read, and before the memory for it is taken (`check_checkpoint`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from torch import Tensor

from quire.config import EngineConfig
from quire.errors import ModelError
from quire.model_folder import listed
from quire.models.format_report import describe_dequantised, describe_formats
from quire.models.formats.plain import PLAIN
from quire.models.parameters import ParameterTable, Weights
from quire.models.sources import Place, Stored
from quire.models.tensor_names import NAMINGS, Naming
from quire.models.weight_files import WeightFiles, open_weights

if TYPE_CHECKING:
    from quire.models.config import ModelConfig

log = logging.getLogger("quire.engine")

_PIECE = 1 << 22  # elements compared at once


def load_model_weights(config: EngineConfig, model: ModelConfig, weights: Weights) -> None:
    """Fill a model's weights as `load_format` says; the log has how they are stored."""
    table, places = weights.table, weights.places()
    if line := describe_formats(table):
        log.info("%s", line)
    if line := describe_dequantised(table):
        # A CPU multiplies with nothing else.
        log.log(logging.INFO if table.device.type == "cpu" else logging.WARNING, "%s", line)
    if config.load_format == "dummy":
        fill_dummy(places, config.seed)
    else:
        load_checkpoint(model.folder, places, table.ignored)


def check_checkpoint(config: EngineConfig, model: ModelConfig) -> None:
    """All that load_model_weights() refuses, found without reading a weight."""
    if config.load_format != "dummy":
        table = model.parameters(torch.float32)  # whatever the type
        find_tensors(open_weights(model.folder), table.stored, table.ignored)


def load_checkpoint(folder: Path, places: Mapping[str, Place], ignored: Iterable[str] = ()) -> None:
    """Copy the folder's tensors, by their names, to their places, converting dtype.

    ignored: patterns of names that may be present and are not needed.
    """
    files = open_weights(folder)
    stored = {each.name: each for place in places.values() for each in place.source.stored}
    found = find_tensors(files, stored, ignored)
    if found.other_parts:
        log.info(
            "%s: not read, of other parts than the language model: %s", folder, listed(found.other_parts)
        )
    _copy(files, found.names, places)


class FoundTensors(NamedTuple):
    """names: the model's name of a tensor -> the files', of all that are there. other_parts: names of tensors
    that are of a multimodal model and not of its language model."""

    names: Mapping[str, str]
    other_parts: Sequence[str]


def find_tensors(
    files: WeightFiles, stored_tensors: Mapping[str, Stored], ignored: Iterable[str] = ()
) -> FoundTensors:
    """Where each tensor of the model is. Raises ModelError for what is missing, of another shape or type, or
    more than the model has."""
    headers = files.headers
    naming = max(NAMINGS, key=lambda each: sum(each(name) in headers for name in stored_tensors))
    names = {name: _present(naming, each, headers) for name, each in stored_tensors.items()}
    known = {names[name]: expected for name, expected in stored_tensors.items()}
    for stored, header in headers.items():
        expected = known.get(stored)
        if expected is None:
            continue
        if not expected.has_shape(header.shape):
            problem = f"got shape {list(header.shape)}; allowed: {list(expected.shape)}, as config.json says"
            raise ModelError(f"{header.file}: {stored}: {problem}")
        if header.dtype not in (expected.dtypes or files.dtypes):
            allowed = ", ".join(expected.dtypes or files.dtypes)
            hint = "" if expected.dtypes else " (unquantized weights)"
            raise ModelError(f"{header.file}: {stored}: got dtype {header.dtype}; allowed: {allowed}{hint}")
    missing = [name for name, each in known.items() if name not in headers and each.default is None]
    if missing:
        raise ModelError(f"{files.folder}: tensors missing from the checkpoint: {listed(missing)}")
    patterns = [naming(pattern) for pattern in ignored]
    unread = [name for name in headers if name not in known and not _fits(name, patterns)]
    extra = [name for name in unread if naming.has(name)]
    if extra:
        raise ModelError(
            f"{files.folder}: tensors that the architecture in config.json does not have: {listed(extra)}"
        )
    return FoundTensors({name: stored for name, stored in names.items() if stored in headers}, unread)


def _present(naming: Naming, expected: Stored, names: Container[str]) -> str:
    """The first of its names that is there; the usual one where none is."""
    possible = [naming(name) for name in (expected.name, *expected.other_names)]
    return next((name for name in possible if name in names), possible[0])


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def has_other_head(folder: Path, untied: ParameterTable) -> bool:
    """Whether the checkpoint of a tied model holds a head of its own, whose numbers are not the embedding's:
    then the model is `untied`, as in transformers 5. What is wrong with the files is found elsewhere."""
    try:
        files = open_weights(folder)
        names = find_tensors(files, untied.stored, untied.ignored).names
        head_name = untied.spec.head.parts[0].name
        if untied.storage_of(head_name).format != PLAIN:
            return True
        embedding, head = (
            files.read(names[f"{name}.weight"]) for name in (untied.spec.embedding.name, head_name)
        )
    except ModelError:
        return False
    # By pieces, which stay few bytes and of which the first mostly tells.
    pieces = (torch.split(tensor.flatten(), _PIECE) for tensor in (embedding, head))
    return not all(torch.equal(mine.float(), other.float()) for mine, other in zip(*pieces, strict=True))


def _copy(files: WeightFiles, names: Mapping[str, str], places: Mapping[str, Place]) -> None:
    """Copy with a progress bar, which appears on a terminal only."""
    total = sum(files.headers[stored].num_bytes for stored in names.values())
    began = time.monotonic()
    columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("weights", total=total)
        for place in places.values():
            # A conversion runs on the device, where it is faster.
            device = place.views[0].device if place.source.convert is not None else None
            place.fill([_read(files, names, each, device) for each in place.source.stored])
            found = [names[each.name] for each in place.source.stored if each.name in names]
            progress.advance(task, sum(files.headers[name].num_bytes for name in found))
    seconds = max(time.monotonic() - began, 1e-9)
    size = total / 1e9
    log.info("loaded %.2f GB of weights in %.1f s (%.2f GB/s)", size, seconds, size / seconds)


def _read(
    files: WeightFiles, names: Mapping[str, str], stored: Stored, device: torch.device | None
) -> Tensor:
    """A tensor whose numbers are checked, on the device where one is given."""
    if stored.name not in names:
        assert stored.default is not None
        return torch.full(stored.shape, stored.default, device=device)
    name = names[stored.name]
    tensor = files.read(name)
    if device is not None:
        tensor = tensor.to(device)
    if stored.problem is not None and (problem := stored.problem(tensor)):
        raise ModelError(f"{files.headers[name].file}: {name}: {problem}")
    return tensor


def fill_dummy(places: Mapping[str, Place], seed: int = 0) -> None:
    """Random weights of a trained model's order of magnitude, for timing without a checkpoint; norms are
    one."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, place in places.items():
        view = place.views[0]
        if view.device not in generators:
            generators[view.device] = torch.Generator(view.device).manual_seed(seed)
        if place.source.fill_dummy is not None:
            place.source.fill_dummy(place.views, generators[view.device])
        elif view.dim() == 1 and "norm" in name:
            view.fill_(1.0)
        else:
            view.normal_(0.0, 0.02, generator=generators[view.device])
