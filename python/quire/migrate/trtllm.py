"""TensorRT-LLM's ensemble: preprocessing, tensorrt_llm and postprocessing, and the models that clients call,
which are an ensemble of these, tensorrt_llm_bls, or both.

Its engines are compiled, and hold no weights that could be read: those come from the Hugging Face folder that
the engine was built from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from quire.config import EngineConfig
from quire.engine_arguments import Argument, any_value, only, plain
from quire.errors import ConfigError
from quire.migrate.findings import NEEDED, Findings
from quire.migrate.move import Move
from quire.migrate.pbtxt import FILE, ConfigJudge, parameters_of
from quire.migrate.settings import NOT_HERE, Places, exists
from quire.model_folder import INDEX, SINGLE
from quire.model_path import is_hub_id
from quire.triton.repository import ModelConfig

_ENGINE_KEYS = {"gpt_model_type", "batching_type", "batch_scheduler_policy", "kv_cache_free_gpu_mem_fraction"}
_BLS_KEYS = {"tensorrt_llm_model_name", "accumulate_tokens"}
_BLOCK = 16


def _itself(value: object) -> object:
    return value


def _blocks(value: object) -> object:
    return max(1, value // _BLOCK) if isinstance(value, int) and not isinstance(value, bool) else value


# What becomes of a parameter: a setting of ours, how its value is read, and what to say about it.
_TAKEN: Mapping[str, tuple[str, Callable[[object], object], str]] = {
    "kv_cache_free_gpu_mem_fraction": (
        "gpu_memory_utilization",
        _itself,
        "here of the whole GPU, with the weights; there of what they leave",
    ),
    "enable_kv_cache_reuse": ("enable_prefix_caching", _itself, ""),
    "max_tokens_in_paged_kv_cache": ("num_gpu_blocks_override", _blocks, f"blocks of {_BLOCK} tokens"),
    "max_num_sequences": ("max_num_seqs", _itself, ""),
}


# Parameters of all of its models. Those that a template left open are not given.
_PARAMETERS: Mapping[str, Argument] = {
    **any_value("requests are batched continuously", "gpt_model_type", "batching_type"),
    **any_value("compiled engines hold no weights", "gpt_model_path", "engine_dir"),
    **any_value("each policy gives the same answers", "batch_scheduler_policy", "enable_chunked_context"),
    **any_value(
        "how steps are made, which changes no answer",
        *("kv_cache_onboard_blocks", "enable_trt_overlap", "multi_block_mode", "cuda_graph_mode"),
        *("cuda_graph_cache_size", "enable_context_fmha_fp32_acc", "cancellation_check_period_ms"),
        *("recv_poll_period_ms", "cross_kv_cache_fraction", "executor_worker_path", "max_kv_cache_length"),
        *("fail_fast_on_attention_window_too_large", "prompt_embedding_table_chunks", "num_streams"),
    ),
    **any_value(
        "/metrics has the engine's figures",
        *("stats_check_period_ms", "iter_stats_max_iterations", "request_stats_max_iterations"),
    ),
    **any_value("inputs are read on the CPU in any case", "FORCE_CPU_ONLY_INPUT_TENSORS"),
    **any_value(
        "requests that ask for an adapter or a grammar are refused by name",
        *("lora_cache_optimal_adapter_size", "lora_cache_max_adapter_size", "guided_decoding_backend"),
        *("lora_cache_gpu_memory_fraction", "lora_cache_host_memory_bytes", "xgrammar_tokenizer_info_path"),
    ),
    **only((), "lora_prefetch_dir"),
    **only((1,), "max_beam_width", "gpu_weights_percent"),
    **only((), "encoder_model_path", "encoder_engine_dir", "max_attention_window_size", "participant_ids"),
    **only((0,), "sink_token_length", "kv_cache_host_memory_bytes", "max_queue_size"),
    **only((0,), "gpu_device_ids", instead="choose it by CUDA_VISIBLE_DEVICES of the server"),
    **only(("top_k", "top_p", "top_k_top_p", "auto"), "decoding_mode"),
    **only((), "medusa_choices", "eagle_choices", "tensorrt_llm_draft_model_name"),
    **only((), "lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"),
    **any_value("nothing is drafted", "speculative_decoding_fast_logits", "is_draft_model"),
    **only((True,), "normalize_log_probs"),
    # Of preprocessing and postprocessing.
    **any_value("the tokenizer's files say it", "tokenizer_type", "trust_remote_code"),
    **only((True,), "add_special_tokens", instead="requests may have add_special_tokens"),
    **only((True,), "skip_special_tokens", instead="requests may have skip_special_tokens"),
    **only((), "visual_model_path", "multimodal_model_path", "multimodal_encoders_name"),
    **any_value("prompts are text", "max_num_images"),
    # Of tensorrt_llm_bls.
    **any_value("a stream's chunks are whole characters, as with true", "accumulate_tokens"),
    **any_value("the model is the one that moves with it", "tensorrt_llm_model_name"),
}


@dataclass(frozen=True)
class Group:
    """The models of one engine, by name."""

    engine: str
    ensembles: tuple[str, ...]
    others: tuple[str, ...]  # BLS models that clients call
    steps: tuple[str, ...]  # that tokenize

    @property
    def called(self) -> list[str]:
        """The models that clients send text to."""
        return [*self.ensembles, *self.others]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys((*self.called, *self.steps, self.engine)))


def find_groups(configs: Mapping[str, ModelConfig]) -> list[Group]:
    parameters = {name: config.parameters.keys() for name, config in configs.items()}
    engines = [name for name, config in configs.items() if _is_engine(config)]
    bls = [name for name, config in configs.items() if _is_python(config) and _BLS_KEYS & parameters[name]]
    groups = []
    for engine in engines:
        ensembles = [name for name, config in configs.items() if engine in _steps(config)]
        steps = {step for name in ensembles for step in _steps(configs[name])}
        if not ensembles:  # those that tokenize are named like the engine
            prefix = engine.removesuffix("tensorrt_llm")
            steps = {
                name
                for name, keys in parameters.items()
                if "tokenizer_dir" in keys and (len(engines) == 1 or name.startswith(prefix))
            }
        others = [name for name in bls if _engine_of(name, configs[name], engines) == engine]
        groups.append(Group(engine, tuple(ensembles), tuple(others), tuple(sorted(steps - {engine}))))
    return groups


def _is_python(config: ModelConfig) -> bool:
    return bool(config.backend == "python")


def _is_engine(config: ModelConfig) -> bool:
    """Also one that runs in Triton's Python backend."""
    return config.backend == "tensorrtllm" or (
        _is_python(config) and bool(_ENGINE_KEYS & config.parameters.keys())
    )


