"""vLLM's engine arguments that are no settings here: a model.json of Triton's vLLM backend may hold them.

An argument is accepted with null and with the values that ask for nothing, and refused by name otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass

from quire.errors import describe
from quire.field import is_number


@dataclass(frozen=True)
class Argument:
    """`neutral`: the values that ask for nothing, beside null and ""; None: every value. `why` they ask for
    nothing. `instead`: what there is for the others."""

    neutral: Container[object] | None
    why: str = ""
    instead: str = ""

    def problem(self, value: object) -> str | None:
        """What is wrong with a value; None: it asks for nothing."""
        if self.neutral is None or value is None or value == "" or _is_in(value, self.neutral):
            return None
        return f"got {describe(value)}, which is not supported yet; allowed: {self.allowed}"

    @property
    def allowed(self) -> str:
        if self.neutral is None:
            return "any value"
        if isinstance(self.neutral, range):
            values = f"an integer in [{self.neutral.start}, {self.neutral.stop - 1}] or null"
        else:
            assert isinstance(self.neutral, tuple)
            values = " or ".join(describe(value) for value in (*self.neutral, None))
        return f"{values} ({self.instead})" if self.instead else values


def any_value(why: str, *names: str) -> dict[str, Argument]:
    """Arguments that ask for nothing, whatever their value, and why."""
    return dict.fromkeys(names, Argument(None, why))


def only(neutral: tuple[object, ...], *names: str, instead: str = "") -> dict[str, Argument]:
    """Arguments that ask for nothing with these values."""
    return dict.fromkeys(names, Argument(neutral, instead=instead))


# Up to vLLM 0.26, and those of older versions that model.json files still have.
ARGUMENTS: Mapping[str, Argument] = {
    # The model and its files.
    **any_value("no code of a checkpoint is ever run", "trust_remote_code", "code_revision"),
    **any_value("clients call a model of Triton by its folder's name", "served_model_name"),
    **only(("auto", "generate"), "runner", "task"),
    **only(("auto", "none"), "convert"),
    **only(("auto", "hf", "fast", "slow"), "tokenizer_mode"),
    **only(("auto", "hf"), "config_format"),
    **only(("auto", "vllm"), "model_impl"),
    **only((), "hf_config_path", "rope_theta", instead="write it into the model's config.json"),
    **only(({},), "hf_overrides", "rope_scaling", instead="write it into the model's config.json"),
    **only((True, False), "hf_token", instead="set the environment variable HF_TOKEN"),
    **only((), "quantization_config", "quantization_param_path", "override_attention_dtype"),
    **any_value("it permits what is refused or read anyway", "allow_deprecated_quantization"),
    **only((False,), "skip_tokenizer_init", "enable_prompt_embeds", "enable_return_routed_experts"),
    **only((False,), "disable_sliding_window", "calculate_kv_scales"),
    **only(([],), "kv_cache_dtype_skip_layers", "logits_processors"),
    **only((), "logits_processor_pattern", "io_processor_plugin"),
    **only((), "pooler_config", "override_pooler_config", "override_neuron_config"),
    **only((), "model_weights", "weight_transfer_config"),
    **only(({},), "model_loader_extra_config", "additional_config", "reasoning_config"),
    **any_value(
        "how files are read, which changes no answer",
        *("use_tqdm_on_load", "ignore_patterns", "pt_load_map_location", "safetensors_load_strategy"),
        *("safetensors_prefetch_num_threads", "safetensors_prefetch_block_size"),
        "max_parallel_loading_workers",
    ),
    **only((False,), "enable_sleep_mode", "tokens_only"),
    **only((1,), "stream_interval", instead="requests may have stream_interval"),
    "max_logprobs": Argument(range(21), "a request may ask for 20"),
    **only(("raw_logprobs",), "logprobs_mode"),
    # Several GPUs and hosts. With one of each, how they talk does not matter.
    **only((1,), "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
    **only((1,), "prefill_context_parallel_size", "decode_context_parallel_size", "nnodes"),
    **only((1,), "data_parallel_size_local"),
    **only((0,), "node_rank", "data_parallel_rank", "data_parallel_start_rank"),
    **only(("mp", "ray", "uni"), "distributed_executor_backend"),
    **only((False,), "data_parallel_hybrid_lb", "data_parallel_external_lb", "enable_elastic_ep"),
    **only((False,), "data_parallel_multi_port_external_lb", "enable_eplb", "numa_bind"),
    **only(("auto",), "worker_cls"),
    **only((), "worker_extension_cls"),
    **only(
        ("vllm.core.scheduler.Scheduler", "vllm.v1.core.sched.scheduler.Scheduler"),
        "scheduler_cls",
    ),
    **any_value(
        "there is one GPU and one host",
        *("worker_use_ray", "engine_use_ray", "ray_workers_use_nsight", "disable_custom_all_reduce"),
        *("master_addr", "master_port", "distributed_timeout_seconds", "cpu_distributed_timeout_seconds"),
        *("numa_bind_nodes", "numa_bind_cpus", "data_parallel_address", "data_parallel_rpc_port"),
        *("data_parallel_backend", "enable_expert_parallel", "enable_ep_weight_filter", "all2all_backend"),
        *("eplb_config", "expert_placement_strategy", "num_redundant_experts", "eplb_window_size"),
        *("eplb_step_interval", "eplb_log_balancedness", "enable_dbo", "ubatch_size"),
        *("dbo_decode_token_threshold", "dbo_prefill_token_threshold", "dcp_comm_backend"),
        *("disable_nccl_for_dp_synchronization", "dcp_kv_cache_interleave_size"),
        "cp_kv_cache_interleave_size",
    ),
    # Memory and scheduling.
    **any_value("requests that are preempted are computed again", "swap_space", "preemption_mode"),
    **only((0,), "cpu_offload_gb", "kv_offloading_size", "offload_group_size"),
    **any_value(
        "nothing is offloaded",
        *("offload_backend", "cpu_offload_params", "offload_num_in_group", "offload_prefetch_step"),
        *("offload_params", "kv_offloading_backend"),
    ),
    **only((), "kv_transfer_config", "kv_events_config", "ec_transfer_config"),
    **any_value(
        "how steps are made, which changes no answer",
        *("use_v2_block_manager", "prefix_caching_hash_algo", "prefix_cache_retention_interval"),
        *("disable_cascade_attn", "max_num_partial_prefills", "max_long_partial_prefills"),
        *("long_prefill_token_threshold", "mixed_prefill_step_latency_ms", "num_lookahead_slots"),
        *("delay_factor", "scheduler_delay_factor", "num_scheduler_steps", "multi_step_stream_outputs"),
        *("disable_hybrid_kv_cache_manager", "scheduler_reserve_full_isl", "async_scheduling"),
        *("use_async_output_proc", "disable_async_output_proc", "max_paddings", "renderer_num_workers"),
        *("tokenizer_pool_size", "tokenizer_pool_type", "tokenizer_pool_extra_config"),
        *("kv_sharing_fast_prefill", "enable_cumem_allocator", "shutdown_timeout"),
    ),
    **any_value(
        "which kernels and graphs there are is not vLLM's to choose",
        *("max_seq_len_to_capture", "max_context_len_to_capture", "cuda_graph_sizes"),
        *("cudagraph_capture_sizes", "max_cudagraph_capture_size", "compilation_config"),
        *("optimization_level", "performance_mode", "attention_backend", "attention_config"),
        *("kernel_config", "ir_op_priority", "moe_backend", "linear_backend", "use_fp64_gumbel"),
        *("enable_flashinfer_autotune", "gdn_prefill_backend"),
    ),
    **any_value(
        "no model here has such layers",
        *("mamba_config", "mamba_backend", "mamba_cache_dtype", "mamba_ssm_cache_dtype", "mamba_block_size"),
        *("mamba_cache_mode", "mamba_cache_philox_rounds", "enable_mamba_cache_stochastic_rounding"),
    ),
    # What requests may ask for.
    **only((False,), "enable_lora", "enable_prompt_adapter"),
    **only(({},), "default_mm_loras", "lora_modules"),
    **only((), "qlora_adapter_name_or_path"),
    **any_value(
        "enable_lora says whether there are adapters",
        *("enable_lora_bias", "max_loras", "max_lora_rank", "max_cpu_loras", "lora_dtype"),
        *("fully_sharded_loras", "lora_extra_vocab_size", "long_lora_scaling_factors"),
        *("lora_target_modules", "enable_tower_connector_lora", "specialize_active_lora"),
        *("enable_mixed_moe_lora_format", "max_prompt_adapters", "max_prompt_adapter_token"),
    ),
    **only((), "speculative_config", "speculative_model", "spec_method", "spec_model"),
    **any_value(
        "speculative_config says whether tokens are drafted",
        *("num_speculative_tokens", "spec_tokens", "speculative_max_model_len"),
        *("speculative_model_quantization", "speculative_draft_tensor_parallel_size"),
        *("speculative_disable_by_batch_size", "speculative_disable_mqa_scorer"),
        *("ngram_prompt_lookup_max", "ngram_prompt_lookup_min", "spec_decoding_acceptance_method"),
        *("typical_acceptance_sampler_posterior_threshold", "typical_acceptance_sampler_posterior_alpha"),
        "disable_logprobs_during_spec_decoding",
    ),
    **any_value(
        "requests that ask for a grammar are refused by name",
        *("guided_decoding_backend", "guided_decoding_disable_fallback", "structured_outputs_config"),
        *("guided_decoding_disable_any_whitespace", "guided_decoding_disable_additional_properties"),
        *("reasoning_parser", "reasoning_parser_plugin", "enable_reasoning"),
    ),
    **only((False,), "mm_encoder_only", "enable_mm_embeds"),
    **any_value(
        "prompts are text",
        *("language_model_only", "limit_mm_per_prompt", "interleave_mm_strings", "media_io_kwargs"),
        *("mm_processor_kwargs", "mm_processor_cache_gb", "mm_processor_cache_type"),
        *("disable_mm_preprocessor_cache", "mm_shm_cache_max_object_size_mb", "mm_encoder_tp_mode"),
        *("mm_encoder_attn_backend", "mm_encoder_attn_dtype", "mm_encoder_fp8_scale_path"),
        *("mm_encoder_fp8_scale_save_path", "mm_encoder_fp8_scale_save_margin", "mm_tensor_ipc"),
        *("skip_mm_profiling", "video_pruning_rate", "disable_chunked_mm_input"),
        *("allowed_local_media_path", "allowed_media_domains", "image_input_type", "image_token_id"),
        *("image_input_shape", "image_feature_size", "enable_mm_processor_stats", "image_processor"),
        *("image_processor_revision", "disable_image_processor", "enable_multimodal_encoder_data_parallel"),
    ),
    # What is said about requests.
    **only((), "otlp_traces_endpoint"),
    **only(([],), "collect_detailed_traces"),
    **any_value(
        "tritonserver's --log-verbose shows requests",
        *("disable_log_requests", "enable_log_requests", "max_log_len"),
    ),
    **any_value(
        "the metrics are those of docs/metrics.md",
        *("show_hidden_metrics_for_version", "aggregate_engine_logging", "kv_cache_metrics"),
        *("kv_cache_metrics_sample", "cudagraph_metrics", "enable_mfu_metrics", "profiler_config"),
        *("enable_layerwise_nvtx_tracing", "enable_logging_iteration_details", "fail_on_environ_validation"),
    ),
}

# Other spellings of a setting's values, which mean the same.
SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "dtype": {"half": "float16", "float": "float32"},
    "kv_cache_dtype": {"fp8_e4m3": "fp8"},
    # The files say what they are; these only say how vLLM is to read them.
    "load_format": dict.fromkeys(("safetensors", "hf", "gguf", "fastsafetensors", "runai_streamer"), "auto"),
}


def plain(value: object) -> object:
    """What a text spells: true or false, or a number. The first samples of Triton's vLLM backend have
    booleans as texts, and templates make texts of numbers."""
    if isinstance(value, str):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        if is_number(value):
            return json.loads(value)
    return value


def _is_in(value: object, neutral: Container[object]) -> bool:
    """1 and 1.0 are one, but not true; a text counts as what it spells."""
    for candidate in (value, plain(value)):
        if isinstance(neutral, range):
            if isinstance(candidate, int) and not isinstance(candidate, bool) and candidate in neutral:
                return True
        elif isinstance(neutral, tuple) and any(
            candidate == item and isinstance(candidate, bool) == isinstance(item, bool) for item in neutral
        ):
            return True
    return False
