"""From settings to an engine that can run: the core, the model runner and the tokenizer, checked against
each other.

All that can be checked before the first byte of the weights is a list of steps: a start runs them until one
refuses, `quire check` runs all of them and reports what each refuses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quire import _core
from quire.config import EngineConfig
from quire.engine.loop import Runner
from quire.errors import InvalidArgument, UnsupportedModel, told
from quire.generation_defaults import GenerationDefaults, generation_defaults
from quire.models.checkpoint import check_checkpoint
from quire.models.config import ModelConfig, load_model_config
from quire.runner.plan import MemoryClaim, RunnerPlan, plan_runner
from quire.runner.threads import ThreadPolicy
from quire.tokenizer import Tokenizer, build_table, check_vocabulary

log = logging.getLogger("quire.engine")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The parts of a running engine. `core` belongs to the thread that steps it."""

    core: _core.EngineCore
    runner: Runner
    tokenizer: Tokenizer
    vocabulary: str  # Tokenizer.vocabulary()
    model: ModelConfig
    defaults: Mapping[str, Any]  # SamplingParams' fields of requests that do not say otherwise


def build(
    config: EngineConfig, threads: ThreadPolicy, folder: Path | None = None, tokenizer: Path | None = None
) -> Engine:
    """Load everything that `config` names, from the folders of model and tokenizer where these are known.
    Raises ConfigError, ModelError or InvalidArgument naming the setting."""
    plan = _Plan(config, threads, folder, tokenizer)
    for step in _STEPS:
        step(plan)
    core, core_config = plan.core
    engine = Engine(
        core=core,
        runner=plan.runner.start(core_config),
        tokenizer=plan.tokenizer,
        vocabulary=plan.tokenizer.vocabulary(config.model),
        model=plan.model,
        defaults=plan.defaults.values,
    )
    for part, num_bytes in plan.runner.ledger.parts().items():
        core.report(f"planned_{part}", num_bytes)
    core.report("memory_used", plan.runner.memory_used())
    if plan.defaults.values:
        log.info("requests that do not say otherwise: %s", plan.defaults)
    for warning in [*plan.warnings, *_padding(core.token_table, engine.model, plan.tokenizer_folder)]:
        log.warning(warning)
    return engine


def _padding(table: _core.TokenTable, model: ModelConfig, folder: Path) -> Iterator[str]:
    """Many models are padded to a round vocab_size, with ids that they hardly ever sample."""
    num_without = sum(
        token_id >= len(table) or bool(table.flags(token_id) & _core.TOKEN_UNKNOWN)
        for token_id in range(model.vocab_size)
    )
    if num_without:
        file = folder / "tokenizer.json"
        yield (
            f"{file}: has no token for {num_without} of the model's {model.vocab_size} ids: where the model "
            "samples one, it gives no text"
        )


def check(
    config: EngineConfig,
    threads: ThreadPolicy,
    folder: Path,
    tokenizer: Path,
    on_claim: Callable[[MemoryClaim], None],
) -> Iterator[tuple[str, bool]]:
    """Every refusal of build() that needs no weights, and whether it is only a warning. A step that needs the
    result of one that refused is left out. `on_claim` gets the memory that the engine would take."""
    plan = _Plan(config, threads, folder, tokenizer)
    for step in _STEPS:
        try:
            step(plan)
        except _NotMade:
            continue
        except Exception as error:  # a start would end with it
            yield told(error), False
    yield from ((warning, True) for warning in plan.warnings)
    if "runner" in vars(plan):
        on_claim(plan.runner.claim)


class _NotMade(Exception):  # noqa: N818 - no error, but a step to leave out
    """A step needs what an earlier one did not make."""


class _Plan:
    """What the steps have found out so far. What one would have made that refused is missing."""

    folder: Path
    model: ModelConfig
    tokenizer_folder: Path
    tokenizer: Tokenizer
    table: _core.TokenTable
    defaults: GenerationDefaults
    max_model_len: int
    runner: RunnerPlan
    core: tuple[_core.EngineCore, _core.EngineConfig]

    def __init__(
        self,
        config: EngineConfig,
        threads: ThreadPolicy,
        known_folder: Path | None = None,
        known_tokenizer: Path | None = None,
    ) -> None:
        self.config = config
        self.known_folder = known_folder
        self.known_tokenizer = known_tokenizer
        self.threads = threads
        self.warnings: list[str] = []

    def __getattr__(self, name: str) -> NoReturn:
        raise _NotMade(name)


