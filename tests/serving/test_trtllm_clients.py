"""What NVIDIA's clients of TensorRT-LLM's models send, and how they read the answers: the end-to-end gRPC
client, the clients of `tensorrt_llm` that bring ids, genai-perf, and the OpenAI frontend of Triton."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from client import GrpcStream, generate, metrics, wait_until
from google.protobuf import text_format
from quire.triton.check import check_repository
from quire.triton.perf_analyzer import find_perf_analyzer, recorded_requests
from quire.triton.server import TritonServer
from tokenizers import Tokenizer
from tritonclient.grpc.model_config_pb2 import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
MODEL, EXAMPLE = ROOT / "model_repository" / "tensorrt_llm", ROOT / "examples" / "tensorrt_llm"
PROMPTS = ["def fibonacci(n):", "import os\n", "class Stack:\n"]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def greedy(server: TritonServer) -> list[str]:
    """What each of PROMPTS is continued with."""
    body = {"max_tokens": NUM_TOKENS, "temperature": 0, "exclude_input_in_output": True}
    return [str(generate(server.http_url, body | {"text_input": text})["text_output"]) for text in PROMPTS]


def array(value: Any, num_rows: int) -> np.ndarray[Any, Any]:
    """[num_rows, 1], or a row of a list's elements in each of num_rows."""
    items = value if isinstance(value, list) else [value]
    kinds = {str: np.object_, bool: np.bool_, int: np.int32, float: np.float32}
    row = [item.encode() if isinstance(item, str) else item for item in items]
    return np.asarray([row] * num_rows, kinds[type(items[0])])


def inputs_of(arrays: dict[str, np.ndarray[Any, Any]], library: Any = grpcclient) -> list[Any]:
    types = {"object": "BYTES", "bool": "BOOL", "int32": "INT32", "float32": "FP32", "uint64": "UINT64"}
    inputs = []
    for name, values in arrays.items():
        entry = library.InferInput(name, list(values.shape), types[values.dtype.name])
        inputs.append(entry.set_data_from_numpy(values))
    return inputs


def prompts_and(prompts: list[str], **fields: Any) -> list[grpcclient.InferInput]:
    """A batch of prompts, with every field once for each."""
    arrays = {name: array(value, len(prompts)) for name, value in fields.items()}
    return inputs_of({"text_input": np.concatenate([array(text, 1) for text in prompts]), **arrays})


def responses(server: TritonServer, inputs: list[grpcclient.InferInput], *outputs: str) -> list[Any]:
    wanted = [grpcclient.InferRequestedOutput(name) for name in outputs]
    with GrpcStream(server.grpc_url, inputs, "ensemble_trtllm", outputs=wanted or None) as stream:
        return list(stream)


def joined(results: list[Any], num_prompts: int, n: int) -> list[list[str]]:
    """The text of each sequence of each prompt, read as NVIDIA's client reads it."""
    texts = [[""] * n for _ in range(num_prompts)]
    for result in results:
        batch_index, sequence_index = (
            0 if result.as_numpy(name) is None else result.as_numpy(name)[0][0]
            for name in ("batch_index", "sequence_index")
        )
        texts[batch_index][sequence_index] += result.as_numpy("text_output")[0].decode()
    return texts


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 3])
@pytest.mark.parametrize("n", [1, 2])
def test_the_end_to_end_client(
    server: TritonServer, greedy: list[str], stream: bool, num_prompts: int, n: int
) -> None:
    """Batches, sequences and streams; a temperature alone is greedy, and exclude_input_in_output false is
    answered without the prompt in a stream."""
    inputs = prompts_and(
        PROMPTS[:num_prompts],
        max_tokens=NUM_TOKENS,
        stream=stream,
        beam_width=1,
        temperature=1.0,
        num_return_sequences=n,
        exclude_input_in_output=False,
    )
    names = ["sequence_index"] * (n > 1) + ["batch_index"] * (num_prompts > 1)
    results = responses(server, inputs, "text_output", *names)
    assert (len(results) == num_prompts * n) != stream
    expected = [("" if stream else text) + greedy[i] for i, text in enumerate(PROMPTS[:num_prompts])]
    assert joined(results, num_prompts, n) == [[text] * n for text in expected]


def test_shapes_and_types_of_an_answer(server: TritonServer) -> None:
    """Shapes of TensorRT-LLM's ensemble, whose first dimensions are the batch and the beams."""
    inputs = prompts_and(PROMPTS[:1], max_tokens=5, return_log_probs=True, end_id=-1, pad_id=-1)
    [result] = responses(server, inputs)
    found = {output.name: (output.datatype, [*output.shape]) for output in result.get_response().outputs}
    assert found == {
        "text_output": ("BYTES", [1]),
        "batch_index": ("INT32", [1, 1]),
        "sequence_index": ("INT32", [1, 1]),
        "cum_log_probs": ("FP32", [1, 1]),
        "output_log_probs": ("FP32", [1, 1, 5]),
    }
    assert result.as_numpy("output_log_probs").sum() == pytest.approx(
        result.as_numpy("cum_log_probs")[0, 0], abs=1e-3
    )


