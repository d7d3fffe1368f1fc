"""The tensors of a GGUF file, by Hugging Face's names and in Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from quire.errors import UnsupportedModel
from quire.gguf.config import architecture_of, tensor_names
from quire.gguf.header import TENSOR_TYPES, read_header
from quire.models.safetensors_header import TensorHeader

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GgufFile:
    """Memory-mapped: a tensor that is read costs memory as long as it is used."""

    dtypes: tuple[str, ...] = tuple(each.name for each in TENSOR_TYPES.values())

    def __init__(self, file: Path) -> None:
        self.folder = file.parent
        self._file = file
        self._header = read_header(file)
        self._architecture = architecture_of(self._header)
        self._names = tensor_names(self._header)
        self.headers: Mapping[str, TensorHeader] = {name: self._tensor_header(name) for name in self._names}
        quantized = next((each.dtype for each in self.headers.values() if each.dtype not in _PLAIN), None)
        if quantized and not find_spec("gguf"):
            given = f"{quantized} weights, which the Python package gguf reads"
            raise UnsupportedModel(f"{file}: got {given}; allowed: pip install 'quire[gguf]'")

    def _tensor_header(self, name: str) -> TensorHeader:
        tensor = self._header.tensors[self._names[name]]
        return TensorHeader(
            file=self._file, dtype=tensor.type.name, shape=tensor.shape, num_bytes=tensor.num_bytes
        )

    def read(self, name: str) -> Tensor:
        header = self._header.tensors[self._names[name]]
        size = header.begin + header.num_bytes
        content = torch.from_file(str(self._file), shared=False, size=size, dtype=torch.uint8)[header.begin :]
        if header.type.name in _PLAIN:
            tensor = content.view(_PLAIN[header.type.name]).reshape(header.shape)
        else:
            # An extra, which may be missing where types are checked.
            from gguf import GGMLQuantizationType  # type: ignore[import-not-found,unused-ignore]
            from gguf.quants import dequantize  # type: ignore[import-not-found,unused-ignore]

            rows = content.reshape(*header.shape[:-1], -1).numpy()
            tensor = torch.from_numpy(dequantize(rows, GGMLQuantizationType[header.type.name]))
        if self._architecture.norm_offset and name.endswith("norm.weight"):
            return tensor.float() - self._architecture.norm_offset
        return self._unpaired(name, tensor)

    def _unpaired(self, name: str, tensor: Tensor) -> Tensor:
        """Rows of a head as halves, where the file has pairs."""
        projection = name.rpartition(".")[0].rpartition(".")[2]
        if not self._architecture.has_paired_heads or projection not in ("q_proj", "k_proj"):
            return tensor
        metadata = self._header.metadata
        heads = metadata["llama.attention.head_count"]
        if projection == "k_proj":
            heads = metadata.get("llama.attention.head_count_kv", heads)
        return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
