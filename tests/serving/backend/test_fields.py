"""Typed tensors of `generation`: every field arrives at the engine as it was given, or is refused by name."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from backend_server import Server
from engine_fields import BAD_WORD_IDS, DEFAULTS, as_logged, ask
from field_cases import FIELD_CASES
from quire.sampling_params import ENGINE_FIELDS, NAMES, RequestOptions
from quire.triton.generation_tensors import generation_tensors

pytestmark = pytest.mark.serving

prompts = ([id, 555] for id in itertools.count(10))  # each used once


def tensors_of(**given: Any) -> tuple[list[int], dict[str, np.ndarray[Any, Any]]]:
    """A prompt of its own, and a request with it and with fields as the tokenizer stage sends them."""
    prompt = next(prompts)
    given = {"max_tokens": 1, **given}
    times = {"arrival_ns": time.monotonic_ns(), "tokenize_ns": 5}
    tensors = generation_tensors(
        [prompt], given, RequestOptions(), bad_word_ids=BAD_WORD_IDS, times=times, vocabulary=""
    )
    for name in ("row_lengths", "acknowledge"):
        del tensors[name]
    return prompt, tensors


@pytest.mark.parametrize("name", ENGINE_FIELDS)
def test_every_field_reaches_the_engine(server: Server, name: str) -> None:
    """As it was given, and the others with their defaults."""
    case = FIELD_CASES[name]
    given = {
        key: NAMES.fields[key].check(value) for key, value in {name: case.good, **dict(case.needs)}.items()
    }
    prompt, tensors = tensors_of(**given)
    assert ask(server, tensors) == ""
    (event,) = server.repository.events("add", prompt=prompt)
    expected = DEFAULTS | {"tokenize_ns": 5, "arrival_ns": tensors["arrival_ns"].item()} | dict(case.needs)
    if name == "deadline_ms":
        expected["deadline_ns"] = tensors["arrival_ns"].item() + case.good * 10**6
    else:
        expected |= as_logged(name, case.good)
    assert {key: event[key] for key in expected} == expected


def test_what_a_request_leaves_out(server: Server) -> None:
    """Defaults, and the time at which generation got it."""
    before = time.monotonic_ns()
    server.generate("generation", input_ids=[9, 555], max_tokens=1)
    (event,) = server.repository.events("add", prompt=[9, 555])
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
    prompt, tensors = tensors_of(**{name: items})
    assert f"{name}: got " in ask(server, tensors)
    assert not server.repository.events("add", prompt=prompt)


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
