"""The request schema: names, types, ranges, errors."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from near_names import NEAR_NAMES, hint
from quire.errors import InvalidArgument
from quire.field import Field, fields_of
from quire.sampling_params import MAX_BAD_WORD_IDS, MAX_BAD_WORDS, NAMES, RequestOptions, SamplingParams
from quire.schema import Entry, Names, merge
from quire.settings_docs import attribute_docs

ROOT = Path(__file__).resolve().parents[3]
STOP = (
    "a non-empty string or a list of them, at most 256 of them, at most 1024 bytes each and 16384 bytes "
    "together"
)


def error_of(**values: object) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        SamplingParams(**values)
    return caught.value


def parse(names: Names, values: dict[str, object], *, parameters: bool = False) -> dict[str, object]:
    return merge(names.read(values, parameters=parameters)).values


def from_parameters(values: dict[str, object]) -> SamplingParams:
    return merge(NAMES.read(values, parameters=True)).make(SamplingParams)


def test_defaults() -> None:
    """Nothing given is the table's defaults."""
    assert {name: field.default for name, field in fields_of(SamplingParams).items()} == dataclasses.asdict(
        SamplingParams()
    )


def test_meanings_name_the_limits() -> None:
    """A limit in the text after a field is the one that is checked."""
    meanings, stop = attribute_docs(SamplingParams), NAMES.fields["stop"]
    words = f"at most {MAX_BAD_WORDS} sequences of tokens, {MAX_BAD_WORD_IDS} tokens together"
    texts = (
        f"at most {stop.max_items} of them, of {stop.max_item_bytes} bytes each and {stop.max_bytes} bytes"
    )
    assert words in meanings["bad_words"]
    assert texts in meanings["stop"]
    assert f"At most {NAMES.fields['stop_token_ids'].max_items}." in meanings["stop_token_ids"]


