"""The tokenizer stage: tensors and parameters of a request in, tensors for generation or an error out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from google.protobuf import text_format
from quire import schema
from quire.errors import InvalidArgument
from quire.sampling_params import ENGINE_FIELDS, NAMES, NOT_YET, OPTION_FIELDS, RequestOptions
from quire.schema import fields_of
from quire.tokenizer import Tokenizer
from quire.triton.tokenizer_stage import TokenizerStage, parse_request, read_parameters
from sample_tokenizers import train_byte_level
from stage_requests import ask
from tokenizers import Regex, pre_tokenizers
from tritonclient.grpc.model_config_pb2 import ModelConfig

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


@pytest.fixture(scope="module")
def stage(byte_level_model: Path) -> TokenizerStage:
    return TokenizerStage(Tokenizer(byte_level_model), 64, re.compile("x-.*"))


def test_tokenizes_as_the_library_does(stage: TokenizerStage, byte_level_model: Path) -> None:
    """Ids are those of `tokenizers`; an empty text and one of too many tokens are refused."""
    tokenizer = Tokenizer(byte_level_model)
    for text in ("one", "zwei Straßen", "三"):
        ids = ask(stage, {"text_input": text}).outputs["input_ids"]
        assert tokenizer.encode(text) == ids.tolist()
        assert ids.dtype == np.int32
    assert (
        ask(stage, {"text_input": ""}).error == "text_input: got an empty string; allowed: a non-empty string"
    )
    assert re.fullmatch(
        r"text_input: got \d+ tokens; allowed: at most 63 tokens \(max_model_len - 1\)",
        ask(stage, {"text_input": "x" * 500}).error,
    )


def test_only_what_applies_is_sent(stage: TokenizerStage) -> None:
    """Outputs that the request did not ask for are left out, also empty lists."""
    always = {"input_ids", "row_lengths", "stream", "acknowledge", "arrival_ns", "tokenize_ns"}
    always.add("vocabulary")
    parameters = {"stop": "[]", "bad_words": "[]", "logit_bias": "{}"}
    response = ask(stage, {"text_input": "a", "stream": True}, parameters)
    assert set(response.outputs) == always
    response = ask(
        stage,
        {"text_input": "a", "return_num_input_tokens": True, "return_finish_reason": False},
    )
    assert set(response.outputs) == {*always, "prompt_text", "return_num_input_tokens"}


def test_outputs_have_the_configured_types(stage: TokenizerStage) -> None:
    """Every output that can be sent is in config.pbtxt with the type of its tensor or field, and no other."""
    config = text_format.Parse((REPOSITORY / "tokenizer" / "config.pbtxt").read_text(), ModelConfig())
    given = {
        "max_tokens": 2,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 1,
        "seed": 1,
        "stop": "a",
        "stop_token_ids": [1],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": True,
        "n": 2,
        "min_p": 0.5,
        "presence_penalty": 1,
        "frequency_penalty": 1,
        "repetition_penalty": 2,
        "logit_bias": {"3": 1.5},
        "allowed_token_ids": [1],
        "bad_words": "b",
        "detokenize": True,
        "logprobs": 0,
        "prompt_logprobs": 1,
        "stream_interval": 2,
        "cache_salt": "s",
        "priority": -1,
        "deadline_ms": 5,
        **{name: True for name in OPTION_FIELDS if name.startswith("return_")},
        "strict": False,
        "xyzzy": 1,  # a warning
        "truncate_prompt_tokens": 5,  # is for this stage
    }
    response = ask(stage, {"text_input": "a", "sampling_parameters": json.dumps(given)})
    dtypes = {"TYPE_INT32": "int32", "TYPE_INT64": "int64", "TYPE_FP32": "float32", "TYPE_BOOL": "bool"}
    types = {output.name: text_format_name(output.data_type) for output in config.output}
    assert {name: dtypes.get(kind, "object") for name, kind in types.items()} == {
        name: str(value.dtype) for name, value in response.outputs.items()
    }
    assert {*ENGINE_FIELDS} - {"bad_words"} <= {*types}
    assert all(kind == NAMES.fields[name].tensor_type for name, kind in types.items() if name in NAMES.fields)


def text_format_name(data_type: int) -> str:
    return ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[data_type].name


def test_inputs_are_the_options(stage: TokenizerStage) -> None:
    """The config's inputs are the prompt, the JSON, each option of the schema, and the lists."""
    config = text_format.Parse((REPOSITORY / "tokenizer" / "config.pbtxt").read_text(), ModelConfig())
    names = {tensor.name for tensor in config.input}
    lists = {name for name, field in NAMES.fields.items() if field.is_list}
    assert {"text_input", "input_ids", "sampling_parameters", *fields_of(RequestOptions), *lists} == names
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


