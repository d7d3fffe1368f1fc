"""What comes back beside the text, through each model: logprobs, why it stopped, the ids."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as httpclient
from client import GrpcStream, generate, generate_stream
from quire import LLM, SamplingParams
from quire.outputs import RequestOutput
from quire.triton.server import TritonServer
from tokenizers import Tokenizer
from tritonclient.grpc import InferInput

PROMPT = "def fibonacci(n):\n    "
FIELDS: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "stop": ["return"]}
ASKED: dict[str, Any] = {
    "logprobs": 3,
    "prompt_logprobs": 1,
    "return_logprobs": True,
    "return_cumulative_logprob": True,
    "return_stop_reason": True,
    "return_token_ids": True,
    "exclude_input_in_output": True,
}
# Another batch may add in another order.
ERROR = 1e-3


@pytest.fixture(scope="module")
def expected() -> RequestOutput:
    """The same of the engine in this process."""
    llm = LLM("quire-8m", max_model_len=512)
    [output] = llm.generate(PROMPT, SamplingParams(**FIELDS, logprobs=3, prompt_logprobs=1))
    assert output.outputs[0].stop_reason == "return"
    return output


def check_json(text: str, expected: Any) -> None:
    """The JSON of Triton's vLLM backend: an object for each token, keyed by ids."""
    given = json.loads(text)
    assert len(given) == len(expected)
    for place, wanted in zip(given, expected, strict=True):
        if wanted is None:
            assert place is None
            continue
        assert [*place] == [str(token) for token in wanted], "the token first, then the likeliest"
        for entry, want in zip(place.values(), wanted.values(), strict=True):
            assert entry == {
                "logprob": pytest.approx(want.logprob, abs=ERROR),
                "rank": want.rank,
                "decoded_token": want.decoded_token,
            }


def test_generate(server: TritonServer, expected: RequestOutput) -> None:
    """Everything at once, in one response."""
    answer = generate(server.http_url, {"text_input": PROMPT, **FIELDS, **ASKED})
    completion = expected.outputs[0]
    assert answer["text_output"] == completion.text
    assert answer["output_ids"] == [*completion.token_ids]
    assert answer["stop_reason"] == "return"
    assert answer["cumulative_logprob"] == pytest.approx(completion.cumulative_logprob, abs=24 * ERROR)
    check_json(answer["logprobs"], completion.logprobs)
    check_json(answer["prompt_logprobs"], expected.prompt_logprobs)


def test_nothing_comes_unasked(server: TritonServer) -> None:
    """An ordinary answer has none of it; logprobs alone do not come without return_logprobs."""
    for more in ({}, {"logprobs": 2}):
        answer = generate(server.http_url, {"text_input": PROMPT, **FIELDS, **more})
        outputs = {name for name in answer if not name.startswith(("model_", "sequence_"))}
        assert outputs == {"text_output"}


@pytest.mark.parametrize("model", ["ensemble", "ensemble_unary"])
def test_sampled_tokens_alone(server: TritonServer, expected: RequestOutput, model: str) -> None:
    """logprobs 0 are those of the sampled tokens; without `logprobs` there are none, as in Triton's vLLM
    backend, but their sum is there."""
    body = {"text_input": PROMPT, **FIELDS, "return_logprobs": True, "return_cumulative_logprob": True}
    total = expected.outputs[0].cumulative_logprob
    for more in ({}, {"logprobs": 0}):
        answer = generate(server.http_url, body | more, model)
        assert answer["cumulative_logprob"] == pytest.approx(total, abs=24 * ERROR)
        places = json.loads(answer["logprobs"])
        ids = [[str(token)] for token in expected.outputs[0].token_ids]
        assert (places and [[*place] for place in places]) == (ids if more else None)


