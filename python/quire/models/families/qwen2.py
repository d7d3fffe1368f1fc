"""Qwen 2 and 2.5: Llama with biases of queries, keys and values. With experts: Qwen 1.5 and 2 MoE."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.families.qwen_moe import sparse_layers
from quire.models.spec import LayerSpec, ModelSpec


def qwen2(config: ConfigReader) -> ModelSpec:
    build = Builder(config, num_kv_heads=32)
    windows = qwen_windows(build)
    rope = build.rope()
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=True, o_bias=False, window=windows[i])
        return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation))

    return build.model(layer)


def qwen_windows(build: Builder) -> list[int | None]:
    """Of the layers from max_window_layers on, if use_sliding_window says so."""
    config = build.config
    if not config.flag("use_sliding_window", False):
        config.value("sliding_window")
        return [None] * build.num_layers
    first = config.count("max_window_layers", 28)
    return build.windows(build.sliding_layers([i >= first for i in range(build.num_layers)]), default=4096)


def qwen2_moe(config: ConfigReader) -> ModelSpec:
    build = Builder(config, num_kv_heads=16)
    if config.flag("use_sliding_window", False):
        config.refuse("use_sliding_window", True, "false")
    config.value("sliding_window")
    rope = build.rope()
    bias = config.flag("qkv_bias", True)
    activation = build.activation()
    is_sparse = sparse_layers(build)
    size = config.count("moe_intermediate_size", 1408)
    shared_size = config.count("shared_expert_intermediate_size", 5632)
    renormalizes = config.flag("norm_topk_prob", False)

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias, o_bias=False)
        if not is_sparse[i]:
            return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation))
        shared = build.mlp(f"{root}.mlp.shared_expert", size=shared_size, activation=activation)
        mlp = build.moe(
            f"{root}.mlp",
            size=size,
            renormalizes=renormalizes,
            shared=shared,
            shared_gate="shared_expert_gate",
        )
        return build.pre_norm(root, attention, mlp)

    return build.model(layer)
