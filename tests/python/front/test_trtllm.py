"""TensorRT-LLM's input names: what each means, what is refused, and that the configurations fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from quire.errors import InvalidArgument
from quire.sampling_params import NAMES
from quire.triton.tokenizer_stage import parse_request
from quire.triton.trtllm import NEUTRAL, TrtLlm
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"
_DTYPES = {
    "TYPE_INT32": np.int32,
    "TYPE_UINT64": np.uint64,
    "TYPE_FP32": np.float32,
    "TYPE_BOOL": np.bool_,
    "TYPE_STRING": np.object_,
}


def config_of(name: str) -> Any:
    return text_format.Parse((REPOSITORY / name / "config.pbtxt").read_text(), ModelConfig())


INPUT_TYPES = {tensor.name: DataType.Name(tensor.data_type) for tensor in config_of("tokenizer_trtllm").input}


def parse(parameters: dict[str, object] | None = None, **values: Any) -> Any:
    """A request with every value as a tensor of shape [1, n] and of the configured type."""
    tensors = {}
    for name, value in {"text_input": "a", **values}.items():
        items = [
            item.encode() if isinstance(item, str) else item
            for item in (value if isinstance(value, list) else [value])
        ]
        tensors[name] = np.asarray(items, _DTYPES[INPUT_TYPES[name]]).reshape(1, -1)
    return parse_request(tensors, parameters or {}, dialect=TrtLlm(vocab_size=100))


GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0}
# sampling from all of them
ALL_TOKENS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("name", "value", "given"),
    [
        ("max_tokens", 7, {"max_tokens": 7}),
        ("min_tokens", 3, {"min_tokens": 3}),
        ("min_length", 3, {"min_tokens": 3}),
        ("top_k", 5, {"top_k": 5}),
        ("top_p", 0.9, {"top_p": 0.9}),
        ("top_p", 0.0, {}),
        ("seed", 7, {"seed": 7}),
        ("random_seed", 7, {"seed": 7}),
        ("stop_words", ["x", "", "y"], {"stop": ("x", "y")}),
        ("stop_words", "", {"stop": ()}),
        ("stop_words", [], {"stop": ()}),
        ("end_id", 2, {"stop_token_ids": (2,)}),
        ("end_id", -1, {"ignore_eos": True}),
        ("pad_id", 2, {}),
        ("bad_words", ["x", "", "y"], {"bad_words": ("x", "y")}),
        ("repetition_penalty", 1.25, {"repetition_penalty": 1.25}),
        ("presence_penalty", 0.5, {"presence_penalty": 0.5}),
        ("frequency_penalty", -0.5, {"frequency_penalty": -0.5}),
        ("num_return_sequences", 2, {"n": 2}),
        ("return_log_probs", True, {}),
    ],
)
def test_what_an_input_means(name: str, value: object, given: dict[str, object]) -> None:
    """Each input arrives as the field of ours."""
    rest = {} if name == "top_k" else {"top_k": 50}
    assert parse(temperature=1.0, **rest, **{name: value}).given == ALL_TOKENS | rest | given


def test_a_batch_has_one_value_for_all() -> None:
    """Clients repeat a value for every row; rows that differ are refused by name."""
    text = np.asarray([[b"a"], [b"b"]], object)
    words = np.asarray([[b"x", b"y"], [b"x", b"y"]], object)
    tensors = {"text_input": text, "max_tokens": np.asarray([[5], [5]], np.int32), "stop_words": words}
    parsed = parse_request(tensors, {}, dialect=TrtLlm())
    assert parsed.prompts == ("a", "b")
    assert parsed.given == {"max_tokens": 5, "stop": ("x", "y"), **GREEDY}
    tensors["max_tokens"] = np.asarray([[5], [6]], np.int32)
    with pytest.raises(InvalidArgument, match=r"^max_tokens: got different values for the rows; "):
        parse_request(tensors, {}, dialect=TrtLlm())


def test_options() -> None:
    """Streaming and counts are the options of the other ensemble."""
    options = parse(
        stream=True,
        exclude_input_in_output=True,
        return_num_input_tokens=True,
        return_finish_reason=True,
        return_log_probs=True,
    ).options
    assert options.stream
    assert not options.includes_prompt
    assert options.return_num_input_tokens
    assert options.return_finish_reason
    assert options.return_logprobs
    assert options.return_cumulative_logprob
    assert not options.return_num_output_tokens


def test_greedy_unless_told_how_to_sample() -> None:
    """Without top_k and top_p the likeliest token, at any temperature, as in TensorRT-LLM; 0 is "off"."""
    assert parse().given == GREEDY
    assert parse(top_k=0, top_p=0.0).given == GREEDY
    for given in ({"top_k": 1}, {"top_p": 0.5}, {"top_p": 0.5, "top_k": 0}, {"top_k": 9, "top_p": 0.0}):
        expected = {name: value for name, value in given.items() if value}
        assert parse(**given).given == ALL_TOKENS | expected  # and nothing of the checkpoint's settings
    neutral: list[dict[str, float]] = [{}, {"top_p": 0.0}, {"top_k": 0}]
    for more in neutral:
        assert parse(temperature=0.5, **more).given == GREEDY | {"temperature": 0.5, "top_k": 1}
    assert parse({"sampling_parameters": '{"temperature": 0.5}'}).given["top_k"] == 1
    assert parse({"top_k": 0}, temperature=0.5).given["top_k"] == 1
    assert parse({"top_k": 0}, top_p=0.5).given["top_k"] == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *NEUTRAL.items(),
        ("bad_words", ((),)),
        ("repetition_penalty", (1,)),
        ("presence_penalty", (0,)),
        ("frequency_penalty", (0,)),
        ("num_return_sequences", (1,)),
        ("return_log_probs", (False,)),
    ],
)
def test_what_asks_for_nothing_is_accepted(name: str, values: tuple[object, ...]) -> None:
    """Clients send every input with its neutral value."""
    field = "" if name in NEUTRAL else NAMES.find(name).name
    for value in values:
        given = parse(**{name: list(value) if isinstance(value, tuple) else value}).given
        assert given.keys() <= {*GREEDY, field}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_width", 4),
        ("length_penalty", 0.5),
        ("embedding_bias_words", ["x"]),
        ("embedding_bias_weights", [1.5]),
        ("return_context_logits", True),
        ("return_generation_logits", True),
        ("return_perf_metrics", True),
    ],
)
def test_what_we_do_not_do_yet_is_refused(name: str, value: object) -> None:
    """By the client's own name, with what it gave."""
    with pytest.raises(InvalidArgument, match=rf"^{name}: got .*; allowed: .*not supported yet"):
        parse(**{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_length": -1}, "min_length: got -1; "),
        ({"min_length": 5, "max_tokens": 4}, "min_length: got 5; "),
        ({"random_seed": 2**64 - 5}, "random_seed: got 18446744073709551611; "),
        ({"end_id": 100}, "end_id: got 100; "),
        ({"num_return_sequences": 2}, "num_return_sequences: got 2 with temperature 0; "),
        ({"presence_penalty": 2.5}, "presence_penalty: got 2.5; "),
        ({"end_id": -2}, "end_id: got -2; "),
        ({"max_tokens": 0}, "max_tokens: got 0; "),
        ({"temperature": float("nan")}, "temperature: got "),
        ({"top_p": 1.5}, "top_p: got 1.5; "),
        ({"max_tokens": [1, 2]}, "max_tokens: got 2 values; "),
        ({"min_length": 2, "min_tokens": 3}, "min_tokens: got "),
    ],
)
def test_errors_use_the_names_of_the_client(values: dict[str, Any], message: str) -> None:
    """Never our own name for what was given under another."""
    with pytest.raises(InvalidArgument) as error:
        parse(**values)
    assert str(error.value).startswith(message)
    assert "; allowed: " in str(error.value)