def _steps(config: ModelConfig) -> list[str]:
    return [step.model_name for step in config.ensemble_scheduling.step]


def _engine_of(name: str, config: ModelConfig, engines: list[str]) -> str | None:
    """The engine that a BLS model calls: the one it names, else the one that is named alike."""
    given = parameters_of(config).get("tensorrt_llm_model_name")
    if given:
        return given
    alike = name.removesuffix("_bls")
    return alike if alike in engines else "tensorrt_llm"


def plan_trtllm(
    repository: Path,
    configs: Mapping[str, ModelConfig],
    group: Group,
    ignored: Collection[str],
    models: Callable[[Group, bool], Mapping[str, str]],
    tensors: Mapping[str, int],
    unknown: Mapping[str, str],
    model: str | None = None,
) -> Move:
    """`models`: from the group, and whether it streams, to the packaged models' names and theirs here.
    `unknown`: what could not be read of configurations. `model`: where the weights are."""
    findings = Findings(ignored)
    engine = configs[group.engine]
    streams = engine.model_transaction_policy.decoupled
    move = Move(
        kind="TensorRT-LLM",
        names=group.called,
        sources=[repository / name for name in group.models],
        findings=findings,
        models=models(group, streams),
    )
    for name in move.models:
        if name == "generation" or name.startswith("tokenizer"):
            move.parameters[name] = {"served_model_name": move.name}
    if model is not None:
        move.settings["model"] = model
        findings.taken("", "--model", model)
    if streams and "tensorrt_llm" in move.models:
        note = "takes ids, and answers in one response; examples/tensorrt_llm is one that streams"
        findings.taken(f"{group.engine}/{FILE}", group.engine, "", note)
    for name in group.models:
        inner = name in (group.engine, *group.steps)
        config = configs[name]
        judged = type(config)()
        judged.CopyFrom(config)
        if inner:  # whose tensors are not what clients of the models that move see
            judged.ClearField("input")
            judged.ClearField("output")
        is_engine = name == group.engine
        judge = ConfigJudge(findings, repository / name, tensors, _REFUSED, is_engine=is_engine)
        judge.judge(judged, unknown.get(name))
        _judge_parameters(move, repository, name, parameters_of(config))
    if not any("exclude_input_in_output" in parameters for parameters in move.parameters.values()):
        _set_exclude(move, "false")  # as there
    _find_model(move, repository, configs, group)
    return move


