"""Llama 1 to 3, and the many models of its architecture."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec


def llama(config: ConfigReader) -> ModelSpec:
    build = Builder(config)
    for key in ("sliding_window", "use_sliding_window"):  # transformers' Llama has none, whatever they say
        config.value(key)
    rope = build.rope()
    bias = config.flag("attention_bias", False)
    mlp_bias = config.flag("mlp_bias", False)
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias)
        return build.pre_norm(root, attention, build.mlp(f"{root}.mlp", activation=activation, bias=mlp_bias))

    return build.model(layer)
