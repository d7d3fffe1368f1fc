"""Typed tensors of `generation`: every field arrives at the engine as it was given, or is refused by name."""

from __future__ import annotations

import itertools
import queue
import time
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from backend_server import Server
from field_cases import FIELD_CASES
from quire.sampling_params import ENGINE_FIELDS, NAMES, RequestOptions
from quire.triton.generation_tensors import generation_tensors
from tritonclient.utils import np_to_triton_dtype

pytestmark = pytest.mark.serving

BAD_WORD_IDS = [[3, 4], [5]]
DEFAULTS = {
    "n": 1,
    "max_tokens": 1,
    "min_tokens": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "seed": None,
    "logit_bias": [],
    "allowed_token_ids": [],
    "bad_word_ids": [],
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "detokenize": True,
    "logprobs": -1,
    "prompt_logprobs": -1,
    "stream_interval": 1,
    "cache_salt": "",
    "priority": 0,
    "tokenize_ns": 0,
    "deadline_ns": 0,
}
first_ids = itertools.count(200)


def ask(server: Server, tensors: dict[str, np.ndarray[Any, Any]]) -> str:
    """The error of one request; "" when it was answered."""
    inputs = []
    for name, array in tensors.items():
        tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer("generation", inputs)
        error = answers.get(timeout=60)
    return str(error) if error else ""


def tensors_of(**given: Any) -> tuple[int, dict[str, np.ndarray[Any, Any]]]:
    """A request whose prompt is one id of its own, with fields as the tokenizer stage sends them."""
    first_id = next(first_ids)
    given = {"max_tokens": 1, **given}
    times = {"arrival_ns": time.monotonic_ns(), "tokenize_ns": 5}
    tensors = generation_tensors(
        [[first_id]], given, RequestOptions(), bad_word_ids=BAD_WORD_IDS, times=times
    )
    for name in ("row_lengths", "acknowledge"):
        del tensors[name]
    return first_id, tensors


def as_logged(name: str, value: Any) -> dict[str, Any]:
    """What the engine says of a field."""
    if name == "bad_words":
        return {"bad_word_ids": BAD_WORD_IDS}
    if name == "logit_bias":
        return {name: [[int(token_id), bias] for token_id, bias in value.items()]}
    return {name: value}


@pytest.mark.parametrize("name", ENGINE_FIELDS)
def test_every_field_reaches_the_engine(server: Server, name: str) -> None:
    """As it was given, and the others with their defaults."""
    case = FIELD_CASES[name]
    given = {
        key: NAMES.fields[key].check(value) for key, value in {name: case.good, **dict(case.needs)}.items()
    }
    first_id, tensors = tensors_of(**given)
    assert ask(server, tensors) == ""
    (event,) = server.repository.events("add", prompt=[first_id])
    expected = DEFAULTS | {"tokenize_ns": 5, "arrival_ns": tensors["arrival_ns"].item()} | dict(case.needs)
    if name == "deadline_ms":
        expected["deadline_ns"] = tensors["arrival_ns"].item() + case.good * 10**6
    else:
        expected |= as_logged(name, case.good)
    assert {key: event[key] for key in expected} == expected


def test_what_a_request_leaves_out(server: Server) -> None:
    """Defaults, and the time at which generation got it."""
    before = time.monotonic_ns()
    first_id = next(first_ids)
    server.generate("generation", input_ids=[first_id], max_tokens=1)
    (event,) = server.repository.events("add", prompt=[first_id])
    assert {k: event[k] for k in DEFAULTS} == DEFAULTS
    assert before < event["arrival_ns"] < time.monotonic_ns()


BAD = [
    (name, value)
    for name in ENGINE_FIELDS
    for value in FIELD_CASES[name].bad
    if name != "bad_words"  # see below
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name} {value!r:.20}" for name, value in BAD])
def test_every_bad_value_is_refused_by_name(server: Server, name: str, value: Any) -> None:
    """And the engine never hears of it."""
    items = value
    if name == "logit_bias":
        items = tuple((int(token_id), bias) for token_id, bias in value.items())
    elif isinstance(value, list):
        items = tuple(value)
    first_id, tensors = tensors_of(**{name: items})
    assert f"{name}: got " in ask(server, tensors)
    assert not server.repository.events("add", prompt=[first_id])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"logit_bias_ids": [1]}, "logit_bias: got 0 values; allowed: 1, one for each of logit_bias_ids"),
        ({"logit_bias": [1.0]}, "logit_bias: got 1 values; allowed: 0, one for each"),
        ({"bad_word_ids": [1]}, "bad_word_lengths: got a sum of 0; allowed: 1, the number of bad_word_ids"),
        ({"bad_word_ids": [1, 2], "bad_word_lengths": [1]}, "bad_word_lengths: got a sum of 1; "),
        ({"bad_word_lengths": [1]}, "bad_word_lengths: got 1; "),
        ({"bad_word_ids": [1], "bad_word_lengths": [1, 0]}, "bad_word_lengths: got 0; "),
        ({"bad_word_ids": [1], "bad_word_lengths": [2**31 - 1]}, "bad_word_lengths: got 2147483647; "),
        ({"bad_word_ids": [1000], "bad_word_lengths": [1]}, "bad_words: got 1000; allowed: 0 to 999"),
        ({"bad_word_ids": [1] * 129, "bad_word_lengths": [1] * 129}, "bad_words: got 129 sequences of ids; "),
        ({"arrival_ns": [-1]}, "arrival_ns: got -1; "),
        ({"arrival_ns": [2**63 - 1]}, "arrival_ns: got 9223372036854775807; "),
        ({"tokenize_ns": [2**62]}, "tokenize_ns: got 4611686018427387904; "),
    ],
)
def test_tensors_that_do_not_fit(server: Server, tensors: dict[str, list[Any]], message: str) -> None:
    """Pairs of tensors, and times that have not been."""
    _, request = tensors_of()
    types = {"logit_bias": np.float32, "arrival_ns": np.int64, "tokenize_ns": np.int64}
    request |= {name: np.array(values, types.get(name, np.int32)) for name, values in tensors.items()}
    assert message in ask(server, request)
