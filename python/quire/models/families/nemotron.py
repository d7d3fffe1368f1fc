"""Nemotron 3 and 4, Minitron: LayerNorm with 1 + weight, an MLP without a gate, squared ReLU."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec


def nemotron(config: ConfigReader) -> ModelSpec:
    build = Builder(
        config, eps="norm_eps", default_eps=1e-5, norm_kind="layer", norm_bias=True, norm_offset=1.0
    )
    rope = build.rope(partial=0.5)
    bias = config.flag("attention_bias", False)
    mlp_bias = config.flag("mlp_bias", False)
    activation = build.activation("hidden_act", "relu2")

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias)
        mlp = build.plain_mlp(f"{root}.mlp", "up_proj", "down_proj", activation, bias=mlp_bias)
        return build.pre_norm(root, attention, mlp)

    return build.model(layer)