def test_values_are_frozen_hashable_and_copyable() -> None:
    """Parameters can be shared between requests and threads."""
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[3], seed=5)
    assert params.stop == ("a", "b")
    assert hash(params) == hash(SamplingParams(stop=("a", "b"), stop_token_ids=(3,), seed=5))
    assert (
        pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == dataclasses.replace(params) == params
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.seed = 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "hot"}, 'temperature: got "hot" (a string); allowed: a number in [0, 2]'),
        ({"temperature": " 0.5"}, 'temperature: got " 0.5" (a string); allowed: a number in [0, 2]'),
        ({"temperature": "nan"}, 'temperature: got "nan" (a string); allowed: a number in [0, 2]'),
        ({"max_tokens": "1.0"}, None),
        ({"max_tokens": "1_0"}, None),
        ({"max_tokens": "0"}, "max_tokens: got 0; allowed: an integer in [1, 2147483647]"),
        ({"temperature": True}, "temperature: got true; allowed: a number in [0, 2]"),
        ({"temperature": math.nan}, "temperature: got nan; allowed: a number in [0, 2]"),
        ({"temperature": math.inf}, "temperature: got inf; allowed: a number in [0, 2]"),
        ({"temperature": 10**400}, None),
        ({"temperature": -0.1}, "temperature: got -0.1; allowed: a number in [0, 2]"),
        ({"top_p": 0}, "top_p: got 0.0; allowed: a number in (0, 1]"),
        ({"top_p": 1e-50}, "top_p: got 1e-50; allowed: a number in (0, 1]"),
        ({"max_tokens": True}, "max_tokens: got true; allowed: an integer in [1, 2147483647]"),
        (
            {"max_tokens": 16.0},
            "max_tokens: got 16.0 (a float; write 16); allowed: an integer in [1, 2147483647]",
        ),
        ({"max_tokens": 2**31}, "max_tokens: got 2147483648; allowed: an integer in [1, 2147483647]"),
        ({"seed": 2**63}, None),
        ({"seed": 10**5000}, None),
        ({"seed": -(2**63) - 1}, None),
        ({"top_k": -2}, "top_k: got -2; allowed: an integer in [-1, 2147483647]"),
        ({"ignore_eos": 1}, "ignore_eos: got 1; allowed: true or false"),
        ({"stop": ""}, f'stop: got [""]; allowed: {STOP}'),
        ({"stop": ["a", ""]}, f'stop: got ["a", ""]; allowed: {STOP}'),
        ({"stop": ["a", 1]}, f'stop: got ["a", 1]; allowed: {STOP}'),
        ({"stop": {"a": 1}}, f'stop: got {{"a": 1}}; allowed: {STOP}'),
        ({"stop": ["\ud800"]}, None),
        ({"stop": ["a"] * 257}, f"stop: got 257 of them; allowed: {STOP}"),
        ({"stop": "é" * 513}, f"stop: got a string of 1026 bytes; allowed: {STOP}"),
        ({"stop": ["é" * 512] * 17}, f"stop: got 17408 bytes together; allowed: {STOP}"),
        (
            {"stop_token_ids": [True]},
            "stop_token_ids: got [true]; allowed: a list of integers in [0, 2147483647], at most 240 of them",
        ),
        (
            {"stop_token_ids": [-1]},
            "stop_token_ids: got [-1]; allowed: a list of integers in [0, 2147483647], at most 240 of them",
        ),
        (
            {"stop_token_ids": [1] * 241},
            "stop_token_ids: got 241 of them; "
            "allowed: a list of integers in [0, 2147483647], at most 240 of them",
        ),
        (
            {"stop_token_ids": 5},
            "stop_token_ids: got 5; allowed: a list of integers in [0, 2147483647], at most 240 of them",
        ),
        ({"n": 0}, "n: got 0; allowed: an integer in [1, 128]"),
        (
            {"temperature": 0, "n": 2},
            "n: got 2 with temperature 0; allowed: 1 (greedy: all sequences would be the same)",
        ),
        ({"repetition_penalty": 0}, "repetition_penalty: got 0.0; allowed: a number > 0"),
        ({"repetition_penalty": 1e39}, "repetition_penalty: got 1e+39; allowed: a number > 0"),
        (
            {"logprobs": -1},
            "logprobs: got -1; allowed: an integer in [0, 20] "
            "(-1, the whole vocabulary, would be megabytes for each token)",
        ),
        ({"prompt_logprobs": 21}, None),
        (
            {"logit_bias": {"x": 1}},
            'logit_bias: got the id "x"; allowed: ids in [0, 2147483647]',
        ),
        (
            {"logit_bias": {3: 100.5}},
            "logit_bias: got 100.5 for the id 3; "
            "allowed: an object of token ids and numbers in [-100, 100], at most 1024 of them",
        ),
        ({"logit_bias": [[3, 1], ["3", 1]]}, "logit_bias: got the id 3 twice; allowed: each id once"),
        ({"logit_bias": [3, 1]}, None),
        ({"logit_bias": {3: "1"}}, None),
        ({"logit_bias": {3: math.nan}}, None),
        ({"logit_bias": {True: 1}}, None),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, None),
        ({"logit_bias": 5}, None),
        (
            {"allowed_token_ids": []},
            "allowed_token_ids: got 0 of them; "
            "allowed: a list of integers in [0, 2147483647], at least 1 of them",
        ),
        ({"bad_words": ["a"] * 129}, None),
        ({"bad_words": [""]}, None),
        (
            {"detokenize": False, "stop": "a"},
            "stop: got stop strings with detokenize false; "
            "allowed: none (without text no stop string can be found)",
        ),
        ({"stream_interval": 0}, "stream_interval: got 0; allowed: an integer in [1, 2147483647]"),
        ({"cache_salt": ""}, 'cache_salt: got ""; allowed: a non-empty string of at most 1024 characters'),
        (
            {"cache_salt": "x" * 1025},
            "cache_salt: got 1025 characters; allowed: a non-empty string of at most 1024 characters",
        ),
        ({"cache_salt": "\ud800"}, None),
        ({"cache_salt": 5}, None),
        ({"deadline_ms": 0}, "deadline_ms: got 0; allowed: an integer in [1, 2147483647]"),
        ({"priority": 2**31}, None),
        (
            {"max_tokens": 3, "min_tokens": 4},
            "min_tokens: got 4; allowed: at most max_tokens (3)",
        ),
    ],
)
def test_bad_values(values: dict[str, object], message: str | None) -> None:
    """An error names the field, what was given and what is allowed; nothing is converted."""
    error = error_of(**values)
    assert error.field == list(values)[-1]
    assert str(error) == f"{error.field}: got {error.given}; allowed: {error.allowed}"
    if message is not None:
        assert message == str(error)
    str(error).encode()  # printable and sendable, whatever was given


def test_no_conversion_but_int_to_float() -> None:
    """An integer is fine for a float; -1 and null mean "not given" for a seed."""
    assert isinstance(SamplingParams(temperature=1).temperature, float)
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams.from_dict({"seed": None, "max_tokens": None}) == SamplingParams()
    assert SamplingParams(stop="x").stop == ("x",)


