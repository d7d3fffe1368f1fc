"""Every field on every way into the ensemble: keys of generate, sampling_parameters, gRPC request parameters,
tensors, Python. A good value is answered, a bad one refused with the field's name. `generation`'s own tensors
and parameters: tests/serving/backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from client import GrpcStream, HttpError, generate, stream_error, text_inputs
from field_cases import FIELD_CASES
from quire.errors import InvalidArgument
from quire.sampling_params import NAMES, OPTION_FIELDS, RequestOptions, SamplingParams
from quire.schema import merge
from quire.triton.server import TritonServer

BAD = [
    (name, value)
    for name, case in FIELD_CASES.items()
    for value in (*case.bad, *case.mistyped)
    if not (value == "x" and NAMES.fields[name].type == "strings")  # one string is a list of one
]
TENSORS = [name for name, field in NAMES.fields.items() if field.is_list or name in OPTION_FIELDS]

MAX_TOKENS = {"max_tokens", *NAMES.fields["max_tokens"].aliases}
Ask = Callable[[TritonServer, dict[str, Any]], str]


def brief(given: dict[str, Any]) -> dict[str, Any]:
    """With a limit, unless there is one by whatever name."""
    return given if MAX_TOKENS & {*given} else {"max_tokens": 3, **given}


def by_key(server: TritonServer, given: dict[str, Any]) -> str:
    """As top-level keys of generate; what is no tensor there as a JSON string, which Triton takes."""
    body = {
        name: json.dumps(value)
        if isinstance(value, dict) or (isinstance(value, list) and name not in TENSORS)
        else value
        for name, value in given.items()
    }
    body = {"text_input": "x = 1"} | brief(body)
    if body.get("stream") is True:
        return stream_error(server.http_url, body)
    try:
        generate(server.http_url, body)
    except HttpError as error:
        return error.message
    return ""


def by_json(server: TritonServer, given: dict[str, Any]) -> str:
    """Inside sampling_parameters."""
    body = {"text_input": "x = 1", "sampling_parameters": json.dumps(brief(given))}
    if given.get("stream") is True:
        return stream_error(server.http_url, body)
    try:
        generate(server.http_url, body)
    except HttpError as error:
        return error.message if error.status == 400 else f"HTTP {error.status}"
    return ""


def by_grpc(server: TritonServer, given: dict[str, Any]) -> str:
    """As request parameters over gRPC; lists and objects as JSON strings."""
    parameters = {
        name: json.dumps(value) if isinstance(value, (list, dict)) else value
        for name, value in brief(given).items()
    }
    try:
        with GrpcStream(server.grpc_url, text_inputs(text_input="x = 1"), parameters=parameters) as stream:
            list(stream)
    except grpcclient.InferenceServerException as error:
        return str(error)
    return ""


def by_tensor(server: TritonServer, given: dict[str, Any]) -> str:
    """Lists and options as input tensors over gRPC."""
    inputs = text_inputs(text_input="x = 1", sampling_parameters={"max_tokens": 3, "temperature": 0})
    for name, value in given.items():
        items = value if isinstance(value, list) else [value]
        if isinstance(items[0], str):
            array, dtype = np.array([item.encode() for item in items], dtype=object), "BYTES"
        elif isinstance(items[0], bool):
            array, dtype = np.array(items), "BOOL"
        else:
            array, dtype = np.array(items, np.int64), "INT64"
        tensor = grpcclient.InferInput(name, [len(items)], dtype)
        inputs.append(tensor.set_data_from_numpy(array))
    try:
        with GrpcStream(server.grpc_url, inputs) as stream:
            list(stream)
    except grpcclient.InferenceServerException as error:
        return str(error)
    return ""


WAYS: dict[str, Ask] = {"key": by_key, "json": by_json, "grpc": by_grpc, "tensor": by_tensor}


def goes(way: str, name: str) -> bool:
    """Whether there is such a way for a field: tritonclient keeps `priority` for itself."""
    return name in TENSORS if way == "tensor" else not (way == "grpc" and name == "priority")


@pytest.mark.parametrize("way", WAYS)
def test_a_good_value_of_every_field_is_answered(server: TritonServer, way: str) -> None:
    """By its own name and by every other system's."""
    for name, case in FIELD_CASES.items():
        if not goes(way, name):
            continue
        field = NAMES.fields[name]
        good = 0 if name == "priority" else case.good  # others are a matter of the server's policy
        spellings = (name,) if way == "tensor" else (name, *field.aliases)
        for spelling in spellings:
            assert WAYS[way](server, {spelling: good, **dict(case.needs)}) == "", spelling


def refuses(way: str, name: str, value: Any) -> bool:
    """Whether we see the value. Where Triton decides before us: test_triton_first.py."""
    is_typed = value not in FIELD_CASES[name].mistyped
    return goes(way, name) and (is_typed or name not in TENSORS or way not in ("key", "tensor"))


BAD_BY_WAY = [(way, name, value) for way in WAYS for name, value in BAD if refuses(way, name, value)]


@pytest.mark.parametrize(
    ("way", "name", "value"),
    BAD_BY_WAY,
    ids=[f"{way} {name} {value!r:.20}" for way, name, value in BAD_BY_WAY],
)
def test_a_bad_value_of_every_field_is_refused_by_name(
    server: TritonServer, way: str, name: str, value: Any
) -> None:
    """With what was given and what is allowed."""
    error = WAYS[way](server, {name: value})
    assert f"{name}: got " in error
    assert "; allowed: " in error


IN_PYTHON = [(name, value) for name, value in BAD if value != [10**6]]  # the vocabulary is not known there


@pytest.mark.parametrize(("name", "value"), IN_PYTHON, ids=[f"{n} {v!r:.20}" for n, v in IN_PYTHON])
def test_a_bad_value_of_every_field_in_python(name: str, value: Any) -> None:
    """As a keyword and in a dict, under the name that was used."""
    table = RequestOptions if name in OPTION_FIELDS else SamplingParams
    needs = {"max_tokens": 3} if name == "min_tokens" else {}
    with pytest.raises(InvalidArgument, match=f"^{name}: got "):
        table(**{name: value, **needs})
    for spelling in (name, *NAMES.fields[name].aliases):
        with pytest.raises(InvalidArgument, match=f"^{spelling}: got "):
            table.from_dict({spelling: value, **needs})


@pytest.mark.parametrize("name", FIELD_CASES)
def test_a_good_value_of_every_field_in_python(name: str) -> None:
    """Means the same as a keyword, in a dict and as a request parameter."""
    case = FIELD_CASES[name]
    table = RequestOptions if name in OPTION_FIELDS else SamplingParams
    made = table(**{name: case.good, **dict(case.needs)})
    assert made != table(**dict(case.needs))
    as_text = json.dumps(case.good) if isinstance(case.good, (list, dict)) else case.good
    for spelling in (name, *NAMES.fields[name].aliases):
        assert made == table.from_dict({spelling: case.good, **dict(case.needs)})
        parameters = NAMES.read({spelling: as_text, **dict(case.needs)}, parameters=True)
        assert made == merge(parameters).make(table)
