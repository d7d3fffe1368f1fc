"""Several prompts in one request whose responses come one by one, as TensorRT-LLM's clients send them: each
prompt ends by itself, and what ends the request ends all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from backend_server import ROOT, Repository, Server, StartServer, grpc_inputs, wait_for
from client import GrpcStream
from fake_engine import CRASH_ID, ERROR_ID, STALL_ID
from quire import _core

ENSEMBLE = """
name: "ensemble"
platform: "ensemble"
max_batch_size: 0
input [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] },
        { name: "request" data_type: TYPE_UINT8 dims: [ -1 ] optional: true } ]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] },
         { name: "batch_index" data_type: TYPE_INT32 dims: [ 1 ] },
         { name: "sequence_index" data_type: TYPE_INT32 dims: [ 1 ] },
         { name: "output_ids" data_type: TYPE_INT32 dims: [ -1, -1 ] } ]
ensemble_scheduling { step [
  { model_name: "generation" model_version: -1
    input_map [ { key: "input_ids" value: "input_ids" }, { key: "request" value: "request" } ]
    output_map [ { key: "chunk" value: "chunk" } ] },
  { model_name: "detokenizer_trtllm" model_version: -1
    input_map [ { key: "chunk" value: "chunk" } ]
    output_map [
      { key: "text_output" value: "text_output" }, { key: "batch_index" value: "batch_index" },
      { key: "sequence_index" value: "sequence_index" }, { key: "output_ids" value: "output_ids" } ] }
] }
"""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "models", step_seconds=0.01, max_num_seqs=8)
    shutil.copytree(ROOT / "model_repository" / "detokenizer_trtllm", made.path / "detokenizer_trtllm")
    made.config_path("ensemble").write_text(ENSEMBLE)
    return made


def inputs_of(rows: list[list[int]], **fields: Any) -> list[grpc.InferInput]:
    request = {"max_tokens": 3, "acknowledge": True, "is_separate": True, "prompt_lengths": [*map(len, rows)]}
    encoded = _core.encode_request(request | fields)
    return grpc_inputs({"input_ids": [token for row in rows for token in row], "request": encoded})


def texts_of(results: list[Any], num_prompts: int, n: int = 1) -> list[list[str]]:
    texts = [[""] * n for _ in range(num_prompts)]
    for result in results:
        row, column = (int(result.as_numpy(name).item()) for name in ("batch_index", "sequence_index"))
        texts[row][column] += result.as_numpy("text_output")[0].decode()
    return texts


def ask(server: Server, inputs: list[grpc.InferInput]) -> list[Any]:
    """The responses; raises an error that ends them."""
    with GrpcStream(f"127.0.0.1:{server.grpc_port}", inputs) as stream:
        return list(stream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_each_prompt_and_sequence_has_its_responses(
    start_server: StartServer, repository: Repository, stream: bool, n: int
) -> None:
    """More prompts than places with the engine; without stream one response for each sequence, which may
    begin with the prompt's ids."""
    server = start_server(repository).wait_ready()
    rows = [[i, i + 1] for i in range(1, 21)]
    fields = {"stream": stream, "n": n, "return_token_ids": True, "includes_prompt_ids": not stream}
    results = ask(server, inputs_of(rows, **fields))
    answers = [[[row[(s + k) % 2] for k in range(3)] for s in range(n)] for row in rows]
    expected = [[" ".join(f"t{token}" for token in ids) for ids in row] for row in answers]
    assert texts_of(results, len(rows), n) == expected
    assert (len(results) == len(rows) * n) != stream
    if not stream:
        for result in results:
            row, column = (int(result.as_numpy(name).item()) for name in ("batch_index", "sequence_index"))
            assert result.as_numpy("output_ids").reshape(-1).tolist() == rows[row] + answers[row][column]
    assert np.sum([event["n"] for event in repository.events("add")]) == len(rows) * n
    server.stop()
    assert server.process.returncode == 0, server.log()


@pytest.mark.parametrize(
    ("bad", "message"),
    [([ERROR_ID, 1], "ids that the fake engine likes"), ([1, CRASH_ID], "the engine was killed by signal 9")],
)
def test_what_ends_one_prompt_ends_the_request(
    start_server: StartServer, repository: Repository, bad: list[int], message: str
) -> None:
    """One error, no prompt is left with the engine, and the next request works."""
    server = start_server(repository).wait_ready()
    rows = [[1, STALL_ID], [2, STALL_ID], bad, [3, STALL_ID]]
    with pytest.raises(grpc.InferenceServerException, match=message):
        ask(server, inputs_of(rows, max_tokens=100))
    assert texts_of(ask(server, inputs_of([[5], [6]])), 2) == [["t5 t5 t5"], ["t6 t6 t6"]]
    if message.startswith("ids"):
        stalled = {event["request_id"] for event in repository.events("add") if STALL_ID in event["prompt"]}
        wait_for(lambda: stalled <= {event["request_id"] for event in repository.events("cancel")})
    server.stop()
    assert server.process.returncode == 0, server.log()


def test_a_client_that_leaves_ends_all(start_server: StartServer, repository: Repository) -> None:
    """Every prompt is cancelled at the engine, which the log tells who asks for it."""
    server = start_server(repository, "--log-verbose=1").wait_ready()
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: None)
        client.async_stream_infer("ensemble", inputs_of([[i, STALL_ID] for i in (1, 2, 3)], max_tokens=100))
        wait_for(lambda: len(repository.events("add")) == 3)
        client.stop_stream(cancel_requests=True)
    wait_for(lambda: len(repository.events("cancel")) == 3)
    assert "the client cancelled the request" in server.log()


def test_other_tokenizers_have_one_prompt(start_server: StartServer, repository: Repository) -> None:
    """Clients that expect no batches get an error that names the model for several prompts."""
    server = start_server(repository).wait_ready()
    with pytest.raises(grpc.InferenceServerException, match="text_input: got 2 values; allowed: one value"):
        ask(server, inputs_of([[5], [6]], is_separate=False))
