"""Granite 3: Llama with multipliers; dense, or with experts."""

from __future__ import annotations

from collections.abc import Callable

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import ExpertsSpec, LayerSpec, LinearPart, MlpSpec, ModelSpec, MoeSpec


def granite(config: ConfigReader) -> ModelSpec:
    build = Builder(config)
    bias = config.flag("mlp_bias", False)
    activation = build.activation()
    return _granite(build, lambda root: build.mlp(f"{root}.mlp", activation=activation, bias=bias))


def granite_moe(config: ConfigReader) -> ModelSpec:
    build = Builder(config)
    count, top_k = build.expert_counts("num_local_experts")
    activation = build.activation()

    def experts(name: str, in_size: int, out_size: int) -> ExpertsSpec:
        return ExpertsSpec(
            num_experts=count, in_size=in_size, parts=(LinearPart(name=name, out_size=out_size),)
        )

    def mlp(root: str) -> MoeSpec:
        root = f"{root}.block_sparse_moe"
        return MoeSpec(
            router=build.linear(build.hidden, (f"{root}.router.layer", count)),
            up=experts(f"{root}.input_linear", build.hidden, 2 * build.intermediate),
            down=experts(f"{root}.output_linear", build.intermediate, build.hidden),
            top_k=top_k,
            renormalizes=True,  # a softmax of the chosen ones
            activation=activation,
        )

    return _granite(build, mlp)


def _granite(build: Builder, mlp: Callable[[str], MlpSpec | MoeSpec]) -> ModelSpec:
    rope = build.rope()
    bias = build.config.flag("attention_bias", False)
    scale = build.multiplier("attention_multiplier")
    residual_scale = build.multiplier("residual_multiplier")

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias, scale=scale)
        return build.pre_norm(root, attention, mlp(root), residual_scale=residual_scale)

    return build.model(
        layer,
        embedding_scale=build.multiplier("embedding_multiplier"),
        logit_scale=1 / build.multiplier("logits_scaling"),
    )
