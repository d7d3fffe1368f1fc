"""The header of a safetensors file, read and checked without touching a weight.

A file is eight bytes of header size (little endian), the header, a JSON object of name -> dtype, shape and
data_offsets, and the tensors' bytes, one after the other without a gap.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from quire.errors import ModelError, ModelNotFound, describe
from quire.model_files import open_regular, parse_json

MAX_HEADER_SIZE = 100_000_000  # as safetensors itself has it
_ITEM_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
_MAX_ELEMENTS = 1 << 48


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """What a file says about one tensor."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def read_header(file: Path) -> Mapping[str, TensorHeader]:
    """Name -> dtype and shape. Raises ModelError that says what is wrong with the file."""
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            file_size = os.fstat(stream.fileno()).st_size
            if file_size < 8:
                raise ModelError(
                    f"{file}: got {file_size} bytes; allowed: a safetensors file, which has a header"
                )
            size = int.from_bytes(stream.read(8), "little")
            if size > min(file_size - 8, MAX_HEADER_SIZE):
                problem = f"got a header of {size} bytes in a file of {file_size}"
                hint = " (the file is truncated)" if size <= MAX_HEADER_SIZE else ""
                allowed = f"one that fits, of at most {MAX_HEADER_SIZE}"
                raise ModelError(f"{file}: {problem}; allowed: {allowed}{hint}")
            text = stream.read(size)
    except FileNotFoundError:
        raise ModelNotFound(f"{file}: no such file; allowed: a safetensors file") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    return _Reader(file).read(text, file_size - 8 - size)


class _Reader:
    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self, text: bytes, data_size: int) -> Mapping[str, TensorHeader]:
        try:
            entries = parse_json(text.decode("utf-8"), object_pairs_hook=self._without_twins)
        except ValueError as error:  # UnicodeDecodeError is one
            raise ModelError(f"{self._file}: header: {error}") from None
        if not isinstance(entries, dict):
            raise ModelError(f"{self._file}: header: got {describe(entries)}; allowed: a JSON object")
        entries.pop("__metadata__", None)
        headers = {}
        spans = []
        for name, entry in entries.items():
            headers[name], begin, end = self._tensor(name, entry)
            spans.append((begin, end, name))
        position = 0
        for begin, end, name in sorted(spans):
            if begin != position:
                raise self._error(name, f"data_offsets: got a beginning of {begin}", f"{position}")
            position = end
        if position != data_size:
            problem = f"got {data_size} bytes of tensors; allowed: {position}, as the header says"
            hint = " (the file is truncated)" if data_size < position else ""
            raise ModelError(f"{self._file}: {problem}{hint}")
        return headers

    def _tensor(self, name: str, entry: Any) -> tuple[TensorHeader, int, int]:
        if not isinstance(entry, dict):
            raise self._error(name, f"got {describe(entry)}", "an object with dtype, shape and data_offsets")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _ITEM_SIZES:
            raise self._error(name, f"dtype: got {describe(dtype)}", ", ".join(_ITEM_SIZES))
        if not _are_counts(shape) or math.prod(shape) > _MAX_ELEMENTS:
            raise self._error(name, f"shape: got {describe(shape)}", "a list of sizes of at least 0")
        if not _are_counts(offsets) or len(offsets) != 2:
            raise self._error(name, f"data_offsets: got {describe(offsets)}", "a beginning and an end")
        begin, end = offsets
        needed = math.prod(shape) * _ITEM_SIZES[dtype]
        if end - begin != needed:
            given = f"data_offsets: got {describe(offsets)}, {end - begin} bytes"
            raise self._error(name, given, f"{needed} bytes, as {dtype} {describe(shape)} takes")
        header = TensorHeader(file=self._file, dtype=dtype, shape=tuple(shape), num_bytes=needed)
        return header, begin, end

    def _without_twins(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            twin = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise ModelError(f"{self._file}: header: got {describe(twin)} twice; allowed: once")
        return values

    def _error(self, name: str, given: str, allowed: str) -> ModelError:
        return ModelError(f"{self._file}: {_short(name)}: {given}; allowed: {allowed}")


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(item) is int and item >= 0 for item in value)
    )


def _short(name: str) -> str:
    return name if len(name) <= 200 and name.isprintable() else describe(name)
