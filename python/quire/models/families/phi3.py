"""Phi 3, 3.5, 4 and 4-mini: Llama whose projections are fused, with a window or a stretched RoPE."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec


def phi3(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5)
    windows = build.windows([True] * build.num_layers)
    # As in transformers: all that stretches is longrope, by whatever name.
    aliases = {"su": "longrope", "yarn": "longrope"}
    rope = build.rope(partial=1.0, kinds=("default", "longrope"), aliases=aliases)
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, qkv=["qkv_proj"], window=windows[i])
        mlp = build.mlp(f"{root}.mlp", gate_up=["gate_up_proj"], activation=activation)
        return build.pre_norm(root, attention, mlp)

    return build.model(layer)
