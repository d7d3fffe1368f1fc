"""`quire migrate`: TensorRT-LLM's ensemble, as its templates are filled in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checked_repository import checked_model
from migrating import migrate
from quire.triton.check import check_repository
from quire.triton.repository import read_configs

ENSEMBLE = """
name: "{prefix}ensemble" platform: "ensemble" max_batch_size: 4
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "max_tokens" data_type: TYPE_INT32 dims: [ 1 ] }},
  {{ name: "prompt_embedding_table" data_type: TYPE_FP16 dims: [ -1, -1 ] optional: true }},
  {{ name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
output [ {{ name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }},
         {{ name: "context_logits" data_type: TYPE_FP32 dims: [ -1, -1 ] }} ]
ensemble_scheduling {{ step [
  {{ model_name: "{prefix}preprocessing" model_version: -1
     input_map {{ key: "QUERY" value: "text_input" }} output_map {{ key: "INPUT_ID" value: "ids" }} }},
  {{ model_name: "{prefix}tensorrt_llm" model_version: -1
     input_map {{ key: "input_ids" value: "ids" }} output_map {{ key: "output_ids" value: "tokens" }} }},
  {{ model_name: "{prefix}postprocessing" model_version: -1
     input_map {{ key: "TOKENS_BATCH" value: "tokens" }} output_map {{ key: "OUTPUT" value: "text_output" }}
  }}
] }}
"""
ENGINE = {
    "max_beam_width": "1",
    "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
    "gpt_model_type": "inflight_fused_batching",
    "gpt_model_path": "/engines/1-gpu",
    "encoder_model_path": "${encoder_engine_dir}",
    "max_tokens_in_paged_kv_cache": "${max_tokens_in_paged_kv_cache}",
    "max_attention_window_size": "${max_attention_window_size}",
    "batch_scheduler_policy": "guaranteed_no_evict",
    "kv_cache_free_gpu_mem_fraction": "0.5",
    "kv_cache_host_memory_bytes": "0",
    "enable_kv_cache_reuse": "True",
    "exclude_input_in_output": "True",
    "normalize_log_probs": "True",
    "gpu_device_ids": "",
    "decoding_mode": "top_k_top_p",
    "cancellation_check_period_ms": "100",
}


def parameters(values: Mapping[str, str]) -> str:
    return "".join(
        f'parameters: {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
        for key, value in values.items()
    )


def make(
    repository: Path,
    tokenizer_dir: object = "/hf/llama",
    *,
    prefix: str = "",
    decoupled: bool = True,
    has_ensemble: bool = True,
    has_bls: bool = False,
    more: str = "",
    **engine: str,
) -> Path:
    tokenizer = {"tokenizer_dir": str(tokenizer_dir), "tokenizer_type": "auto"}
    policy = f"model_transaction_policy {{ decoupled: {decoupled} }}\n"
    cpu = "instance_group [ { count: 4 kind: KIND_CPU } ]\n"
    configs = {
        "preprocessing": f'backend: "python"\n{cpu}'
        + parameters(tokenizer | {"add_special_tokens": "${add_special_tokens}"}),
        "postprocessing": f'backend: "python"\n{cpu}'
        + parameters(tokenizer | {"skip_special_tokens": "True"}),
        "tensorrt_llm": f'backend: "tensorrtllm"\nmax_batch_size: 4\n{policy}{more}'
        "dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100\n"
        "  default_queue_policy: { max_queue_size: 0 } }\n"
        'input [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] } ]\n' + parameters(ENGINE | engine),
    }
    if has_ensemble:
        configs["ensemble"] = ENSEMBLE.format(prefix=prefix)
    if has_bls:
        bls = {"accumulate_tokens": "false", "tensorrt_llm_model_name": f"{prefix}tensorrt_llm"}
        configs["tensorrt_llm_bls"] = f'backend: "python"\nmax_batch_size: 4\n{policy}' + parameters(bls)
    for name, config in configs.items():
        (repository / f"{prefix}{name}" / "1").mkdir(parents=True)
        (repository / f"{prefix}{name}" / "config.pbtxt").write_text(config)
    return repository


def verdicts(report: Any) -> dict[str, str]:
    findings = (finding for model in report["models"] for finding in model["findings"])
    return {finding["key"]: finding["verdict"] for finding in findings}


def called(output: Path, name: str) -> set[str]:
    """The steps of an ensemble, or of the model that stands for one."""
    config = read_configs(output)[0][name]
    steps = {step.model_name for step in config.ensemble_scheduling.step}
    return steps or {config.parameters["tokenizer_model"].string_value}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checked_model(tmp_path / "hf")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new"


def test_the_ensemble_moves(tmp_path: Path, model: Path, output: Path) -> None:
    """Weights beside the tokenizer are found, and every parameter is taken, neutral, or left open by the
    template."""
    status, report = migrate(make(tmp_path / "old", model), "--output", output)
    assert status == 0, report
    assert report["models"][0]["names"] == ["ensemble"]
    assert report["models"][0]["settings"] == {
        "model": str(model),
        "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": True,
    }
    assert set(verdicts(report).values()) <= {"taken", "neutral"}
    assert {f"parameters.{key}" for key, value in ENGINE.items() if "$" not in value} <= set(verdicts(report))
    assert "ensemble-tokenizer_trtllm" in called(output, "ensemble")
    assert check_repository(output) == []
    assert {"ensemble", "ensemble_unary", "tensorrt_llm"} <= {folder.name for folder in output.iterdir()}
    text = (output / "ensemble-tokenizer_trtllm" / "config.pbtxt").read_text()
    assert text.count("exclude_input_in_output") >= 1
    assert 'key: "exclude_input_in_output" value: { string_value: "true" }' in text


def test_what_the_tokenizer_says_of_the_prompt(tmp_path: Path, model: Path, output: Path) -> None:
    """exclude_input_in_output not given is false, as there, whatever our own models have."""
    repository = make(tmp_path / "old", model, exclude_input_in_output="${exclude_input_in_output}")
    assert migrate(repository, "--output", output)[0] == 0
    [config] = [
        config for name, config in read_configs(output)[0].items() if name == "ensemble-tokenizer_trtllm"
    ]
    assert config.parameters["exclude_input_in_output"].string_value == "false"


def test_weights_must_be_named(tmp_path: Path, model: Path, output: Path) -> None:
    """An engine has none: without a folder that has, --model says where they are; a tokenizer with a folder
    of its own stays it, one that is not here is the model's."""
    repository = make(tmp_path / "old", "/not/here")
    status, report = migrate(repository, "--output", output)
    assert (status, report["open"]) == (1, ["model"])
    status, report = migrate(repository, "--output", output, "--model", model)
    assert status == 0
    assert (report["models"][0]["settings"]["model"], "tokenizer" in report["models"][0]["settings"]) == (
        str(model),
        False,
    )
    (tmp_path / "words").mkdir()
    shutil.copy(model / "tokenizer.json", tmp_path / "words")
    repository = make(tmp_path / "other", tmp_path / "words")
    status, report = migrate(repository, "--dry-run", "--model", f"ensemble={model}")
    assert status == 0
    settings = report["models"][0]["settings"]
    assert (settings["model"], settings["tokenizer"]) == (str(model), str(tmp_path / "words"))


def test_a_hugging_face_id_has_both(tmp_path: Path, output: Path) -> None:
    """A tokenizer that is named by an id leads to the weights."""
    status, report = migrate(make(tmp_path / "old", "org/small"), "--output", output)
    assert (status, report["models"][0]["settings"]["model"]) == (0, "org/small")


@pytest.mark.parametrize("has_ensemble", [True, False])
def test_bls(tmp_path: Path, model: Path, output: Path, has_ensemble: bool) -> None:
    """tensorrt_llm_bls is the same model under its own name."""
    repository = make(tmp_path / "old", model, has_bls=True, has_ensemble=has_ensemble)
    status, report = migrate(repository, "--output", output)
    assert status == 0, report
    names = ["ensemble", "tensorrt_llm_bls"] if has_ensemble else ["tensorrt_llm_bls"]
    assert report["models"][0]["names"] == names
    assert report["left"] == {}
    assert len({frozenset(called(output, name)) for name in names}) == 1


def test_a_model_that_does_not_stream(tmp_path: Path, model: Path, output: Path) -> None:
    """Where tensorrt_llm was not decoupled, clients call `infer`, which a model that streams refuses."""
    assert migrate(make(tmp_path / "old", model, decoupled=False), "--output", output)[0] == 0
    configs, _ = read_configs(output)
    assert (configs["ensemble"].backend, configs["ensemble_stream"].platform) == ("quire", "ensemble")


def test_several_engines(tmp_path: Path, model: Path, output: Path) -> None:
    """Each has its own models, under their prefix; --model names one of them."""
    repository = make(tmp_path / "old", model, prefix="a_")
    make(repository, "/not/here", prefix="b_")
    status, text = migrate(repository, "--output", output, "--model", model)
    assert status == 1
    assert "--model: got " in text
    status, report = migrate(repository, "--output", output, "--model", f"b_tensorrt_llm={model}")
    assert status == 0, report
    assert [move["names"] for move in report["models"]] == [["a_ensemble"], ["b_ensemble"]]
    for prefix in ("a", "b"):
        assert all(name.startswith(f"{prefix}_") for name in called(output, f"{prefix}_ensemble"))
        for step in ("generation", "tokenizer_trtllm"):  # the label of its metrics
            config = read_configs(output)[0][f"{prefix}_ensemble-{step}"]
            assert config.parameters["served_model_name"].string_value == f"{prefix}_ensemble"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"max_beam_width": "4"}, "parameters.max_beam_width"),
        ({"decoding_mode": "medusa"}, "parameters.decoding_mode"),
        ({"gpu_device_ids": "0,1"}, "parameters.gpu_device_ids"),
        ({"kv_cache_host_memory_bytes": "1000000"}, "parameters.kv_cache_host_memory_bytes"),
        ({"kv_cache_free_gpu_mem_fraction": "1.5"}, "parameters.kv_cache_free_gpu_mem_fraction"),
        ({"kv_cache_free_gpu_mem_fraction": "x"}, "parameters.kv_cache_free_gpu_mem_fraction"),
        ({"max_num_sequences": "1.5"}, "parameters.max_num_sequences"),
        ({"max_tokens_in_paged_kv_cache": "1e999"}, "parameters.max_tokens_in_paged_kv_cache"),
        ({"enable_kv_cache_reuse": "2"}, "parameters.enable_kv_cache_reuse"),
        ({"exclude_input_in_output": "maybe"}, "parameters.exclude_input_in_output"),
        ({"max_queue_size": "8"}, "parameters.max_queue_size"),
        ({"a_newer_one": "1"}, "parameters.a_newer_one"),
        ({"more": "instance_group [ { count: 2 kind: KIND_CPU } ]\n"}, "instance_group.count"),
        ({"more": "rate_limiter: 1\n"}, "rate_limiter"),
    ],
)
def test_what_has_no_counterpart(
    tmp_path: Path, model: Path, output: Path, values: dict[str, str], key: str
) -> None:
    """Nothing is written until --ignore names it."""
    repository = make(tmp_path / "old", model, **values)
    status, report = migrate(repository, "--output", output)
    assert (status, report["open"]) == (1, [key])
    assert not output.exists()
    assert migrate(repository, "--output", output, "--ignore", key)[0] == 0