def test_the_configurations_name_the_same_inputs() -> None:
    """Stage, tokenizer_trtllm, ensemble_trtllm and tensorrt_llm; everything but the prompt is optional."""
    tokenizer, ensemble, ids = map(config_of, ("tokenizer_trtllm", "ensemble_trtllm", "tensorrt_llm"))
    own = {"text_input", "input_ids", "input_lengths", "min_length", "end_id", "pad_id", *NEUTRAL}
    assert all(NAMES.find(name) for name in INPUT_TYPES.keys() - own)
    assert own < INPUT_TYPES.keys()
    names = [{tensor.name for tensor in model.input} for model in (ensemble, ids)]
    assert names[0] | names[1] == INPUT_TYPES.keys()
    assert [tensor.name for tensor in tokenizer.input if not tensor.optional] == []
    assert [tensor.name for tensor in ensemble.input if not tensor.optional] == ["text_input"]
    required = ["input_ids", "input_lengths", "request_output_len"]
    assert [tensor.name for tensor in ids.input if not tensor.optional] == required
    assert list(tokenizer.output) == list(config_of("tokenizer").output)


@pytest.mark.parametrize("name", ["ensemble_trtllm", "ensemble_trtllm_unary", "tensorrt_llm"])
def test_the_models_have_a_batch_dimension(name: str) -> None:
    """max_batch_size says so, and what is behind it has a size: perf_analyzer needs no shapes."""
    model = config_of(name)
    assert model.max_batch_size > 1
    lists = {"input_ids", "stop_words", "bad_words", "embedding_bias_words", "embedding_bias_weights"}
    for tensor in model.input:
        assert list(tensor.dims) == ([-1] if tensor.name in lists else [1])


