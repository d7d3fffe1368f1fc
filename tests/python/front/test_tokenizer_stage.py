"""The tokenizer stage: tensors and parameters of a request in, tensors for generation or an error out."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from field_cases import FIELD_CASES
from google.protobuf import text_format
from quire import schema
from quire.errors import InvalidArgument
from quire.field import fields_of
from quire.sampling_params import ENGINE_FIELDS, NAMES, NOT_YET, OPTION_FIELDS, RequestOptions, SamplingParams
from quire.tokenizer import Tokenizer
from quire.triton.tokenizer_stage import TokenizerStage, parse_request, read_parameters
from stage_requests import ask
from tritonclient.grpc.model_config_pb2 import ModelConfig

# What of the schema's fields this stage honours itself, or passes on under another name.
OF_THE_STAGE = ("bad_words", "exclude_input_in_output", "strict")
REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


@pytest.fixture(scope="module")
def stage(byte_level_model: Path) -> TokenizerStage:
    return TokenizerStage(Tokenizer(byte_level_model), 64, re.compile("x-.*"))


def test_tokenizes_as_the_library_does(stage: TokenizerStage, byte_level_model: Path) -> None:
    """Ids are those of `tokenizers`; an empty text and one of too many tokens are refused."""
    tokenizer = Tokenizer(byte_level_model)
    for text in ("one", "zwei Straßen", "三"):
        assert tokenizer.encode(text) == ask(stage, {"text_input": text}).ids
    assert (
        ask(stage, {"text_input": ""}).error == "text_input: got an empty string; allowed: a non-empty string"
    )
    assert re.fullmatch(
        r"text_input: got \d+ tokens; allowed: at most 63 tokens \(max_model_len - 1\)",
        ask(stage, {"text_input": "x" * 500}).error,
    )


def test_only_what_applies_is_sent(stage: TokenizerStage) -> None:
    """Fields that the request did not give keep the engine's defaults, and empty lists ask for nothing."""
    always = {"acknowledge", "arrival_ns", "tokenize_ns", "vocabulary"}
    parameters = {"stop": "[]", "bad_words": "[]", "logit_bias": "{}"}
    response = ask(stage, {"text_input": "a", "stream": True}, parameters)
    assert set(response.fields) == {*always, "stream"}
    response = ask(
        stage,
        {"text_input": "a", "return_num_input_tokens": True, "return_finish_reason": False},
    )
    assert set(response.fields) == {*always, "prompt_text", "return_num_input_tokens"}


@pytest.mark.parametrize(
    "name", [name for name in (*ENGINE_FIELDS, *OPTION_FIELDS) if name not in OF_THE_STAGE]
)
def test_every_field_goes_on(stage: TokenizerStage, name: str) -> None:
    """Given values arrive unchanged, and bad_words as ids."""
    case = FIELD_CASES[name]
    given = json.dumps({name: case.good, **dict(case.needs)})
    response = ask(stage, {"text_input": "a", "sampling_parameters": given})
    expected = [(int(k), v) for k, v in case.good.items()] if name == "logit_bias" else case.good
    assert response.fields[name] == expected


def test_bad_words_leave_as_ids(stage: TokenizerStage, byte_level_model: Path) -> None:
    """With a space in front and without."""
    raw = Tokenizer(byte_level_model).raw
    expected = [raw.encode(text, add_special_tokens=False).ids for text in ("one", " one", "x y", " x y")]
    response = ask(stage, {"text_input": "a", "bad_words": ["one", " one", "x y"]})
    assert response.fields["bad_word_ids"] == expected
    error = ask(stage, {"text_input": "a", "bad_words": [f"word {i}" for i in range(65)]}).error
    assert error.startswith("bad_words: got 130 sequences of tokens; allowed: at most 128")


def test_the_vocabulary_goes_with_the_ids(byte_level_model: Path) -> None:
    """The fingerprint of the file tokenizer.json, and the model's name without the folders before it."""
    stage = TokenizerStage(Tokenizer(byte_level_model), 64, model="/srv/models/small")
    expected = hashlib.sha256((byte_level_model / "tokenizer.json").read_bytes()).hexdigest()[:32]
    assert ask(stage, {"text_input": "a"}).fields["vocabulary"] == f"{expected} small"


