"""Repositories of Triton's vLLM backend and of TensorRT-LLM, moved and served: requests by the old names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import GrpcStream, generate, generate_stream, result_text, text_inputs
from quire.triton.server import TritonServer

MODEL = Path(__file__).parents[2] / "models" / "quire-8m"
NAME = "vllm_model"
PROMPT = "def fibonacci(n):"
DEFAULT = 16  # tokens, as there


def migrate(folder: Path) -> Path:
    """From its folder `old` to `new`, by the command."""
    program = "from quire.cli import app; app()"
    command = [sys.executable, "-c", program, "migrate", str(folder / "old"), "--output", str(folder / "new")]
    subprocess.run(command, check=True, timeout=300)
    return folder / "new"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `quire migrate` makes of config.pbtxt and model.json as the samples have them."""
    folder = tmp_path_factory.mktemp("moved")
    (folder / "old" / NAME / "1").mkdir(parents=True)
    (folder / "old" / NAME / "config.pbtxt").write_text(
        'backend: "vllm"\n\ninstance_group [\n  {\n    count: 1\n    kind: KIND_MODEL\n  }\n]\n'
    )
    arguments = {
        "model": str(MODEL),
        "disable_log_requests": True,
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 64 << 20,  # the tests share a machine
        "tensor_parallel_size": 1,
    }
    (folder / "old" / NAME / "1" / "model.json").write_text(json.dumps(arguments))
    return migrate(folder)


@pytest.fixture(scope="module")
def moved(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as running:
        yield running


def test_generate(moved: TritonServer) -> None:
    """The README's request: the prompt, then as many tokens as there."""
    body = {"text_input": PROMPT, "parameters": {"stream": False, "temperature": 0}}
    answer = generate(moved.http_url, body, NAME)
    assert answer["model_name"] == NAME
    assert answer["text_output"].startswith(PROMPT)
    counted = {"text_input": PROMPT, "return_num_output_tokens": True, "ignore_eos": True}
    assert generate(moved.http_url, counted, NAME)["num_output_tokens"] == DEFAULT
    assert generate(moved.http_url, counted | {"max_tokens": 20}, NAME)["num_output_tokens"] == 20


def test_streams(moved: TritonServer) -> None:
    """generate_stream and the sample client's gRPC stream say what generate says, chunk by chunk."""
    sampling = {"temperature": "0", "top_p": "0.95", "max_tokens": "20"}
    body = {"text_input": PROMPT, "exclude_input_in_output": True, "temperature": 0, "max_tokens": 20}
    whole = generate(moved.http_url, body, NAME)["text_output"]
    events = [
        event["text_output"] for event in generate_stream(moved.http_url, body | {"stream": True}, NAME)
    ]
    assert "".join(events) == whole
    inputs = text_inputs(text_input=PROMPT, stream=True, sampling_parameters=sampling)
    with GrpcStream(moved.grpc_url, inputs, model=NAME) as stream:
        chunks = [result_text(result) for result in stream]
    assert "".join(chunks) == whole
    assert len(chunks) > 1


def parameters(**values: object) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in values.items()
    )


PARAMETERS = {
    "max_beam_width": "1",
    "gpt_model_type": "inflight_fused_batching",
    "gpt_model_path": "/engines/1-gpu",
    "batch_scheduler_policy": "guaranteed_no_evict",
    "max_tokens_in_paged_kv_cache": "4096",
    "exclude_input_in_output": "True",
}
TRTLLM = {
    "preprocessing": 'backend: "python"\n' + parameters(tokenizer_dir=MODEL),
    "tensorrt_llm": 'backend: "tensorrtllm"\nmodel_transaction_policy { decoupled: True }\n'
    + parameters(**PARAMETERS),
    "postprocessing": 'backend: "python"',
    "ensemble": """platform: "ensemble" max_batch_size: 4
  input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] } ]
  output [ { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] } ]
  ensemble_scheduling { step [
    { model_name: "preprocessing" model_version: -1
      input_map { key: "QUERY" value: "text_input" } output_map { key: "INPUT_ID" value: "ids" } },
    { model_name: "tensorrt_llm" model_version: -1
      input_map { key: "input_ids" value: "ids" } output_map { key: "output_ids" value: "tokens" } },
    { model_name: "postprocessing" model_version: -1
      input_map { key: "TOKENS_BATCH" value: "tokens" } output_map { key: "OUTPUT" value: "text_output" }
    }
  ] }""",
    "tensorrt_llm_bls": 'backend: "python"\n' + parameters(accumulate_tokens="false"),
}


@pytest.fixture(scope="module")
def moved_trtllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("moved_trtllm")
    for name, config in TRTLLM.items():
        (folder / "old" / name / "1").mkdir(parents=True)
        (folder / "old" / name / "config.pbtxt").write_text(config)
    with TritonServer(migrate(folder)) as running:
        yield running


def test_trtllm(moved_trtllm: TritonServer) -> None:
    """ensemble and tensorrt_llm_bls answer the standard request with the same text, without the prompt as
    the old tensorrt_llm said, and stream it."""
    url = moved_trtllm.http_url
    body = {"text_input": PROMPT, "max_tokens": 20, "bad_words": "", "stop_words": ""}
    answer = generate(url, body, "ensemble")["text_output"]
    assert answer
    assert not answer.startswith(PROMPT)
    assert generate(url, body, "tensorrt_llm_bls")["text_output"] == answer
    events = [event["text_output"] for event in generate_stream(url, body | {"stream": True}, "ensemble")]
    assert "".join(events) == answer
    assert len(events) > 1
    assert (
        generate(url, body | {"exclude_input_in_output": False}, "ensemble")["text_output"] == PROMPT + answer
    )
