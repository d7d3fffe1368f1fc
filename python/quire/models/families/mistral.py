"""Mistral 7B, Nemo and Small: Llama without biases, in the first version with a window. Ministral 3: queries
are scaled by their position. Mixtral: experts."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec, QueryScaling


def mistral(config: ConfigReader) -> ModelSpec:
    build = Builder(config, num_kv_heads=8)
    windows = build.windows([True] * build.num_layers, default=4096)
    rope = build.rope()
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, window=windows[i])
        return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation))

    return build.model(layer)


def ministral3(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5, num_kv_heads=8, head_dim=128)
    windows = build.windows([True] * build.num_layers)
    rope_config = config.inside("rope_parameters")
    beta = rope_config.optional_number("llama_4_scaling_beta", None)
    rope = build.rope(own=["llama_4_scaling_beta"])
    scaling = beta and QueryScaling(
        beta=beta, original_max_position_embeddings=rope_config.count("original_max_position_embeddings")
    )
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(
            f"{root}.self_attn", rope, window=windows[i], query_scaling=scaling or None
        )
        return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation))

    return build.model(layer)


def mixtral(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5, num_kv_heads=8)
    windows = build.windows([True] * build.num_layers)
    rope = build.rope(theta=1000000.0)

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, window=windows[i])
        mlp = build.moe(
            f"{root}.block_sparse_moe",
            num_experts="num_local_experts",
            names=("w1", "w3", "w2"),
            renormalizes=True,
        )
        return build.pre_norm(root, attention, mlp)

    return build.model(layer)