def test_stream(server: TritonServer, expected: RequestOutput) -> None:
    """Each event has the ids and the logprobs of its text; joined they are those of one response. The
    prompt's come with the first."""
    completion = expected.outputs[0]
    events = [*generate_stream(server.http_url, {"text_input": PROMPT, "stream": True, **FIELDS, **ASKED})]
    ids: list[int] = []
    places: list[Any] = []
    total = 0.0
    for event in events:
        of_event = event["output_ids"] if isinstance(event["output_ids"], list) else [event["output_ids"]]
        of_event = [token for token in of_event if token is not None]
        added = json.loads(event["logprobs"])
        assert [int(next(iter(place))) for place in added] == of_event
        total += sum(place[str(token)]["logprob"] for place, token in zip(added, of_event, strict=True))
        assert event["cumulative_logprob"] == pytest.approx(total, abs=1e-3)
        ids += of_event
        places += added
    assert "".join(event["text_output"] for event in events) == completion.text
    assert ids == [*completion.token_ids]
    check_json(json.dumps(places), completion.logprobs)
    assert ["prompt_logprobs" in event for event in events] == [True] + [False] * (len(events) - 1)
    check_json(events[0]["prompt_logprobs"], expected.prompt_logprobs)
    assert [event["stop_reason"] for event in events] == [""] * (len(events) - 1) + ["return"]


def test_a_stop_token(server: TritonServer, expected: RequestOutput) -> None:
    """Its id in decimal."""
    token = expected.outputs[0].token_ids[2]
    body = {"text_input": PROMPT, "max_tokens": 20, "temperature": 0, "stop_token_ids": [token]}
    assert generate(server.http_url, body | {"return_stop_reason": True})["stop_reason"] == str(token)


def test_ids_without_text(server: TritonServer, expected: RequestOutput) -> None:
    """detokenize false; a stop string is an error then."""
    fields = {key: FIELDS[key] for key in ("max_tokens", "temperature")}
    body = {"text_input": PROMPT, **fields, "detokenize": False, "return_token_ids": True}
    answer = generate(server.http_url, body | {"exclude_input_in_output": True})
    assert answer["text_output"] == ""
    wanted = expected.outputs[0].token_ids
    assert answer["output_ids"][: len(wanted)] == [*wanted]
    assert len(answer["output_ids"]) == 24
    events = [*generate_stream(server.http_url, body | {"stream": True})]
    assert {event["text_output"] for event in events} == {""}


def test_unary_rows(server: TritonServer, expected: RequestOutput) -> None:
    """One element for each prompt; the ids one after the other."""
    texts = np.asarray([PROMPT.encode(), b"import os\n"], np.object_)
    tensors = [httpclient.InferInput("text_input", [2], "BYTES")]
    tensors[0].set_data_from_numpy(texts)
    parameters = {**FIELDS, "logprobs": 3, "prompt_logprobs": 1}
    for name, value in ASKED.items():
        if isinstance(value, bool):
            tensors.append(httpclient.InferInput(name, [1], "BOOL"))
            tensors[-1].set_data_from_numpy(np.asarray([value]))
    for name, text in {"sampling_parameters": json.dumps(parameters)}.items():
        tensors.append(httpclient.InferInput(name, [1], "BYTES"))
        tensors[-1].set_data_from_numpy(np.asarray([text.encode()], np.object_))
    with httpclient.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
        result = client.infer("ensemble_unary", tensors)
    completion = expected.outputs[0]
    logprobs, prompt = result.as_numpy("logprobs"), result.as_numpy("prompt_logprobs")
    check_json(logprobs[0].decode(), completion.logprobs)
    check_json(prompt[0].decode(), expected.prompt_logprobs)
    ids = result.as_numpy("output_ids").tolist()
    assert ids[: len(completion.token_ids)] == [*completion.token_ids]
    assert len(ids) == len(completion.token_ids) + len(json.loads(logprobs[1]))
    assert result.as_numpy("stop_reason")[0] == b"return"
    sums = result.as_numpy("cumulative_logprob")
    assert sums.dtype == np.float32
    assert sums.shape == (2,)
    assert sums[0] == pytest.approx(completion.cumulative_logprob, abs=24 * ERROR)


def test_trtllm(server: TritonServer, expected: RequestOutput) -> None:
    """return_log_probs answers cum_log_probs and output_log_probs of TensorRT-LLM's ensemble."""
    body = {"text_input": PROMPT, "max_tokens": 24, "stop_words": "return", "return_log_probs": True}
    answer = generate(server.http_url, body, model="ensemble_trtllm")
    completion = expected.outputs[0]
    assert completion.logprobs is not None
    own = [place[t].logprob for place, t in zip(completion.logprobs, completion.token_ids, strict=True)]
    assert answer["output_log_probs"] == pytest.approx(own, abs=ERROR)
    assert answer["cum_log_probs"] == pytest.approx(completion.cumulative_logprob, abs=24 * ERROR)
    assert "logprobs" not in answer


