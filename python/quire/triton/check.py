"""Checks a model repository without starting a server: configurations, how an ensemble's steps fit together,
settings, model files. Finds all problems, not only the first, by the code that a start runs.

Models of other backends are Triton's business: what is found about them is a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from quire import _core
from quire.errors import InvalidArgument, QuireError, describe, did_you_mean
from quire.triton.check_ensemble import check_ensemble, difference, unknown
from quire.triton.check_settings import check_settings
from quire.triton.installation import find_backend_library, find_installation
from quire.triton.problem import Findings, Problem
from quire.triton.repository import (
    BadConfig,
    ModelConfig,
    loaded_versions,
    loaded_with,
    model_folders,
    parameter,
    protobuf,
    read_config,
    versions_of,
)
from quire.triton.tokenizer_stage import DIALECTS

__all__ = ["Problem", "check_repository", "check_settings"]

# Backends that serve LLMs as ours does: what to do with their models.
_MOVING = {
    "vllm": "its model.json has our settings' names: put it into generation/1/model.json of a copy of our "
    "model_repository, without what `quire check` then names; clients call ensemble in its place",
    "tensorrtllm": "it reads engines built by trtllm-build; ours reads the Hugging Face folder they came "
    "from: name that in generation/1/model.json, and let clients call ensemble_trtllm",
}


_NO_CACHE = (
    "response_cache.enable: got true; allowed: false: requests that differ in parameters only would get "
    "one answer"
)


def check_repository(repository: Path, models: Sequence[str] | None = None) -> list[Problem]:
    """Every problem of the repository; empty when there is none. `models`: only these will be loaded, and the
    steps of ensembles among them; None: all."""
    problems: list[Problem] = []
    top = Findings(repository, problems)
    if not repository.is_dir():
        top.problem("no such folder; allowed: a Triton model repository")
        return problems
    folders = {folder.name: folder for folder in model_folders(repository)}
    if not folders:
        top.problem("has no models; allowed: a folder for each model")
    configs: dict[str, ModelConfig] = {}
    bad: dict[str, BadConfig] = {}
    others: set[str] = set()  # models that Triton completes a configuration for, or refuses
    for name, folder in folders.items():
        try:
            config = read_config(folder)
        except BadConfig as error:
            bad[name] = error
            continue
        if config is not None:
            configs[name] = config
        elif _has_model_file(folder):
            others.add(name)
        else:
            bad[name] = BadConfig(folder / "config.pbtxt", "no such file; allowed: the model's configuration")
    wanted = set(folders) if models is None else loaded_with(models, configs)
    for name in sorted(wanted - set(folders)):
        if models is not None and name in models:
            message = f"--load-model: got {describe(name)}{did_you_mean(name, folders)}"
            top.problem(f"{message}; allowed: {', '.join(folders)}")
    for name in folders:
        if name not in wanted:
            continue
        findings = top.of(folders[name] / "config.pbtxt")
        if name in bad:
            top.of(bad[name].file).problem(str(bad[name]))
        elif name in others:
            findings.note("no such file; Triton completes the configuration, or refuses the model")
        else:
            _check_model(folders[name], findings, configs, others | set(bad))
    return problems


def _has_model_file(folder: Path) -> bool:
    """Whether Triton may complete the configuration: model.py, model.onnx, ..., but not settings of ours."""
    return any(
        path.stem == "model" and path.suffix != ".json"
        for version in versions_of(folder)
        for path in version.iterdir()
    )


def _check_model(
    folder: Path, findings: Findings, configs: Mapping[str, ModelConfig], others: set[str]
) -> None:
    """`others`: models whose configuration is unknown here."""
    config = configs[folder.name]
    if config.name not in ("", folder.name):
        findings.problem(
            f"name: got {describe(config.name)}; allowed: {describe(folder.name)}, the folder's name"
        )
    if not versions_of(folder):
        findings.of(folder).problem("has no version; allowed: a folder with a number as its name, such as 1")
    if config.platform == "ensemble":
        check_ensemble(findings, config, configs, others)
    elif config.backend == "quire":
        _check_quire(folder, findings, config, configs, others)
    elif config.backend == "python":
        _check_python(folder, findings, config)
    else:
        _check_foreign(findings, config)


def _check_python(folder: Path, findings: Findings, config: ModelConfig) -> None:
    """Somebody's own model."""
    for version in loaded_versions(folder, config):
        path = version / (config.default_model_filename or "model.py")
        if not path.is_file():
            findings.of(path).problem("no such file; allowed: the model's Python code")


def _check_dialect(findings: Findings, config: ModelConfig) -> None:
    dialect = parameter(config, "dialect", "vllm")
    if dialect not in DIALECTS:
        message = f"parameters.dialect: got {describe(dialect)}{did_you_mean(dialect, DIALECTS)}"
        findings.problem(f"{message}; allowed: {', '.join(DIALECTS)}")


