"""From settings to an engine that can run: the core, the model runner and the tokenizer, checked against
each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire import _core
from quire.config import EngineConfig
from quire.engine.core_errors import invalid_argument
from quire.engine.loop import Runner
from quire.errors import InvalidArgument
from quire.generation_defaults import generation_defaults
from quire.models.config import ModelConfig, load_model_config
from quire.runner.plan import plan_runner
from quire.runner.threads import ThreadPolicy
from quire.tokenizer import Tokenizer, build_table

log = logging.getLogger("quire.engine")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The parts of a running engine. `core` belongs to the thread that steps it."""

    core: _core.EngineCore
    runner: Runner
    tokenizer: Tokenizer
    model: ModelConfig
    defaults: Mapping[str, Any]  # SamplingParams' fields of requests that do not say otherwise


def build(config: EngineConfig, threads: ThreadPolicy) -> Engine:
    """Load everything that `config` names. Raises ConfigError, ModelError or InvalidArgument naming the
    setting."""
    folder = config.model_folder()
    model = load_model_config(folder)
    tokenizer = Tokenizer(folder)
    table = build_table(tokenizer.raw)
    defaults = generation_defaults(config, folder)
    max_model_len = _max_model_len(config, model)
    plan = plan_runner(config, model, max_model_len, threads)
    core_config = _core.EngineConfig(
        num_blocks=plan.num_blocks,
        max_model_len=max_model_len,
        max_batches_out=plan.max_batches_out,
        vocab_size=model.vocab_size,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        watermark=config.watermark,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
        seed=config.seed,
        eos_token_ids=model.eos_token_ids,
        max_output_tokens=config.max_output_tokens or 0,
        scheduling_policy=_core.SchedulingPolicy[config.scheduling_policy.upper()],
    )
    try:
        core = _core.EngineCore(core_config, table)  # before the weights: it checks the settings
    except _core.InvalidArgument as error:
        raise invalid_argument(error) from None
    engine = Engine(
        core=core, runner=plan.start(core_config), tokenizer=tokenizer, model=model, defaults=defaults.values
    )
    if defaults.values:
        log.info("requests that do not say otherwise: %s", defaults)
    for warning in defaults.warnings:
        log.warning(warning)
    return engine


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """The setting, or the model's own limit, which the setting must not pass: positions past it were never
    trained."""
    if config.max_model_len is None:
        return model.max_position_embeddings
    if config.max_model_len > model.max_position_embeddings:
        allowed = (
            f"at most {model.max_position_embeddings}, the max_position_embeddings of {model.folder.name}"
        )
        raise InvalidArgument("max_model_len", str(config.max_model_len), allowed)
    return config.max_model_len
