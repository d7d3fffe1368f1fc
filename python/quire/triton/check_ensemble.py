"""Checks how an ensemble's steps fit together, and follows the ids of a prompt through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quire.errors import describe, not_one_of
from quire.triton.problem import Findings
from quire.triton.repository import ModelConfig, parameter, protobuf

# A tensor of a model whose configuration is unknown here: fits everywhere.
_UNKNOWN = None


def check_ensemble(
    findings: Findings, config: ModelConfig, configs: Mapping[str, ModelConfig], others: set[str]
) -> None:
    """Every tensor is made before it is read, its type fits, and the ids are of the vocabulary of who reads
    them. `others`: models whose configuration is unknown."""
    _Ensemble(findings, config, configs, others).check()


@dataclass(frozen=True)
class TensorShape:
    """A tensor of a model. `full_dims`: with the batch dimension, where the model has one."""

    data_type: int
    dims: list[int]
    full_dims: list[int]

    @classmethod
    def all_of(cls, config: ModelConfig, tensors: Any) -> dict[str, TensorShape]:
        batch = [-1] if config.max_batch_size > 0 else []
        return {each.name: cls(each.data_type, [*each.dims], [*batch, *each.dims]) for each in tensors}


@dataclass
class _Ensemble:
    findings: Findings
    config: ModelConfig
    configs: Mapping[str, ModelConfig]
    others: set[str]
    tensors: dict[str, Any] = field(init=False)
    used: set[str] = field(default_factory=set)
    makers: dict[str, str] = field(default_factory=dict)  # tensor -> the model whose step makes it

    def __post_init__(self) -> None:
        self.tensors = dict(TensorShape.all_of(self.config, self.config.input))

    def check(self) -> None:
        for index, step in enumerate(self.config.ensemble_scheduling.step):
            where = f"ensemble_scheduling.step[{index}]"
            name = step.model_name
            if name in self.others:
                self.used |= set(step.input_map.values())
                self.tensors |= dict.fromkeys(step.output_map.values(), _UNKNOWN)
                self.makers |= dict.fromkeys(step.output_map.values(), name)
            elif name not in self.configs:
                self.findings.problem(f"{where}.model_name: {not_one_of(name, self.configs)}")
            else:
                model = self.configs[name]
                self._check_inputs(where, step, model)
                self._check_outputs(where, step, model)
                self._follow_ids(where, step, model)
        self._check_ends()
        self._check_features()
        self._check_order()

    def _check_inputs(self, where: str, step: Any, model: ModelConfig) -> None:
        inputs = TensorShape.all_of(model, model.input)
        for name, source in sorted(step.input_map.items()):
            self.used.add(source)
            at = f"{where}.input_map[{describe(name)}]"
            if name not in inputs:
                self.findings.problem(f"{at}: {unknown(name, f'input of {step.model_name}', inputs)}")
            elif source not in self.tensors:
                self.findings.problem(f"{at}: {unknown(source, 'tensor made before', self.tensors)}")
            elif text := difference(self.tensors[source], inputs[name]):
                self.findings.problem(f"{at}: {describe(source)} does not fit: {text}")
        for tensor in model.input:
            if tensor.name not in step.input_map and not tensor.optional:
                message = (
                    f"{where}.input_map: lacks {describe(tensor.name)}, a required input of {step.model_name}"
                )
                self.findings.problem(message)

    def _check_outputs(self, where: str, step: Any, model: ModelConfig) -> None:
        outputs = TensorShape.all_of(model, model.output)
        for name, target in sorted(step.output_map.items()):
            at = f"{where}.output_map[{describe(name)}]"
            if name not in outputs:
                self.findings.problem(f"{at}: {unknown(name, f'output of {step.model_name}', outputs)}")
            elif target in self.tensors:
                self.findings.problem(f"{at}: got {describe(target)}, which is made twice; allowed: once")
            else:
                self.tensors[target] = outputs[name]
                self.makers[target] = step.model_name

    def _follow_ids(self, where: str, step: Any, model: ModelConfig) -> None:
        """The prompt's ids must be of the tokenizer of the model that reads them, and `request`, which says
        whose they are and what the request asks, should go with them."""
        reader = _generation_model(step.model_name, model)
        maker = self.makers.get(step.input_map.get("input_ids", ""))
        if reader is None or maker is None or maker not in self.configs:
            return
        read, made = (
            {tensor.name for tensor in tensors} for tensors in (model.input, self.configs[maker].output)
        )
        if "request" in read & made and self.makers.get(step.input_map.get("request", "")) != maker:
            self.findings.note(
                f'{where}.input_map: lacks "request" of {maker}, by which {step.model_name} gets the checked '
                "fields and would refuse ids of another tokenizer"
            )
        given = _tokenizes_for(self.configs[maker])
        if given is not None and given != reader:
            self.findings.problem(
                f'{where}.input_map["input_ids"]: got ids of {maker}, whose generation_model is '
                f"{describe(given)}; allowed: ids of a tokenizer for {describe(reader)}"
            )

    def _check_ends(self) -> None:
        for name, tensor in TensorShape.all_of(self.config, self.config.output).items():
            if name not in self.tensors:
                self.findings.problem(f"output: {unknown(name, 'tensor of a step', self.tensors)}")
            elif text := difference(self.tensors[name], tensor):
                self.findings.problem(f"output {describe(name)} does not fit: {text}")
        for tensor in self.config.input:
            if tensor.name not in self.used:
                self.findings.problem(f"input {describe(tensor.name)}: no step reads it")

    def _check_features(self) -> None:
        """What Triton refuses for an ensemble."""
        if self.config.model_warmup:
            allowed = "none, in an ensemble; a step's model may have it"
            self.findings.problem(f"model_warmup: got a setting; allowed: {allowed}")
        if self.config.response_cache.enable and any(self._roles()):
            allowed = "false: Triton caches no ensemble whose steps stream"
            self.findings.problem(f"response_cache.enable: got true; allowed: {allowed}")

    def _check_order(self) -> None:
        """A step after the detokenizer gets a stream's chunks one by one, at whichever instance is free."""
        follows: set[str] = set()
        for step in self.config.ensemble_scheduling.step:
            is_after = any(source in follows for source in step.input_map.values())
            model = self.configs.get(step.model_name)
            if is_after or (model is not None and _role(model) == "detokenizer"):
                follows |= set(step.output_map.values())
            if is_after and model is not None and (count := _num_instances(model)) > 1:
                self.findings.note(
                    f"{step.model_name}: a step after the detokenizer with {count} instances puts the chunks "
                    "of a stream into another order when one is slower; allowed: instance_group count 1"
                )

    def _roles(self) -> Iterator[str]:
        for step in self.config.ensemble_scheduling.step:
            if step.model_name in self.configs:
                yield _role(self.configs[step.model_name])