def _check_foreign(findings: Findings, config: ModelConfig) -> None:
    """A model of another backend, which is Triton's business; where it cannot be loaded and has a way to us,
    that is said."""
    name = config.backend or config.platform
    try:
        is_here = (find_installation().backends / config.backend).is_dir() if config.backend else True
    except QuireError:
        is_here = True  # said once, by the command
    if is_here:
        return
    message = f"backend: got {describe(name)}, which is not installed"
    if name in _MOVING:
        findings.problem(f"{message}; allowed: a model of ours: {_MOVING[name]}")
    else:
        findings.note(f"{message}: tritonserver will refuse the model")


def _check_quire(
    folder: Path,
    findings: Findings,
    config: ModelConfig,
    configs: Mapping[str, ModelConfig],
    others: set[str],
) -> None:
    """A model of our own backend."""
    try:
        find_backend_library()
    except QuireError as error:
        findings.problem(str(error))
    for message in _refusals(config):
        findings.problem(message)
    role = parameter(config, "role")
    if role == "generation":
        for version in loaded_versions(folder, config):
            for problem in check_settings(version / "model.json"):
                (findings.of(problem.file).note if problem.is_note else findings.of(problem.file).problem)(
                    problem.message
                )
    elif role:
        _check_generation_model(findings, config, configs)
    if role == "tokenizer":
        _check_dialect(findings, config)
    if role == "unary" and parameter(config, "tokenizer_model") not in ("", *others):
        _check_tokenizer_model(findings, config, configs)


def _refusals(config: ModelConfig) -> Iterator[str]:
    """What the backend refuses at load, found by the backend's own code; and what Triton takes although it
    means nothing here."""
    field = ""
    try:
        _core.check_model_config(protobuf()[1].MessageToJson(config, preserving_proto_field_name=True))
    except _core.InvalidArgument as error:
        refusal = InvalidArgument.from_core(error)
        given = refusal.given.strip("'")
        hint = did_you_mean(given, refusal.allowed.split(", ")) if given != refusal.given else ""
        field = refusal.field.removeprefix("config.pbtxt: ")
        yield f"{field}: got {refusal.given}{hint}; allowed: {refusal.allowed}"
    if gpus := [gpu for group in config.instance_group for gpu in group.gpus]:
        yield (
            f"instance_group.gpus: got {gpus}; allowed: none: an engine takes the first GPU that it sees; "
            "choose it by CUDA_VISIBLE_DEVICES of the server"
        )
    if config.response_cache.enable and "response_cache" not in field:
        yield _NO_CACHE


def _check_generation_model(
    findings: Findings, config: ModelConfig, configs: Mapping[str, ModelConfig]
) -> None:
    """The parameter `generation_model` of a tokenizer, detokenizer or unary model."""
    name = parameter(config, "generation_model", "generation")
    known = [other for other, model in configs.items() if parameter(model, "role") == "generation"]
    if name not in known:
        message = f"parameters.generation_model: got {describe(name)}{did_you_mean(name, known)}"
        allowed = ", ".join(known) or "a model with role generation; there is none"
        findings.problem(f"{message}; allowed: {allowed}")


def _check_tokenizer_model(
    findings: Findings, config: ModelConfig, configs: Mapping[str, ModelConfig]
) -> None:
    """The parameter `tokenizer_model` of a model with role unary, which hands its inputs on by name."""
    at = "parameters.tokenizer_model"
    name = parameter(config, "tokenizer_model")
    model = configs.get(name)
    if model is None:
        message = f"{at}: got {describe(name)}{did_you_mean(name, configs)}"
        findings.problem(f"{message}; allowed: {', '.join(configs)}")
        return
    inputs = {tensor.name: tensor for tensor in model.input}
    for tensor in config.input:
        if tensor.name not in inputs:
            findings.problem(f"input: {unknown(tensor.name, f'input of {name}', inputs)}")
        elif text := difference(tensor, inputs[tensor.name]):
            findings.problem(f"input {describe(tensor.name)} does not fit: {text}")
    declared = {tensor.name for tensor in config.input}
    for tensor in model.input:
        if tensor.name not in declared and not tensor.optional:
            findings.problem(f"input: lacks {describe(tensor.name)}, a required input of {name}")
    if "input_ids" not in {tensor.name for tensor in model.output}:
        findings.problem(f'{at}: got {describe(name)}; allowed: a model with the output "input_ids"')
    given, own = (parameter(each, "generation_model", "generation") for each in (model, config))
    if given != own:
        findings.problem(
            f"{at}: got {describe(name)}, whose generation_model is {describe(given)}; allowed: a tokenizer "
            f"for {describe(own)}, this model's own"
        )
