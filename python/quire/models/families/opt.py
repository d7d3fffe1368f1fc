"""OPT: learned positions, of which the first two are not used."""

from __future__ import annotations

from dataclasses import replace

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import EmbeddingSpec, LayerSpec, ModelSpec, RopeSpec

_OFFSET = 2


def opt(config: ConfigReader) -> ModelSpec:
    config = config.renamed({"intermediate_size": "ffn_dim"})
    build = Builder(
        config,
        root="model.decoder",
        eps="layer_norm_eps",
        default_eps=1e-5,
        norm_kind="layer",
        norm_bias=True,
        default_tied=True,
    )
    if not config.flag("do_layer_norm_before", True):
        config.refuse("do_layer_norm_before", False, "true")
    width = config.count("word_embed_proj_dim", build.hidden)
    if width != build.hidden:
        config.refuse("word_embed_proj_dim", width, f"hidden_size ({build.hidden})")
    bias = config.flag("enable_bias", True)
    activation = build.activation("activation_function", "relu")

    def layer(i: int, root: str) -> LayerSpec:
        return LayerSpec(
            input_norm=build.norm(f"{root}.self_attn_layer_norm"),
            attention=build.attention(f"{root}.self_attn", RopeSpec(rotary_dim=0), o="out_proj", bias=bias),
            mlp_norm=build.norm(f"{root}.final_layer_norm"),
            mlp=build.plain_mlp(root, "fc1", "fc2", activation, bias=bias),
        )

    model = build.model(layer, norm="final_layer_norm")
    embedding: EmbeddingSpec = replace(
        model.embedding,
        positions="model.decoder.embed_positions",
        num_positions=build.max_positions + _OFFSET,
        position_offset=_OFFSET,
    )
    return replace(model, embedding=embedding)
