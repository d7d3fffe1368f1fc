"""Checks a model repository without starting a server: configurations, how an ensemble's steps fit
together, settings, model files. Finds all problems, not only the first."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.config import EngineConfig
from quire.errors import InvalidArgument, ModelNotFound, QuireError, ServerNotFound, describe, did_you_mean
from quire.generation_defaults import generation_defaults
from quire.model_path import is_hub_id
from quire.tokenizer import Tokenizer, plan_of
from quire.triton.installation import find_backend_library
from quire.triton.tokenizer_stage import DIALECTS, STAGE_PARAMETERS

# Config parameters of our own models, by backend.
_ROLES = ("generation", "detokenizer", "unary")
_QUIRE_PARAMETERS = (
    "role",
    "generation_model",
    "tokenizer_model",
    "python",
    "engine_module",
    "forwarded_headers",
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that would fail at start or at the first request."""

    file: Path
    message: str
    is_note: bool = False  # worth knowing, but a start may well succeed

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


def check_repository(repository: Path) -> list[Problem]:
    """Every problem of the repository; empty when there is none."""
    if not repository.is_dir():
        return [Problem(file=repository, message="no such folder; allowed: a Triton model repository")]
    problems: list[Problem] = []
    configs: dict[str, Any] = {}
    folders = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        problems.append(Problem(file=repository, message="has no models; allowed: a folder for each model"))
    for folder in folders:
        config, found = _read_config(folder)
        problems += found
        if config is not None:
            configs[folder.name] = config
    for name, config in configs.items():
        folder = repository / name
        problems += _check_versions(folder, config)
        if config.platform == "ensemble":
            problems += _check_ensemble(folder / "config.pbtxt", config, configs)
        elif config.backend == "quire":
            problems += _check_quire(folder, config, configs)
        elif config.backend == "python":
            problems += _check_generation_model(folder, config, configs)
            problems += _check_tokenizer(folder, config)
    return problems


def _protobuf() -> tuple[Any, Any]:
    """google.protobuf.text_format and Triton's model_config_pb2. They have no types, and are optional."""
    try:
        return (
            importlib.import_module("google.protobuf.text_format"),
            importlib.import_module("tritonclient.grpc.model_config_pb2"),
        )
    except ModuleNotFoundError as error:
        raise ServerNotFound(
            f"{error.name}: not installed; install it with `pip install 'quire[server]'`"
        ) from None


def _read_config(folder: Path) -> tuple[Any, list[Problem]]:
    """The model's configuration, or why there is none."""
    text_format, model_config = _protobuf()
    path = folder / "config.pbtxt"
    if not path.is_file():
        return None, [Problem(file=path, message="no such file; allowed: the model's configuration")]
    try:
        config = text_format.Parse(path.read_text("utf-8"), model_config.ModelConfig())
    except text_format.ParseError as error:
        return None, [Problem(file=path, message=f"line {error}")]
    except UnicodeDecodeError as error:
        return None, [
            Problem(file=path, message=f"got invalid UTF-8 at byte {error.start}; allowed: UTF-8 text")
        ]
    problems = []
    if config.name not in ("", folder.name):
        message = f"name: got {describe(config.name)}; allowed: {describe(folder.name)}, the folder's name"
        problems.append(Problem(file=path, message=message))
    return config, problems


def _check_versions(folder: Path, config: Any) -> Iterator[Problem]:
    versions = [
        path for path in folder.iterdir() if path.is_dir() and path.name.isdigit() and path.name != "0"
    ]
    if not versions:
        message = "has no version; allowed: a folder with a number as its name, such as 1"
        yield Problem(file=folder, message=message)
    if config.backend == "python":
        for version in versions:
            path = version / (config.default_model_filename or "model.py")
            if not path.is_file():
                yield Problem(file=path, message="no such file; allowed: the model's Python code")


