"""Input tensors of a request as values of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from quire.errors import InvalidArgument
from quire.sampling_params import NAMES
from quire.schema import Entry

Tensors = Mapping[str, np.ndarray[Any, Any]]


class Dialect(Protocol):
    """Whose inputs a tokenizer model has."""

    def read(self, tensors: Tensors) -> list[Entry]:
        """The fields that are given, checked."""

    def defaults(self, fields: Mapping[str, Any]) -> list[Entry]:
        """The dialect's own defaults, for a request that gives `fields`."""


class VllmBackend:
    """Triton's vLLM backend: tensors carry the names of fields."""

    def read(self, tensors: Tensors) -> list[Entry]:
        given = []
        for name, tensor in tensors.items():
            value: object
            as_parameter = False
            if NAMES.find(name).is_list:
                values = read_list(tensor, name)
                # `generate` makes one element of a string, which may spell a list, as in a parameter.
                as_parameter = len(values) == 1 and isinstance(values[0], str)
                value = values[0] if as_parameter else values
            else:
                value = read_single(tensor, name)
            given += NAMES.read({name: value}, "input tensor", parameters=as_parameter)
        return given

    def defaults(self, fields: Mapping[str, Any]) -> list[Entry]:
        return []


def read_string(tensor: np.ndarray[Any, Any], name: str) -> str:
    """The only element of a STRING tensor."""
    return str(read_single(tensor, name))


def read_single(tensor: np.ndarray[Any, Any], name: str) -> Any:
    """The only element of a tensor, of whatever rank."""
    if tensor.size != 1:
        raise InvalidArgument(name, f"{tensor.size} values", "one value (batches are not supported yet)")
    return read_list(tensor, name)[0]


def read_list(tensor: np.ndarray[Any, Any], name: str) -> list[Any]:
    """All elements, as Python values."""
    items = tensor.reshape(-1)
    if tensor.dtype == np.float32:
        return [float(str(item)) for item in items]  # 0.9, not 0.8999999761581421
    if tensor.dtype.kind not in "OS":
        return list(items.tolist())
    return [_decoded(item, name) for item in items]


def _decoded(value: object, name: str) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        given = f"invalid UTF-8 at byte {error.start} (0x{value[error.start]:02x})"
        raise InvalidArgument(name, given, "a UTF-8 string") from None