def test_prompts_are_truncated_on_request(stage: TokenizerStage, byte_level_model: Path) -> None:
    """The end of the prompt is kept; -1 keeps what fits into the model; the text is given back whole."""
    text = "x y z " * 40
    ids = Tokenizer(byte_level_model).encode(text)
    assert len(ids) > 64
    for name, limit, kept in (
        ("truncate_prompt_tokens", 10, 10),
        ("truncate", "10", 10),
        ("truncate_prompt_tokens", -1, 63),
    ):
        outputs = ask(stage, {"text_input": text}, {name: limit}).outputs
        assert outputs["input_ids"].tolist() == ids[-kept:]
        assert outputs["prompt_text"].tolist() == [text.encode()]
    whole = ask(stage, {"text_input": "x y"}, {"truncate": 50}).outputs["input_ids"].tolist()
    assert whole == Tokenizer(byte_level_model).encode("x y")
    for limit in (0, -2, 2**31, 1.5):
        assert ask(stage, {"text_input": text}, {"truncate": limit}).error.startswith("truncate: got ")


def test_a_parameter_that_comes_twice() -> None:
    """Refused whatever the values are; headers and what Triton sets for itself may repeat."""
    for second in (0, 2):
        with pytest.raises(InvalidArgument, match=r"^temperature: got two request parameters of that name; "):
            read_parameters([("temperature", 0), ("top_k", 1), ("temperature", second)])
    repeated = [("x-a", 1), ("triton_x", 1), ("id", "1")] * 2
    assert read_parameters(repeated, re.compile("x-.*")) == {}


def test_special_tokens_are_added_on_request(
    tokenizers_by_name: dict[str, tokenizers.Tokenizer], tmp_path: Path
) -> None:
    """add_special_tokens false leaves them out, for that request only."""
    raw = tokenizers.Tokenizer.from_str(tokenizers_by_name["byte_level"].to_str())
    raw.add_special_tokens(["<bos>"])
    bos = raw.token_to_id("<bos>")
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    raw.save(str(tmp_path / "tokenizer.json"))
    stage = TokenizerStage(Tokenizer(tmp_path), 64)
    texts = ["one", "two", "<bos>three"]
    for parameters in (
        {"add_special_tokens": False},
        {"sampling_parameters": '{"add_special_tokens": false}'},
    ):
        given = (None, parameters, None)
        answers = [ask(stage, {"text_input": text}, more) for text, more in zip(texts, given, strict=True)]
        found = [answer.outputs["input_ids"].tolist() for answer in answers]
        assert [1, 0, 1] == [ids.count(bos) for ids in found]
        assert raw.encode("two", add_special_tokens=False).ids == found[1]
        assert raw.encode("three").ids == found[2]
    assert "add_special_tokens: got" in ask(stage, {"text_input": "a"}, {"add_special_tokens": 1}).error


def test_a_token_that_the_model_does_not_have(byte_level_model: Path) -> None:
    """A text with an id past vocab_size is refused under the client's name, with the token's text."""
    tokenizer = Tokenizer(byte_level_model)
    last = tokenizer.raw.get_vocab_size() - 1
    stage = TokenizerStage(tokenizer, 64, vocab_size=last)
    text = tokenizer.raw.id_to_token(last)
    message = ask(stage, {"text_input": f"a{text}"}).error
    assert f"text_input: got the token {json.dumps(text)}, whose id is {last}; allowed: " in message
    assert f"ids 0 to {last - 1} (vocab_size)" in message
    assert ask(stage, {"text_input": "a"}).error is None
    rows = ask(stage, {"text_input": ["a", f"a{text}"]}, None, ("row_lengths",)).error
    assert f"whose id is {last} at 1; allowed: " in rows
    by_ids = ask(stage, {"input_ids": np.asarray([last], np.int32)})  # generation's to refuse
    assert by_ids.error is None


