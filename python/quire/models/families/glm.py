"""GLM 4: RoPE of half a head, pairs side by side; in the second version norms after each block too. GLM 4.5
has experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import AttentionSpec, LayerSpec, ModelSpec


def glm(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1.5625e-7, num_kv_heads=2, head_dim=128)
    attention, activation = _attention(build, is_interleaved=True), build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        mlp = build.mlp(f"{root}.mlp", gate_up=["gate_up_proj"], activation=activation)
        return build.pre_norm(root, attention(root), mlp)

    return build.model(layer)


def glm4(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1.5625e-7, num_kv_heads=2, head_dim=128)
    attention, activation = _attention(build, is_interleaved=True), build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        mlp = build.mlp(f"{root}.mlp", gate_up=["gate_up_proj"], activation=activation)
        return replace(
            build.pre_norm(root, attention(root), mlp),
            attention_out_norm=build.norm(f"{root}.post_self_attn_layernorm"),
            mlp_out_norm=build.norm(f"{root}.post_mlp_layernorm"),
        )

    return build.model(layer)


def glm4_moe(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5, num_kv_heads=8)
    qk_norm: Literal["head"] | None = "head" if config.flag("use_qk_norm", False) else None
    attention = _attention(build, is_interleaved=False, bias=False, qk_norm=qk_norm)
    activation = build.activation()
    size = config.count("moe_intermediate_size", 1408)
    num_dense = config.get("first_k_dense_replace", int, 1)
    num_shared = config.count("n_shared_experts", 1)
    groups, top_k_groups = config.count("n_group", 1), config.count("topk_group", 1)
    num_experts, top_k = build.expert_counts("n_routed_experts")
    if num_experts % groups:
        config.refuse("n_group", groups, f"a divisor of n_routed_experts ({num_experts})")
    if top_k_groups > groups or top_k > num_experts // groups * top_k_groups:
        allowed = f"at most n_group ({groups}), and enough for {top_k} experts"
        config.refuse("topk_group", top_k_groups, allowed)
    scale = build.multiplier("routed_scaling_factor")
    renormalizes = config.flag("norm_topk_prob", True)

    def layer(i: int, root: str) -> LayerSpec:
        if i < num_dense:
            mlp = build.mlp(f"{root}.mlp", activation=activation)
            return build.pre_norm(root, attention(root), mlp)
        shared = build.mlp(f"{root}.mlp.shared_experts", size=num_shared * size, activation=activation)
        moe = build.moe(
            f"{root}.mlp",
            num_experts="n_routed_experts",
            size=size,
            scoring="sigmoid",
            renormalizes=renormalizes,
            shared=shared,
        )
        moe = replace(
            moe,
            scale=scale,
            selection_bias=f"{root}.mlp.gate.e_score_correction_bias",
            num_groups=groups,
            top_k_groups=top_k_groups,
        )
        return build.pre_norm(root, attention(root), moe)

    # The layers after the last predict further tokens.
    extra = tuple(f"model.layers.{build.num_layers + i}.*" for i in range(8))
    return build.model(layer, ignored=extra)


def _attention(
    build: Builder,
    *,
    is_interleaved: bool,
    bias: bool = True,
    qk_norm: Literal["head"] | None = None,
) -> Callable[[str], AttentionSpec]:
    rope = build.rope(partial=0.5)
    bias = build.config.flag("attention_bias", bias)
    return lambda root: build.attention(
        f"{root}.self_attn", rope, bias=bias, o_bias=False, qk_norm=qk_norm, is_interleaved=is_interleaved
    )
