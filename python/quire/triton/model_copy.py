"""A model repository for one model, made from the packaged one: what `quire serve --model` serves."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quire.config import EngineConfig
from quire.errors import InvalidArgument, describe

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


def copy_for_model(
    packaged: Path, target: Path, model: str, name: str | None, settings: Mapping[str, Any]
) -> None:
    """Fills the new folder `target` with `packaged`, whose generation model gets `model` (a folder, an
    embedded model or a Hugging Face id) and `settings`. `name`: replaces "ensemble" at the beginning of the
    models' names. Raises ConfigError or InvalidArgument."""
    if Path(model).expanduser().exists() or model.startswith((".", "/", "~")):
        model = str(Path(model).expanduser().absolute())
    values = {"model": model, **settings}
    EngineConfig(**values)  # here, so that its errors name a setting and no file of ours
    folders = {folder.name: folder for folder in sorted(packaged.glob("*")) if folder.is_dir()}
    fixed = [folder for folder in folders if not folder.startswith("ensemble")]
    if name is not None and (not _NAME.fullmatch(name) or name in fixed):
        allowed = f"letters, digits, _, . and -, up to 100 of them, but none of {', '.join(fixed)}"
        raise InvalidArgument("--name", describe(name), allowed)
    for old, folder in folders.items():
        new = f"{name}{old.removeprefix('ensemble')}" if name and old.startswith("ensemble") else old
        shutil.copytree(folder, target / new)
        config = target / new / "config.pbtxt"
        text = config.read_text("utf-8")
        config.write_text(re.sub(rf'^name: "{old}"', f'name: "{new}"', text, count=1, flags=re.MULTILINE))
    (target / "generation" / "1" / "model.json").write_text(json.dumps(values, indent=2) + "\n")


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