def test_times_go_with_the_request(stage: TokenizerStage) -> None:
    """When the request came, and how long this stage took, by the clock of the other stages."""
    before = time.monotonic_ns()
    fields = ask(stage, {"text_input": "a"}).fields
    took = time.monotonic_ns() - before
    assert before <= fields["arrival_ns"] <= before + took
    assert 0 < fields["tokenize_ns"] <= took


_CHAT_TENSORS = ("messages", "tools", "documents", "chat_template_kwargs")


def test_inputs_are_the_options(stage: TokenizerStage) -> None:
    """The config's inputs are the prompt, the JSON, each option of the schema, numbers, lists and objects; of
    other names those that replace older ones."""
    config = text_format.Parse((REPOSITORY / "tokenizer" / "config.pbtxt").read_text(), ModelConfig())
    names = {tensor.name for tensor in config.input}
    lists = {name for name, field in NAMES.fields.items() if field.is_list or name in _CHAT_TENSORS}
    sampling = fields_of(SamplingParams)
    scalars = {name for name, field in sampling.items() if field.type in ("int", "float", "bool")}
    newer = {field.newer for field in NAMES.fields.values() if field.newer}
    prompt = {"text_input", "input_ids", "sampling_parameters"}
    assert prompt | {*fields_of(RequestOptions)} | lists | scalars | newer == names
    assert all(tensor.optional for tensor in config.input)


def test_three_ways_to_give_a_field() -> None:
    """Tensor, JSON and request parameter mean the same, may repeat each other, and may not disagree."""
    text = np.asarray([b"a"], object)

    def parse(parameters: dict, **tensors: object) -> object:
        return parse_request(
            {"text_input": text} | {k: np.asarray([v]) for k, v in tensors.items()}, parameters
        )

    by_tensor = parse({}, stream=True)
    assert by_tensor == parse({"stream": True}) == parse({"sampling_parameters": '{"stream": true}'})
    assert by_tensor == parse({"stream": True}, stream=True)
    with pytest.raises(
        InvalidArgument, match=r"^stream: got true \(input tensor\) and false \(request parameter\)"
    ):
        parse({"stream": False}, stream=True)
    with pytest.raises(
        InvalidArgument,
        match=r"^top_k: got 6 \(sampling_parameters\) and 5 \(request parameter\); allowed: one value",
    ):
        parse({"top_k": 5}, sampling_parameters=b'{"top_k": 6}')
    assert parse({"top_k": 5}, sampling_parameters=b'{"top_k": 5}').given == {"top_k": 5}
    assert parse({"max_new_tokens": 5}, sampling_parameters=b'{"max_tokens": 5}').given == {"max_tokens": 5}
    with pytest.raises(
        InvalidArgument,
        match=r"^max_tokens: got 6 \(max_tokens, sampling_parameters\) "
        r"and 5 \(max_new_tokens, request parameter\); allowed: one value",
    ):
        parse({"max_new_tokens": 5}, sampling_parameters=b'{"max_tokens": 6}')
    assert not parse({"echo": False}).options.includes_prompt


def test_a_parameter_that_comes_twice() -> None:
    """Refused whatever the values are; headers and what Triton sets for itself may repeat."""
    for second in (0, 2):
        with pytest.raises(InvalidArgument, match=r"^temperature: got two request parameters of that name; "):
            read_parameters([("temperature", 0), ("top_k", 1), ("temperature", second)])
    repeated = [("x-a", 1), ("triton_x", 1), ("id", "1")] * 2
    assert read_parameters(repeated, re.compile("x-.*")) == {}


def test_fields_of_vllm_that_ask_for_nothing(stage: TokenizerStage) -> None:
    """With null, and with their neutral value, they change nothing; other values are refused by name."""
    for name, neutral in NOT_YET.items():
        for value in (None, *neutral):
            given = json.dumps({name: value, "top_k": 5})
            response = ask(stage, {"text_input": "a", "sampling_parameters": given})
            assert response.error is None, (name, value)
            assert [5] == [response.fields["top_k"]]
            assert "warnings" not in response.fields
    assert ask(stage, {"text_input": "a"}, {"length_penalty": "1.0", "best_of": 1}).error is None
    for name, value in (
        ("use_beam_search", True),
        ("use_beam_search", 0),
        ("best_of", 2),
        ("best_of", True),
        ("length_penalty", 0.5),
        ("structured_outputs", {"regex": "a"}),
        ("guided_json", "{}"),
    ):
        given = json.dumps({name: value})
        message = ask(stage, {"text_input": "a", "sampling_parameters": given}).error
        assert f"{name}: got a field that is not supported yet; allowed: null" in message
    given = json.dumps({"temprature": None})
    message = ask(stage, {"text_input": "a", "sampling_parameters": given}).error
    assert 'temprature: got an unknown field (did you mean "temperature"?)' in message


