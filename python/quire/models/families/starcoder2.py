"""StarCoder 2: LayerNorm and biases, an MLP without a gate, a window."""

from __future__ import annotations

from quire.models.config_reader import ConfigReader
from quire.models.families.builder import Builder
from quire.models.spec import LayerSpec, ModelSpec


def starcoder2(config: ConfigReader) -> ModelSpec:
    build = Builder(
        config,
        eps="norm_epsilon",
        default_eps=1e-5,
        norm_kind="layer",
        norm_bias=True,
        num_kv_heads=2,
        default_tied=True,
    )
    windows = build.windows([True] * build.num_layers)
    rope = build.rope()
    bias = config.flag("use_bias", True)
    activation = build.activation("hidden_act", "gelu_pytorch_tanh")

    def layer(i: int, root: str) -> LayerSpec:
        attention = build.attention(f"{root}.self_attn", rope, bias=bias, window=windows[i])
        return build.pre_norm(
            root, attention, build.plain_mlp(f"{root}.mlp", "c_fc", "c_proj", activation, bias=bias)
        )

    return build.model(layer)
