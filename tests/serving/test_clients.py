"""Clients of other servers, in the style of their public examples, against the real server: Triton's vLLM
backend on `ensemble`, TensorRT-LLM on `ensemble_trtllm`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from client import GrpcStream, HttpError, generate, generate_stream, result_text, stream_error
from quire.triton.server import TritonServer
from tokenizers import Tokenizer

PROMPT = "def fibonacci(n):"
TRTLLM = "ensemble_trtllm"
_TYPES: dict[str, Any] = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "FP32": np.float32,
}


@pytest.fixture(scope="module")
def greedy(server: TritonServer) -> str:
    """The likeliest 32 tokens after PROMPT."""
    body = {"text_input": PROMPT, "max_tokens": 32, "temperature": 0, "exclude_input_in_output": True}
    return str(generate(server.http_url, body)["text_output"])


def tensor(name: str, values: list[Any], dtype: str, shape: list[int]) -> grpcclient.InferInput:
    """One input, as numpy hands it over."""
    items = [value.encode() if isinstance(value, str) else value for value in values]
    entry = grpcclient.InferInput(name, shape, dtype)
    entry.set_data_from_numpy(np.asarray(items, _TYPES.get(dtype, np.bool_)).reshape(shape))
    return entry


def grpc_answer(server: TritonServer, model: str, inputs: list[grpcclient.InferInput]) -> list[Any]:
    with GrpcStream(server.grpc_url, inputs, model) as stream:
        return list(stream)


# ------------------------------------------------------------------------------- Triton's vLLM backend


def test_metadata_is_that_of_the_vllm_backend(server: TritonServer) -> None:
    """Types and shapes of what both have; all of its outputs."""
    with httpclient.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
        metadata = client.get_model_metadata("ensemble")
    inputs = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in metadata["inputs"]}
    flags = ("stream", "exclude_input_in_output", "return_finish_reason", "return_logprobs")
    flags += ("return_cumulative_logprob", "return_num_input_tokens", "return_num_output_tokens")
    assert dict.fromkeys(flags, ("BOOL", [1])).items() <= inputs.items()
    assert inputs["text_input"] == inputs["sampling_parameters"] == ("BYTES", [1])
    outputs = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in metadata["outputs"]}
    assert {
        "text_output": ("BYTES", [-1]),
        "finish_reason": ("BYTES", [-1]),
        "cumulative_logprob": ("FP32", [-1]),
        "logprobs": ("BYTES", [-1]),
        "num_input_tokens": ("UINT32", [1]),
        "num_output_tokens": ("UINT32", [-1]),
    }.items() <= outputs.items()


def test_a_grpc_client_of_the_vllm_backend(server: TritonServer, greedy: str) -> None:
    """Prompt, stream flag, JSON with numbers as strings, and the outputs by name."""
    inputs = [
        tensor("text_input", [PROMPT], "BYTES", [1]),
        tensor("stream", [True], "BOOL", [1]),
        tensor("sampling_parameters", ['{"temperature": "0", "max_tokens": "32"}'], "BYTES", [1]),
        tensor("exclude_input_in_output", [True], "BOOL", [1]),
        tensor("return_num_output_tokens", [True], "BOOL", [1]),
    ]
    results = grpc_answer(server, "ensemble", inputs)
    assert greedy == "".join(map(result_text, results))
    assert 32 == sum(int(result.as_numpy("num_output_tokens")[0]) for result in results)


def test_lists_are_keys_of_generate(server: TritonServer, greedy: str) -> None:
    """Stop strings as a list and as one string, stop tokens as a list; an empty list asks for nothing."""
    body = {"text_input": PROMPT, "max_tokens": 32, "temperature": 0, "exclude_input_in_output": True}
    word = greedy[8:12]
    before = greedy[: greedy.index(word)]
    for stop in (["never in there", word], [word], word):
        answer = generate(server.http_url, {**body, "stop": stop, "return_finish_reason": True})
        assert (before, "stop") == (answer["text_output"], answer["finish_reason"])
    events = generate_stream(server.http_url, {**body, "stop": [word, "\x00"], "stream": True})
    assert before == "".join(event["text_output"] for event in events)
    assert greedy == generate(server.http_url, {**body, "stop": [], "stop_token_ids": []})["text_output"]


def test_stop_token_ids_as_a_tensor(server: TritonServer, tokenizer: Tokenizer, greedy: str) -> None:
    """By generate and gRPC: the answer ends before the token's text."""
    ids = tokenizer.encode(PROMPT + greedy, add_special_tokens=False).ids
    stop = ids[-3]
    body = {"text_input": PROMPT, "max_tokens": 32, "temperature": 0, "exclude_input_in_output": True}
    text = generate(server.http_url, {**body, "stop_token_ids": [4000, stop]})["text_output"]
    assert greedy.startswith(text)
    assert len(text) < len(greedy)
    inputs = [
        tensor("text_input", [PROMPT], "BYTES", [1]),
        tensor("stop_token_ids", [4000, stop], "INT64", [2]),
        tensor("sampling_parameters", ['{"temperature": 0, "max_tokens": 32}'], "BYTES", [1]),
        tensor("exclude_input_in_output", [True], "BOOL", [1]),
    ]
    assert [text] == [result_text(result) for result in grpc_answer(server, "ensemble", inputs)]


