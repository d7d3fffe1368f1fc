"""SmolLM 3: Llama in which some layers have no RoPE."""

from __future__ import annotations

from dataclasses import replace

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec


def smollm3(config: ConfigReader) -> ModelSpec:
    build = Builder(config, num_kv_heads=4, default_tied=True)
    rope = build.rope(theta=2000000.0)
    no_rope = replace(rope, rotary_dim=0)
    interval = config.count("no_rope_layer_interval", 4)
    usual = [int((i + 1) % interval != 0) for i in range(build.num_layers)]
    has_rope = build.per_layer("no_rope_layers", (0, 1), usual)  # 1 is a layer with RoPE, despite the name
    if config.flag("use_sliding_window", False):
        windows = build.windows(build.sliding_layers([not each for each in has_rope]))
    else:
        config.value("sliding_window")
        windows = [None] * build.num_layers
    bias = config.flag("attention_bias", False)
    mlp_bias = config.flag("mlp_bias", False)
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(
            f"{root}.self_attn", rope if has_rope[i] else no_rope, bias=bias, window=windows[i]
        )
        return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation, bias=mlp_bias))

    return build.model(layer)
