"""Reads the configurations of a model repository, as far as we must know them without a server."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quire.errors import ServerNotFound
from quire.model_files import UnreadableFile, read_text

# Without types, and optional, as is protobuf: ModelConfig is Any throughout.
ModelConfig = Any


class BadConfig(Exception):  # noqa: N818 - reported, never raised to a user
    """A config.pbtxt that cannot be read: its file and why."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(problem)
        self.file = file


def protobuf() -> tuple[Any, Any, Any]:
    """google.protobuf.text_format and json_format, and Triton's model_config_pb2."""
    try:
        return (
            importlib.import_module("google.protobuf.text_format"),
            importlib.import_module("google.protobuf.json_format"),
            importlib.import_module("tritonclient.grpc.model_config_pb2"),
        )
    except ModuleNotFoundError as error:
        raise ServerNotFound(
            f"{error.name}: not installed; install it with `pip install 'quire[server]'`"
        ) from None


def model_folders(repository: Path) -> list[Path]:
    return sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))


def versions_of(folder: Path) -> list[Path]:
    """The folders of a model's versions, in order."""
    versions = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
    return sorted((path for path in versions if path.name != "0"), key=lambda path: int(path.name))


def loaded_versions(folder: Path, config: ModelConfig) -> list[Path]:
    """The versions that its version policy loads; the highest where it has none."""
    versions = versions_of(folder)
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return versions
    if kind == "specific":
        return [path for path in versions if int(path.name) in policy.specific.versions]
    return versions[-(policy.latest.num_versions or 1) :]


def read_config(folder: Path) -> ModelConfig:
    """The model's config.pbtxt; None where there is none. Raises BadConfig."""
    text_format, _, model_config = protobuf()
    path = folder / "config.pbtxt"
    try:
        return text_format.Parse(read_text(path), model_config.ModelConfig())
    except FileNotFoundError:
        return None
    except UnreadableFile as error:
        raise BadConfig(path, error.problem) from None
    except text_format.ParseError as error:
        raise BadConfig(path, f"line {error}") from None
    except RecursionError:
        raise BadConfig(path, "got a text that is nested too deep") from None


def read_configs(repository: Path) -> tuple[dict[str, ModelConfig], dict[str, BadConfig]]:
    """By a model's name: configurations, and why others cannot be read. Models without one are in neither."""
    configs: dict[str, ModelConfig] = {}
    bad: dict[str, BadConfig] = {}
    for folder in model_folders(repository):
        try:
            config = read_config(folder)
        except BadConfig as error:
            bad[folder.name] = error
            continue
        if config is not None:
            configs[folder.name] = config
    return configs, bad


def loaded_with(names: Iterable[str], configs: Mapping[str, ModelConfig]) -> set[str]:
    """`names` and what tritonserver loads with them: the steps of ensembles."""
    found: set[str] = set()
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            if name in configs:
                open_names += [step.model_name for step in configs[name].ensemble_scheduling.step]
    return found


def parameter(config: ModelConfig, name: str, default: str = "") -> str:
    return str(config.parameters[name].string_value) if name in config.parameters else default


def text_ensembles(configs: Mapping[str, ModelConfig]) -> list[str]:
    """The models that clients may send a prompt to and stream from; first those with the interface of
    Triton's vLLM backend."""
    inputs = {name: {tensor.name for tensor in config.input} for name, config in configs.items()}
    found = [
        name
        for name, config in configs.items()
        if config.platform == "ensemble"
        and {"text_input", "stream"} <= inputs[name]
        and "text_output" in {tensor.name for tensor in config.output}
    ]
    return sorted(found, key=lambda name: "sampling_parameters" not in inputs[name])