def test_the_prompt_as_ids(server: TritonServer, tokenizer: Tokenizer, greedy: str) -> None:
    """The same answer as to the text, without the prompt; counts too."""
    ids = tokenizer.encode(PROMPT).ids
    body = {"input_ids": ids, "max_tokens": 32, "temperature": 0, "return_num_input_tokens": True}
    answer = generate(server.http_url, body)
    assert (greedy, len(ids)) == (answer["text_output"], answer["num_input_tokens"])
    events = generate_stream(server.http_url, body | {"stream": True})
    assert greedy == "".join(event["text_output"] for event in events)
    for bad, word in (
        ({"text_input": "x", "input_ids": ids}, "text_input, input_ids"),
        ({"input_ids": [5, 99999]}, "99999"),
        ({"max_tokens": 3}, "text_input"),
    ):
        with pytest.raises(HttpError, match=word):
            generate(server.http_url, bad)


# -------------------------------------------------------------------------------------- TensorRT-LLM


def trtllm_inputs(**values: Any) -> list[grpcclient.InferInput]:
    """Every value as TensorRT-LLM's examples send it: with a batch dimension of 1 first."""
    types = {"text_input": "BYTES", "stop_words": "BYTES", "bad_words": "BYTES"}
    types |= dict.fromkeys(("seed", "random_seed"), "UINT64")
    types |= dict.fromkeys(("temperature", "top_p", "repetition_penalty", "length_penalty"), "FP32")
    types |= dict.fromkeys(("presence_penalty", "frequency_penalty"), "FP32")
    inputs = []
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        dtype = "BOOL" if isinstance(value, bool) else types.get(name, "INT32")
        inputs.append(tensor(name, items, dtype, [1, len(items)]))
    return inputs


EVERYTHING_NEUTRAL: dict[str, Any] = {
    "bad_words": [""],
    "stop_words": [""],
    "beam_width": 1,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "return_log_probs": False,
    "return_context_logits": False,
    "return_generation_logits": False,
}


