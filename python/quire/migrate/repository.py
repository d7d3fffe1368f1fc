"""Plans and writes the move of a whole repository."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quire.errors import ConfigError, InvalidArgument, describe
from quire.migrate import trtllm, vllm
from quire.migrate.move import Move
from quire.migrate.pbtxt import FILE, read_foreign
from quire.migrate.settings import exists
from quire.triton.model_copy import called, copy_models
from quire.triton.repository import (
    BadConfig,
    ModelConfig,
    loaded_with,
    model_folders,
    parameter,
    read_configs,
)


@dataclass(frozen=True)
class Plan:
    """`left`: models that are not moved, and what they are."""

    moves: list[Move]
    left: dict[str, str]

    @property
    def open_keys(self) -> list[str]:
        """What waits for the user's consent, as --ignore calls it."""
        found = (finding for move in self.moves for finding in move.findings.found if finding.is_open)
        return list(dict.fromkeys(finding.key for finding in found))


def plan(
    packaged: Path,
    repository: Path,
    *,
    ignored: Collection[str] = (),
    weights: Mapping[str, str] | None = None,
) -> Plan:
    """What becomes of the models of `repository`, which may be a model's own folder. `weights`: by a model's
    name, or "" for the only one, the folder or name of its model. Raises ConfigError or InvalidArgument."""
    folders, repository = _folders(repository.absolute())
    configs, unknown = _read(folders)
    known = {name: config for name, config in configs.items() if config is not None}
    own, _ = read_configs(packaged)
    singles = [name for name in folders if vllm.is_vllm(folders[name], configs[name])]
    groups = [group for group in trtllm.find_groups(known) if group.called]
    given = _weights_of([[name] for name in singles] + [group.models for group in groups], weights or {})
    moves = [
        vllm.plan_vllm(
            repository,
            folders[name],
            configs[name],
            unknown.get(name),
            ignored,
            called(list(own), name),
            _tensors(own["ensemble"]),
            model,
        )
        for name, model in zip(singles, given, strict=False)
    ] + [
        trtllm.plan_trtllm(
            repository,
            known,
            group,
            ignored,
            lambda group, streams: _trtllm_names(own, group, streams),
            _tensors(own["ensemble_trtllm"]),
            unknown,
            model,
        )
        for group, model in zip(groups, given[len(singles) :], strict=True)
    ]
    moved = {*singles, *(name for group in groups for name in group.models)}
    left = {name: _what(config) for name, config in configs.items() if name not in moved}
    if not moves:
        raise _nothing(repository, left)
    _require_apart(moves)
    return Plan(moves, left)


def _weights_of(models: list[list[str]], weights: Mapping[str, str]) -> list[str | None]:
    """What --model names for each of `models`, which have several names."""
    found: list[str | None] = [None] * len(models)
    for name, model in weights.items():
        fitting = [
            index for index, names in enumerate(models) if name in names or (not name and len(models) == 1)
        ]
        if not fitting:
            allowed = ", ".join(names[0] for names in models) or "none: no model moves"
            given = f"{name}={model}" if name else model
            raise InvalidArgument("--model", describe(given), f"NAME=MODEL with NAME one of {allowed}")
        is_path = exists(Path(model)) or model.startswith((".", "/", "~"))
        found[fitting[0]] = str(Path(model).expanduser().absolute()) if is_path else model
    return found


def _nothing(repository: Path, left: Mapping[str, str]) -> InvalidArgument:
    """There is nothing to move: what there is, and where there may be something."""
    what = ", ".join(f"{name} ({text})" for name, text in left.items()) or "no models"
    inside = sorted({file.parents[1] for file in repository.glob(f"*/*/{FILE}")})
    allowed = (
        f"{inside[0]}, which has models" if inside else "models of Triton's vLLM backend or of TensorRT-LLM"
    )
    return InvalidArgument("REPOSITORY", f"{repository}, which has {what}", allowed)


