"""Command R, R+ and R7B: attention and MLP side by side, LayerNorm without bias, RoPE pairs side by side."""

from __future__ import annotations

from dataclasses import replace

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec, RopeSpec


def cohere(config: ConfigReader) -> ModelSpec:
    build = _builder(config)
    return _parallel(build, [build.rope(theta=500000.0)] * build.num_layers, [None] * build.num_layers)


def cohere2(config: ConfigReader) -> ModelSpec:
    """Layers without a window have no RoPE."""
    build = _builder(config)
    pattern = config.count("sliding_window_pattern", 4)
    slides = build.sliding_layers([(i + 1) % pattern != 0 for i in range(build.num_layers)])
    for key, expected in (("position_embedding_type", "rope_gptj"), ("rotary_pct", 1.0)):
        if config.value(key) not in (None, expected):
            config.refuse(key, config.value(key), str(expected))
    rope = build.rope()
    ropes = [rope if each else replace(rope, rotary_dim=0) for each in slides]
    return _parallel(build, ropes, build.windows(slides, default=4096))


def _builder(config: ConfigReader) -> Builder:
    return Builder(config, eps="layer_norm_eps", default_eps=1e-5, norm_kind="layer", default_tied=True)


def _parallel(build: Builder, ropes: list[RopeSpec], windows: list[int | None]) -> ModelSpec:
    bias = build.config.flag("attention_bias", False)
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        norm = build.norm(f"{root}.input_layernorm")
        return LayerSpec(
            input_norm=norm,
            attention=build.attention(
                f"{root}.self_attn", ropes[i], bias=bias, is_interleaved=True, window=windows[i]
            ),
            mlp_norm=norm,
            mlp=build.mlp(f"{root}.mlp", activation=activation),
            is_parallel=True,
        )

    return build.model(layer, logit_scale=build.multiplier("logit_scale", 0.0625))