def test_the_curl_example_of_trtllm(server: TritonServer, greedy: str) -> None:
    """Empty strings for the word lists, greedy by default; the prompt in front of the text where the request
    asks for it, since TensorRT-LLM's example models leave it out."""
    body = {"text_input": PROMPT, "max_tokens": 32, "bad_words": "", "stop_words": ""}
    assert greedy == generate(server.http_url, body, TRTLLM)["text_output"]
    with_prompt = {**body, "exclude_input_in_output": False}
    assert PROMPT + greedy == generate(server.http_url, with_prompt, TRTLLM)["text_output"]
    word = greedy[8:12]
    body |= {"stop_words": ["never", word], "pad_id": 2}
    assert greedy[: greedy.index(word)] == generate(server.http_url, body, TRTLLM)["text_output"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_grpc_client_of_trtllm(server: TritonServer, greedy: str, stream: bool) -> None:
    """Every input, most with the value that asks for nothing, over a gRPC stream."""
    inputs = trtllm_inputs(
        text_input=PROMPT,
        max_tokens=32,
        stream=stream,
        top_k=1,
        top_p=0.0,
        temperature=1.0,
        random_seed=7,
        min_length=1,
        end_id=1,
        pad_id=1,
        exclude_input_in_output=True,
        return_num_output_tokens=True,
        return_finish_reason=True,
        **EVERYTHING_NEUTRAL,
    )
    results = grpc_answer(server, TRTLLM, inputs)
    assert (len(results) > 4) == stream
    assert greedy == "".join(map(result_text, results))
    assert 32 == sum(int(result.as_numpy("num_output_tokens")[0]) for result in results)
    assert b"length" == results[-1].as_numpy("finish_reason")[0]


def test_aliases_mean_the_same_as_our_names(server: TritonServer) -> None:
    """A sampled answer under both sets of names."""
    ours = {"max_tokens": 24, "min_tokens": 20, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 11}
    theirs = {"max_tokens": 24, "min_length": 20, "temperature": 0.9, "top_k": 40, "top_p": 0.9}
    ours["exclude_input_in_output"] = True
    expected = generate(server.http_url, {"text_input": PROMPT, **ours})["text_output"]
    for seed in ("seed", "random_seed"):
        body = {"text_input": PROMPT, **theirs, seed: 11}
        assert expected == generate(server.http_url, body, TRTLLM)["text_output"]


def test_end_id_ends_the_answer(server: TritonServer, tokenizer: Tokenizer, greedy: str) -> None:
    """Like one stop token; -1 ignores the model's own end."""
    ids = tokenizer.encode(PROMPT + greedy, add_special_tokens=False).ids
    base = {"text_input": PROMPT, "max_tokens": 32, "exclude_input_in_output": True}
    stopped = generate(server.http_url, {**base, "end_id": ids[-3]}, TRTLLM)["text_output"]
    same = generate(server.http_url, {**base, "temperature": 0, "stop_token_ids": [ids[-3]]})["text_output"]
    assert same == stopped
    assert len(stopped) < len(greedy)
    assert greedy == generate(server.http_url, {**base, "end_id": -1}, TRTLLM)["text_output"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bad_words": ({"bad_words": ["x"] * 129}, "bad_words: got 129 of them"),
    "repetition_penalty": ({"repetition_penalty": 0.0}, "repetition_penalty: got 0.0"),
    "num_return_sequences": ({"num_return_sequences": 2}, "num_return_sequences: got 2 with temperature 0"),
    "beam_width": ({"beam_width": 2}, "beam_width: got 2"),
    "return_context_logits": ({"return_context_logits": True}, "return_context_logits: got true"),
    "min_length": ({"min_length": 9}, "min_length: got 9"),
    "random_seed": ({"random_seed": 2**63 + 5}, "random_seed: got 9223372036854775813"),
    "end_id": ({"end_id": 10**6}, "end_id: got 1000000"),
    "temperature": ({"temperature": 2.5}, "temperature: got 2.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_clients_own_field(server: TritonServer, name: str) -> None:
    """By generate, inside a stream, and over gRPC; the next request works."""
    fields, message = BAD[name]
    body = {"text_input": "x", "max_tokens": 4, **fields}
    with pytest.raises(HttpError) as error:
        generate(server.http_url, body, TRTLLM)
    assert 400 == error.value.status
    assert message in error.value.message
    assert message in stream_error(server.http_url, body | {"stream": True}, TRTLLM)
    with pytest.raises(grpcclient.InferenceServerException) as grpc_error:
        grpc_answer(server, TRTLLM, trtllm_inputs(**body))
    assert message in str(grpc_error.value)
    assert "text_output" in generate(server.http_url, {"text_input": "x", "max_tokens": 2}, TRTLLM)


def test_an_input_that_we_do_not_have_is_refused(server: TritonServer) -> None:
    """The error has its name, whether it comes as a tensor or as a key."""
    lora = tensor("lora_task_id", [1], "UINT64", [1, 1])
    with pytest.raises(grpcclient.InferenceServerException, match="lora_task_id"):
        grpc_answer(server, TRTLLM, [*trtllm_inputs(text_input="x"), lora])
    with pytest.raises(HttpError, match="lora_task_id"):
        generate(server.http_url, {"text_input": "x", "lora_task_id": 1}, TRTLLM)
