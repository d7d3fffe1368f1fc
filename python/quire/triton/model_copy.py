"""Models of the packaged repository under names of one's own: what `quire serve --model` serves, and what
`quire add-model` puts beside others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quire.config import EngineConfig
from quire.errors import InvalidArgument, describe, did_you_mean
from quire.triton.repository import loaded_with, model_folders, parameter, read_configs

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_CHARACTERS = "letters, digits, _, . and -, up to 100 of them"
# Where a config.pbtxt names models: its own name, an ensemble's steps, parameters, and comments.
_NAMED = re.compile(
    r'(^name: "|model_name: "|key: "(?:generation_model|tokenizer_model|served_model_name)" value:? '
    r'\{ string_value: "|\.\./)'
    r"([\w.-]*\w)",
    re.MULTILINE,
)


def copy_for_model(
    packaged: Path, target: Path, model: str, name: str | None, settings: Mapping[str, Any]
) -> None:
    """Fills the new folder `target` with `packaged`, whose generation model gets `model` (a folder, an
    embedded model or a Hugging Face id) and `settings`. `name`: replaces "ensemble" at the beginning of the
    models' names. Raises ConfigError or InvalidArgument."""
    folders = [folder.name for folder in model_folders(packaged)]
    fixed = [folder for folder in folders if not folder.startswith("ensemble")]
    if name is not None and (not _NAME.fullmatch(name) or name in fixed):
        raise InvalidArgument("--name", describe(name), f"{_CHARACTERS}, but none of {', '.join(fixed)}")
    names = called(folders, name or "ensemble") | {old: old for old in fixed}
    _copy(packaged, target, model, names, settings)


def add_model(
    packaged: Path, repository: Path, model: str, name: str, settings: Mapping[str, Any]
) -> list[str]:
    """Does the same in a repository that may have models, where the other models get `name` and a hyphen
    before theirs. Returns the names of all."""
    if repository.resolve() == packaged.resolve():
        given = f"{repository}, from which models are copied"
        raise InvalidArgument("--repository", given, "another folder, which is made if need be")
    names = called([folder.name for folder in model_folders(packaged)], name)
    if not _NAME.fullmatch(name):
        raise InvalidArgument("--name", describe(name), _CHARACTERS)
    if used := [new for new in names.values() if (repository / new).exists()]:
        raise InvalidArgument("--name", describe(name), f"a name not in use: {repository} has {used[0]}")
    try:
        _copy(packaged, repository, model, names, settings)
    except OSError as error:
        remove_folders(repository, list(names.values()))
        raise InvalidArgument("--repository", f"{repository}: {error}", "a folder to write to") from None
    return list(names.values())


def remove_model(packaged: Path, repository: Path, name: str) -> list[str]:
    """Removes what add_model() made, and returns its names. Raises InvalidArgument, also where another model
    needs one of them."""
    folders = [folder.name for folder in model_folders(packaged)]
    configs, _ = read_configs(_existing(repository))
    added = [other for other in configs if called(["generation"], other)["generation"] in configs]
    if name not in added:
        allowed = ", ".join(added) or f"none: {repository} has no model that was added"
        raise InvalidArgument("NAME", describe(name) + did_you_mean(name, added), allowed)
    going = {new for new in called(folders, name).values() if (repository / new).is_dir()}
    for other, config in configs.items():
        keys = ("generation_model", "tokenizer_model")
        needs = loaded_with([other], configs) | {parameter(config, key) for key in keys}
        if other not in going and (needed := sorted(needs & going)):
            raise InvalidArgument(
                "NAME", f"{describe(name)}, whose {needed[0]} {other} uses", "a model that no other uses"
            )
    remove_folders(repository, sorted(going))
    return sorted(going)


def remove_folders(repository: Path, names: list[str]) -> None:
    try:
        for name in names:
            if (repository / name).exists():
                shutil.rmtree(repository / name)
    except OSError as error:
        raise InvalidArgument("--repository", f"{repository}: {error}", "a folder to write to") from None


def _existing(repository: Path) -> Path:
    if not repository.is_dir():
        raise InvalidArgument("--repository", str(repository), "a folder with models")
    return repository


def called(folders: list[str], name: str) -> dict[str, str]:
    """The packaged models' names, and theirs as those of the model `name`."""
    return {
        old: f"{name}{old.removeprefix('ensemble')}" if old.startswith("ensemble") else f"{name}-{old}"
        for old in folders
    }


def _copy(
    packaged: Path, target: Path, model: str, names: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    if Path(model).expanduser().exists() or model.startswith((".", "/", "~")):
        model = str(Path(model).expanduser().absolute())
    copy_models(packaged, target, names, {"model": model, **settings})


def copy_models(
    packaged: Path,
    target: Path,
    names: Mapping[str, str],
    settings: Mapping[str, Any],
    *,
    version: str = "1",
    parameters: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Copies models of `packaged` under new names, for a generation model with `settings`. `parameters`: of
    the config.pbtxt of a packaged model. Raises ConfigError that names a setting."""
    EngineConfig(**settings)  # here, so that its errors name no file of ours
    for old, new in names.items():
        shutil.copytree(packaged / old, target / new)
        config = target / new / "config.pbtxt"
        text = _NAMED.sub(lambda found: found[1] + names.get(found[2], found[2]), config.read_text("utf-8"))
        for key, value in (parameters or {}).get(old, {}).items():
            text = _with_parameter(text, key, value)
        config.write_text(text, "utf-8")
        (target / new / "1").rename(target / new / version)
    settings_file = target / names["generation"] / version / "model.json"
    settings_file.write_text(json.dumps(settings, indent=2) + "\n")


def _with_parameter(text: str, key: str, value: str) -> str:
    """A config.pbtxt with a parameter, in place of the line that has it."""
    text = re.sub(rf'^parameters:? \{{ key: "{key}" .*\n', "", text, flags=re.MULTILINE)
    return (
        f"{text}\nparameters: {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}\n"
    )


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """From `key=value`, each value JSON or else a string."""
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidArgument("--set", describe(text), "key=value, such as max_model_len=4096")
        if key in settings or key == "model":
            given = f"{describe(key)} twice" if key in settings else describe(key)
            raise InvalidArgument("--set", given, "each setting once; the model by --model")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings
