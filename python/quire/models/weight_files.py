"""The files of weights in a model folder: which they are, what their headers say, and their tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire.errors import ModelError, ModelNotFound, describe
from quire.model_files import download_hint
from quire.model_folder import GGUF, INDEX, SINGLE, describe_folder, shard_names
from quire.models.safetensors_header import TensorHeader, read_header


class WeightFiles(Protocol):
    """The tensors of a folder, by the names that its files give them."""

    folder: Path
    headers: Mapping[str, TensorHeader]
    dtypes: tuple[str, ...]  # what read() makes numbers of

    def read(self, name: str) -> Tensor: ...


def open_weights(folder: Path) -> WeightFiles:
    """Reads headers only. Raises ModelError for what is wrong with a file."""
    names = (SINGLE, INDEX, GGUF)
    if next((name for name in names if os.path.lexists(folder / name)), SINGLE) == GGUF:
        from quire.gguf.weights import GgufFile

        return GgufFile(folder / GGUF)
    return SafetensorsFiles(folder)


class SafetensorsFiles:
    """Memory-mapped: a tensor that is read costs memory as long as it is used."""

    # What becomes the engine's type by a mere conversion. Others are of quantized checkpoints.
    dtypes: tuple[str, ...] = ("F64", "F32", "F16", "BF16")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        headers: dict[str, TensorHeader] = {}
        for file in _files(folder):
            for name, header in read_header(file).items():
                if name in headers:
                    other = headers[name].file.name
                    raise ModelError(f"{file}: {name}: got it in {other} too; allowed: once")
                headers[name] = header
        self.headers: Mapping[str, TensorHeader] = headers
        self._open = lru_cache(maxsize=None)(lambda file: safe_open(file, framework="pt"))

    def read(self, name: str) -> Tensor:
        file = self.headers[name].file
        try:
            tensor: Tensor = self._open(file).get_tensor(name)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: {name}: not readable: {error}") from None
        return tensor


def _files(folder: Path) -> list[Path]:
    """The single file where there is one, as in transformers, which then reads no index; else those of the
    index."""
    if os.path.lexists(folder / SINGLE):
        return [folder / SINGLE]
    try:
        names = shard_names(folder)
    except FileNotFoundError:
        what, allowed = describe_folder(folder) or ("", f"{SINGLE}, or {INDEX} and its files")
        problem = f"no weights{what and f' but {what}'}"
        raise ModelNotFound(f"{folder}: {problem}; allowed: {allowed}") from None
    for name in names:
        if not os.path.lexists(folder / name):
            allowed = f"files that are in {folder}{download_hint(folder)}"
            raise ModelNotFound(f"{folder / INDEX}: weight_map: got {describe(name)}; allowed: {allowed}")
    return [folder / name for name in names]
