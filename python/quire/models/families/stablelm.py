"""StableLM: LayerNorm, RoPE of a quarter of a head."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec


def stablelm(config: ConfigReader) -> ModelSpec:
    build = Builder(
        config,
        eps="layer_norm_eps",
        default_eps=1e-5,
        norm_kind="layer",
        norm_bias=True,
        num_kv_heads=32,
    )
    rope = build.rope(partial=0.25)
    bias = config.flag("use_qkv_bias", False)
    is_parallel = config.flag("use_parallel_residual", False)
    activation = build.activation()

    def layer(i: int, root: str) -> LayerSpec:
        norm = build.norm(f"{root}.input_layernorm")
        return LayerSpec(
            input_norm=norm,
            attention=build.attention(f"{root}.self_attn", rope, bias=bias, o_bias=False),
            mlp_norm=norm if is_parallel else build.norm(f"{root}.post_attention_layernorm"),
            mlp=build.mlp(f"{root}.mlp", activation=activation),
            is_parallel=is_parallel,
        )

    return build.model(layer)
