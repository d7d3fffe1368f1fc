"""Request parameters of `generation`: every field by every name, or an error that has the name."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quire
from backend_server import Repository, Server, StartServer
from engine_fields import DEFAULTS, as_logged, ask
from field_cases import FIELD_CASES
from near_names import NEAR_NAMES, hint
from quire.sampling_params import ENGINE_FIELDS, NAMES, OPTION_FIELDS

# bad_words needs a tokenizer; tritonclient keeps priority for itself.
FIELDS = [name for name in ENGINE_FIELDS if name not in ("bad_words", "priority")]
MAX_TOKENS = {"max_tokens", *NAMES.fields["max_tokens"].aliases}
prompts = ([id, 556] for id in itertools.count(10))  # each used once


def ask_with(server: Server, parameters: dict[str, Any]) -> tuple[list[int], str]:
    """The prompt, and the error."""
    prompt = next(prompts)
    tensors = {"input_ids": np.array(prompt, np.int32)}
    if not MAX_TOKENS & {*parameters}:
        parameters = {"max_tokens": 4, **parameters}
    return prompt, ask(server, tensors, parameters)


def as_parameter(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


NAMED = [(name, spelling) for name in FIELDS for spelling in (name, *NAMES.fields[name].aliases)]


@pytest.mark.parametrize(("name", "spelling"), NAMED, ids=[spelling for _, spelling in NAMED])
def test_every_field_by_every_name(server: Server, name: str, spelling: str) -> None:
    """A value is read as it is given; numbers also as strings."""
    case = FIELD_CASES[name]
    forms = [case.good]
    if NAMES.fields[name].type in ("int", "float"):
        forms.append(str(case.good))
    for form in forms:
        before = time.monotonic_ns()
        given = {spelling: as_parameter(form), **dict(case.needs)}
        prompt, error = ask_with(server, given)
        assert error == ""
        (event,) = server.repository.events("add", prompt=prompt)
        expected = DEFAULTS | {"max_tokens": 4} | dict(case.needs)
        if name == "deadline_ms":
            expected["deadline_ns"] = event["arrival_ns"] + case.good * 10**6
        else:
            expected |= as_logged(name, case.good)
        assert {key: event[key] for key in expected} == expected
        assert before < event["arrival_ns"]


BAD = [
    (spelling, value)
    for name, spelling in NAMED
    for value in (*FIELD_CASES[name].bad, *FIELD_CASES[name].mistyped)
    if spelling == name or value in FIELD_CASES[name].bad[:1]
    if not (name == "stop" and value == "x")  # one string is a list of one
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name} {value!r:.20}" for name, value in BAD])
def test_every_bad_value_is_refused_by_its_name(server: Server, name: str, value: Any) -> None:
    """As the client spells it; the engine never hears of it."""
    prompt, error = ask_with(server, {name: as_parameter(value)})
    assert f"{name}: got " in error
    assert "; allowed: " in error
    assert not server.repository.events("add", prompt=prompt)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        *(({name: 1}, f"{name[:80]}: got {hint(name)}; allowed: the fields of ") for name in NEAR_NAMES),
        ({"x" * 5000: 1}, "x: got an unknown field; "),
        ({"bad_words": "x"}, "bad_words: got a field that this model does not know; allowed: "),
        ({"truncate": 5}, "truncate: got a field that this model does not know; "),
        ({"sampling_parameters": "{}"}, "sampling_parameters: got a field that this model does not know; "),
        ({"input_ids": "[1]"}, "input_ids: got an unknown field"),
        ({"acknowledge": True}, "acknowledge: got an unknown field"),
        ({"max_tokens": 3, "max_new_tokens": 3}, "max_tokens: got a request parameter and another value"),
        ({"logit_bias": '{"3": 1, "3": 2}'}, "logit_bias: got "),
        ({"logit_bias": "[[3, 1], [3, 2]]"}, "logit_bias: got the id 3 twice; "),
        ({"logit_bias": "[" * 10_000}, "logit_bias: got "),
        ({"stop_token_ids": "[1.5]"}, "stop_token_ids: got "),
        ({"bad_word_ids": "[[1], 2]"}, "bad_word_ids: got "),
        ({"allowed_token_ids": "[]"}, "allowed_token_ids: got nothing in it; "),
        ({"cache_salt": ""}, "cache_salt: got nothing in it; "),
        ({"stop_token_ids": "[1e300]"}, "stop_token_ids: got "),
        ({"top_k": 2**40}, "top_k: got 1099511627776; allowed: an integer in [-2147483648, 2147483647]"),
        ({"temperature": "nan"}, 'temperature: got "nan" (a string); allowed: a number'),
        ({"temperature": 1e300}, "temperature: got 1e+300; allowed: a number"),
        ({"max_tokens": 3.0}, "max_tokens: got 3 (a float); allowed: an integer"),
    ],
)
def test_what_is_no_field(server: Server, parameters: dict[str, Any], message: str) -> None:
    """Unknown names with the nearest one, fields of the tokenizer, values given twice or out of range."""
    assert message in ask_with(server, parameters)[1]


def test_options_as_parameters(server: Server) -> None:
    """Those of the schema that the model knows."""
    for field in OPTION_FIELDS:
        for name in (field, *NAMES.fields[field].aliases, *NAMES.fields[field].opposites):
            _, error = ask_with(server, {name: True})
            if field in ("exclude_input_in_output", "strict"):
                assert f"{name}: got " in error
            else:
                assert error == ""


def test_lists_in_both_forms(server: Server) -> None:
    """Biases as pairs, a stop string that is no list, an empty list, lists of ids."""
    parameters = {"logit_bias": "[[5, 1.5], [3, -2]]", "stop": "[INST]", "stop_token_ids": "[]", "seed": -1}
    parameters["bad_word_ids"] = "[[3, 4], [5]]"
    prompt, error = ask_with(server, parameters)
    assert error == ""
    (event,) = server.repository.events("add", prompt=prompt)
    assert sorted(event["logit_bias"]) == [[3, -2.0], [5, 1.5]]
    assert event["bad_word_ids"] == [[3, 4], [5]]
    assert (event["stop"], event["stop_token_ids"], event["seed"]) == (["[INST]"], [], None)


def test_the_newer_of_two_names_counts(server: Server) -> None:
    """max_completion_tokens replaces max_tokens, wherever it stands; an empty string is no strings."""
    for both in (
        {"max_tokens": 9, "max_completion_tokens": 2},
        {"max_completion_tokens": 2, "max_tokens": 9},
    ):
        prompt, error = ask_with(server, {**both, "stop": ""})
        assert error == ""
        (event,) = server.repository.events("add", prompt=prompt)
        assert (event["max_tokens"], event["stop"]) == (2, [])


def test_parameters_that_are_not_ours(server: Server) -> None:
    """What Triton and its clients set for themselves passes."""
    body = {"input_ids": [299], "max_tokens": 1, "id": "x", "timeout": 5_000_000, "triton_anything": 1}
    assert server.generate("generation", **body)["output_ids"] == 299


def test_a_stage_before_has_read_them(server: Server) -> None:
    """They are not looked at where there is a tensor `request`: this model may not know their names."""
    prompt = next(prompts)
    request = np.frombuffer(quire.encode_request(max_tokens=1, acknowledge=False), np.uint8)
    tensors = {"input_ids": np.array(prompt, np.int32), "request": request}
    assert ask(server, tensors, {"xyzzy": 1, "bad_words": "a", "max_tokens": 9}) == ""
    (event,) = server.repository.events("add", prompt=prompt)
    assert event["max_tokens"] == 1


def test_forwarded_headers(start_server: StartServer, tmp_path: Path) -> None:
    """HTTP headers that the server was told to forward are no fields where the config says so."""
    repository = Repository(tmp_path / "models")
    with repository.config_path("generation").open("a") as config:
        config.write('parameters { key: "forwarded_headers" value { string_value: "X-.*" } }\n')
    server = start_server(repository, "--http-header-forward-pattern=(?i)x-.*").wait_ready()
    connection = server.connect()
    body = json.dumps({"input_ids": [1], "max_tokens": 1})
    connection.request("POST", "/v2/models/generation/generate", body, {"x-request-id": "z"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    connection.close()
    assert ask_with(server, {"x-one": "1"})[1] == ""
    assert "y-one: got an unknown field" in ask_with(server, {"y-one": "1"})[1]
