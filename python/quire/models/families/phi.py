"""Phi 1, 1.5 and 2: attention and MLP side by side, biases everywhere, RoPE of a part of a head."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec


def phi(config: ConfigReader) -> ModelSpec:
    build = Builder(config, eps="layer_norm_eps", default_eps=1e-5, norm_kind="layer", norm_bias=True)
    if build.is_tied:
        config.refuse("tie_word_embeddings", True, "false")
    rope = build.rope(partial=0.5)
    activation = build.activation("hidden_act", "gelu_new")

    def layer(i: int, root: str) -> LayerSpec:
        norm = build.norm(f"{root}.input_layernorm")
        return LayerSpec(
            input_norm=norm,
            attention=build.attention(f"{root}.self_attn", rope, o="dense", bias=True),
            mlp_norm=norm,
            mlp=build.plain_mlp(f"{root}.mlp", "fc1", "fc2", activation, bias=True),
            is_parallel=True,
        )

    return build.model(layer, norm="final_layernorm", head_bias=True)
