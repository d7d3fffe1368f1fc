"""The tensor `request`: what is encoded arrives, and what is no such tensor is refused."""

from __future__ import annotations

import random
from typing import Any

import _core_parts as core_parts
import pytest
import quire
from quire import _core

DEFAULTS = core_parts.decode_request(_core.encode_request({}))
GIVEN: dict[str, Any] = {
    "max_tokens": 9,
    "temperature": 0.5,
    "logit_bias": [(1, -2.0), (5, 0.5)],
    "stop": ["a", "é"],
    "seed": -(2**40),
    "logprobs": 0,
    "priority": -3,
    "stream": True,
    "cache_salt": "ß",
    "bad_word_ids": [[1, 2], [3]],
    "acknowledge": False,
    "vocabulary": "1234 name",
    "prompt_text": ["x"],
    "prompt_lengths": [1, 2],
    "warnings": ["w"],
}


def test_what_is_given_arrives() -> None:
    """And the other fields keep what they were."""
    assert core_parts.decode_request(_core.encode_request(GIVEN)) == DEFAULTS | GIVEN


def test_fields_of_a_stage_of_ones_own() -> None:
    """encode_request() takes every spelling of a field, and leaves out what asks for nothing."""
    encoded = quire.encode_request(max_new_tokens=9, stop=(), logit_bias={"5": 1}, seed=None, prompt_text="p")
    expected = {"max_tokens": 9, "logit_bias": [(5, 1.0)], "prompt_text": ["p"], "acknowledge": True}
    assert core_parts.decode_request(encoded) == DEFAULTS | expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokns": 1}, 'max_tokns: got an unknown field (did you mean "max_tokens"?); allowed: '),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0; allowed: an integer in [1, "),
        ({"top_k": 1, "runtime_top_k": 2}, "top_k: got 1 (top_k) and 2 (runtime_top_k); allowed: one value"),
        ({"n": 2, "temperature": 0}, "n: got 2 with temperature 0; "),
        ({"bad_words": ["a"]}, "bad_words: got a field that only a tokenizer can honour; allowed: n, "),
        ({"echo": True}, "echo: got a field that only a tokenizer can honour; "),
        ({"bad_word_ids": ["a"]}, "bad_word_ids: got ['a']; allowed: "),
        ({"prompt_text": 5}, "prompt_text: got [5]; allowed: "),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], message: str) -> None:
    """Under the name that the caller uses."""
    with pytest.raises(quire.InvalidArgument) as error:
        quire.encode_request(**fields)
    assert str(error.value).startswith(message)


def test_bytes_that_are_no_request() -> None:
    """Cut, changed, foreign and random bytes: an error that names `request` or a field, or a request."""
    rng = random.Random(1)
    good = _core.encode_request(GIVEN)
    for size in range(len(good)):
        with pytest.raises(
            _core.InvalidArgument, match=rf"^request: got {size} bytes, .*; allowed: the output"
        ):
            core_parts.decode_request(good[:size])
    with pytest.raises(_core.InvalidArgument, match=r"bytes, version [0-9]+, not [0-9]+; allowed: "):
        core_parts.decode_request(rng.randbytes(4) + good[4:])
    with pytest.raises(_core.InvalidArgument, match=r"^request: got .* 1 bytes too many"):
        core_parts.decode_request(good + b"x")
    num_refused = 0
    for _ in range(5000):
        changed = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(4, len(good))] = rng.randrange(256)
        if rng.random() < 0.1:
            changed[4:] = rng.randbytes(rng.randrange(200))
        try:
            core_parts.decode_request(bytes(changed))
        except _core.InvalidArgument as error:
            num_refused += 1
            assert error.field == "request" or error.field in DEFAULTS  # noqa: PT017 it may also be none
        except UnicodeDecodeError:
            pass  # a request, with a text that is no UTF-8
    assert 0 < num_refused < 5000
