"""`quire add-model | remove-model | list`: several models in one repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from quire.cli.check import show
from quire.cli.common import console, default_repository, errors_as_text, packaged_repository
from quire.errors import InvalidArgument
from quire.model_files import UnreadableFile, read_json_object
from quire.triton.check_process import check_repository_apart
from quire.triton.model_copy import add_model, parse_settings, remove_folders, remove_model
from quire.triton.repository import loaded_with, parameter, read_configs, text_ensembles, versions_of
from quire.triton.server import repository_index

Repository = Annotated[Path, typer.Option("--repository", "--model-repository", help="The model repository.")]
_DEFAULT = Path("model_repository")


def add(
    model: Annotated[str, typer.Argument(help="A folder, an embedded model or a Hugging Face id.")],
    name: Annotated[str, typer.Option(help="What clients call; the models of its steps begin with it.")],
    repository: Repository = _DEFAULT,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting; may be given several times."),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Look first whether the model's files and settings can be served here.")
    ] = True,
) -> None:
    """Add a model to a model repository, which is made if need be."""
    with errors_as_text():
        names = add_model(packaged_repository(), repository, model, name, parse_settings(set_ or []))
        is_good = False
        try:
            is_good = not check or show(check_repository_apart(repository, names))
        finally:
            if not is_good:
                remove_folders(repository, names)
        if not is_good:
            raise typer.Exit(1)
    console.print(f"{repository}: added {', '.join(names)}", markup=False)


def remove(
    name: Annotated[str, typer.Argument(help="What `quire add-model` called it.")],
    repository: Repository = _DEFAULT,
) -> None:
    """Remove a model that add-model added."""
    with errors_as_text():
        names = remove_model(packaged_repository(), repository, name)
    console.print(f"{repository}: removed {', '.join(names)}", markup=False)


def show_all(
    repository: Annotated[
        Path | None, typer.Option("--repository", "--model-repository", help="As for `quire serve`.")
    ] = None,
    url: Annotated[str, typer.Option(help="The server whose word on the models is shown.")] = (
        "http://127.0.0.1:8000"
    ),
) -> None:
    """List the models of a model repository, and their state where a server answers."""
    folder = repository or default_repository()
    if not folder.is_dir():
        with errors_as_text():
            raise InvalidArgument("--repository", str(folder), "a folder with models")
    with errors_as_text():
        configs, bad = read_configs(folder)
    index = repository_index(url)
    rows = [("NAME", "MODEL", "VERSIONS", "STATE")]
    for name, config in configs.items():
        if parameter(config, "role") != "generation":
            continue
        users = {each: config for each, config in configs.items() if name in loaded_with([each], configs)}
        called = next(iter(text_ensembles(users)), name)
        versions = versions_of(folder / name)
        models = ", ".join(dict.fromkeys(_model(version / "model.json") for version in versions))
        state = "no server answers" if index is None else _state(loaded_with([called], configs), index)
        rows.append((called, models, ", ".join(version.name for version in versions), state))
    rows += [(name, "-", "-", f"{error.file.name}: {error}") for name, error in bad.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        console.print(line.rstrip(), markup=False)


def _model(file: Path) -> str:
    try:
        return str(read_json_object(file).get("model"))
    except (OSError, UnreadableFile):
        return "?"


def _state(models: set[str], index: Sequence[Mapping[str, Any]]) -> str:
    """What a server says of a model and its steps: ready, not loaded, or what is missing and why."""
    states: dict[str, str] = {}
    for entry in index:
        reason = entry.get("reason", "unloaded")
        is_unloaded = "state" not in entry or (entry["state"] == "UNAVAILABLE" and reason == "unloaded")
        state = "not loaded" if is_unloaded else entry["state"].lower()
        states[entry["name"]] = state if reason == "unloaded" else f"{state}: {reason}"
    found = {name: states.get(name, "unknown to the server") for name in sorted(models)}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    # The reason says more than what follows from it.
    missing = [name for name, state in found.items() if state != "ready"]
    name = min(missing, key=lambda name: found[name] == "not loaded")
    return f"{name}: {found[name]}"
