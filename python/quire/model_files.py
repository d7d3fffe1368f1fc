"""Reads files of a model folder or a model repository in bounded time and memory, whatever they are: regular
files of a sane size, JSON of a sane depth."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quire.errors import ModelError, QuireError, describe

MIB = 1 << 20
SETTINGS_LIMIT = 4 * MIB  # config.json, generation_config.json, model.json, config.pbtxt
INDEX_LIMIT = 32 * MIB  # model.safetensors.index.json; the largest known ones have 10 MB
TOKENIZER_LIMIT = 256 * MIB  # tokenizer.json; the largest known ones have 40 MB

_LFS = b"version https://git-lfs.github.com/spec/"  # what stands in place of a large file

_SNAPSHOT = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$")

# By the first letter of stat.filemode().
_KINDS = {"d": "a folder", "p": "a FIFO", "s": "a socket", "c": "a device", "b": "a device"}


class UnreadableFile(ModelError):  # noqa: N818 - as the other errors of a tree
    """Message: "<path>: <problem>"."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def open_regular(path: Path) -> int:
    """A descriptor of a regular file to read. Raises FileNotFoundError, or UnreadableFile that names what is
    there instead. Never waits, as opening a FIFO would."""
    try:
        _check_kind(path, path.stat().st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        if path.is_symlink():
            given = "got a link to a file that is not there"
            raise UnreadableFile(path, f"{given}; allowed: the file{download_hint(path.parent)}") from None
        raise
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read: {error.strerror}") from None
    try:
        _check_kind(path, os.fstat(descriptor).st_mode)  # it may be another one by now
        _check_content(path, descriptor)
    except UnreadableFile:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: Path, limit: int = SETTINGS_LIMIT) -> bytes:
    """Raises FileNotFoundError or UnreadableFile."""
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise UnreadableFile(path, f"cannot be read: {error.strerror}") from None
        if len(data) > limit:
            size = max(os.fstat(file.fileno()).st_size, len(data))
            raise UnreadableFile(path, f"got {size} bytes; allowed: at most {limit}")
    return data


def read_text(path: Path, limit: int = SETTINGS_LIMIT) -> str:
    """Raises FileNotFoundError or UnreadableFile."""
    return _decoded(read_bytes(path, limit), path)


def read_json_object(path: Path, limit: int = SETTINGS_LIMIT) -> dict[str, Any]:
    """Raises FileNotFoundError or UnreadableFile."""
    return parse_json_object(read_bytes(path, limit), path)


def parse_json_object(
    content: bytes, path: Path, allowed: str = "a JSON object", **hooks: Any
) -> dict[str, Any]:
    """The object in `content` of the file `path`. Raises UnreadableFile, or what a hook raises of ours."""
    text = _decoded(content, path)
    try:
        values = parse_json(text, **hooks)
    except QuireError:
        raise
    except ValueError as error:
        raise UnreadableFile(path, str(error)) from None
    if not isinstance(values, dict):
        raise UnreadableFile(path, f"got {describe(values)}; allowed: {allowed}")
    return values


def parse_json(text: str, **hooks: Any) -> Any:
    """json.loads, whose every refusal is a ValueError of one line."""
    try:
        return json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON at line {error.lineno} column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("got JSON that is nested too deep; allowed: a few hundred levels") from None
    except ValueError as error:
        if "digits" not in str(error):  # of a hook
            raise
        raise ValueError("got a number of thousands of digits; allowed: numbers of up to 4,300") from None


def each_once(refuse: Callable[[str], Exception]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook for parse_json() that raises `refuse(key)` for a key which an object has twice."""

    def read(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        if len(values) < len(items):
            raise refuse(Counter(key for key, _ in items).most_common(1)[0][0])
        return values

    return read


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFile(path, f"got invalid UTF-8 at byte {error.start}; allowed: UTF-8 text") from None


def download_hint(folder: Path) -> str:
    """The command that completes a folder of the Hugging Face cache; "" of any other folder."""
    match = _SNAPSHOT.search(str(folder))
    return f" (`hf download {match[1]}/{match[2]}`)" if match else ""


def _check_content(path: Path, descriptor: int) -> None:
    try:
        head = os.pread(descriptor, len(_LFS), 0)
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read: {error.strerror}") from None
    if head == _LFS:
        raise UnreadableFile(path, "got a Git LFS pointer; allowed: the file itself (`git lfs pull`)")


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.filemode(mode)[0], "something else")
        raise UnreadableFile(path, f"got {kind}; allowed: a regular file")
