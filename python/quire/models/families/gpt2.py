"""GPT-2: learned positions, weights stored the other way round."""

from __future__ import annotations

from dataclasses import replace

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import EmbeddingSpec, LayerSpec, LinearPart, LinearSpec, MlpSpec, ModelSpec, RopeSpec

_KEYS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


def gpt2(config: ConfigReader) -> ModelSpec:
    config = config.renamed(_KEYS)
    has_inner = config.value("intermediate_size") is not None
    build = Builder(
        config,
        root="transformer",
        eps="layer_norm_epsilon",
        default_eps=1e-5,
        norm_kind="layer",
        norm_bias=True,
        default_tied=True,
        has_intermediate_size=has_inner,
    )
    inner = build.intermediate if has_inner else 4 * build.hidden
    activation = build.activation("activation_function", "gelu_new")
    rope = RopeSpec(rotary_dim=0)

    def linear(name: str, in_size: int, out_size: int, *, is_out: bool) -> LinearSpec:
        part = LinearPart(name=name, out_size=out_size, is_transposed=True)
        return build.linear(in_size, part, split="out" if is_out else "in", bias=True)

    def layer(i: int, root: str) -> LayerSpec:
        root = root.replace(".layers.", ".h.")
        attention = replace(
            build.attention(f"{root}.attn", rope),
            qkv=linear(f"{root}.attn.c_attn", build.hidden, 3 * build.hidden, is_out=True),
            o=linear(f"{root}.attn.c_proj", build.hidden, build.hidden, is_out=False),
        )
        mlp = MlpSpec(
            up=linear(f"{root}.mlp.c_fc", build.hidden, inner, is_out=True),
            down=linear(f"{root}.mlp.c_proj", inner, build.hidden, is_out=False),
            activation=activation,
            is_gated=False,
        )
        return LayerSpec(
            input_norm=build.norm(f"{root}.ln_1"),
            attention=attention,
            mlp_norm=build.norm(f"{root}.ln_2"),
            mlp=mlp,
        )

    model = build.model(layer, embedding="wte", norm="ln_f", ignored=("*.attn.bias", "*.attn.masked_bias"))
    embedding: EmbeddingSpec = replace(
        model.embedding, positions="transformer.wpe", num_positions=build.max_positions
    )
    return replace(model, embedding=embedding)
