"""What generation_config.json and the settings say for requests that do not say otherwise."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from quire.config import EngineConfig
from quire.errors import ConfigError
from quire.generation_defaults import GenerationDefaults, generation_defaults
from quire.sampling_params import SamplingParams


def defaults(folder: Path, given: object, **settings: Any) -> GenerationDefaults:
    text = given if isinstance(given, str) else json.dumps(given)
    (folder / "generation_config.json").write_text(text)
    return generation_defaults(EngineConfig(model="m", **settings), folder)


def test_without_a_file(tmp_path: Path) -> None:
    """A checkpoint without generation_config.json has no defaults of its own."""
    assert generation_defaults(EngineConfig(model="m"), tmp_path) == GenerationDefaults(values={})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, {"temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.6, "top_k": 20, "do_sample": False}, {"temperature": 0.0, "top_k": 20}),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.1, "min_p": 0.05}, {"min_p": 0.05, "repetition_penalty": 1.1}),
        ({"temperature": None, "do_sample": None}, {}),
        ({"top_k": 50.0, "temperature": 1.0}, {"top_k": 50, "temperature": 1.0}),
        # A program's own loop is meant by these, not a server's limit.
        ({"max_new_tokens": 20, "max_length": 20, "bos_token_id": 1, "transformers_version": "5"}, {}),
    ],
)
def test_what_is_taken(tmp_path: Path, given: dict[str, object], expected: dict[str, object]) -> None:
    """Sampling settings that the file states, and greedy where it says so."""
    result = defaults(tmp_path, given)
    assert result == GenerationDefaults(values=expected)
    assert defaults(tmp_path, given, generation_config="none").values == {}
    assert defaults(tmp_path, given, generation_config="vllm").values == {}


def test_what_cannot_be_done_is_named(tmp_path: Path) -> None:
    """Settings that would change the text are warned of unless they are neutral."""
    path = tmp_path / "generation_config.json"
    given = {"no_repeat_ngram_size": 3, "typical_p": 1.0, "num_beams": 4, "penalty_alpha": None}
    result = defaults(tmp_path, given | {"suppress_tokens": [], "forced_eos_token_id": 5})
    assert result.warnings == tuple(
        f"{path}: {name}: got {value}, which is not supported yet: requests do without it"
        for name, value in (("no_repeat_ngram_size", 3), ("num_beams", 4), ("forced_eos_token_id", 5))
    )
    assert defaults(tmp_path, given, generation_config="none").warnings == ()


def test_nothing_of_vllm_is_lost(tmp_path: Path) -> None:
    """Of what vLLM takes, each setting becomes a default or a warning, whichever fields there are yet."""
    given = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.5, "repetition_penalty": 1.1}
    result = defaults(tmp_path, given)
    warned = [name for name in given if any(f": {name}: " in warning for warning in result.warnings)]
    assert sorted([*result.values, *warned]) == sorted(given)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("{", "malformed JSON at line 1 column 2: "),
        ("[]", "got []; allowed: a JSON object"),
        (
            {"top_p": 1.5},
            'top_p: got 1.5; allowed: a number in (0, 1], or "generation_config": "none" in model.json',
        ),
        ({"temperature": [1]}, "temperature: got [1]; allowed: a number in [0, 2], or "),
        ({"top_k": 50.5}, "top_k: got 50.5 (a float); allowed: an integer in "),
        ('{"top_k": Infinity}', "top_k: got inf (a float); allowed: an integer in "),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, given: object, problem: str) -> None:
    """A value that the field cannot have is an error which says how to do without."""
    with pytest.raises(ConfigError) as caught:
        defaults(tmp_path, given)
    assert str(caught.value).startswith(f"{tmp_path / 'generation_config.json'}: {problem}")
    assert defaults(tmp_path, given, generation_config="none").values == {}


def test_overrides(tmp_path: Path) -> None:
    """The setting wins over the file, with and without it; null goes back to the table."""
    given = {"temperature": 0.6, "top_p": 0.9}
    override = {"temperature": 1, "top_k": 3, "top_p": None}
    result = defaults(tmp_path, given, override_generation_config=override)
    assert result.values == {"temperature": 1.0, "top_k": 3}
    assert str(result) == "temperature 1.0, top_k 3"
    alone = defaults(tmp_path, given, generation_config="none", override_generation_config={"top_k": 3})
    assert alone.values == {"top_k": 3}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"default_max_tokens": 16}, {"max_tokens": 16}),
        ({"override_generation_config": {"max_new_tokens": 16}}, {"max_tokens": 16}),
        ({"default_max_tokens": 16, "override_generation_config": {"max_new_tokens": 5}}, {"max_tokens": 5}),
        ({"default_max_tokens": 16, "override_generation_config": {"max_new_tokens": None}}, {}),
        (
            {"default_max_tokens": 16, "generation_config": "vllm", "max_output_tokens": 16},
            {"max_tokens": 16},
        ),
    ],
    ids=str,
)
def test_the_default_length(tmp_path: Path, settings: dict[str, Any], expected: dict[str, int]) -> None:
    """Two names of vLLM's default for max_tokens, which the checkpoint's own does not change."""
    assert defaults(tmp_path, {"max_new_tokens": 20}, **settings).values == expected


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"default_max_tokens": 9}, "default_max_tokens"),
        ({"override_generation_config": {"max_new_tokens": 9}}, "override_generation_config.max_new_tokens"),
    ],
)
def test_a_default_length_beyond_the_limit(tmp_path: Path, settings: dict[str, Any], key: str) -> None:
    """The setting is named that would have every request refused which does not say how long."""
    with pytest.raises(ConfigError, match=f"^{key}: got 9; allowed: at most 8, the max_output_tokens$"):
        defaults(tmp_path, {}, max_output_tokens=8, **settings)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ({"temperature": 3}, "temperature: got 3.0; allowed: a number in [0, 2] or null"),
        ({"temprature": 1}, 'temprature: got an unknown name (did you mean "temperature"?); allowed: temp'),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0; allowed: an integer in [1, 2147483647] or null"),
        ({"max_tokens": 5}, "max_tokens: got an unknown name"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: dict[str, object], problem: str) -> None:
    """An error names the file, the setting and the name in it."""
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"model": "m", "override_generation_config": override}))
    with pytest.raises(ConfigError) as caught:
        generation_defaults(EngineConfig.from_file(file), tmp_path)
    assert str(caught.value).startswith(f"{file}: override_generation_config.{problem}")


def test_a_request_has_the_last_word() -> None:
    """What a request gives stays, also where it is the table's default; null is not given."""
    checkpoint = {"temperature": 0.5, "top_k": 4}
    assert SamplingParams().with_defaults(checkpoint) == SamplingParams(**checkpoint)
    params = SamplingParams(temperature=1.0, top_k=None, stop="a")
    assert params.given == {"temperature": 1.0, "stop": ("a",)}
    expected = SamplingParams(temperature=1.0, top_k=4, stop="a")
    for same in (params, copy.copy(params), copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert same.with_defaults(checkpoint) == expected
    assert SamplingParams.from_dict({"temperature": 1}).given == {"temperature": 1.0}
    assert SamplingParams.from_dict({"top_k": "0"}).with_defaults(checkpoint).top_k == 0