def _check_ensemble(path: Path, config: Any, configs: dict[str, Any]) -> Iterator[Problem]:
    """Follows the tensors through the steps: every one is made before it is read, and its type fits."""
    tensors = {tensor.name: tensor for tensor in config.input}
    used: set[str] = set()
    for index, step in enumerate(config.ensemble_scheduling.step):
        where = f"ensemble_scheduling.step[{index}]"
        model = configs.get(step.model_name)
        if model is None:
            message = (
                f"{where}.model_name: got {describe(step.model_name)}{did_you_mean(step.model_name, configs)}"
                f"; allowed: {', '.join(configs)}"
            )
            yield Problem(file=path, message=message)
            continue
        inputs = {tensor.name: tensor for tensor in model.input}
        for name, source in sorted(step.input_map.items()):
            used.add(source)
            at = f"{where}.input_map[{describe(name)}]"
            if name not in inputs:
                yield Problem(
                    file=path, message=f"{at}: {_unknown(name, f'input of {step.model_name}', inputs)}"
                )
            elif source not in tensors:
                yield Problem(file=path, message=f"{at}: {_unknown(source, 'tensor made before', tensors)}")
            elif difference := _difference(tensors[source], inputs[name]):
                yield Problem(file=path, message=f"{at}: {describe(source)} does not fit: {difference}")
        for name, tensor in inputs.items():
            if name not in step.input_map and not tensor.optional:
                message = f"{where}.input_map: lacks {describe(name)}, a required input of {step.model_name}"
                yield Problem(file=path, message=message)
        outputs = {tensor.name: tensor for tensor in model.output}
        for name, target in sorted(step.output_map.items()):
            at = f"{where}.output_map[{describe(name)}]"
            if name not in outputs:
                yield Problem(
                    file=path, message=f"{at}: {_unknown(name, 'output of ' + step.model_name, outputs)}"
                )
            elif target in tensors:
                yield Problem(
                    file=path, message=f"{at}: got {describe(target)}, which is made twice; allowed: once"
                )
            else:
                tensors[target] = outputs[name]
    for tensor in config.output:
        if tensor.name not in tensors:
            yield Problem(file=path, message=f"output: {_unknown(tensor.name, 'tensor of a step', tensors)}")
        elif difference := _difference(tensors[tensor.name], tensor):
            yield Problem(file=path, message=f"output {describe(tensor.name)} does not fit: {difference}")
    for tensor in config.input:
        if tensor.name not in used:
            yield Problem(file=path, message=f"input {describe(tensor.name)}: no step reads it")


def _unknown(name: str, what: str, known: dict[str, Any]) -> str:
    return f"got {describe(name)}, no {what}{did_you_mean(name, known)}; allowed: {', '.join(known)}"


def _difference(given: Any, expected: Any) -> str:
    """Why a tensor cannot be used as another; "" when it can. -1 fits any size."""
    if given.data_type != expected.data_type:
        name_of = _protobuf()[1].DataType.Name
        return f"got {name_of(given.data_type)}; allowed: {name_of(expected.data_type)}"
    dims, allowed = list(given.dims), list(expected.dims)
    if len(dims) != len(allowed) or any(
        -1 not in pair and pair[0] != pair[1] for pair in zip(dims, allowed, strict=True)
    ):
        return f"got dims {dims}; allowed: {allowed}"
    return ""


def _check_quire(folder: Path, config: Any, configs: dict[str, Any]) -> Iterator[Problem]:
    """A model of our own backend."""
    path = folder / "config.pbtxt"
    try:
        find_backend_library()
    except QuireError as error:
        yield Problem(file=path, message=str(error))
    for name in config.parameters:
        if name not in _QUIRE_PARAMETERS:
            allowed = ", ".join(_QUIRE_PARAMETERS)
            message = f"parameters: unknown key {describe(name)}{did_you_mean(name, _QUIRE_PARAMETERS)}"
            yield Problem(file=path, message=f"{message}; allowed: {allowed}")
    role = config.parameters["role"].string_value if "role" in config.parameters else None
    if role not in _ROLES:
        yield Problem(
            file=path, message=f"parameters.role: got {describe(role)}; allowed: {', '.join(_ROLES)}"
        )
    if role == "generation":
        for version in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()):
            yield from check_settings(version / "model.json")
    elif role in ("detokenizer", "unary"):
        yield from _check_generation_model(folder, config, configs)
    if role == "unary" and "tokenizer_model" in config.parameters:
        yield from _check_tokenizer_model(path, config, configs)