def test_blocks_of_the_cache(tmp_path: Path, model: Path) -> None:
    """A number of tokens is a number of blocks."""
    repository = make(tmp_path / "old", model, max_tokens_in_paged_kv_cache="2560", max_num_sequences="8")
    status, report = migrate(repository, "--dry-run")
    settings = report["models"][0]["settings"]
    assert (status, settings["num_gpu_blocks_override"], settings["max_num_seqs"]) == (0, 160, 8)


def test_an_engine_alone(tmp_path: Path, model: Path) -> None:
    """Without a model that clients send text to there is nothing to move."""
    repository = make(tmp_path / "old", model, has_ensemble=False)
    status, text = migrate(repository, "--dry-run")
    assert status == 1
    assert "tensorrt_llm (an engine that no ensemble" in text


def test_both_kinds(tmp_path: Path, model: Path, output: Path) -> None:
    """A repository may have models of both backends."""
    repository = make(tmp_path / "old", model)
    (repository / "chat" / "1").mkdir(parents=True)
    (repository / "chat" / "config.pbtxt").write_text('backend: "vllm"')
    (repository / "chat" / "1" / "model.json").write_text('{"model": "org/small"}')
    status, report = migrate(repository, "--output", output)
    assert (status, [move["names"] for move in report["models"]]) == (0, [["chat"], ["ensemble"]])
