"""Checks a model repository without starting a server: configurations, how an ensemble's steps fit together,
settings, model files. Finds all problems, not only the first, by the code that a start runs.

Models of other backends are Triton's business, where it has their backend.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quire import _core
from quire.errors import InvalidArgument, QuireError, describe, did_you_mean, not_one_of
from quire.triton.check_ensemble import TensorShape, check_ensemble, difference, unknown
from quire.triton.check_foreign import check_folder, check_foreign, check_without_config, way_without_config
from quire.triton.check_settings import check_claims, check_settings
from quire.triton.installation import find_backend_library
from quire.triton.problem import Findings, Problem
from quire.triton.repository import (
    BadConfig,
    ModelConfig,
    loaded_versions,
    loaded_with,
    model_folders,
    parameter,
    protobuf,
    read_configs,
    versions_of,
)
from quire.triton.tokenizer_stage import DIALECTS

if TYPE_CHECKING:
    from quire.runner.plan import MemoryClaim

__all__ = ["Problem", "check_repository", "check_settings"]

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
    if not check_folder(top):
        return problems
    folders = {folder.name: folder for folder in model_folders(repository)}
    if not folders:
        top.problem("has no models; allowed: a folder for each model")
    configs, bad = read_configs(repository)
    others: set[str] = set()  # models that Triton completes a configuration for, or refuses
    for name in folders.keys() - configs.keys() - bad.keys():
        if _has_model_file(folders[name]):
            others.add(name)
        else:
            file = folders[name] / "config.pbtxt"
            bad[name] = BadConfig(file, f"no such file; allowed: {way_without_config(folders[name])}")
    wanted = set(folders) if models is None else loaded_with(models, configs)
    for name in sorted(wanted - set(folders)):
        if models is not None and name in models:
            top.problem(f"--load-model: {not_one_of(name, folders)}")
    claims: dict[str, MemoryClaim] = {}
    for name in folders:
        if name not in wanted:
            continue
        findings = top.of(folders[name] / "config.pbtxt")
        if name in bad:
            top.of(bad[name].file).problem(str(bad[name]))
        elif name in others:
            check_without_config(findings, folders[name])
        else:
            _Model(folders[name], findings, configs[name], configs, others | set(bad), claims).check()
    for message in check_claims(claims):
        top.problem(message)
    return problems


def _has_model_file(folder: Path) -> bool:
    """Whether Triton may complete the configuration: model.py, model.onnx, ..., but not settings of ours."""
    return any(
        path.stem == "model" and path.suffix != ".json"
        for version in versions_of(folder)
        for path in version.iterdir()
    )


@dataclass(frozen=True)
class _Model:
    """A model with a configuration that can be read. `others`: models whose configuration is unknown here.
    `claims` gets the memory that its engines will take."""

    folder: Path
    findings: Findings
    config: ModelConfig
    configs: Mapping[str, ModelConfig]
    others: set[str]
    claims: dict[str, MemoryClaim]

    def check(self) -> None:
        config, name = self.config, self.folder.name
        if config.name not in ("", name):
            self.findings.problem(
                f"name: got {describe(config.name)}; allowed: {describe(name)}, the folder's name"
            )
        if not versions_of(self.folder):
            problem = "has no version; allowed: a folder with a number as its name, such as 1"
            self.findings.of(self.folder).problem(problem)
        if config.platform == "ensemble":
            check_ensemble(self.findings, config, self.configs, self.others)
        elif config.backend == "quire":
            self._check_quire()
        elif config.backend == "python":
            self._check_python()
        else:
            check_foreign(self.findings, self.folder, self.config)

    def _check_python(self) -> None:
        """Somebody's own model."""
        for version in loaded_versions(self.folder, self.config):
            path = version / (self.config.default_model_filename or "model.py")
            if not path.is_file():
                self.findings.of(path).problem("no such file; allowed: the model's Python code")
        check_foreign(self.findings, self.folder, self.config)

    def _check_quire(self) -> None:
        """A model of our own backend."""
        try:
            find_backend_library()
        except QuireError as error:
            self.findings.problem(str(error))
        for message in _refusals(self.config):
            self.findings.problem(message)
        role = parameter(self.config, "role")
        if role == "generation":
            for version in loaded_versions(self.folder, self.config):
                self.findings.add(check_settings(version / "model.json", self.claims))
        elif role:
            self._check_parameter("generation_model", "generation", self._generation_models())
        if role == "tokenizer":
            self._check_parameter("dialect", "vllm", DIALECTS)
        if role == "unary" and parameter(self.config, "tokenizer_model") not in ("", *self.others):
            self._check_tokenizer_model()

    def _generation_models(self) -> list[str]:
        found = [name for name, model in self.configs.items() if parameter(model, "role") == "generation"]
        return found or ["a model with role generation; there is none"]

    def _check_parameter(self, name: str, default: str, known: Collection[str]) -> None:
        value = parameter(self.config, name, default)
        if value not in known:
            self.findings.problem(f"parameters.{name}: {not_one_of(value, known)}")

    def _check_tokenizer_model(self) -> None:
        """The parameter `tokenizer_model` of a model with role unary, which hands its inputs on by name."""
        at, problem = "parameters.tokenizer_model", self.findings.problem
        name = parameter(self.config, "tokenizer_model")
        model = self.configs.get(name)
        if model is None:
            problem(f"{at}: {not_one_of(name, self.configs)}")
            return
        inputs = TensorShape.all_of(model, model.input)
        for input_name, tensor in TensorShape.all_of(self.config, self.config.input).items():
            if input_name not in inputs:
                problem(f"input: {unknown(input_name, f'input of {name}', inputs)}")
            elif text := difference(tensor, inputs[input_name]):
                problem(f"input {describe(input_name)} does not fit: {text}")
        declared = {tensor.name for tensor in self.config.input}
        for tensor in model.input:
            if tensor.name not in declared and not tensor.optional:
                problem(f"input: lacks {describe(tensor.name)}, a required input of {name}")
        if "input_ids" not in {tensor.name for tensor in model.output}:
            problem(f'{at}: got {describe(name)}; allowed: a model with the output "input_ids"')
        given, own = (parameter(each, "generation_model", "generation") for each in (model, self.config))
        if given != own:
            problem(
                f"{at}: got {describe(name)}, whose generation_model is {describe(given)}; allowed: a "
                f"tokenizer for {describe(own)}, this model's own"
            )


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