def _find_folder(plan: _Plan) -> None:
    plan.folder = plan.known_folder or plan.config.model_folder()


def _read_model_config(plan: _Plan) -> None:
    plan.model = load_model_config(plan.folder, plan.config.quantization)
    plan.warnings += plan.model.warnings


def _read_tokenizer(plan: _Plan) -> None:
    plan.tokenizer_folder = plan.known_tokenizer or plan.config.tokenizer_folder(plan.folder)
    tokenizer = Tokenizer(plan.tokenizer_folder)
    try:
        plan.table = build_table(tokenizer.raw)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{plan.tokenizer_folder / 'tokenizer.json'}: {error}") from None
    plan.tokenizer = tokenizer


def _compare_vocabularies(plan: _Plan) -> None:
    file = plan.tokenizer_folder / "tokenizer.json"
    plan.warnings += plan.tokenizer.warnings
    plan.warnings += plan.tokenizer.chat_templates(trusts_requests=False).warnings()
    plan.warnings += check_vocabulary(plan.tokenizer.raw, plan.model.vocab_size, file)


def _read_defaults(plan: _Plan) -> None:
    plan.defaults = generation_defaults(plan.config, plan.folder)
    plan.warnings += plan.defaults.warnings


def _check_weights(plan: _Plan) -> None:
    check_checkpoint(plan.config, plan.model)


def _limit_length(plan: _Plan) -> None:
    """The setting, or the model's own limit, which the setting must not pass: positions past it were never
    trained."""
    longest = plan.model.max_position_embeddings
    length = plan.config.max_model_len or longest
    if length > longest:
        allowed = f"at most {longest}, the max_position_embeddings of {plan.model.folder.name}"
        raise InvalidArgument("max_model_len", str(length), allowed)
    plan.max_model_len = length
    # A prompt that is not split is one step; as in vLLM, the default is long enough for each.
    is_default = "max_num_batched_tokens" not in plan.config.model_fields_set
    if is_default and not plan.config.enable_chunked_prefill:
        tokens = max(plan.config.max_num_batched_tokens, length)
        plan.config = plan.config.model_copy(update={"max_num_batched_tokens": tokens})


def _plan_memory(plan: _Plan) -> None:
    plan.runner = plan_runner(plan.config, plan.model, plan.max_model_len, plan.threads)


def _eos_token_ids(plan: _Plan) -> tuple[int, ...]:
    """What config.json or generation_config.json names and, as in vLLM, the tokenizer's own."""
    ids, own = plan.model.eos_token_ids, plan.tokenizer.eos_token_id
    return ids if own is None or own in ids or own >= plan.model.vocab_size else (*ids, own)


def _make_core(plan: _Plan) -> None:
    config, model, runner = plan.config, plan.model, plan.runner
    # Settings that the core has by the same name; null is the core's default.
    values = {
        name: value for name, value in config if hasattr(_core.EngineConfig, name) and value is not None
    }
    core_config = _core.EngineConfig(
        **values
        | {
            "num_blocks": runner.num_blocks,
            "max_model_len": plan.max_model_len,
            "max_batches_in_flight": runner.max_batches_in_flight,
            "window": model.spec.kv_window,
            "vocab_size": model.vocab_size,
            "eos_token_ids": _eos_token_ids(plan),
            "scheduling_policy": _core.SchedulingPolicy[config.scheduling_policy.upper()],
        }
    )
    try:
        plan.core = _core.EngineCore(core_config, plan.table), core_config
    except _core.InvalidArgument as error:
        refused = InvalidArgument.from_core(error)
        if refused.field != "eos_token_ids":
            raise refused from None
        files = f"{model.folder}: eos_token_id of generation_config.json, else of config.json"
        raise UnsupportedModel(f"{files}: got {refused.given}; allowed: {refused.allowed}") from None


_STEPS: tuple[Callable[[_Plan], None], ...] = (
    _find_folder,
    _read_model_config,
    _read_tokenizer,
    _compare_vocabularies,
    _read_defaults,
    _limit_length,
    _plan_memory,
    _make_core,
    _check_weights,
)
