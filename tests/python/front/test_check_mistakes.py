"""quire check: each mistake in a configuration, with its place, what is there and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from checked_repository import checked_repository, edit, problems_of


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return checked_repository(tmp_path / "repository")


def test_the_repository_that_we_ship_is_in_order(repository: Path) -> None:
    """Our own repository has no problems."""
    assert problems_of(repository) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (
            "ensemble",
            'model_name: "detokenizer"',
            'model_name: "detokeniser"',
            'ensemble_scheduling.step[2].model_name: got "detokeniser" (did you mean "detokenizer"?); '
            "allowed: detokenizer, detokenizer_trtllm, ensemble, ensemble_trtllm, ",
        ),
        (
            "ensemble",
            'input_map [ { key: "chunk" value: "chunk" } ]',
            'input_map [ { key: "chunks" value: "chunk" } ]',
            'ensemble_scheduling.step[2].input_map["chunks"]: got "chunks", no input of detokenizer '
            '(did you mean "chunk"?); allowed: chunk, output_ids',
        ),
        (
            "ensemble",
            'input_map [ { key: "chunk" value: "chunk" } ]',
            'input_map [ { key: "output_ids" value: "chunk" } ]',
            'ensemble_scheduling.step[2].input_map["output_ids"]: "chunk" does not fit: '
            "got TYPE_UINT8; allowed: TYPE_INT32",
        ),
        (
            "ensemble",
            'output_map [ { key: "chunk" value: "chunk" } ]',
            'output_map [ { key: "chunk" value: "chunky" } ]',
            'ensemble_scheduling.step[2].input_map["chunk"]: got "chunk", no tensor made before '
            '(did you mean "chunky"?); allowed: ',
        ),
        (
            "ensemble",
            'input_map [ { key: "input_ids" value: "prompt_ids" }, ',
            "input_map [ ",
            'ensemble_scheduling.step[1].input_map: lacks "input_ids", a required input of generation',
        ),
        (
            "ensemble",
            'output_map [ { key: "input_ids" value: "prompt_ids" }',
            'output_map [ { key: "input_ids" value: "input_ids" }',
            'ensemble_scheduling.step[0].output_map["input_ids"]: got "input_ids", which is made twice',
        ),
        (
            "ensemble_trtllm",
            '{ key: "stop_words" value: "stop_words" }',
            '{ key: "stop" value: "stop_words" }',
            'ensemble_scheduling.step[0].input_map["stop"]: got "stop", no input of tokenizer_trtllm ',
        ),
        (
            "tokenizer_trtllm",
            'string_value: "trtllm"',
            'string_value: "tensorrt"',
            'parameters.dialect: got "tensorrt"; allowed: vllm, trtllm',
        ),
        (
            "ensemble",
            '{ key: "finish_reason" value: "finish_reason" }',
            '{ key: "finish" value: "finish_reason" }',
            'ensemble_scheduling.step[2].output_map["finish"]: got "finish", no output of detokenizer '
            '(did you mean "finish_reason"?); allowed: ',
        ),
        (
            "ensemble",
            '{ name: "num_input_tokens"           data_type: TYPE_UINT32 dims: [ 1 ] }',
            '{ name: "num_input_tokens"           data_type: TYPE_INT32 dims: [ 1 ] }',
            'output "num_input_tokens" does not fit: got TYPE_UINT32; allowed: TYPE_INT32',
        ),
        (
            "ensemble",
            '{ key: "stream" value: "stream" },',
            "",
            'input "stream": no step reads it',
        ),
        ("generation", "max_batch_size: 0", "max_batch_sise: 0", "line "),
        (
            "generation",
            'name: "generation"',
            'name: "generator"',
            'name: got "generator"; allowed: "generation"',
        ),
        (
            "generation",
            'string_value: "generation"',
            'string_value: "generator"',
            "parameters: role: got 'generator'",
        ),
        (
            "generation_unary",
            'string_value: "generation"',
            'string_value: "generator"',
            'parameters.generation_model: got "generator" (did you mean "generation"?); allowed: generation',
        ),
        (
            "ensemble_unary",
            'string_value: "tokenizer"',
            'string_value: "tokeniser"',
            'parameters.tokenizer_model: got "tokeniser" (did you mean "tokenizer"?); allowed: ',
        ),
        (
            "ensemble_unary",
            'string_value: "tokenizer"',
            'string_value: "detokenizer"',
            'parameters.tokenizer_model: got "detokenizer"; allowed: a model with the output "input_ids"',
        ),
        (
            "ensemble_unary",
            'name: "stop" ',
            'name: "stops" ',
            'input: got "stops", no input of tokenizer (did you mean "stop"?); allowed: text_input, ',
        ),
        (
            "ensemble_unary",
            '{ name: "stop_token_ids"             data_type: TYPE_INT64 ',
            '{ name: "stop_token_ids"             data_type: TYPE_INT32 ',
            'input "stop_token_ids" does not fit: got TYPE_INT32; allowed: TYPE_INT64',
        ),
        (
            "ensemble_trtllm_unary",
            '{ name: "stop_words"                data_type: TYPE_STRING dims: [ -1 ]',
            '{ name: "stop_words"                data_type: TYPE_STRING dims: [ -1, 1, 1 ]',
            'input "stop_words" does not fit: got dims [-1, -1, 1, 1]; allowed: [-1, -1]',
        ),
        (
            "detokenizer_trtllm",
            'string_value: "trtllm"',
            'string_value: "trtlm"',
            "parameters: dialect: got 'trtlm' (did you mean \"trtllm\"?); allowed: vllm, trtllm",
        ),
        (
            "detokenizer_trtllm",
            'parameters { key: "dialect" value { string_value: "trtllm" } }',
            "",
            "max_batch_size: got 4096; allowed: 0 (the engine batches by itself)",
        ),
        (
            "detokenizer",
            '"generation_model"',
            '"generation_modell"',
            "parameters of role detokenizer: got 'generation_modell' (did you mean \"generation_model\"?); "
            "allowed: role, generation_model",
        ),
        (
            "detokenizer",
            'string_value: "generation"',
            'string_value: "generator"',
            'parameters.generation_model: got "generator" (did you mean "generation"?); allowed: generation',
        ),
        (
            "generation",
            "max_batch_size: 0",
            "max_batch_size: 8",
            "max_batch_size: got 8; allowed: 0 (the engine batches by itself)",
        ),
        (
            "detokenizer",
            "max_batch_size: 0",
            "max_batch_size: 0 dynamic_batching { }",
            "dynamic_batching: got a setting; allowed: none",
        ),
        (
            "generation",
            "max_batch_size: 0",
            "max_batch_size: 0 sequence_batching { }",
            "sequence_batching: got a setting; allowed: none",
        ),
        (
            "generation",
            "decoupled: true",
            "decoupled: false",
            "model_transaction_policy { decoupled }: got false; allowed: true",
        ),
        (
            "generation_unary",
            "max_batch_size: 0",
            "max_batch_size: 0 model_transaction_policy { decoupled: true }",
            "model_transaction_policy { decoupled }: got true; allowed: false",
        ),
        (
            "generation",
            'name: "request" ',
            'name: "requests" ',
            "input: got 'requests' (did you mean \"request\"?); allowed: input_ids, request",
        ),
        (
            "generation",
            '{ name: "request"   data_type: TYPE_UINT8',
            '{ name: "request"   data_type: TYPE_INT8',
            "data_type of input 'request': got TYPE_INT8; allowed: TYPE_UINT8",
        ),
        (
            "generation",
            "max_batch_size: 0",
            "max_batch_size: 0 instance_group [ { kind: KIND_GPU gpus: [ 1 ] } ]",
            "instance_group.gpus: got [1]; allowed: none: an engine takes the first GPU",
        ),
        (
            "ensemble_unary",
            "max_batch_size: 0",
            "max_batch_size: 0 response_cache { enable: true }",
            "response_cache",
        ),
        (
            "ensemble",
            "max_batch_size: 0",
            "max_batch_size: 0 response_cache { enable: true }",
            "response_cache.enable: got true; allowed: false: Triton caches no ensemble",
        ),
        (
            "tokenizer",
            "max_batch_size: ",
            "response_cache { enable: true } max_batch_size: ",
            "response_cache",
        ),
        (
            "ensemble",
            "max_batch_size: 0",
            'max_batch_size: 0 model_warmup { name: "x" batch_size: 1 }',
            "model_warmup: got a setting; allowed: none",
        ),
        (
            "tokenizer",
            'string_value: "generation"',
            'string_value: "llama"',
            'parameters.generation_model: got "llama"; allowed: generation',
        ),
        (
            "tokenizer",
            '"generation_model"',
            '"generation_modell"',
            "parameters of role tokenizer: got 'generation_modell' (did you mean \"generation_model\"?); ",
        ),
        (
            "tokenizer",
            '# parameters: { key: "tokenize_timeout_s" value: { string_value: "30" } }',
            'parameters: { key: "tokenize_timeout_s" value: { string_value: "30 s" } }',
            "parameters: tokenize_timeout_s: got '30 s'; allowed: seconds, more than 0 and at most 86400",
        ),
    ],
)
def test_mistakes_in_configurations(repository: Path, file: str, old: str, new: str, expected: str) -> None:
    """A mistake is reported with its file, its place, what is there and what is allowed."""
    edit(repository / file / "config.pbtxt", old, new)
    problems = problems_of(repository)
    assert any(problem.startswith(f"{file}/config.pbtxt: {expected}") for problem in problems), problems


def test_an_input_that_the_tokenizer_model_needs(repository: Path) -> None:
    """Every model that hands its inputs to a tokenizer must have those that are not optional."""
    optional = 'name: "input_lengths"             data_type: TYPE_INT32  dims: [ -1, 1 ] optional: true'
    edit(repository / "tokenizer_trtllm" / "config.pbtxt", optional, optional.removesuffix(" optional: true"))
    message = 'lacks "input_lengths", a required input of tokenizer_trtllm'
    problems = problems_of(repository)
    assert f"ensemble_trtllm_unary/config.pbtxt: input: {message}" in problems
    assert f"ensemble_trtllm/config.pbtxt: ensemble_scheduling.step[0].input_map: {message}" in problems
