"""Defaults of a checkpoint: what `generation_config.json` says for requests that do not say otherwise.

The engine hands them to its client with the model's limits, so that every way to a request has the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.config import EngineConfig
from quire.errors import ConfigError, InvalidArgument, describe, did_you_mean
from quire.field import fields_of
from quire.model_files import UnreadableFile, read_json_object
from quire.sampling_params import SamplingParams

# What is taken from a checkpoint, as in vLLM.
_TAKEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# What override_generation_config may name, and the fields that it means. A checkpoint's max_new_tokens is not
# taken: the file is written for a program's own loop, the setting for a server.
_OVERRIDES = {**{name: name for name in _TAKEN}, "max_new_tokens": "max_tokens"}

# Values of generation_config.json that change nothing, of settings that would change the text. Its other
# settings name tokens, say what to return, or belong to beam search, which num_beams turns on.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "encoder_repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "stop_strings": ([],),
    "watermarking_config": (),
}


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """`values`: fields of SamplingParams. `warnings`: what the checkpoint asks for and does not get."""

    values: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{name} {describe(value)}" for name, value in self.values.items())


def generation_defaults(config: EngineConfig, folder: Path) -> GenerationDefaults:
    """Defaults of the model in `folder` under these settings. Raises ConfigError naming file and key."""
    values: dict[str, Any] = {}
    warnings: tuple[str, ...] = ()
    if config.generation_config == "auto":
        values, warnings = _of_checkpoint(folder / "generation_config.json")
    values["max_tokens"] = config.default_max_tokens
    values = {name: value for name, value in (values | _overrides(config)).items() if value is not None}
    _check_length(config, values.get("max_tokens"))
    return GenerationDefaults(values=values, warnings=warnings)


def _of_checkpoint(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        given = read_json_object(path)
    except FileNotFoundError:
        return {}, ()
    except UnreadableFile as error:
        raise ConfigError(path, error.problem) from None
    values: dict[str, Any] = {}
    for name in _TAKEN:
        try:
            value = fields_of(SamplingParams)[name].check(_whole(given.get(name)))
        except InvalidArgument as error:
            allowed = f'{error.allowed}, or "generation_config": "none" in model.json'
            raise ConfigError(path, f"got {error.given}; allowed: {allowed}", key=name) from None
        if value is not None:
            values[name] = value
    if given.get("do_sample") is False:
        values["temperature"] = 0.0
    dropped = [
        name
        for name, neutral in _NEUTRAL.items()
        if given.get(name) is not None and given[name] not in neutral
    ]
    return values, tuple(
        f"{path}: {name}: got {describe(given[name])}, which is not supported yet: requests do without it"
        for name in dropped
    )


def _overrides(config: EngineConfig) -> dict[str, Any]:
    """The setting override_generation_config, checked."""
    values: dict[str, Any] = {}
    for name, value in config.override_generation_config.items():
        key = f"override_generation_config.{name}"
        if name not in _OVERRIDES:
            problem = f"got an unknown name{did_you_mean(name, _OVERRIDES)}; allowed: {', '.join(_OVERRIDES)}"
            raise ConfigError(config.file, problem, key=key)
        field = fields_of(SamplingParams)[_OVERRIDES[name]]
        try:
            values[field.name] = field.check(_whole(value))
        except InvalidArgument as error:
            problem = f"got {error.given}; allowed: {error.allowed} or null"
            raise ConfigError(config.file, problem, key=key) from None
    return values


def _check_length(config: EngineConfig, max_tokens: int | None) -> None:
    """A default that every request would be refused for."""
    if max_tokens is not None and max_tokens > (config.max_output_tokens or max_tokens):
        is_override = config.override_generation_config.get("max_new_tokens") is not None
        key = "override_generation_config.max_new_tokens" if is_override else "default_max_tokens"
        problem = f"got {max_tokens}; allowed: at most {config.max_output_tokens}, the max_output_tokens"
        raise ConfigError(config.file, problem, key=key)


def _whole(value: object) -> object:
    """50.0 is 50: checkpoints are written by programs that keep all numbers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
