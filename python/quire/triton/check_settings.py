"""Checks a model.json as the engine does at start, up to the first byte of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quire.config import EngineConfig
from quire.errors import ModelNotFound, QuireError
from quire.model_path import is_hub_id
from quire.triton.problem import Problem


def check_settings(path: Path) -> Iterator[Problem]:
    """A model.json, the model that it names, that model's files, and whether it fits on this machine."""
    try:
        config = EngineConfig.from_file(path)
        folder = config.model_folder(download=False)
    except ModelNotFound as error:
        is_download = is_hub_id(config.model) and config.model in str(error)
        yield Problem(file=path, message=str(error), is_note=is_download)
        return
    except QuireError as error:
        yield _problem(path, str(error))
        return
    # Not at the top: importing torch takes a second, and settings that are wrong need none of it.
    try:
        from quire.engine.build import check
        from quire.runner.threads import SHARED_CORES
    except ImportError as error:
        yield Problem(file=path, message=f"its engine cannot be imported: {error}")
        return

    for message, is_warning in check(config, SHARED_CORES, folder):
        yield _problem(path, message, is_note=is_warning)


def _problem(path: Path, message: str, *, is_note: bool = False) -> Problem:
    """Under the file that the message begins with, else under the settings."""
    file, separator, rest = message.partition(": ")
    if separator and file.startswith("/"):
        return Problem(file=Path(file), message=rest, is_note=is_note)
    return Problem(file=path, message=message, is_note=is_note)