def _require_apart(moves: list[Move]) -> None:
    """No name of one model's steps is that of another model."""
    used: dict[str, str] = {}
    for move in moves:
        for name in {*move.models.values(), *move.names}:
            if name in used:
                given = f"{used[name]} and {move.name}, which both need a model {name}"
                raise InvalidArgument(
                    "REPOSITORY", given, f"one of them: a model's folder, as in {move.sources[0]}"
                )
            used[name] = move.name


def write(packaged: Path, moves: list[Move], target: Path) -> list[str]:
    """Adds the models to the repository `target`, all of them or none; their names. Raises InvalidArgument
    where one is there already."""
    names: list[str] = []
    with _scratch(target) as scratch:
        for move in moves:
            copy_models(
                packaged,
                scratch,
                move.models,
                move.settings,
                version=move.version,
                parameters=move.parameters,
            )
            first = scratch / move.name / FILE
            for name in move.names[1:]:
                shutil.copytree(scratch / move.name, scratch / name)
                text = first.read_text("utf-8").replace(f'name: "{move.name}"', f'name: "{name}"', 1)
                (scratch / name / FILE).write_text(text, "utf-8")
        names = sorted(folder.name for folder in scratch.iterdir())
        if used := [name for name in names if (target / name).exists()]:
            raise InvalidArgument("--output", f"{target}, which has {used[0]}", "a folder without it")
        for name in names:
            (scratch / name).rename(target / name)
    return names


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder in `target`, which is made if need be, that Triton and we do not take for a model."""
    is_new = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".migrate-", dir=target))
    except OSError as error:
        raise InvalidArgument("--output", f"{target}: {error.strerror}", "a folder to write to") from None
    try:
        yield folder
    except OSError as error:
        raise InvalidArgument("--output", f"{target}: {error}", "a folder to write to") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                target.rmdir()


def _folders(repository: Path) -> tuple[dict[str, Path], Path]:
    """The models' folders by name, and the repository they are in."""
    if not repository.is_dir():
        raise InvalidArgument("REPOSITORY", str(repository), "a folder with models")
    if (repository / FILE).is_file():
        return {repository.name: repository}, repository.parent
    return {folder.name: folder for folder in model_folders(repository)}, repository


def _read(folders: Mapping[str, Path]) -> tuple[dict[str, ModelConfig | None], dict[str, str]]:
    """Configurations, None where there is none, and what could not be read of them. Raises ConfigError."""
    configs: dict[str, ModelConfig | None] = {}
    unknown: dict[str, str] = {}
    for name, folder in folders.items():
        try:
            configs[name], problem = read_foreign(folder)
        except BadConfig as error:
            raise ConfigError(error.file, str(error)) from None
        if problem:
            unknown[name] = problem
    return configs, unknown


def _tensors(config: ModelConfig) -> dict[str, int]:
    return {tensor.name: tensor.data_type for kind in (config.input, config.output) for tensor in kind}


def _trtllm_names(own: Mapping[str, ModelConfig], group: trtllm.Group, streams: bool) -> dict[str, str]:
    """The packaged models with TensorRT-LLM's names, and those that they use. What clients call streams only
    where it did before."""
    wanted = [name for name in own if "trtllm" in name or name.startswith("tensorrt_llm")]
    for name in wanted:  # grows
        keys = ("generation_model", "tokenizer_model")
        uses = loaded_with([name], own) | {parameter(own[name], key) for key in keys}
        wanted += sorted(uses - {"", *wanted})
    first = group.called[0]
    names = {name: f"{first}-{name}" for name in wanted}
    names["ensemble_trtllm"], names["ensemble_trtllm_unary"] = (
        (first, f"{first}_unary") if streams else (f"{first}_stream", first)
    )
    if "tensorrt_llm" in names:
        names["tensorrt_llm"] = group.engine
    return names


def _what(config: ModelConfig | None) -> str:
    if config is None:
        return "no config.pbtxt"
    if config.backend == "quire":
        return "Quire's own"
    if config.backend == "tensorrtllm":
        return "an engine that no ensemble and no tensorrt_llm_bls uses"
    return f"{config.backend or config.platform or 'no'} {'backend' if config.backend else 'platform'}"