def test_unknown_names() -> None:
    """An unknown name is an error that names the nearest known one, or says what it is elsewhere."""
    assert {name: error_of(**{name: 1}).given for name in NEAR_NAMES} == {
        name: hint(name) for name in NEAR_NAMES
    }
    assert error_of(max_new_tokens=1).given == 'another system\'s name of "max_tokens"'
    assert error_of(lora_name="x").given == "a field that is not supported yet"
    assert error_of(**{"\ud800": 1}).field == "\\ud800"


def test_aliases() -> None:
    """Each alias means its field in JSON and in request parameters; two spellings must agree."""
    for field in NAMES.fields.values():
        for alias in (*field.aliases, *field.opposites):
            assert NAMES.find(alias) is field
    assert SamplingParams.from_dict({"max_new_tokens": 7}).max_tokens == 7
    assert SamplingParams.from_dict({"random_seed": 7, "seed": 7}).seed == 7
    with pytest.raises(InvalidArgument) as caught:
        SamplingParams.from_dict({"max_new_tokens": 7, "max_tokens": 8})
    assert str(caught.value) == "max_tokens: got 7 (max_new_tokens) and 8 (max_tokens); allowed: one value"


# alias, a value of its field, and a value that its field cannot have
ALIASES = [
    (alias, field, alias in field.opposites)
    for field in NAMES.fields.values()
    for alias in (*field.aliases, *field.opposites)
]
GOOD = {"int": 3, "float": 0.5, "bool": True, "strings": "a", "ints": [3]}
BAD = {"int": "three", "float": "half", "bool": "yes", "strings": [""], "ints": [-1]}
assert {field.type for _, field, _ in ALIASES} <= set(GOOD)


@pytest.mark.parametrize(("alias", "field", "is_opposite"), ALIASES, ids=[alias for alias, _, _ in ALIASES])
@pytest.mark.parametrize("parameters", [False, True])
def test_every_alias_means_its_field(alias: str, field: Field, is_opposite: bool, parameters: bool) -> None:
    """As a JSON key and as a request parameter; an error has the name that the client used, one of two
    values has both, but the newer name of two counts."""
    value = GOOD[field.type]
    expected = not value if is_opposite else field.check(value)
    assert parse(NAMES, {alias: value}, parameters=parameters) == {field.name: expected}
    bad = json.dumps(BAD[field.type]) if parameters and field.type == "strings" else BAD[field.type]
    with pytest.raises(InvalidArgument) as caught:
        parse(NAMES, {alias: bad}, parameters=parameters)
    assert caught.value.field == alias
    other = {"int": 4, "float": 0.25, "bool": is_opposite, "strings": "b", "ints": [4]}[field.type]
    both = {alias: value, field.name: other}
    if alias == field.newer:
        for given in (both, dict(reversed(both.items()))):
            assert parse(NAMES, given, parameters=parameters) == {field.name: expected}
        return
    with pytest.raises(InvalidArgument, match=rf"^{field.name}: got .* \({alias}\) and .* \({field.name}\);"):
        parse(NAMES, both, parameters=parameters)


def test_errors_between_fields_have_the_name_that_was_used() -> None:
    """Also where two fields do not fit together, and where the name means the opposite."""
    with pytest.raises(InvalidArgument, match=r"^min_new_tokens: got 4; allowed: at most max_tokens \(3\)"):
        SamplingParams.from_dict({"min_new_tokens": 4, "max_new_tokens": 3})
    with pytest.raises(InvalidArgument) as caught:
        RequestOptions.from_dict({"stream": True, "echo": True})
    assert str(caught.value) == (
        "echo: got true, which means exclude_input_in_output false with stream true; "
        "allowed: exclude_input_in_output true when streaming"
    )
    assert RequestOptions.from_dict({"return_full_text": False}).exclude_input_in_output is True
    assert RequestOptions.from_dict({"echo": None}).exclude_input_in_output is None
    assert error_of(**{"echo": True}).given == "an unknown field"


def test_names_are_unique() -> None:
    """No alias hides a field or another alias."""
    names = [
        name for field in NAMES.fields.values() for name in (field.name, *field.aliases, *field.opposites)
    ]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ('["a", "b"]', ("a", "b")),
        ("[]", ()),
        ("[INST]", ("[INST]",)),
        ("[1]", ("[1]",)),
        ('["a", 1]', ('["a", 1]',)),
        ("null", ("null",)),
        ("\n\n", ("\n\n",)),
    ],
)
def test_stop_as_request_parameter(parameter: str, expected: tuple[str, ...]) -> None:
    """A JSON list of strings is that list; any other string is itself the stop string."""
    assert from_parameters({"stop": parameter}).stop == expected


