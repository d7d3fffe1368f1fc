"""Gemma 1 to 3, text: norms with 1 + weight, a scaled embedding, GELU; from the second version on norms after
each block, windows in most layers, and caps on scores and logits."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import Activation, AttentionSpec, LayerSpec, ModelSpec, RopeSpec


def gemma(config: ConfigReader) -> ModelSpec:
    build = _builder(config, num_kv_heads=16)
    rope = build.rope()
    bias = config.flag("attention_bias", False)
    activation = _activation(build, "hidden_act")

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias)
        return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation))

    return build.model(layer, embedding_scale=build.hidden**0.5)


def gemma2(config: ConfigReader) -> ModelSpec:
    build = _builder(config, num_kv_heads=4)
    rope = build.rope()
    slides = build.sliding_layers([(i + 1) % 2 != 0 for i in range(build.num_layers)])
    soft_cap = config.optional_number("attn_logit_softcapping", 50.0)
    return _sandwich(build, slides, [rope] * build.num_layers, soft_cap, 30.0, has_qk_norm=False)


def gemma3(config: ConfigReader) -> ModelSpec:
    build = _builder(config, num_kv_heads=4)
    pattern = config.count("sliding_window_pattern", 6)
    slides = build.sliding_layers([(i + 1) % pattern != 0 for i in range(build.num_layers)])
    full = build.rope("full_attention", theta=1000000.0)
    if config.value("rope_parameters"):
        local = build.rope("sliding_attention")
    else:
        local = RopeSpec(theta=config.number("rope_local_base_freq", 10000.0, most=1e15))
    ropes = [local if each else full for each in slides]
    return _sandwich(build, slides, ropes, None, None, has_qk_norm=True)


def _builder(config: ConfigReader, num_kv_heads: int) -> Builder:
    return Builder(
        config,
        norm_offset=1.0,
        norm_rounds_once=True,
        num_kv_heads=num_kv_heads,
        head_dim=256,
        default_tied=True,
    )


def _activation(build: Builder, key: str) -> Activation:
    """The first checkpoints say "gelu", and were trained with its approximation."""
    given = build.config.value("hidden_activation")
    if given is None and build.config.value(key) == "gelu":
        return "gelu_tanh"
    return build.activation("hidden_activation" if given is not None else key, "gelu_pytorch_tanh")


def _sandwich(
    build: Builder,
    slides: list[bool],
    ropes: list[RopeSpec],
    soft_cap: float | None,
    logit_cap: float | None,
    *,
    has_qk_norm: bool,
) -> ModelSpec:
    config = build.config
    windows = build.windows(slides, default=4096)
    bias = config.flag("attention_bias", False)
    scale = config.number("query_pre_attn_scalar", 256.0, most=1e6) ** -0.5
    activation = _activation(build, "hidden_act")

    def attention(i: int, root: str) -> AttentionSpec:
        return build.attention(
            root,
            ropes[i],
            bias=bias,
            qk_norm="head" if has_qk_norm else None,
            scale=scale,
            window=windows[i],
            soft_cap=soft_cap,
        )

    def layer(i: int, root: str) -> LayerSpec:
        return LayerSpec(
            input_norm=build.norm(f"{root}.input_layernorm"),
            attention=attention(i, f"{root}.self_attn"),
            attention_out_norm=build.norm(f"{root}.post_attention_layernorm"),
            mlp_norm=build.norm(f"{root}.pre_feedforward_layernorm"),
            mlp=build.mlp(f"{root}.mlp", activation=activation),
            mlp_out_norm=build.norm(f"{root}.post_feedforward_layernorm"),
        )

    return build.model(
        layer,
        embedding_scale=build.hidden**0.5,
        logit_cap=config.optional_number("final_logit_softcapping", logit_cap),
    )
