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
    repository = repository.absolute()
    weights = dict(weights or {})
    folders, repository = _folders(repository)
    configs, unknown = _read(folders)
    own, _ = read_configs(packaged)
    moves, left = [], {}
    moved: set[str] = set()

    def weights_of(names: Collection[str]) -> str | None:
        given = [name for name in names if name in weights]
        return _absolute(weights.pop(given[0])) if given else weights.pop("", None)

    groups = trtllm.find_groups({name: config for name, config in configs.items() if config is not None})
    foreign = [name for name in folders if vllm.is_vllm(folders[name], configs[name])]
    if "" in weights and len(groups) + len(foreign) > 1:
        names = ", ".join([*foreign, *(group.engine for group in groups)])
        raise InvalidArgument("--model", describe(weights[""]), f"NAME=MODEL with NAME one of {names}")
    if "" in weights:
        weights[""] = _absolute(weights[""])
    for name in foreign:
        move = vllm.plan_vllm(
            repository,
            folders[name],
            configs[name],
            unknown.get(name),
            ignored,
            called(list(own), name),
            _tensors(own, "ensemble"),
            weights_of([name]),
        )
        moves.append(move)
        moved.add(name)
    for group in groups:
        if not group.called:
            left[group.engine] = "an engine of TensorRT-LLM that no ensemble and no tensorrt_llm_bls uses"
            continue
        move = trtllm.plan_trtllm(
            repository,
            {name: config for name, config in configs.items() if config is not None},
            group,
            ignored,
            lambda group, streams: _trtllm_names(own, group, streams),
            _tensors(own, "ensemble_trtllm"),
            unknown,
            weights_of(group.models),
        )
        moves.append(move)
        moved |= set(group.models)
    left |= {name: _what(configs[name]) for name in folders if name not in moved and name not in left}
    if weights:
        name, model = next(iter(weights.items()))
        given = f"{name}={model}" if name else model
        allowed = ", ".join(move.name for move in moves) or "none: no model moves"
        raise InvalidArgument("--model", describe(given), f"NAME=MODEL with NAME one of {allowed}")
    if not moves:
        what = ", ".join(f"{name} ({text})" for name, text in left.items()) or "no models"
        inside = sorted({file.parents[1].name for file in repository.glob(f"*/*/{FILE}")})
        allowed = "models of Triton's vLLM backend or of TensorRT-LLM"
        raise InvalidArgument(
            "REPOSITORY",
            f"{repository}, which has {what}",
            f"{repository / inside[0]}, which has models" if inside else allowed,
        )
    _require_apart(moves)
    return Plan(moves, left)


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


def _absolute(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() or model.startswith((".", "/", "~")) else model


def _tensors(own: Mapping[str, ModelConfig], name: str) -> dict[str, int]:
    return {tensor.name: tensor.data_type for kind in (own[name].input, own[name].output) for tensor in kind}


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
    return f"{config.backend or config.platform or 'no'} {'backend' if config.backend else 'platform'}"