def test_names_of_tensorrt_llm(stage: TokenizerStage) -> None:
    """A client that calls the other dialect's model is told of its own; an empty word asks for nothing."""
    for name in ("end_id", "pad_id", "beam_width", "min_length", "embedding_bias_words"):
        message = ask(stage, {"text_input": "a"}, {name: 1}).error
        assert message.startswith(
            f"{name}: got a field of TensorRT-LLM's; allowed: in a request to ensemble_trtllm"
        )
    for inputs, parameters in (
        ({"text_input": "a", "bad_words": [""], "stop": [""]}, {}),
        ({"text_input": "a"}, {"stop_words": "", "bad_words": ""}),
    ):
        answer = ask(stage, inputs, parameters)
        assert (answer.error, answer.fields.get("stop", ())) == (None, ())


def test_unknown_names_are_cheap(stage: TokenizerStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many names are refused by their number before any is looked at; and the nearest known name is
    searched for one of them only."""
    searched: list[str] = []
    monkeypatch.setattr(schema, "did_you_mean", lambda name, known: searched.append(name) or "")
    names = {f"temperatur{index}": 1 for index in range(20_000)}
    for inputs, parameters, field in (
        ({"sampling_parameters": json.dumps(names)}, {}, "sampling_parameters"),
        ({}, names, "parameters"),
    ):
        message = ask(stage, {"text_input": "a", **inputs}, parameters).error
        assert f"{field}: got 20000 names; allowed: at most 256" == message
    assert [] == searched
    few = dict(list(names.items())[:256])
    for strict in (True, False):
        given = json.dumps(few)
        ask(stage, {"text_input": "a", "sampling_parameters": given}, {"strict": strict})
    assert ["temperatur0"] * 2 == searched


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"": 1}', '"": got an unknown field; '),
        (json.dumps({"k" * 5000: 1}), f'"{"k" * 79}... (5000 characters): got an unknown field; '),
        (json.dumps({"a\nb": 1}), r"a\nb: got an unknown field"),
        (
            '{"seed": 1' + "0" * 5000 + "}",
            "sampling_parameters: got malformed JSON: an integer of thousands of digits;",
        ),
        (
            '{"seed": ' + "[" * 50_000 + "]" * 50_000 + "}",
            "sampling_parameters: got JSON nested too deeply; ",
        ),
        ('{"seed": ' + "[" * 300 + "]" * 300 + "}", "seed: got [[[[[...]]]]]; "),
        (json.dumps({"seed": [1] * 100_000}), f"seed: got [{'1, ' * 26}1... (100000 items); "),
        (
            '{"seed": "' + "x" * 2**22 + '"}',
            "sampling_parameters: got JSON of 4194316 characters (at most 4194304 are read)",
        ),
    ],
)
def test_messages_stay_short(stage: TokenizerStage, given: str, message: str) -> None:
    """Whatever was sent, its error is one line of text for people."""
    error = ask(stage, {"text_input": "a", "sampling_parameters": given}).error
    assert error.startswith(message)
    assert len(error.partition("; allowed: ")[0]) < 200


def test_names_that_are_ignored_on_request(stage: TokenizerStage) -> None:
    """With strict: false, by whichever way it comes, unknown names are listed; values are still checked."""
    parameters = {"temprature": 0.5, "max_tokens": 3}
    nested = {"text_input": "a", "sampling_parameters": '{"temprature": 0.6, "lora_name": "x", "\\ud800": 1}'}
    warnings = [
        'temprature: ignored, an unknown field (did you mean "temperature"?)',
        "lora_name: ignored, a field that is not supported yet",
        "\\ud800: ignored, an unknown field",
    ]
    for response in (
        ask(stage, nested | {"strict": False}, parameters),
        ask(stage, nested, parameters | {"strict": False}),
        ask(
            stage,
            nested
            | {"sampling_parameters": nested["sampling_parameters"].replace("{", '{"strict": false, ')},
            parameters,
        ),
    ):
        assert response.fields["warnings"] == warnings
        assert response.fields["max_tokens"] == 3
    for strict in ({}, {"strict": True}, {"strict": None}):
        response = ask(stage, nested, parameters | strict)
        assert response.error.startswith("temprature: got an unknown field")
    response = ask(stage, nested, {"max_tokens": 0, "strict": False})
    assert response.error.startswith("max_tokens: got 0;")
    assert "warnings" not in ask(stage, {"text_input": "a", "strict": False}).fields


def test_lists_as_tensors() -> None:
    """A list is a tensor of rank 1; one string is itself, or the JSON list that it spells."""
    text = np.asarray([b"a"], object)

    def given(**tensors: np.ndarray) -> object:
        return parse_request({"text_input": text, **tensors}, {}).given

    assert given(stop=np.asarray([b"x", b"[y]"], object)) == {"stop": ("x", "[y]")}
    assert given(stop=np.asarray([b"[INST]"], object)) == {"stop": ("[INST]",)}
    assert given(stop=np.asarray([b'["x", "y"]'], object)) == {"stop": ("x", "y")}
    assert given(stop_token_ids=np.asarray([4, 5], np.int32)) == {"stop_token_ids": (4, 5)}
    with pytest.raises(InvalidArgument, match=r"^stop_token_ids: got \[-4\]; allowed: "):
        given(stop_token_ids=np.asarray([-4], np.int32))


def test_errors_use_the_spelling_that_was_given() -> None:
    """An alias is called by its name, also where two fields must fit together."""
    text = {"text_input": np.asarray([b"a"], object)}
    with pytest.raises(InvalidArgument, match=r"^max_new_tokens: got 0; "):
        parse_request(text, {"max_new_tokens": 0})
    with pytest.raises(InvalidArgument, match=r"^min_new_tokens: got 5; "):
        parse_request(text, {"sampling_parameters": '{"min_new_tokens": 5, "max_tokens": 4}'})


@pytest.mark.parametrize(
    ("inputs", "parameters", "field"),
    [
        ({"text_input": b"\xff"}, {}, "text_input"),
        ({"text_input": []}, {}, "text_input"),
        ({"text_input": "a", "sampling_parameters": b"\xff"}, {}, "sampling_parameters"),
        ({"text_input": "a", "sampling_parameters": "{"}, {}, "sampling_parameters"),
        ({"text_input": "a"}, {"sampling_parameters": 5}, "sampling_parameters"),
        ({"text_input": "a", "sampling_parameters": '{"x-y": 1}'}, {}, "x-y"),
        ({"text_input": "a"}, {"Temperature": 1.0}, "Temperature"),
        ({"text_input": "a"}, {"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({}, {}, "text_input"),
        ({"text_input": "a", "input_ids": np.asarray([1], np.int32)}, {}, "text_input, input_ids"),
        ({"input_ids": np.asarray([], np.int32)}, {}, "input_ids"),
        ({"input_ids": np.asarray([1] * 64, np.int32)}, {}, "input_ids"),
        (
            {"input_ids": np.asarray([1], np.int32), "exclude_input_in_output": False},
            {},
            "exclude_input_in_output",
        ),
    ],
)
def test_bad_requests(stage: TokenizerStage, inputs: dict, parameters: dict, field: str) -> None:
    """Each mistake is an invalid argument that names its field."""
    response = ask(stage, inputs, parameters)
    assert response.error.startswith(f"{field}: got ")
    assert "; allowed: " in response.error


def test_parameters_that_are_not_ours(stage: TokenizerStage) -> None:
    """Triton's own parameters pass, and headers that the server was told to forward."""
    own = {
        "id": "1",
        "priority": 1,
        "timeout": 5,
        "sequence_id": 1,
        "triton_anything": True,
        "x-request-id": "z",
    }
    assert ask(stage, {"text_input": "a"}, own).error is None
    assert ask(stage, {"text_input": "a"}, {"y-request-id": "z"}).error is not None
    assert not any(name.startswith("triton_") for name in NAMES.fields)
