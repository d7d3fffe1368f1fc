"""Judges vLLM's engine arguments, key by key, and finds the folders that they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.config import EngineConfig
from quire.engine_arguments import ARGUMENTS
from quire.errors import ConfigError, did_you_mean
from quire.migrate.findings import NEEDED, Findings
from quire.model_folder import CONFIG
from quire.model_path import embedded_models, is_hub_id
from quire.tokenizer_files import TOKENIZER_FILES

NOT_HERE = "not on this machine"


@dataclass(frozen=True)
class Places:
    """Where a folder may be that a setting names, as the old server saw it."""

    repository: Path
    beside: tuple[Path, ...]  # the model's own folder and its version

    def find(self, name: str) -> tuple[str, str]:
        """The name or path to write, and what to say about it."""
        path = Path(os.path.expanduser(name))  # noqa: PTH111 - no error for ~nobody
        if path.is_absolute():
            if exists(path):
                return name, ""
            # The repository was mounted somewhere else, with weights inside of it.
            for index in range(1, len(path.parts)):
                inside = self.repository.joinpath(*path.parts[index:])
                if _is_model(inside):
                    return str(inside), "found in this repository"
            return name, NOT_HERE
        for folder in (Path.cwd(), *self.beside, self.repository):
            if _is_model(folder / path):
                return str((folder / path).absolute()), ""
        return name, "" if is_hub_id(name) or name in embedded_models() else NOT_HERE


def _is_model(path: Path) -> bool:
    """Whether weights or a tokenizer are there, and no model of Triton's that has the same name."""
    return (path.suffix == ".gguf" and exists(path)) or any(
        exists(path / name) for name in (CONFIG, *TOKENIZER_FILES)
    )


def exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - no error, whatever the name


def judge_arguments(
    findings: Findings, file: str, values: Mapping[str, Any], places: Places
) -> dict[str, Any]:
    """The settings of ours among `values`, in their own form."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if key in ARGUMENTS:
            findings.judge(file, key, value, ARGUMENTS[key].problem(value), ARGUMENTS[key].why)
        elif key not in EngineConfig.model_fields:
            hint = did_you_mean(key, [*EngineConfig.model_fields, *ARGUMENTS])
            findings.unknown(file, key, value, f"no engine argument{hint}")
        elif key != NEEDED and (
            value is None or (value == "" and EngineConfig.model_fields[key].default is None)
        ):
            findings.neutral(file, key, value, "the default")
        else:
            _take(findings, file, key, value, places, settings)
    return settings


def _take(
    findings: Findings, file: str, key: str, value: object, places: Places, settings: dict[str, Any]
) -> None:
    try:
        config = EngineConfig(**{"model": "m", key: value})
    except ConfigError as error:
        findings.missing(file, key, value, error.problem)
        return
    settings[key], note = getattr(config, key), ""
    if key == "download_dir":
        settings[key] = str(Path(str(value)).absolute())
    if key in ("model", "tokenizer"):
        if "://" in str(value):
            findings.missing(file, key, value, "a folder on this machine, or a Hugging Face id")
            return
        settings[key], note = places.find(str(value))
    if settings[key] != value:
        note = f"as {settings[key]}" + (f", {note}" if note else "")
    findings.taken(file, key, value, note)
