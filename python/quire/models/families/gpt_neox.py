"""GPT-NeoX and Pythia: attention and MLP side by side, queries, keys and values of a head side by side."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import AttentionSpec, LayerSpec, LinearPart, ModelSpec, Order


def gpt_neox(config: ConfigReader) -> ModelSpec:
    config = config.renamed({"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"})
    build = Builder(
        config, root="gpt_neox", eps="layer_norm_eps", default_eps=1e-5, norm_kind="layer", norm_bias=True
    )
    rope = build.rope(partial=0.25)
    bias = config.flag("attention_bias", True)
    is_parallel = config.flag("use_parallel_residual", True)
    activation = build.activation("hidden_act", "gelu")

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.attention", rope, qkv=["query_key_value"], o="dense", bias=bias)
        return LayerSpec(
            input_norm=build.norm(f"{root}.input_layernorm"),
            attention=_by_head(attention),
            mlp_norm=build.norm(f"{root}.post_attention_layernorm"),
            mlp=build.plain_mlp(f"{root}.mlp", "dense_h_to_4h", "dense_4h_to_h", activation, bias=True),
            is_parallel=is_parallel,
        )

    return build.model(
        layer,
        embedding="embed_in",
        norm="final_layer_norm",
        head="embed_out",
        ignored=("*.attention.bias", "*.attention.masked_bias"),
    )


def _by_head(attention: AttentionSpec) -> AttentionSpec:
    """The checkpoint has the query, key and value rows of a head, then those of the next."""
    part: LinearPart = attention.qkv.parts[0]
    part = replace(part, order=_order_by_head(part.order, attention.q_size, attention.head_dim))
    return replace(attention, qkv=replace(attention.qkv, parts=(part,)))


@lru_cache(maxsize=1)
def _order_by_head(order: Order, q_size: int, head_dim: int) -> tuple[int, ...]:
    """One order for every layer."""

    def row(i: int) -> int:
        kind, rest = divmod(i, q_size)
        head, dimension = divmod(rest, head_dim)
        return (head * 3 + kind) * head_dim + dimension

    return tuple(row(i) for i in order or range(3 * q_size))