def test_every_prompt_of_a_batch_ends_with_its_client(server: TritonServer) -> None:
    """A batch that is cancelled frees the blocks of all, and a bad prompt refuses it whole."""
    inputs = prompts_and(PROMPTS, max_tokens=1500, min_tokens=1500, end_id=-1, stream=True)
    with GrpcStream(server.grpc_url, inputs, "ensemble_trtllm") as stream:
        next(iter(stream))
    wait_until(lambda: metrics(server.metrics_url)["vllm:num_requests_running"] == 0)
    values = metrics(server.metrics_url)
    assert values["quire:kv_blocks_free"] == values["quire:kv_blocks_total"]
    with pytest.raises(grpcclient.InferenceServerException, match="text_input: got an empty string at 1"):
        responses(server, prompts_and(["a", "", "b"], max_tokens=2))


@pytest.mark.parametrize("model", ["ensemble_trtllm_unary", "tensorrt_llm"])
def test_perf_analyzer_without_streams(server: TritonServer, model: str, tmp_path: Path) -> None:
    """It learns every shape from the model, also over HTTP."""
    texts = [{"text_input": [f"def f{i}("], "max_tokens": [6]} for i in range(8)]
    ids = [
        {
            "input_ids": {"content": [5 + i, 6, 7], "shape": [3]},
            "input_lengths": [3],
            "request_output_len": [6],
        }
        for i in range(8)
    ]
    assert len(load(server, tmp_path, model, ids if model == "tensorrt_llm" else texts, "-i", "http")) >= 8


# ---------------------------------------------------------------------------- clients that bring ids


@pytest.fixture(scope="module")
def id_rows(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text).ids for text in PROMPTS]


def id_arrays(rows: list[list[int]], **fields: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Rows of ids, filled up with 0, and how many of each count."""
    length = max(map(len, rows))
    ids = np.asarray([row + [0] * (length - len(row)) for row in rows], np.int32)
    lengths = np.asarray([[len(row)] for row in rows], np.int32)
    rest = {name: array(value, len(rows)) for name, value in fields.items()}
    return {"input_ids": ids, "input_lengths": lengths, **rest}


@pytest.mark.parametrize("library", [httpclient, grpcclient], ids=["http", "grpc"])
def test_the_clients_of_tensorrt_llm(
    server: TritonServer, tokenizer: Tokenizer, id_rows: list[list[int]], greedy: list[str], library: Any
) -> None:
    """One response of ids: the prompt's first unless exclude_input_in_output says no, then as many as
    sequence_length says."""
    address = server.grpc_url if library is grpcclient else server.http_url.removeprefix("http://")
    fields = {"beam_width": 1, "temperature": 1.0, "runtime_top_k": 1, "runtime_top_p": 0.0, "pad_id": 0}
    arrays = id_arrays(id_rows, request_output_len=NUM_TOKENS, streaming=False, **fields)
    with library.InferenceServerClient(address) as client:
        for exclude in (None, False, True):
            said = {} if exclude is None else {"exclude_input_in_output": array(exclude, len(id_rows))}
            # The parameter, which nobody reads, is that of inflight_batcher_llm_client.py.
            parameters = {"Streaming": False}
            inputs = inputs_of(arrays | said, library)
            result = client.infer("tensorrt_llm", inputs, request_id="7", parameters=parameters)
            response = result.get_response()
            assert "7" == (response.id if library is grpcclient else response["id"])
            ids, lengths = result.as_numpy("output_ids"), result.as_numpy("sequence_length")
            assert (ids.dtype, ids.shape[:2], lengths.dtype) == (np.int32, (3, 1), np.int32)
            for row, length, prompt, text in zip(ids[:, 0], lengths[:, 0], id_rows, greedy, strict=True):
                found = row[:length].tolist()
                assert (row[length:] == -1).all()
                front = [] if exclude else prompt
                assert found[: len(front)] == front
                assert tokenizer.decode(found[len(front) :]).strip() == text.strip()


def test_what_the_benchmark_of_tensorrt_llm_sends(server: TritonServer, id_rows: list[list[int]]) -> None:
    """end_id -1: as many ids as asked for; errors have the client's names."""
    arrays = id_arrays(id_rows[:1], request_output_len=20, end_id=-1, return_log_probs=True)
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("tensorrt_llm", inputs_of(arrays))
        assert result.as_numpy("output_ids").shape == (1, 1, len(id_rows[0]) + 20)
        assert result.as_numpy("output_log_probs").shape == (1, 1, 20)
        assert result.as_numpy("cum_log_probs").shape == (1, 1)
        for name, value, message in (
            ("request_output_len", 0, "request_output_len: got 0"),
            ("beam_width", 2, "beam_width: got 2"),
            ("streaming", True, "stream"),
            ("input_lengths", 99, "input_lengths: got 99; allowed: 1 to"),
        ):
            with pytest.raises(grpcclient.InferenceServerException, match=message):
                client.infer("tensorrt_llm", inputs_of(arrays | {name: array(value, 1)}))


def test_streams_of_ids(
    make_repository: Callable[..., Path], tokenizer: Tokenizer, id_rows: list[list[int]], greedy: list[str]
) -> None:
    """The example of tensorrt_llm for clients that stream: new ids of one prompt a response, and the prompt's
    first where there is no stream."""
    repository = make_repository(num_gpu_blocks_override=256)
    shutil.copytree(EXAMPLE, repository / "tensorrt_llm", dirs_exist_ok=True)
    assert check_repository(repository) == []
    with TritonServer(repository) as server:
        for streaming in (True, False):
            arrays = id_arrays(id_rows, request_output_len=NUM_TOKENS, beam_width=1, streaming=streaming)
            with GrpcStream(server.grpc_url, inputs_of(arrays), "tensorrt_llm") as stream:
                results = list(stream)
            assert (len(results) > len(id_rows)) == streaming
            found: list[list[int]] = [[] for _ in id_rows]
            for result in results:
                ids = result.as_numpy("output_ids")
                assert ids.shape == (1, 1, result.as_numpy("sequence_length")[0, 0])
                found[result.as_numpy("batch_index")[0, 0]] += ids[0, 0].tolist()
            for row, prompt, text in zip(found, id_rows, greedy, strict=True):
                front = [] if streaming else prompt
                assert row[: len(front)] == front
                assert tokenizer.decode(row[len(front) :]).strip() == text.strip()


def test_the_example_has_the_models_tensors() -> None:
    """Clients find the same inputs and outputs whether they stream or not."""
    ours, example = (
        text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig()) for folder in (MODEL, EXAMPLE)
    )
    assert (list(ours.input), list(ours.output)) == (list(example.input), list(example.output))


