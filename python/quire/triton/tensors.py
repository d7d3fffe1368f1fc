"""A request's tensors and parameters, and their values as those of its fields."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np

from quire.errors import InvalidArgument
from quire.sampling_params import NAMES
from quire.schema import Entry

Tensor: TypeAlias = np.ndarray[Any, Any]
Tensors: TypeAlias = Mapping[str, Tensor]

MAX_STRINGS = 16_384  # of one tensor


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """A request as the server hands it over. STRING tensors hold `bytes`."""

    tensors: Tensors
    parameters: Sequence[tuple[str, object]]  # strings, numbers and booleans; a name may come twice
    outputs: frozenset[str]  # that the client, or the ensemble, wants
    arrival_ns: int  # CLOCK_MONOTONIC


class Dialect(Protocol):
    """Whose inputs a tokenizer model has."""

    def read(self, tensors: Tensors) -> list[Entry]:
        """The fields that are given, checked."""

    def complete(self, entries: list[Entry]) -> list[Entry]:
        """All that a request gives, with the dialect's own defaults."""

    def prompts_of_ids(self, tensors: Tensors) -> list[Tensor]:
        """The prompts in the tensor input_ids."""

    @property
    def ignored_parameters(self) -> frozenset[str]:
        """Request parameters that clients send and no server reads."""

    @property
    def is_separate(self) -> bool:
        """Whether each sequence has a response of its own, also without stream, and a prompt of ids is
        answered with ids."""


class VllmBackend:
    """Triton's vLLM backend: tensors carry the names of fields."""

    def read(self, tensors: Tensors) -> list[Entry]:
        given = []
        for name, tensor in tensors.items():
            value = read_list(tensor, name) if NAMES.find(name).is_list else read_single(tensor, name)
            # `generate` makes one element of a string, which may spell a list, as in a parameter.
            as_parameter = isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
            value = value[0] if as_parameter else value
            given += NAMES.read({name: value}, "input tensor", parameters=as_parameter)
        return given

    def complete(self, entries: list[Entry]) -> list[Entry]:
        return entries

    def prompts_of_ids(self, tensors: Tensors) -> list[Tensor]:
        return [tensors["input_ids"].reshape(-1)]

    is_separate = False
    ignored_parameters: frozenset[str] = frozenset()


def read_strings(name: str, shape: Sequence[int], content: memoryview) -> Tensor:
    """A STRING tensor from its bytes: each element is a u32 length and so many bytes."""
    count = prod(shape)
    if not 0 <= count <= MAX_STRINGS:
        raise InvalidArgument(name, f"{count} values", f"at most {MAX_STRINGS}")
    values = np.empty(count, np.object_)
    at = 0
    for index in range(count):
        size = struct.unpack_from("<I", content, at)[0] if at + 4 <= len(content) else len(content)
        values[index] = bytes(content[at + 4 : at + 4 + size])
        at += 4 + size
        if at > len(content):
            raise InvalidArgument(name, "a damaged STRING tensor", "elements of length and bytes")
    if at != len(content):
        raise InvalidArgument(
            name, "a damaged STRING tensor", f"as many elements as its shape {[*shape]} says"
        )
    return values.reshape(shape)


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