def test_fields_of_vllm_that_ask_for_nothing(stage: TokenizerStage) -> None:
    """With null, and with their neutral value, they change nothing; other values are refused by name."""
    for name, neutral in NOT_YET.items():
        for value in (None, *neutral):
            given = json.dumps({name: value, "top_k": 5})
            response = ask(stage, {"text_input": "a", "sampling_parameters": given})
            assert response.error is None, (name, value)
            assert [5] == response.outputs["top_k"].tolist()
            assert "warnings" not in response.outputs
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
        b'temprature: ignored, an unknown field (did you mean "temperature"?)',
        b"lora_name: ignored, a field that is not supported yet",
        b"\\ud800: ignored, an unknown field",
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
        assert response.outputs["warnings"].tolist() == warnings
        assert response.outputs["max_tokens"].tolist() == [3]
    for strict in ({}, {"strict": True}, {"strict": None}):
        response = ask(stage, nested, parameters | strict)
        assert response.error.startswith("temprature: got an unknown field")
    response = ask(stage, nested, {"max_tokens": 0, "strict": False})
    assert response.error.startswith("max_tokens: got 0;")
    assert "warnings" not in ask(stage, {"text_input": "a", "strict": False}).outputs


def test_the_prompt_as_ids(stage: TokenizerStage) -> None:
    """Ids pass as they are; the prompt is not in the answer."""
    ids = np.asarray([3, 1, 2], np.int32)
    by_ids, by_text = ask(stage, {"input_ids": ids}), ask(stage, {"text_input": "a"})
    assert by_ids.outputs["input_ids"].tolist() == [3, 1, 2]
    assert "prompt_text" not in by_ids.outputs
    assert "prompt_text" in by_text.outputs
    for parameters, message in (
        ({"exclude_input_in_output": False}, "exclude_input_in_output: got false with input_ids; allowed: "),
        (
            {"echo": True},
            "echo: got true, which means exclude_input_in_output false with input_ids; allowed: ",
        ),
    ):
        assert ask(stage, {"input_ids": ids}, parameters).error.startswith(message)


def test_several_prompts(stage: TokenizerStage, byte_level_model: Path) -> None:
    """Where row_lengths is asked for: ids one after the other, lengths, and every prompt; else refused."""
    texts = ["one", "zwei Straßen", "三"]
    asked = ("input_ids", "row_lengths")
    bad = ask(stage, {"text_input": texts})
    good = ask(stage, {"text_input": texts}, None, asked)
    empty = ask(stage, {"text_input": ["a", ""]}, None, asked)
    long = ask(stage, {"text_input": ["a", "x" * 500, "b"]}, None, asked)
    tokenizer = Tokenizer(byte_level_model)
    rows = [tokenizer.encode(text) for text in texts]
    assert good.outputs["input_ids"].tolist() == [token for row in rows for token in row]
    assert good.outputs["row_lengths"].tolist() == list(map(len, rows))
    assert good.outputs["prompt_text"].tolist() == [text.encode() for text in texts]
    assert bad.error == "text_input: got 3 values; allowed: one value (several: ensemble_unary)"
    assert empty.error == "text_input: got an empty string at 1; allowed: a non-empty string"
    assert re.match(r"text_input: got \d+ tokens at 1; ", long.error)


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
        ({"text_input": ["a", "b"]}, {}, "text_input"),
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


def test_text_without_tokens(tokenizers_by_name: dict, tmp_path: Path) -> None:
    """A text of which the tokenizer makes nothing is refused."""
    tokenizers_by_name["word_level"].save(str(tmp_path / "tokenizer.json"))
    stage = TokenizerStage(Tokenizer(tmp_path), None)
    response = ask(stage, {"text_input": " "})
    assert response.error == "text_input: got text of 0 tokens; allowed: text of at least one token"


def test_a_panic_of_the_tokenizer(tmp_path: Path) -> None:
    """A regular expression that runs away over a text is that text's error, by the name of its field, and
    says nothing of the library's files; other texts go on."""
    raw = train_byte_level()
    runs_away = pre_tokenizers.Split(Regex("^(([a-z])+.)+[A-Z]([a-z])+$"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([runs_away, pre_tokenizers.ByteLevel(use_regex=False)])
    raw.save(str(tmp_path / "tokenizer.json"))
    stage = TokenizerStage(Tokenizer(tmp_path), None)
    bad = "a" * 1000
    allowed = "allowed: text that the tokenizer knows (it failed)"
    assert ask(stage, {"text_input": bad}).error.startswith("text_input: got ")
    assert ask(stage, {"text_input": bad}).error.endswith(allowed)
    assert ask(stage, {"text_input": ["one", bad]}, None, ("row_lengths",)).error.endswith(allowed)
    assert ask(stage, {"text_input": bad}, {"truncate_prompt_tokens": 2}).error.endswith(allowed)
    words = ask(stage, {"text_input": "one"}, {"bad_words": bad}).error
    assert words.startswith("bad_words: got ")
    assert words.endswith(allowed)
    assert ask(stage, {"text_input": "one"}).outputs["input_ids"].tolist() == raw.encode("one").ids