def _check_generation_model(folder: Path, config: Any, configs: dict[str, Any]) -> Iterator[Problem]:
    """The parameter `generation_model` of a tokenizer or detokenizer."""
    if config.backend == "python" and "generation_model" not in config.parameters:
        return  # somebody's own Python model
    name = "generation"
    if "generation_model" in config.parameters:
        name = config.parameters["generation_model"].string_value
    known = [
        other
        for other, model in configs.items()
        if "role" in model.parameters and model.parameters["role"].string_value == "generation"
    ]
    if name not in known:
        message = f"parameters.generation_model: got {describe(name)}{did_you_mean(name, known)}"
        allowed = ", ".join(known) or "a model with role generation; there is none"
        yield Problem(file=folder / "config.pbtxt", message=f"{message}; allowed: {allowed}")


def _check_tokenizer_model(path: Path, config: Any, configs: dict[str, Any]) -> Iterator[Problem]:
    """The parameter `tokenizer_model` of a model with role unary, which hands its inputs on by name."""
    at = "parameters.tokenizer_model"
    name = config.parameters["tokenizer_model"].string_value
    model = configs.get(name)
    if model is None:
        message = f"{at}: got {describe(name)}{did_you_mean(name, configs)}; allowed: {', '.join(configs)}"
        yield Problem(file=path, message=message)
        return
    inputs = {tensor.name: tensor for tensor in model.input}
    for tensor in config.input:
        if tensor.name not in inputs:
            yield Problem(file=path, message=f"input: {_unknown(tensor.name, f'input of {name}', inputs)}")
        elif difference := _difference(tensor, inputs[tensor.name]):
            yield Problem(file=path, message=f"input {describe(tensor.name)} does not fit: {difference}")
    declared = {tensor.name for tensor in config.input}
    for tensor in model.input:
        if tensor.name not in declared and not tensor.optional:
            message = f"input: lacks {describe(tensor.name)}, a required input of {name}"
            yield Problem(file=path, message=message)
    if "input_ids" not in {tensor.name for tensor in model.output}:
        message = f'{at}: got {describe(name)}; allowed: a model with the output "input_ids"'
        yield Problem(file=path, message=message)


def _check_tokenizer(folder: Path, config: Any) -> Iterator[Problem]:
    """The parameters of a tokenizer of ours."""
    if "generation_model" not in config.parameters:
        return
    path = folder / "config.pbtxt"
    for name in config.parameters:
        if name not in STAGE_PARAMETERS:
            message = f"parameters: unknown key {describe(name)}{did_you_mean(name, STAGE_PARAMETERS)}"
            yield Problem(file=path, message=f"{message}; allowed: {', '.join(STAGE_PARAMETERS)}")
    if "dialect" in config.parameters:
        dialect = config.parameters["dialect"].string_value
        if dialect not in DIALECTS:
            message = f"parameters.dialect: got {describe(dialect)}{did_you_mean(dialect, DIALECTS)}"
            yield Problem(file=path, message=f"{message}; allowed: {', '.join(DIALECTS)}")


def check_settings(path: Path) -> Iterator[Problem]:
    """A model.json, the model that it names, and that model's files."""
    try:
        config = EngineConfig.from_file(path)
    except QuireError as error:
        yield Problem(file=path, message=str(error).removeprefix(f"{path}: "))
        return
    try:
        model = config.model_folder(download=False)
    except ModelNotFound as error:
        yield Problem(file=path, message=str(error), is_note=is_hub_id(config.model))
        return
    if config.load_format != "dummy" and not any(model.glob("*.safetensors")):
        yield Problem(file=model, message="has no *.safetensors; allowed: a model folder with weights")
    checks: list[tuple[str, Callable[[], object]]] = [
        ("tokenizer.json", lambda: plan_of(Tokenizer(model).raw)),
        ("config.json", lambda: _check_model(model, config)),
        ("generation_config.json", lambda: generation_defaults(config, model)),
    ]
    for name, check in checks:
        try:
            check()
        except QuireError as error:
            yield Problem(file=model / name, message=str(error))


def _check_model(model: Path, config: EngineConfig) -> None:
    from quire.models.config import load_model_config

    limit = load_model_config(model).max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise InvalidArgument(
            "max_model_len", str(config.max_model_len), f"at most {limit}, the model's own limit"
        )
