"""vLLM's engine arguments in model.json."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from quire.config import EngineConfig
from quire.engine_arguments import ARGUMENTS, SPELLINGS
from quire.errors import ConfigError

# As people's model.json files have them, with names of our own.
FILES: list[dict[str, Any]] = [
    {"model": "org/small-125m", "disable_log_requests": "true", "gpu_memory_utilization": 0.5},
    {"model": "/m/weights", "disable_log_requests": "true", "gpu_memory_utilization": 1},
    {"model": "m", "disable_log_requests": True, "dtype": "bfloat16", "gpu_memory_utilization": "0.5"},
    {"model": "m", "tokenizer_mode": "auto", "dtype": "auto", "tensor_parallel_size": 1, "swap_space": 4},
    {"model": "m", "max_model_len": "300", "enforce_eager": "True", "trust_remote_code": "true"},
    {"model": "m", "enable_lora": False, "max_loras": 4, "quantization": None, "task": "generate"},
    {"model": "m", "distributed_executor_backend": "ray", "pipeline_parallel_size": 1.0, "max_logprobs": 5},
    {"model": "m", "served_model_name": ["a", "b"], "compilation_config": {"level": 3}, "seed": None},
    {
        "model": "m",
        "block_size": None,
        "max_num_seqs": None,
        "enable_prefix_caching": None,
        "hf_overrides": {},
    },
    {"model": "m", "scheduler_delay_factor": 0.0, "num_scheduler_steps": 8, "use_v2_block_manager": "true"},
    {
        "model": "m",
        "tokenizer": "",
        "revision": "",
        "download_dir": "",
        "quantization": "",
        "max_model_len": "",
    },
    {"model": "m", "limit_mm_per_prompt": {"image": 0}, "speculative_config": None, "runner": "generate"},
]


@pytest.mark.parametrize("values", FILES, ids=str)
def test_what_asks_for_nothing_is_taken(tmp_path: Path, values: dict[str, Any]) -> None:
    """A file whose arguments ask for nothing that is missing is one with settings."""
    path = tmp_path / "model.json"
    path.write_text(json.dumps(values))
    config = EngineConfig.from_file(path)
    assert config.model == values["model"]
    assert set(config.model_dump()) == set(EngineConfig.model_fields)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("tensor_parallel_size", 8, "got 8, which is not supported yet; allowed: 1 or null"),
        ("tensor_parallel_size", "2", 'got "2", which is not supported yet; allowed: 1 or null'),
        ("tensor_parallel_size", True, "got true, which is not supported yet; allowed: 1 or null"),
        ("enable_lora", "true", 'got "true", which is not supported yet; allowed: false or null'),
        ("enable_lora", 0, "got 0, which is not supported yet; allowed: false or null"),
        ("quantization", "bitsandbytes", 'got "bitsandbytes"; allowed: "fp8", "compressed-tensors", '),
        ("max_logprobs", -1, "got -1, which is not supported yet; allowed: an integer in [0, 20] or null"),
        (
            "max_logprobs",
            True,
            "got true, which is not supported yet; allowed: an integer in [0, 20] or null",
        ),
        ("task", "embed", 'got "embed", which is not supported yet; allowed: "auto" or "generate" or null'),
        ("hf_overrides", {"a": 1}, "allowed: {} or null (write it into the model's config.json)"),
        ("speculative_config", {"method": "ngram"}, 'got {"method": "ngram"}, which is not supported yet'),
        ("cpu_offload_gb", 4.5, "got 4.5, which is not supported yet; allowed: 0 or null"),
        ("tensor_paralel_size", 1, 'unknown key (did you mean "tensor_parallel_size"?); allowed: model, '),
    ],
)
def test_what_asks_for_something_missing(key: str, value: object, problem: str) -> None:
    """The key is named, with what it may hold."""
    with pytest.raises(ConfigError) as caught:
        EngineConfig(model="m", **{key: value})
    assert str(caught.value).startswith(f"{key}: ")
    assert problem in str(caught.value)


def test_texts_that_spell_values() -> None:
    """Booleans and numbers as texts, in any setting that is no text itself."""
    given = {
        "enforce_eager": "true",
        "enable_prefix_caching": "False",
        "max_num_seqs": "64",
        "watermark": "0",
    }
    config = EngineConfig(model="1", revision="2", gpu_memory_utilization="0.5", **given)
    assert (config.model, config.revision) == ("1", "2")
    assert (config.enforce_eager, config.enable_prefix_caching) == (True, False)
    assert (config.max_num_seqs, config.watermark, config.gpu_memory_utilization) == (64, 0, 0.5)


def test_other_spellings_of_values() -> None:
    """Values of vLLM that mean one of ours become it."""
    for key, spellings in SPELLINGS.items():
        for given, meant in spellings.items():
            assert getattr(EngineConfig(model="m", **{key: given}), key) == meant


def test_no_name_means_two_things() -> None:
    """An argument is a setting or one of vLLM's others, and each of those may be null."""
    assert not ARGUMENTS.keys() & EngineConfig.model_fields.keys()
    assert EngineConfig(model="m", **dict.fromkeys(ARGUMENTS)) == EngineConfig(model="m")


def test_whatever_value_an_argument_has() -> None:
    """Any JSON value is taken or refused, in one line."""
    for key in ARGUMENTS:
        for value in (True, 0, 1, -1, 1.5, 10**400, "x", "1", "", [], [[]], {}, {"a": [1]}, float("nan")):
            with contextlib.suppress(ConfigError):
                EngineConfig(model="m", **{key: value})
            assert "\n" not in (ARGUMENTS[key].problem(value) or "")
