"""Reads and judges what stands in a config.pbtxt that was written for another backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quire.errors import describe
from quire.migrate.findings import Findings
from quire.model_files import read_text
from quire.triton.repository import BadConfig, ModelConfig, protobuf, read_config

FILE = "config.pbtxt"


def read_foreign(folder: Path) -> tuple[ModelConfig, str | None]:
    """The configuration, and the text that a newer Triton knows and this one does not. Raises BadConfig."""
    try:
        return read_config(folder), None
    except BadConfig as error:
        if "${" in str(error) or "'$'" in str(error) or '"$"' in str(error):
            hint = "got a template; allowed: the file that TensorRT-LLM's fill_template.py makes of it"
            raise BadConfig(error.file, f"{hint} ({error})") from None
        if "no field named" not in str(error):
            raise
        text_format, _, model_config = protobuf()
        message = text_format.Parse(
            read_text(error.file), model_config.ModelConfig(), allow_unknown_field=True
        )
        return message, str(error)


def parameters_of(config: ModelConfig) -> dict[str, str]:
    """Without those that a template left open, "${name}": the backends take these for not given."""
    values = {name: str(parameter.string_value) for name, parameter in config.parameters.items()}
    return {name: value for name, value in values.items() if not value.strip().startswith("${")}


def shown(message: Any) -> str:
    """A part of the configuration as JSON on one line."""
    if not hasattr(message, "ListFields"):
        return describe(message)
    text = protobuf()[1].MessageToJson(message, preserving_proto_field_name=True, indent=None)
    return " ".join(text.split())


class ConfigJudge:
    """Judges every field that is set. `tensors`: name to data type of inputs and outputs that clients find
    here; `others`: of those that only requests need which are refused anyway."""

    def __init__(
        self,
        findings: Findings,
        folder: Path,
        tensors: Mapping[str, int],
        others: Mapping[str, str],
        *,
        is_engine: bool = True,
    ) -> None:
        self.findings, self.folder, self.is_engine = findings, folder, is_engine
        self.tensors, self.others = tensors, others
        self.file = f"{folder.name}/{FILE}"

    def judge(self, config: ModelConfig, unknown: str | None = None) -> None:
        """`unknown`: why a part of the text could not be read."""
        if unknown:
            name = unknown.rpartition('named "')[2].partition('"')[0]
            self.findings.missing(self.file, name, "", unknown)
        for descriptor, value in config.ListFields():
            name = descriptor.name
            if name in _JUDGES:
                _JUDGES[name](self, name, value)
            elif name in _NEUTRAL:
                self._neutral(name, value, _NEUTRAL[name])
            elif name not in ("parameters", "version_policy", "ensemble_scheduling"):
                self._missing(name, value)

    def _neutral(self, key: str, value: object, note: str = "") -> None:
        self.findings.neutral(self.file, key, _text(value), note)

    def _missing(self, key: str, value: object, note: str = "") -> None:
        self.findings.missing(self.file, key, _text(value), note)

    def _name(self, key: str, value: str) -> None:
        if value == self.folder.name:
            self._neutral(key, value)
        else:
            self.findings.unknown(self.file, key, value, f"Triton allows {self.folder.name}, the folder's")

    def _backend(self, key: str, value: str) -> None:
        self.findings.taken(self.file, key, value)

    def _tensors(self, key: str, value: Any) -> None:
        for tensor in value:
            name = f"{key}.{tensor.name}"
            given = type_name(tensor.data_type)
            known = self.tensors.get(tensor.name)
            if known is None and tensor.name in self.others:
                self._neutral(name, given, self.others[tensor.name])
            elif known is None:
                self._missing(name, given, f"no {key} of that name")
            elif known != tensor.data_type and not (
                key == "output" and _are_integers(known, tensor.data_type)
            ):
                self._missing(name, given, f"here {type_name(known)}")
            else:
                self._neutral(name, given, "" if known == tensor.data_type else f"here {type_name(known)}")

    def _instances(self, key: str, value: Any) -> None:
        """One engine on the first GPU that it sees; `is_engine`: whether the model held one."""
        for group in value:
            text = shown(group)
            if not self.is_engine:
                self._neutral(
                    key, text, "a tokenizer has processes of its own: instance_group of NAME-tokenizer"
                )
            elif list(group.gpus) not in ([], [0]):
                self._missing("instance_group.gpus", text, "choose it by CUDA_VISIBLE_DEVICES of the server")
            elif group.count > 1:
                self._missing("instance_group.count", text, "a model has one engine, which batches requests")
            elif extra := [
                field.name
                for field, _ in group.ListFields()
                if field.name not in ("name", "kind", "count", "gpus")
            ]:
                self._missing(f"instance_group.{extra[0]}", text)
            else:
                self._neutral(key, text, "a model has one engine")

    def _batching(self, key: str, value: Any) -> None:
        """Triton's queue: the engine batches by itself, and has no queue that is full or that times out."""
        default = value.default_queue_policy
        if default.max_queue_size or default.default_timeout_microseconds:
            name = "max_queue_size" if default.max_queue_size else "default_timeout_microseconds"
            note = "requests wait until they run; deadline_ms in a request limits that"
            self._missing(f"{key}.{name}", shown(value), note)
        elif value.priority_levels or value.priority_queue_policy:
            note = 'the setting "scheduling_policy": "priority", and priority in requests'
            self._missing(f"{key}.priority_levels", shown(value), note)
        else:
            self._neutral(key, shown(value), "the engine batches by itself")

    def _cache(self, key: str, value: Any) -> None:
        if value.enable:
            self._missing(key, shown(value), "answers are sampled; equal prompts share their KV blocks")
        else:
            self._neutral(key, shown(value))


_NEUTRAL = {
    "max_batch_size": "the engine batches by itself",
    "model_transaction_policy": "",
    "optimization": "there is no graph of a framework to optimise",
    "cc_model_filenames": "",
    "default_model_filename": "",
    "model_warmup": "an engine warms itself up",
}

_JUDGES: Mapping[str, Callable[[ConfigJudge, str, Any], None]] = {
    "name": ConfigJudge._name,
    "platform": ConfigJudge._backend,
    "backend": ConfigJudge._backend,
    "runtime": ConfigJudge._backend,
    "input": ConfigJudge._tensors,
    "output": ConfigJudge._tensors,
    "instance_group": ConfigJudge._instances,
    "dynamic_batching": ConfigJudge._batching,
    "response_cache": ConfigJudge._cache,
}


def type_name(data_type: int) -> str:
    return str(protobuf()[2].DataType.Name(data_type))


def _are_integers(*data_types: int) -> bool:
    return all("INT" in type_name(data_type) for data_type in data_types)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "ListFields"):
        return shown(value)
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return "[...]"
