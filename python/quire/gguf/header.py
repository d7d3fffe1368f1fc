"""The header of a GGUF file, read and checked without touching a weight.

A file is the magic, version, numbers of tensors and of metadata, the metadata (key, type, value), then for
each tensor its name, shape (innermost first), type and offset, and from the next multiple of the alignment on
the tensors' bytes.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from quire.errors import ModelError, ModelNotFound, describe
from quire.model_files import open_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_ITEMS = 1 << 24  # of an array
_MAX_ELEMENTS = 1 << 48


class TensorType(NamedTuple):
    """How numbers are stored: in blocks of so many numbers and bytes."""

    name: str
    block_size: int
    num_bytes: int


# By the number in the file.
TENSOR_TYPES: Mapping[int, TensorType] = {
    number: TensorType(*values)
    for number, values in {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        30: ("BF16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
    }.items()
}

# struct's formats of the metadata's plain types, by their numbers.
_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """Where a tensor lies in the file. shape: outermost first."""

    type: TensorType
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """All that a file says but the weights."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_header(file: Path) -> GgufHeader:
    """Raises ModelError that says what is wrong with the file."""
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if stream.read(4) != _MAGIC:
                raise ModelError(f"{file}: got another beginning than GGUF; allowed: a GGUF file")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(file, content, size).read()
    except FileNotFoundError:
        raise ModelNotFound(f"{file}: no such file; allowed: a GGUF file") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None


class _Reader:
    def __init__(self, file: Path, content: mmap.mmap, size: int) -> None:
        self._file, self._content, self._size = file, content, size
        self._position = 4

    def read(self) -> GgufHeader:
        try:
            version, num_tensors, num_keys = self._take("IQQ")
            if version not in _VERSIONS:
                raise self._error("version", version, ", ".join(map(str, _VERSIONS)))
            if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
                raise self._error("header", f"{num_tensors} tensors, {num_keys} keys", "a plausible number")
            metadata = {self._string(): self._value(*self._take("I")) for _ in range(num_keys)}
            infos = [self._tensor_info() for _ in range(num_tensors)]
        except struct.error:
            raise ModelError(
                f"{self._file}: got a header that does not end (the file is truncated)"
            ) from None
        except UnicodeDecodeError:
            raise ModelError(f"{self._file}: got invalid UTF-8 in the header; allowed: UTF-8 text") from None
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise self._error("general.alignment", alignment, "an integer of at least 1")
        data = -(-self._position // alignment) * alignment
        tensors = {name: self._tensor(name, data, shape, *rest) for name, shape, *rest in infos}
        return GgufHeader(file=self._file, metadata=metadata, tensors=tensors)

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._content, self._position)
        self._position += struct.calcsize(f"<{layout}")
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        begin, end = self._position, self._position + length
        if end > self._size:
            raise struct.error
        self._position = end
        return self._content[begin:end].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _PLAIN:
            return self._take(_PLAIN[kind])[0]
        if kind != _ARRAY:
            raise self._error("header", f"metadata of type {kind}", "types 0 to 12")
        kind, count = self._take("IQ")
        if count > _MAX_ITEMS:
            raise self._error("header", f"an array of {count} items", f"at most {_MAX_ITEMS}")
        if kind in _PLAIN:
            return list(self._take(f"{count}{_PLAIN[kind]}"))
        if kind != _STRING:
            raise self._error("header", f"an array of type {kind}", "arrays of numbers and strings")
        return [self._string() for _ in range(count)]

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (num_axes,) = self._take("I")
        if num_axes > 4:
            raise self._error(name, f"{num_axes} axes", "at most 4")
        shape = tuple(reversed(self._take(f"{num_axes}Q")))
        return name, shape, *self._take("IQ")

    def _tensor(self, name: str, data: int, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        if kind not in TENSOR_TYPES:
            known = ", ".join(each.name for each in TENSOR_TYPES.values())
            raise self._error(name, f"a tensor of type {kind}", known)
        each = TENSOR_TYPES[kind]
        count = math.prod(shape)
        if count > _MAX_ELEMENTS or (shape and shape[-1] % each.block_size):
            raise self._error(name, f"shape {list(shape)}", f"rows of whole blocks of {each.block_size}")
        num_bytes = count // each.block_size * each.num_bytes
        if data + offset + num_bytes > self._size:
            given = f"{self._size} bytes"
            raise self._error(name, given, f"at least {data + offset + num_bytes} (the file is truncated)")
        return GgufTensor(type=each, shape=shape, begin=data + offset, num_bytes=num_bytes)

    def _error(self, name: str, given: object, allowed: str) -> ModelError:
        given = given if isinstance(given, str) else describe(given)
        name = name if len(name) <= 200 and name.isprintable() else describe(name)
        return ModelError(f"{self._file}: {name}: got {given}; allowed: {allowed}")