# ----------------------------------------------------------------------------------------------- tools


def test_genai_perf(server: TritonServer, tmp_path: Path) -> None:
    """perf_analyzer as genai-perf's backend tensorrtllm calls it: it learns every shape from the model."""
    rows = [{"text_input": [f"def f{i}("], "max_tokens": [6], "stream": [True]} for i in range(8)]
    options = ("--async", "--streaming", "--shape", "max_tokens:1", "--shape", "text_input:1")
    requests = load(server, tmp_path, "ensemble_trtllm", rows, "-i", "grpc", *options)
    assert len(requests) >= len(rows)
    assert all(request["response_outputs"] for request in requests)


def load(
    server: TritonServer, folder: Path, model: str, rows: list[dict[str, Any]], *options: str
) -> list[dict[str, Any]]:
    """The requests that perf_analyzer sends, two at a time."""
    data, profile = folder / "load.json", folder / "profile.json"
    data.write_text(json.dumps({"data": rows}))
    executable, environment = find_perf_analyzer(folder / "lib")
    address = server.grpc_url if "grpc" in options else server.http_url.removeprefix("http://")
    command = [
        str(executable), "-m", model, "-u", address, "--input-data", str(data), "--concurrency-range", "2",
        "--request-count", str(len(rows)), "--profile-export-file", str(profile), "--max-threads", "2",
        *options,
    ]  # fmt: skip
    return recorded_requests(command, environment, profile, timeout=240)


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_frontend(server: TritonServer, greedy: list[str], stream: bool) -> None:
    """The frontend's request to an ensemble says nothing of the prompt, which is not in the answer: one text
    a response, and one response unless it streams."""
    arrays = {
        "text_input": array(PROMPTS[0], 1),
        "stream": array(stream, 1),
        "max_tokens": array(NUM_TOKENS, 1),
        "stop_words": array(["never", "in there"], 1),
        "top_p": array(0.00001, 1),
        "frequency_penalty": array(0.0, 1),
        "presence_penalty": array(0.0, 1),
        "seed": np.asarray([[7]], np.uint64),
        "temperature": array(0.7, 1),
    }
    results = responses(server, inputs_of(arrays))
    assert (len(results) > 1) == stream
    assert all(result.as_numpy("text_output").size == 1 for result in results)
    assert joined(results, 1, 1) == [[greedy[0]]]
