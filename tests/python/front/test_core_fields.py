"""The C++ core has the fields of the schema, with the same ranges."""

from __future__ import annotations

import pytest
from field_cases import FIELD_CASES
from quire import _core
from quire.errors import InvalidArgument
from quire.field import INT32_MAX, INT64_MAX, INT64_MIN, Field
from quire.sampling_params import CORE_FIELDS, MAX_BAD_WORDS, NAMES, SamplingParams

# How the core says "not given".
NOT_GIVEN = {("max_tokens", 0), ("logprobs", -1), ("prompt_logprobs", -1)}


def a_core(vocab_size: int = 1) -> _core.EngineCore:
    table = _core.TokenTable(_core.DecoderKind.JOINED, [b"a"] * vocab_size, [0] * vocab_size)
    return _core.EngineCore(_core.EngineConfig(num_blocks=8, max_model_len=64, vocab_size=vocab_size), table)


def boundary_values(field: Field) -> list[float]:
    """Values at and just outside the ends of a field's range that the core can represent."""
    import numpy as np

    if field.type == "float":
        ends = [np.float32(end) for end in (field.minimum, field.maximum) if end is not None]
        near = [np.nextafter(end, np.float32(side), dtype=np.float32) for end in ends for side in (-9, 9)]
        return [float(value) for value in [*ends, *near]]
    low, high = int(field.minimum), int(field.maximum)
    limit = (-(2**31), INT32_MAX) if high == INT32_MAX else (INT64_MIN, INT64_MAX)
    return [
        value for value in (low - 1, low, low + 1, high - 1, high, high + 1) if limit[0] <= value <= limit[1]
    ]


@pytest.mark.parametrize(
    "field",
    [NAMES.fields[name] for name in CORE_FIELDS if NAMES.fields[name].type in ("int", "float")],
    ids=lambda field: field.name,
)
def test_ranges_are_those_of_the_core(field: Field) -> None:
    """At both ends of every range the C++ core agrees with the table."""
    core = a_core()
    for index, value in enumerate(boundary_values(field)):
        if (field.name, value) in NOT_GIVEN:
            continue
        given = {"max_tokens": INT32_MAX, "seed": 1, field.name: value}
        try:
            core.add_request(index, [0], _core.SamplingParams(**given))
            in_core = True
        except _core.InvalidArgument as error:
            in_core = False
            refused = error.field
            assert refused == field.name
        try:
            field.check(value)
            in_table = True
        except InvalidArgument:
            in_table = False
        assert in_table == in_core, f"{field.name} = {value!r}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 2, "temperature": 0.0}, "n: got 2 with temperature 0; allowed: 1 (greedy"),
        ({"n": 2, "temperature": 9e-6}, "n: got 2 with temperature 9e-06; allowed: 1 (greedy"),
        ({"detokenize": False, "stop": ["a"]}, "stop: got stop strings with detokenize false; "),
        ({"logit_bias": [(1, 0.5), (4, 1.0)]}, "logit_bias: got 4; allowed: 0 to 3"),
        ({"logit_bias": [(1, 0.5), (1, 0.5)]}, "logit_bias: got the id 1 twice; "),
        ({"logit_bias": [(1, 100.5)]}, "logit_bias: got 100.5; allowed: [-100, 100]"),
        ({"logit_bias": [(1, float("nan"))]}, "logit_bias: got nan; "),
        ({"logit_bias": [(1, 0.0)] * 1025}, "logit_bias: got 1025 ids; allowed: at most 1024 ids"),
        ({"allowed_token_ids": [3, -1]}, "allowed_token_ids: got -1; "),
        ({"stop_token_ids": [1] * 241}, "stop_token_ids: got 241 ids; allowed: at most 240 ids"),
        ({"bad_word_ids": [[1], []]}, "bad_words: got a sequence of no ids; "),
        ({"bad_word_ids": [[1], [4]]}, "bad_words: got 4; "),
        ({"bad_word_ids": [[1]] * 129}, "bad_words: got 129 sequences of ids; allowed: at most 128"),
        ({"cache_salt": "ß" * 1025}, "cache_salt: got 1025 characters; allowed: at most 1024 characters"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty: got inf; "),
        ({"min_p": float("nan")}, "min_p: got nan; "),
    ],
)
def test_what_the_core_refuses(given: dict[str, object], message: str) -> None:
    """Lists, and fields that must fit together; the engine goes on."""
    core = a_core(4)
    with pytest.raises(_core.InvalidArgument) as caught:
        core.add_request(1, [0], _core.SamplingParams(**given))
    assert str(caught.value).startswith(message)
    core.check_integrity()
    core.add_request(1, [0], _core.SamplingParams())


def test_counts_are_those_of_the_core() -> None:
    """What the tables say of the number of items is what the core takes."""
    core = a_core(4)
    biases, stops = NAMES.fields["logit_bias"].max_items, NAMES.fields["stop_token_ids"].max_items
    salt = NAMES.fields["cache_salt"].max_length
    assert (biases, stops, MAX_BAD_WORDS, salt) == (1024, 240, 128, 1024)  # those of the refusals above
    core = a_core(2000)
    many = {
        "logit_bias": [(i, 1.0) for i in range(biases)],
        "stop_token_ids": [1] * stops,
        "cache_salt": "ß" * salt,
    }
    core.add_request(1, [0], _core.SamplingParams(**many, bad_word_ids=[[1]] * MAX_BAD_WORDS))


def test_conversion_to_the_core() -> None:
    """to_core() carries every field."""
    fields = {*CORE_FIELDS} - {"bad_words", "detokenize"}
    given = {name: FIELD_CASES[name].good for name in fields}
    given["logit_bias"] = [(1, -2.0), (5, 0.5)]
    core = SamplingParams(**given).to_core([[1, 2], [3]])
    assert core.bad_word_ids == [[1, 2], [3]]
    assert not SamplingParams(detokenize=False).to_core().detokenize
    assert given == {name: getattr(core, name) for name in given}
    core = SamplingParams().to_core()
    names = ("seed", "logprobs", "prompt_logprobs", "allowed_token_ids", "cache_salt", "max_tokens")
    assert [getattr(core, name) for name in names] == [None, None, None, [], "", 0]
