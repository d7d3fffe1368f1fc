"""A prompt goes through a real tritonserver and our engine, and comes back as text, by every protocol."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tritonclient.http as httpclient
from client import GrpcStream, generate, generate_stream, result_text, text_inputs
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quire import LLM, SamplingParams
from quire.triton.server import TritonServer
from tokenizers import Tokenizer

PROMPT = "def fibonacci(n):"
GREEDY = {"temperature": 0, "max_tokens": 48}


@pytest.fixture(scope="module")
def expected() -> str:
    """What the same engine answers in process."""
    llm = LLM("quire-8m", num_gpu_blocks_override=256)
    [output] = llm.generate([PROMPT], SamplingParams(temperature=0.0, max_tokens=48))
    return output.outputs[0].text


def test_generate_answers_with_the_prompt_and_the_text_of_the_engine_in_process(
    server: TritonServer, expected: str
) -> None:
    """As in Triton's vLLM backend, the prompt belongs into the answer unless it is excluded."""
    answer = generate(server.http_url, {"text_input": PROMPT, **GREEDY})
    assert PROMPT + expected == answer["text_output"]
    answer = generate(server.http_url, {"text_input": PROMPT, "exclude_input_in_output": True, **GREEDY})
    assert expected == answer["text_output"]


def test_generate_stream_shows_text_as_it_arrives(server: TritonServer, expected: str) -> None:
    """Many events, since what is there leaves at once, and they join to the one-shot answer."""
    request = {"text_input": PROMPT, "stream": True, **GREEDY}
    events = [event["text_output"] for event in generate_stream(server.http_url, request)]
    assert expected == "".join(events)
    assert len(events) > 8


def test_grpc_stream_carries_the_same_text_counts_and_one_finish_reason(
    server: TritonServer, expected: str
) -> None:
    """Token counts are per chunk and add up; only the last chunk has a finish reason."""
    inputs = text_inputs(
        text_input=PROMPT,
        stream=True,
        sampling_parameters=GREEDY,
        return_finish_reason=True,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
    )
    with GrpcStream(server.grpc_url, inputs) as stream:
        results = list(stream)
    assert expected == "".join(map(result_text, results))
    reasons = [result.as_numpy("finish_reason")[0].decode() for result in results]
    assert ["None"] * (len(results) - 1) + ["length"] == reasons
    assert 48 == sum(int(result.as_numpy("num_output_tokens")[0]) for result in results)
    assert results[0].as_numpy("num_input_tokens").dtype == np.uint32


def test_outputs_that_were_not_asked_for_are_absent(server: TritonServer) -> None:
    """`finish_reason` and the counts come on request only, as in Triton's vLLM backend."""
    answer = generate(server.http_url, {"text_input": PROMPT, **GREEDY})
    assert not {"finish_reason", "num_input_tokens", "num_output_tokens"} & set(answer)
    asked = {"return_finish_reason": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
    answer = generate(server.http_url, {"text_input": PROMPT, **GREEDY, **asked})
    assert ("length", 48) == (answer["finish_reason"], answer["num_output_tokens"])
    assert answer["num_input_tokens"] > 1


def test_nested_parameters_of_generate_reach_the_engine(server: TritonServer, expected: str) -> None:
    """The shape that the examples of Triton's vLLM backend use."""
    body = {"text_input": PROMPT, "parameters": {"stream": False, "exclude_input_in_output": True, **GREEDY}}
    assert expected == generate(server.http_url, body)["text_output"]


def test_sampling_parameters_as_json_and_as_keys_are_one(server: TritonServer) -> None:
    """A seed makes both spellings answer alike, and another seed differently."""
    keys = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 7, "max_tokens": 40}
    first = generate(server.http_url, {"text_input": PROMPT, **keys})
    second = generate(server.http_url, {"text_input": PROMPT, "sampling_parameters": json.dumps(keys)})
    other = generate(server.http_url, {"text_input": PROMPT, **keys, "seed": 8})
    assert first["text_output"] == second["text_output"]
    assert first["text_output"] != other["text_output"]


def test_http_infer_says_how_to_call_a_decoupled_model(server: TritonServer) -> None:
    """tritonclient over HTTP: health, metadata, the tokenizer work; Triton refuses infer with its reason."""
    with httpclient.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
        assert client.is_model_ready("ensemble")
        names = {entry["name"] for entry in client.get_model_metadata("ensemble")["inputs"]}
        assert {"text_input", "stream", "sampling_parameters"} <= names
        entry = httpclient.InferInput("text_input", [1], "BYTES")
        entry.set_data_from_numpy(np.array([PROMPT.encode()], dtype=object))
        with pytest.raises(httpclient.InferenceServerException, match="decoupled"):
            client.infer("ensemble", [entry])
        tokens = client.infer("tokenizer", [entry]).as_numpy("input_ids")
        assert tokens.size > 1


def test_a_stop_string_cuts_the_text_exactly(server: TritonServer, expected: str) -> None:
    """The answer ends right before the stop string, in a stream too."""
    stop = expected[10:14]
    body = {"text_input": PROMPT, "exclude_input_in_output": True, "return_finish_reason": True, **GREEDY}
    answer = generate(server.http_url, {**body, "stop": json.dumps([stop])})
    assert expected[: expected.index(stop)] == answer["text_output"]
    assert "stop" == answer["finish_reason"]
    events = generate_stream(
        server.http_url,
        {"text_input": PROMPT, "stream": True, **GREEDY, "sampling_parameters": json.dumps({"stop": [stop]})},
    )
    assert expected[: expected.index(stop)] == "".join(event["text_output"] for event in events)


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40),
    seed=st.integers(0, 2**31),
)
def test_any_prompt_streams_what_it_answers_at_once(
    server: TritonServer, tokenizer: Tokenizer, prompt: str, seed: int
) -> None:
    """Joined stream == one-shot answer == tokenizers' decode of the ids; heat makes odd bytes."""
    settings_ = {"temperature": 2.0, "seed": seed, "max_tokens": 24}
    body = {"text_input": prompt, **settings_}
    events = generate_stream(server.http_url, {**body, "stream": True})
    joined = "".join(event["text_output"] for event in events)
    whole = generate(server.http_url, {**body, "exclude_input_in_output": True})["text_output"]
    assert whole == joined
    [output] = _llm().generate([prompt], SamplingParams(**{**settings_, "temperature": 2.0}))
    assert tokenizer.decode(output.outputs[0].token_ids) == whole


def _llm() -> LLM:
    if not hasattr(_llm, "instance"):
        _llm.instance = LLM("quire-8m", num_gpu_blocks_override=256)  # type: ignore[attr-defined]
    return _llm.instance  # type: ignore[attr-defined, no-any-return]


def test_generate_with_stream_true_says_to_use_generate_stream(server: TritonServer) -> None:
    """Triton's `generate` takes exactly one response; 2.51 puts the error into the body of an HTTP 200."""
    answer = generate(server.http_url, {"text_input": PROMPT, "stream": True, **GREEDY})
    assert "generate stream" in answer["error"]
