"""The tensor `request` of `generation`: every field arrives at the engine as it was given, or is refused by
name, and what is no such tensor is refused as `request`."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import numpy as np
import pytest
import quire
from backend_server import Server
from engine_fields import BAD_WORD_IDS, DEFAULTS, as_logged, ask
from field_cases import FIELD_CASES
from quire import _core
from quire.sampling_params import ENGINE_FIELDS

prompts = ([id, 555] for id in itertools.count(10))  # each used once


def ask_with(server: Server, request: bytes) -> tuple[list[int], str]:
    """A prompt of its own, and the error."""
    prompt = next(prompts)
    tensors = {"input_ids": np.array(prompt, np.int32), "request": np.frombuffer(request, np.uint8)}
    return prompt, ask(server, tensors)


@pytest.mark.parametrize("name", ENGINE_FIELDS)
def test_every_field_reaches_the_engine(server: Server, name: str) -> None:
    """As it was given, and the others with their defaults."""
    case = FIELD_CASES[name]
    given = {"max_tokens": 1, name: case.good, **dict(case.needs)}
    if name == "bad_words":
        given = {"max_tokens": 1, "bad_word_ids": BAD_WORD_IDS}
    prompt, error = ask_with(server, quire.encode_request(**given, acknowledge=False))
    assert error == ""
    (event,) = server.repository.events("add", prompt=prompt)
    expected = DEFAULTS | dict(case.needs)
    if name == "deadline_ms":
        expected["deadline_ns"] = event["arrival_ns"] + case.good * 10**6
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


def test_times_of_a_tokenizer(server: Server) -> None:
    """They go on to the engine, and a deadline counts from the arrival."""
    times = {"arrival_ns": time.monotonic_ns() - 1000, "tokenize_ns": 5}
    request = _core.encode_request({"max_tokens": 1, "deadline_ms": 60_000, **times})
    prompt, error = ask_with(server, request)
    assert error == ""
    (event,) = server.repository.events("add", prompt=prompt)
    assert {name: event[name] for name in times} == times
    assert event["deadline_ns"] == times["arrival_ns"] + 60_000 * 10**6


BAD = [
    (name, value)
    for name in ENGINE_FIELDS
    for value in FIELD_CASES[name].bad
    if name != "bad_words"  # see below
]
BAD += [("allowed_token_ids", []), ("cache_salt", ""), ("deadline_ms", -5)]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name} {value!r:.20}" for name, value in BAD])
def test_every_bad_value_is_refused_by_name(server: Server, name: str, value: Any) -> None:
    """Also where the request was encoded without a check; the engine never hears of it."""
    if name == "logit_bias":
        value = [(int(token_id), bias) for token_id, bias in value.items()]
    prompt, error = ask_with(server, _core.encode_request({"max_tokens": 1, name: value}))
    assert f"{name}: got " in error
    assert not server.repository.events("add", prompt=prompt)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bad_word_ids": [[1000]]}, "bad_words: got 1000; allowed: 0 to 999"),
        ({"bad_word_ids": [[]]}, "bad_words: got a sequence of no ids; "),
        ({"bad_word_ids": [[1]] * 129}, "bad_words: got 129 sequences of ids; "),
        ({"arrival_ns": -1}, "arrival_ns: got -1; "),
        ({"arrival_ns": 2**63 - 1}, "arrival_ns: got 9223372036854775807; "),
        ({"tokenize_ns": 2**62}, "tokenize_ns: got 4611686018427387904; "),
        (
            {"prompt_lengths": [1, 1]},
            "text_input: got 2 values; allowed: one value (several: ensemble_unary)",
        ),
        ({"prompt_text": ["a", "b"]}, "prompt_text: got 2 strings; allowed: one string"),
    ],
)
def test_what_does_not_fit(server: Server, given: dict[str, Any], message: str) -> None:
    """Ids of bad words, times that have not been, several prompts."""
    assert message in ask_with(server, _core.encode_request(given))[1]


def test_what_is_no_request(server: Server) -> None:
    """Cut, changed or foreign bytes are refused as `request` or name a field, and the next request works."""
    rng = random.Random(1)
    good = quire.encode_request(max_tokens=2, stop=["x"], logit_bias={3: 1.5}, acknowledge=False)
    for size in range(0, len(good), 5):
        assert f"request: got {size} bytes, " in ask_with(server, good[:size])[1]
    assert "; allowed: the output 'request' of a tokenizer" in ask_with(server, b"")[1]
    assert "bytes, version " in ask_with(server, bytes([good[0] ^ 1]) + good[1:])[1]
    assert "with fields that are not known" in ask_with(server, good[:11] + b"\x80" + good[12:])[1]
    for _ in range(50):
        changed = bytearray(good)
        changed[rng.randrange(16, len(good) - 1)] = rng.randrange(256)  # not max_tokens, nor acknowledge
        ask_with(server, bytes(changed))  # may still be a request
    assert ask_with(server, good)[1] == ""
