"""Headers of safetensors files: whatever a file holds, reading its header takes bounded time and memory, and
says what is wrong."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.errors import ModelError
from quire.models.safetensors_header import read_header
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def write(path: Path, header: Any, size: int | None = None, data: int = 32) -> Path:
    """A file whose header is `header` (text, or what is dumped as JSON), with `size` as its stated size."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + b"\0" * data)
    return path


def test_a_good_header(tmp_path: Path) -> None:
    """Names, types and shapes are those that the file was saved with."""
    tensors = {"x": torch.ones(2, 3), "y": torch.ones(0, 5, dtype=torch.bfloat16), "z": torch.tensor(1)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "model.safetensors")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in header.items()} == {
        "x": ("F32", (2, 3)),
        "y": ("BF16", (0, 5)),
        "z": ("I64", ()),
    }


DAMAGES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "size of 2^63": ({"a": A, "b": B}, {"size": 1 << 63}, "got a header of 9223372036854775808 bytes"),
    "size of 2^64 - 1": ({"a": A}, {"size": (1 << 64) - 1}, "got a header of 18446744073709551615 bytes"),
    "cut in the header": ({"a": A, "b": B}, {"size": 500}, "(the file is truncated)"),
    "cut in the data": ({"a": A, "b": B}, {"data": 31}, "got 31 bytes of tensors; allowed: 32"),
    "more data": ({"a": A, "b": B}, {"data": 33}, "got 33 bytes of tensors; allowed: 32"),
    "no JSON": ("{", {}, "header: malformed JSON"),
    "no object": ([1], {}, "header: got [1]; allowed: a JSON object"),
    "deep": ("[" * 100_000, {}, "nested too deep"),
    "digits": ('{"a": ' + "1" * 10_000 + "}", {}, "a number of thousands of digits"),
    "twins": ('{"a": 1, "a": 2}', {}, 'got "a" twice; allowed: once'),
    "no entry": ({"a": 7}, {}, "a: got 7; allowed: an object with dtype"),
    "type": ({"a": A | {"dtype": "F33"}}, {}, 'dtype: got "F33"; allowed: BOOL, '),
    "no type": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, {}, "dtype: got null"),
    "negative size": ({"a": A | {"shape": [-2, -3]}}, {}, "shape: got [-2, -3]"),
    "fraction": ({"a": A | {"shape": [2.0, 3]}}, {}, "shape: got [2.0, 3]"),
    "overflow": ({"a": A | {"shape": [1 << 32, 1 << 32]}}, {}, "shape: got [4294967296, 4294967296]"),
    "shape": ({"a": A | {"shape": [2, 4]}, "b": B}, {}, "[0, 24], 24 bytes; allowed: 32 bytes, as F32"),
    "backwards": ({"a": A | {"data_offsets": [24, 0]}}, {}, "data_offsets: got [24, 0]"),
    "one offset": ({"a": A | {"data_offsets": [24]}}, {}, "data_offsets: got [24]"),
    "overlap": ({"a": A, "b": B | {"data_offsets": [16, 24]}}, {}, "a beginning of 16; allowed: 24"),
    "gap": ({"a": A, "b": B | {"data_offsets": [26, 34]}}, {"data": 34}, "a beginning of 26; allowed: 24"),
    "UTF-8": ({"a": A}, {}, "header: 'utf-8' codec can't decode"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damages_are_named(tmp_path: Path, name: str) -> None:
    """A damaged file is refused with its name and what is wrong, before any of its tensors is read."""
    header, how, expected = DAMAGES[name]
    path = write(tmp_path / "model.safetensors", header, **how)
    if name == "UTF-8":
        path.write_bytes(path.read_bytes().replace(b'"a"', b'"\xff"'))
    with pytest.raises(ModelError) as error:
        read_header(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)


@pytest.mark.parametrize("size", [0, 7])
def test_too_small(tmp_path: Path, size: int) -> None:
    """An empty file, and one without a whole header size."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\1" * size)
    with pytest.raises(ModelError, match=f"got {size} bytes; allowed: a safetensors file"):
        read_header(path)


def test_no_file_at_all(tmp_path: Path) -> None:
    """A FIFO, a folder, a loop of links, a device: named at once instead of waited for."""
    kinds = {"fifo": "a FIFO", "folder": "a folder", "loop": "cannot be read", "device": "a device"}
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, expected in kinds.items():
        with pytest.raises(ModelError, match=f"{name}: .*{expected}"):
            read_header(tmp_path / name)


@settings(max_examples=examples(200))
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 200))
def test_as_strict_as_safetensors(tmp_path_factory: pytest.TempPathFactory, **kwargs: int) -> None:
    """What safetensors refuses to open is refused here, whichever byte is changed or missing."""
    path = tmp_path_factory.mktemp("mutated") / "model.safetensors"
    data = bytearray(write(path, {"a": A, "b": B, "__metadata__": {"format": "pt"}}).read_bytes())
    data[kwargs["place"] % len(data)] = kwargs["byte"]
    path.write_bytes(data[: len(data) - kwargs["cut"]] if kwargs["cut"] < 100 else data)
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError:
        with pytest.raises(ModelError):
            read_header(path)