@pytest.mark.parametrize(
    "parameter", ["[1,", "1", '["a"]', "[1.0]", "[true]", "[NaN]", "[" * 100_000, 5, True]
)
def test_bad_stop_token_ids_as_request_parameter(parameter: object) -> None:
    """Lists of integers come as JSON strings; anything else is an error that names the field."""
    with pytest.raises(InvalidArgument) as caught:
        from_parameters({"stop_token_ids": parameter})
    assert caught.value.field == "stop_token_ids"


@pytest.mark.parametrize(
    "value", [{7: 1, 3: -2.5}, {"3": -2.5, "7": 1.0}, [[7, 1], [3, -2.5]], ((3, -2.5), (7, 1.0))]
)
def test_logit_bias_has_one_form(value: object) -> None:
    """An object or pairs, ids as numbers or as JSON spells them: pairs by id, also from a JSON string."""
    expected = ((3, -2.5), (7, 1.0))
    assert SamplingParams(logit_bias=value).logit_bias == expected
    assert SamplingParams.from_dict({"logit_bias": value}).logit_bias == expected
    assert from_parameters({"logit_bias": json.dumps(value)}).logit_bias == expected
    hash(SamplingParams(logit_bias=value))


@pytest.mark.parametrize("parameter", ["5", "{", "[1", '{"3": 1, "3": 2}', '{"3": "x"}', "x", 5, True, ""])
def test_bad_logit_bias_as_request_parameter(parameter: object) -> None:
    """Objects come as JSON strings; an id given twice is an error."""
    with pytest.raises(InvalidArgument) as caught:
        from_parameters({"logit_bias": parameter})
    assert caught.value.field == "logit_bias"


def test_options_that_exclude_each_other() -> None:
    """The prompt cannot be part of a stream."""
    assert RequestOptions().includes_prompt
    assert not RequestOptions(stream=True).includes_prompt
    assert not RequestOptions(exclude_input_in_output=True).includes_prompt
    with pytest.raises(InvalidArgument):
        RequestOptions(stream=True, exclude_input_in_output=False)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*NAMES.fields, "max_new_tokens"]) | st.text(max_size=8), JSON_VALUES))
def test_any_input_is_accepted_or_named(values: dict[str, object]) -> None:
    """Whatever a client sends, the outcome is valid parameters or an InvalidArgument that can be printed."""
    for make in (SamplingParams.from_dict, from_parameters, RequestOptions.from_dict):
        try:
            result = make(values)
        except InvalidArgument as error:
            message = str(error)
        else:
            message = repr(result)
            assert type(result)(**dataclasses.asdict(result)) == result
        assert message.encode("utf-8")


def test_merge_names_both_sources() -> None:
    """A field that two sources give differently is an error; equal values are fine."""
    entries = [Entry("x", 1, "x", "a"), Entry("x", 1, "ex", "b"), Entry("y", 2, "y", "b")]
    assert merge(entries).values == {"x": 1, "y": 2}
    with pytest.raises(InvalidArgument, match=r"^x: got 1 \(a\) and 2 \(b\); allowed: one value$"):
        merge([Entry("x", 1, "x", "a"), Entry("x", 2, "x", "b")])
    with pytest.raises(InvalidArgument, match=r"^x: got 1 \(ex, a\) and 2 \(x, b\); allowed: one value$"):
        merge([Entry("x", 1, "ex", "a"), Entry("x", 2, "x", "b")])


def test_ranges_are_json(tmp_path: Path) -> None:
    """Every default can be sent as JSON and comes back the same."""
    for table in (SamplingParams, RequestOptions):
        values = json.loads(json.dumps(dataclasses.asdict(table())))
        assert table.from_dict(values) == table()


def test_a_string_that_is_exactly_a_number_is_that_number() -> None:
    """Clients of Triton's vLLM backend send numbers as strings."""
    given = {"temperature": "0.1", "top_p": "0.95", "max_tokens": "100", "seed": "-5"}
    params = SamplingParams.from_dict(given)
    assert SamplingParams(temperature=0.1, top_p=0.95, max_tokens=100, seed=-5) == params


def test_names_can_be_made_of_any_table() -> None:
    """Names works on a table of its own."""

    names = Names(fields_of(RequestOptions))
    assert parse(names, {"stream": True}) == {"stream": True}
    with pytest.raises(InvalidArgument):
        parse(names, {"temperature": 1.0})