def test_the_prompt_in_the_answer() -> None:
    """By the request, else by the model's setting; a stream never has it, whatever the request says."""
    text = {"text_input": np.asarray([[b"a"]], object)}
    for excludes in (False, True):
        for said in (None, False, True):
            tensors = text if said is None else text | {"exclude_input_in_output": np.asarray([[said]])}
            parsed = parse_request(tensors, {}, TrtLlm(), excludes_prompt=excludes)
            assert parsed.options.includes_prompt == (not excludes if said is None else not said)
            streamed = tensors | {"stream": np.asarray([[True]])}
            assert not parse_request(streamed, {}, TrtLlm(), excludes_prompt=excludes).options.includes_prompt


def test_prompts_of_ids() -> None:
    """A row for each prompt, of which input_lengths says how many ids count; the answer is of ids."""
    ids = np.asarray([[5, 6, 7], [8, 0, 0]], np.int32)
    tensors = {"input_ids": ids, "input_lengths": np.asarray([[3], [1]], np.int32)}
    parsed = parse_request(tensors, {}, TrtLlm())
    assert parsed.prompts == ((5, 6, 7), (8,))
    far = {
        "input_ids": np.asarray([[5, 106, 2**31 - 1]], np.int32),
        "input_lengths": np.asarray([[3]], np.int32),
    }
    assert parse_request(far, {}, TrtLlm(vocab_size=100)).prompts == ((5, 6, (2**31 - 1) % 100),)
    assert parse_request(far, {}, TrtLlm()).prompts == ((5, 106, 2**31 - 1),)
    with pytest.raises(InvalidArgument, match=r"^input_ids: got id -7 at 1; "):
        parse_request({"input_ids": np.asarray([[5, -7]], np.int32)}, {}, TrtLlm(vocab_size=100))
    assert parsed.includes_prompt_ids
    assert parsed.options.return_token_ids
    for name in ("streaming", "exclude_input_in_output"):
        assert not parse_request({**tensors, name: np.asarray([[True]])}, {}, TrtLlm()).includes_prompt_ids
    for lengths, message in (
        ([[3]], "input_lengths: got 1 values; allowed: 2"),
        ([[3], [4]], "input_lengths: got 4; allowed: 1 to 3"),
        ([[0], [3]], "input_lengths: got 0; "),
    ):
        tensors["input_lengths"] = np.asarray(lengths, np.int32)
        with pytest.raises(InvalidArgument) as error:
            parse_request(tensors, {}, TrtLlm())
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["ensemble", "ensemble_trtllm"])
def test_the_ensembles_lose_nothing(name: str) -> None:
    """Every output of the tokenizer reaches generation, and every input the tokenizer."""
    ensemble = config_of(name)
    tokenize, generate, *_ = ensemble.ensemble_scheduling.step
    made = {tensor.name for tensor in config_of(tokenize.model_name).output}
    assert made == set(tokenize.output_map)
    assert {tensor.name for tensor in ensemble.input} == set(tokenize.input_map.values())
    assert {key: generate.input_map[key] for key in tokenize.output_map} == dict(tokenize.output_map)


@pytest.mark.parametrize("name", ["ensemble_unary", "ensemble_trtllm_unary"])
def test_the_unary_models_lose_nothing(name: str) -> None:
    """Their inputs are their tokenizer's, by names that the ensemble which streams has too."""
    model = config_of(name)
    tokenizer = config_of(model.parameters["tokenizer_model"].string_value)
    types = {tensor.name: tensor.data_type for tensor in tokenizer.input}
    assert {tensor.name: tensor.data_type for tensor in model.input}.items() <= types.items()
    streaming = [tensor.name for tensor in config_of(name.removesuffix("_unary")).input]
    assert streaming == [tensor.name for tensor in model.input][: len(streaming)]
