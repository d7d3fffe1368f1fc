"""gpt-oss: experts with a clamped SwiGLU, attention with sinks and, in every other layer, a window."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import ExpertsSpec, LayerSpec, LinearPart, ModelSpec, MoeSpec


def gpt_oss(config: ConfigReader) -> ModelSpec:
    build = Builder(config, default_eps=1e-5, norm_rounds_once=True, num_kv_heads=8, head_dim=64)
    slides = build.sliding_layers([(i + 1) % 2 != 0 for i in range(build.num_layers)])
    windows = build.windows(slides, default=128)
    rope = build.rope(theta=150000.0)
    bias = config.flag("attention_bias", True)
    count, top_k = build.expert_counts("num_local_experts")
    if config.number("swiglu_limit", 7.0, most=1e6) != 7.0:
        config.refuse("swiglu_limit", config.value("swiglu_limit"), "7.0")
    inner = build.intermediate
    # The checkpoint has gate and up of each output side by side.
    gates_first = (*range(0, 2 * inner, 2), *range(1, 2 * inner, 2))

    def experts(name: str, in_size: int, out_size: int, order: tuple[int, ...] | None = None) -> ExpertsSpec:
        part = LinearPart(name=name, out_size=out_size, order=order, is_transposed=True)
        return ExpertsSpec(num_experts=count, in_size=in_size, parts=(part,), suffix="", bias=f"{name}_bias")

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(
            f"{root}.self_attn", rope, bias=bias, window=windows[i], sinks=f"{root}.self_attn.sinks"
        )
        moe = MoeSpec(
            router=build.linear(build.hidden, (f"{root}.mlp.router", count), bias=True),
            up=experts(f"{root}.mlp.experts.gate_up_proj", build.hidden, 2 * inner, gates_first),
            down=experts(f"{root}.mlp.experts.down_proj", inner, build.hidden),
            top_k=top_k,
            renormalizes=True,  # a softmax of the chosen ones
            activation="swiglu_oai",
        )
        return build.pre_norm(root, attention, moe)

    return build.model(layer)