def unknown(name: str, what: str, known: Mapping[str, Any]) -> str:
    return not_one_of(name, known, f", no {what}")


def difference(given: TensorShape | None, expected: TensorShape) -> str:
    """Why a tensor cannot be used as another; "" when it can, as it is or with the batch dimensions. -1 fits
    any size."""
    if given is _UNKNOWN:
        return ""
    if given.data_type != expected.data_type:
        name_of = protobuf()[2].DataType.Name
        return f"got {name_of(given.data_type)}; allowed: {name_of(expected.data_type)}"
    if _fits(given.dims, expected.dims) or _fits(given.full_dims, expected.full_dims):
        return ""
    return f"got dims {given.full_dims}; allowed: {expected.full_dims}"


def _fits(dims: list[int], allowed: list[int]) -> bool:
    return len(dims) == len(allowed) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(dims, allowed, strict=True)
    )


def _role(config: ModelConfig) -> str:
    return parameter(config, "role") if config.backend == "quire" else ""


def _generation_model(name: str, config: ModelConfig) -> str | None:
    """The generation model whose vocabulary the input_ids of this model are of; None: not ours."""
    role = _role(config)
    if role == "generation":
        return name
    return parameter(config, "generation_model", "generation") if role == "unary" else None


def _tokenizes_for(config: ModelConfig) -> str | None:
    """The generation model that a tokenizer of ours makes ids for; None: no tokenizer of ours."""
    if _role(config) == "tokenizer":
        return parameter(config, "generation_model", "generation")
    if config.backend == "python" and "generation_model" in config.parameters:
        return parameter(config, "generation_model")
    return None


def _num_instances(config: ModelConfig) -> int:
    return sum(max(group.count, 1) * max(len(group.gpus), 1) for group in config.instance_group)
