"""OLMo 2 and 3: norms after each block instead of before it, and of all queries and keys. OLMoE: experts."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec, RopeSpec

_THETA = 500000.0


def olmo2(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5, norm_rounds_once=True)
    rope = build.rope()
    return _post_norm(build, [None] * build.num_layers, [rope] * build.num_layers)


def olmo3(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5, norm_rounds_once=True)
    slides = build.sliding_layers([(i + 1) % 4 != 0 for i in range(build.num_layers)])
    theta = config.number("rope_theta", _THETA, most=1e15)
    if theta != _THETA and not config.value("rope_parameters"):
        # transformers takes it for layers without a window alone.
        config.refuse("rope_theta", theta, f"{_THETA}, or rope_parameters for each type of layer")
    full = build.rope("full_attention", theta=_THETA)
    local = build.rope("sliding_attention", theta=_THETA, has_scaling=False)
    ropes = [local if each else full for each in slides]
    return _post_norm(build, build.windows(slides, default=4096), ropes)


def _post_norm(build: Builder, windows: list[int | None], ropes: list[RopeSpec]) -> ModelSpec:
    bias = build.config.flag("attention_bias", False)
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        return LayerSpec(
            input_norm=None,
            attention=build.attention(
                f"{root}.self_attn", ropes[i], bias=bias, qk_norm="row", window=windows[i]
            ),
            attention_out_norm=build.norm(f"{root}.post_attention_layernorm"),
            mlp_norm=None,
            mlp=build.mlp(f"{root}.mlp", activation=activation),
            mlp_out_norm=build.norm(f"{root}.post_feedforward_layernorm"),
        )

    return build.model(layer)


def olmoe(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5)
    rope = build.rope()
    bias = config.flag("attention_bias", False)
    renormalizes = config.flag("norm_topk_prob", False)

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias, qk_norm="row")
        return build.pre_norm(root, attention, build.moe(f"{root}.mlp", renormalizes=renormalizes))

    return build.model(layer)