def test_trtllm_rows(server: TritonServer) -> None:
    """A row for each prompt, then TensorRT-LLM's dimension of beams; 0 after the end of a shorter one."""
    tensors = [httpclient.InferInput("text_input", [2, 1], "BYTES")]
    tensors[0].set_data_from_numpy(np.asarray([[PROMPT.encode()], [b"import os\n"]], np.object_))
    for name, dtype, value in (
        ("max_tokens", "INT32", np.asarray([[24]] * 2, np.int32)),
        ("stop_words", "BYTES", np.asarray([[b"return"]] * 2, np.object_)),
        ("return_log_probs", "BOOL", np.asarray([[True]] * 2)),
        ("return_num_output_tokens", "BOOL", np.asarray([[True]] * 2)),
    ):
        tensors.append(httpclient.InferInput(name, [2, 1], dtype))
        tensors[-1].set_data_from_numpy(value)
    with httpclient.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
        result = client.infer("ensemble_trtllm_unary", tensors)
    rows, totals = result.as_numpy("output_log_probs"), result.as_numpy("cum_log_probs")
    lengths = result.as_numpy("num_output_tokens").tolist()
    assert rows.shape == (2, 1, max(lengths))
    assert totals.shape == (2, 1)
    assert len({*lengths}) == 2
    for row, length, total in zip(rows[:, 0], lengths, totals[:, 0], strict=True):
        assert (row[:length] < 0).all()
        assert (row[length:] == 0).all()
        assert row.sum() == pytest.approx(total, abs=1e-3)


def tensor(name: str, dtype: str, value: Any) -> InferInput:
    array = np.asarray(
        value, {"INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}.get(dtype, np.object_)
    )
    entry = InferInput(name, [*array.shape], dtype)
    entry.set_data_from_numpy(array)
    return entry


@pytest.mark.parametrize("is_streaming", [False, True])
def test_generation_called_directly(
    server: TritonServer, expected: RequestOutput, tokenizer: Tokenizer, is_streaming: bool
) -> None:
    """[ids, 1 + logprobs], those of the prompt in the first response."""
    prompt_ids = tokenizer.encode(PROMPT).ids
    assert tuple(prompt_ids) == expected.prompt_token_ids
    tensors = [tensor("input_ids", "INT32", prompt_ids)]
    parameters = {"max_tokens": 24, "temperature": 0, "stop": "return", "logprobs": 3, "prompt_logprobs": 1}
    parameters["stream"] = is_streaming
    with GrpcStream(server.grpc_url, tensors, "generation", parameters) as stream:
        results = [*stream]
    completion = expected.outputs[0]
    assert completion.logprobs is not None
    assert (len(results) > 1) == is_streaming
    ids = np.concatenate([result.as_numpy("output_ids") for result in results])
    parts = {
        name: [r.as_numpy(name) for r in results] for name in ("logprob_ids", "logprobs", "logprob_ranks")
    }
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    assert {array.shape for array in joined.values()} == {(len(completion.token_ids), 4)}
    assert ids.tolist() == joined["logprob_ids"][:, 0].tolist() == [*completion.token_ids]
    assert (joined["logprob_ranks"][:, 1:] == [1, 2, 3]).all()
    for row, place in enumerate(completion.logprobs):
        for column, token in enumerate(joined["logprob_ids"][row].tolist()):
            assert joined["logprobs"][row, column] == pytest.approx(place[token].logprob, abs=ERROR)
            assert joined["logprob_ranks"][row, column] == place[token].rank
    total = results[-1].as_numpy("cumulative_logprob")
    assert total.tolist() == pytest.approx([completion.cumulative_logprob], abs=24 * ERROR)
    assert results[-1].as_numpy("stop_reason").tolist() == [b"return"]
    assert results[0].as_numpy("prompt_logprobs").shape == (len(prompt_ids) - 1, 2)
    assert results[0].as_numpy("prompt_logprob_ids")[:, 0].tolist() == prompt_ids[1:]
    assert all(result.as_numpy("prompt_logprobs") is None for result in results[1:])