# Inputs and outputs of TensorRT-LLM's ensemble that requests are refused for, and those of no text model.
_REFUSED = dict.fromkeys(
    (
        *("decoder_text_input", "image_input", "image_bytes_input", "image_url_input", "video_bytes_input"),
        *("prompt_embedding_table", "prompt_vocab_size", "prompt_table_extra_id", "prompt_table_extra_ids"),
        *("lora_task_id", "lora_weights", "lora_config", "embedding_bias_words", "embedding_bias_weights"),
        *("guided_decoding_guide_type", "guided_decoding_guide", "return_context_logits"),
        *("return_generation_logits", "return_perf_metrics", "return_kv_cache_reuse_stats"),
        *("retention_token_range_starts", "retention_token_range_ends", "retention_token_range_priorities"),
        *("retention_token_range_durations_ms", "retention_decode_priority", "retention_decode_duration_ms"),
        *("num_draft_tokens", "use_draft_logits", "lookahead_window_size", "lookahead_ngram_size"),
        "lookahead_verification_set_size",
        # Outputs.
        *("context_logits", "generation_logits", "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks"),
        *("kv_cache_alloc_total_blocks", "arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns"),
        *("last_token_time_ns", "acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens"),
        *("batch_index", "sequence_index", "beam_width", "length_penalty", "early_stopping", "pad_id"),
    ),
    "requests that need it are refused by name",
)


def _judge_parameters(move: Move, repository: Path, model: str, parameters: Mapping[str, str]) -> None:
    findings, file = move.findings, f"{model}/{FILE}"
    for key, value in parameters.items():
        name = f"parameters.{key}"
        if not value.strip():
            findings.neutral(file, name, value)
        elif key in _TAKEN:
            _take(move, file, key, value)
        elif key == "exclude_input_in_output":
            _exclude(move, file, value)
        elif key == "tokenizer_dir":
            pass  # _find_model()
        elif key in _PARAMETERS:
            findings.judge(file, name, value, _PARAMETERS[key].problem(value), _PARAMETERS[key].why)
        else:
            findings.missing(file, name, value)


def _take(move: Move, file: str, key: str, value: str) -> None:
    setting, read, note = _TAKEN[key]
    name = f"parameters.{key}"
    try:
        settings = {setting: getattr(EngineConfig(model="m", **{setting: read(plain(value))}), setting)}
    except ConfigError as error:
        move.findings.missing(file, name, value, error.problem)
        return
    move.settings |= settings
    move.findings.taken(file, name, value, f"as {setting} {settings[setting]}" + (note and f": {note}"))


def _exclude(move: Move, file: str, value: str) -> None:
    """The default of a request's exclude_input_in_output, which the tokenizer's configuration has here."""
    is_on = plain(value)
    if not isinstance(is_on, bool):
        move.findings.unknown(file, "parameters.exclude_input_in_output", value, "true or false")
        return
    _set_exclude(move, "true" if is_on else "false")
    move.findings.taken(file, "parameters.exclude_input_in_output", value)


def _set_exclude(move: Move, value: str) -> None:
    for tokenizer in move.models:
        if tokenizer.startswith("tokenizer"):
            move.parameters[tokenizer]["exclude_input_in_output"] = value


def _find_model(move: Move, repository: Path, configs: Mapping[str, ModelConfig], group: Group) -> None:
    """The folder of the tokenizer, where it has the weights, too; its Hugging Face id names both."""
    given = {name: parameters_of(configs[name]).get("tokenizer_dir", "") for name in group.models}
    folders = {name: folder for name, folder in given.items() if folder.strip()}
    places = Places(repository, tuple(repository / name for name in group.models))
    for model, value in folders.items():
        folder, note = places.find(value)
        file, key = f"{model}/{FILE}", "parameters.tokenizer_dir"
        if "model" in move.settings and note == NOT_HERE:
            move.findings.neutral(file, key, value, f"{note}: the model's own tokenizer")
            continue
        setting = "model" if "model" not in move.settings and _has_weights(folder) else "tokenizer"
        move.settings.setdefault(setting, folder)
        move.findings.taken(file, key, value, ", ".join(filter(None, (f"as {setting}", note))))
    if move.settings.get("tokenizer") == move.settings.get("model"):
        move.settings.pop("tokenizer", None)
    if "model" not in move.settings:
        note = "its engine holds no weights: give their Hugging Face folder with --model"
        move.findings.unknown(f"{group.engine}/{FILE}", NEEDED, "", note)


def _has_weights(folder: str) -> bool:
    path = Path(folder)
    if not path.is_absolute() and is_hub_id(folder):
        return True
    return any(exists(path / name) for name in (SINGLE, INDEX)) or (exists(path) and any(path.glob("*.gguf")))
