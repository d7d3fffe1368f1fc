"""The configurations of model_repository: what they lack of the outputs that a field asks for.

An output NAME of cpp/triton/output_table.h that the field return_NAME of RequestOptions asks for is an output
of every model that has it, and return_NAME an input of the models that take a request's fields as tensors. So
are the fields of ChatOptions that hold objects. The unary one, for clients of `infer` which know nothing but
tensors, has the numbers and flags of SamplingParams too.
What people wrote, and its order, stays; missing rows come last in their list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from quire.field import INT64_MAX, Field, fields_of
from quire.sampling_params import ChatOptions, RequestOptions, SamplingParams

ROOT = Path(__file__).resolve().parent.parent
_TYPES = {"kString": "STRING", "kInt32": "INT32", "kUint32": "UINT32", "kFloat": "FP32"}
# The models, and the word of the output table for what each has.
_MODELS = {
    "generation": "kGeneration",
    "generation_unary": "kVllm",
    "detokenizer": "kVllm",
    "detokenizer_trtllm": "kTrtllm",
    "ensemble": "kVllm",
    "ensemble_unary": "kVllm",
    "ensemble_trtllm": "kTrtllm",
    "ensemble_trtllm_unary": "kTrtllm",
    "tokenizer": "",
}
_SENDERS = {
    "kAll": ("kGeneration", "kVllm", "kTrtllm"),
    "kTexts": ("kVllm", "kTrtllm"),
    "kOurs": ("kGeneration", "kVllm"),
}
_FIELDS_AS_TENSORS = ("tokenizer", "ensemble", "ensemble_unary")
_SCALARS_AS_TENSORS = ("tokenizer", "ensemble_unary")


def _outputs() -> dict[tuple[str, str], str]:
    """The type of each output that a field return_NAME asks for, by what has it and its name."""
    table = (ROOT / "cpp/triton/output_table.h").read_text("utf-8")
    found = {}
    for name, kind, has in re.findall(r'^    \{"(\w+)", (\w+), (\w+), ', table, re.MULTILINE):
        if f"return_{name}" in fields_of(RequestOptions):
            found |= {(sender, name): _TYPES[kind] for sender in _SENDERS.get(has, (has,))}
    return found


def _with(text: str, begin: str, rows: Mapping[str, str]) -> str:
    """The text with each row that the list after `begin` lacks, by a name that the row has in quotes."""
    match = re.search(begin + r" \[\n(.*?)\n *\]", text, re.DOTALL)
    if match is None:
        raise ValueError(f"got a configuration without {begin}; allowed: one that has it")
    missing = [row for name, row in rows.items() if f'"{name}"' not in match[1]]
    return text[: match.end(1)] + "".join(",\n" + row for row in missing) + text[match.end(1) :]


def _row(name: str, kind: str, dims: str = "[ -1 ]", more: str = "") -> str:
    quoted = f'"{name}"'
    return f"  {{ name: {quoted:<28} data_type: {'TYPE_' + kind:<11} dims: {dims}{more} }}"


def _map(names: Mapping[str, str]) -> dict[str, str]:
    return {name: f'      {{ key: "{name}" value: "{name}" }}' for name in names}


def _scalars() -> dict[str, str]:
    """The types of the fields of SamplingParams that are one number or flag, by name; and of their newer
    names."""
    types = {"int": "INT32", "float": "FP32", "bool": "BOOL"}
    scalars = [field for field in fields_of(SamplingParams).values() if field.type in types]

    def type_of(field: Field) -> str:
        return "INT64" if field.maximum == INT64_MAX else types[field.type]

    return {name: type_of(field) for field in scalars for name in (field.name, field.newer) if name}


def model_config(model: str) -> Callable[[str], str]:
    def generate(text: str) -> str:
        outputs = {name: kind for (has, name), kind in _outputs().items() if has == _MODELS[model]}
        if outputs:
            text = _with(text, "\noutput", {name: _row(name, kind) for name, kind in outputs.items()})
        fields = {name: "BOOL" for name in fields_of(RequestOptions) if name.startswith("return_")}
        fields |= {name: "STRING" for name, field in fields_of(ChatOptions).items() if "object" in field.type}
        if model in _SCALARS_AS_TENSORS:
            fields |= _scalars()
        if model in _FIELDS_AS_TENSORS:
            inputs = {name: _row(name, kind, "[ 1 ]", " optional: true") for name, kind in fields.items()}
            text = _with(text, "\ninput", inputs)
        if model == "ensemble":
            text = _with(text, r'"tokenizer" model_version: -1\n    input_map', _map(fields))
        if model in ("ensemble", "ensemble_trtllm"):
            text = _with(text, r'"chunk" \} \]\n    output_map', _map(outputs))
        return text

    return generate


MODEL_CONFIGS = {f"model_repository/{model}/config.pbtxt": model_config(model) for model in _MODELS}
