"""The models that the engine's GPU tests run, as settings of `llama_reference.make_llama`."""

from __future__ import annotations

from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Head sizes 64, 96, 128 and 256, 1 to 8 query heads per KV head.
MODELS: dict[str, dict[str, Any]] = {
    "gqa2-64": {},
    "mha-64-tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "gqa4-96-biases": {
        "num_attention_heads": 8,
        "head_dim": 96,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "gqa8-128-llama3-rope": {
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "rope_theta": 1000.0,
        "rope_scaling": LLAMA3_ROPE,
    },
    "mha-96": {"num_attention_heads": 2, "head_dim": 96},
    "gqa4-128-tied-linear-rope": {
        "num_attention_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "gqa2-256": {"head_dim": 256, "num_hidden_layers": 2},
    "odd-vocabulary": {"vocab_size": 1003, "hidden_size": 320, "intermediate_size": 864},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "qwen2-tied": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
    },
    "qwen3-128": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
    },
}
