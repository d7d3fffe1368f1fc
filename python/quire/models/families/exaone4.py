"""EXAONE 4: norms after each block, of each query and key head; layers without a window have no RoPE."""

from __future__ import annotations

from dataclasses import replace

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec


def exaone4(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5, num_kv_heads=32)
    rope = build.rope()
    has_window = "sliding_window" not in config or config.value("sliding_window") is not None
    pattern = config.value("sliding_window_pattern")
    if isinstance(pattern, str) and pattern:  # LLLG: one letter for each of a group of layers
        slides = [pattern[i % len(pattern)] == "L" for i in range(build.num_layers)]
    else:
        every = config.count("sliding_window_pattern", 4) if pattern else 4
        slides = [has_window and (i + 1) % every != 0 for i in range(build.num_layers)]
    slides = build.sliding_layers(slides)
    windows = build.windows(slides, default=4096)
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        layer_rope = rope if slides[i] or not has_window else replace(rope, rotary_dim=0)
        return LayerSpec(
            input_norm=None,
            attention=build.attention(f"{root}.self_attn", layer_rope, qk_norm="head", window=windows[i]),
            attention_out_norm=build.norm(f"{root}.post_attention_layernorm"),
            mlp_norm=None,
            mlp=build.mlp(f"{root}.mlp", activation=activation),
            mlp_out_norm=build.norm(f"{root}.post_feedforward_layernorm"),
        )

    return build.model(layer)
