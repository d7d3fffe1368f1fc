"""Qwen 3: Llama with a norm of each query and key head; dense, or with experts."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.families.qwen2 import qwen_windows
from quire.models.families.qwen_moe import sparse_layers
from quire.models.spec import LayerSpec, ModelSpec


def qwen3(config: ConfigReader) -> ModelSpec:
    build = Builder(config, num_kv_heads=32, head_dim=128)
    windows = qwen_windows(build)
    rope = build.rope()
    bias = config.flag("attention_bias", False)
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias, qk_norm="head", window=windows[i])
        return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation))

    return build.model(layer)


def qwen3_moe(config: ConfigReader) -> ModelSpec:
    build = Builder(config, num_kv_heads=4)
    if config.flag("use_sliding_window", False):
        windows = build.windows([True] * build.num_layers, default=4096)
    else:
        config.value("sliding_window")
        windows = [None] * build.num_layers
    rope = build.rope()
    bias = config.flag("attention_bias", False)
    activation = build.activation()
    is_sparse = sparse_layers(build)
    size = config.count("moe_intermediate_size", 768)
    renormalizes = config.flag("norm_topk_prob", False)

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias, qk_norm="head", window=windows[i])
        if is_sparse[i]:
            mlp = build.moe(f"{root}.mlp", size=size, renormalizes=renormalizes)
            return build.pre_norm(root, attention, mlp)
        return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation))

    return build.model(layer)
