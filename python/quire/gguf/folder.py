"""A model folder made from a GGUF file: the small files that Hugging Face has, and a link to the weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

from quire.errors import ModelError
from quire.fingerprint import fingerprint
from quire.gguf.config import model_config
from quire.gguf.header import GgufHeader, read_header
from quire.gguf.tokenizer import tokenizer_config, tokenizer_of
from quire.model_folder import CONFIG, GGUF

_FORM = 1  # goes up when other files are written


def gguf_folder(file: Path) -> Path:
    """The folder, in the user's cache; written where there is none for this file as it is now."""
    file = file.resolve()
    status = file.stat()
    key = fingerprint(f"{_FORM} {file} {status.st_size} {status.st_mtime_ns}".encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "quire" / "gguf"
    folder = cache / f"{file.stem[:80]}-{key[:16]}"
    if folder.is_dir():
        return folder
    header = read_header(file)
    files = {
        CONFIG: json.dumps(model_config(header, lambda name: _numbers(header, name)), indent=2),
        "tokenizer.json": tokenizer_of(header).to_str(),
        "tokenizer_config.json": json.dumps(tokenizer_config(header), indent=2, ensure_ascii=False),
    }
    try:
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache))
        for name, text in files.items():
            (made / name).write_text(text, "utf-8")
        (made / GGUF).symlink_to(file)
        # Another process may have been faster, with the same files.
        with contextlib.suppress(FileExistsError):
            made.rename(folder)
        shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        given = f"{file}, whose config.json and tokenizer cannot be written to {cache} ({error.strerror})"
        raise ModelError(
            f"model: got {given}; allowed: a folder in XDG_CACHE_HOME that can be written"
        ) from None
    return folder


def _numbers(header: GgufHeader, name: str) -> list[float]:
    tensor = header.tensors[name]
    if tensor.type.name != "F32" or tensor.num_bytes > 1 << 20:
        raise ModelError(f"{header.file}: {name}: got {tensor.type.name}; allowed: a few numbers in F32")
    with header.file.open("rb") as stream:
        stream.seek(tensor.begin)
        return list(struct.unpack(f"<{tensor.num_bytes // 4}f", stream.read(tensor.num_bytes)))
