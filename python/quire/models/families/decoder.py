"""What Llama and its relatives share: one shape of layer, and Hugging Face's names of keys and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from quire.errors import describe
from quire.models.config_reader import ConfigReader
from quire.models.spec import (
    AttentionSpec,
    EmbeddingSpec,
    LayerSpec,
    LinearPart,
    LinearSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)

HEAD_DIMS = range(32, 257, 8)  # what the attention kernels take

# Far beyond every known model: a larger number is a mistake, and would cost memory before it is found.
_MAX_LAYERS = 1000
_MAX_HEADS = 1 << 14
_MAX_WIDTH = 1 << 20  # hidden_size, intermediate_size
_MAX_VOCABULARY = 1 << 24
_MAX_THETA = 1e15
_MAX_FACTOR = 1e6


def decoder(
    config: ConfigReader,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    has_qk_norm: bool = False,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    window: int | None = None,
    uses_window: bool = True,
) -> ModelSpec:
    """A family's model.

    num_kv_heads, head_dim, window (sliding_window), uses_window (use_sliding_window): what the family means
    where config.json has no such key; None: the number of query heads, hidden_size / heads, no window.
    """
    activation = config.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        config.refuse("hidden_act", activation, describe("silu"))
    hidden = config.count("hidden_size", most=_MAX_WIDTH)
    intermediate = config.count("intermediate_size", most=_MAX_WIDTH)
    eps = config.number("rms_norm_eps", 1e-6, most=1.0)
    q_heads = config.count("num_attention_heads", most=_MAX_HEADS)
    # null is the number of query heads
    default = q_heads if "num_key_value_heads" in config else num_kv_heads or q_heads
    kv_heads = config.count("num_key_value_heads", default, most=_MAX_HEADS)
    if q_heads % kv_heads:
        config.refuse("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({q_heads})")
    head_size = config.count("head_dim", head_dim or max(1, hidden // q_heads))
    if head_size not in HEAD_DIMS:
        allowed = f"a multiple of {HEAD_DIMS.step} in [{HEAD_DIMS.start}, {HEAD_DIMS.stop - 1}]"
        config.refuse("head_dim", head_size, allowed)
    max_positions = config.count("max_position_embeddings")
    _refuse_window(config, window, uses_window, max_positions)
    rope = _rope(config, max_positions)
    q_size, kv_size = q_heads * head_size, kv_heads * head_size

    def norm(name: str, size: int) -> NormSpec:
        return NormSpec(name=name, size=size, eps=eps)

    def attention(root: str) -> AttentionSpec:
        qkv = {f"{root}.q_proj": q_size, f"{root}.k_proj": kv_size, f"{root}.v_proj": kv_size}
        qk_norm = norm(f"{root}.q_norm", head_size), norm(f"{root}.k_norm", head_size)
        return AttentionSpec(
            num_q_heads=q_heads,
            num_kv_heads=kv_heads,
            head_dim=head_size,
            rope=rope,
            qkv=_linear(hidden, qkv, split="out", bias=qkv_bias),
            qk_norm=qk_norm if has_qk_norm else None,
            o=_linear(q_size, {f"{root}.o_proj": hidden}, split="in", bias=o_bias),
        )

    def mlp(root: str) -> MlpSpec:
        gate_up = {f"{root}.gate_proj": intermediate, f"{root}.up_proj": intermediate}
        return MlpSpec(
            gate_up=_linear(hidden, gate_up, split="out", bias=mlp_bias),
            down=_linear(intermediate, {f"{root}.down_proj": hidden}, split="in", bias=mlp_bias),
        )

    def layer(root: str) -> LayerSpec:
        return LayerSpec(
            input_norm=norm(f"{root}.input_layernorm", hidden),
            attention=attention(f"{root}.self_attn"),
            mlp_norm=norm(f"{root}.post_attention_layernorm", hidden),
            mlp=mlp(f"{root}.mlp"),
        )

    num_layers = config.count("num_hidden_layers", most=_MAX_LAYERS)
    vocab_size = config.count("vocab_size", most=_MAX_VOCABULARY)
    is_tied = config.flag("tie_word_embeddings", False)
    embedding = EmbeddingSpec(name="model.embed_tokens", vocab_size=vocab_size, hidden_size=hidden)
    head = embedding.name if is_tied else "lm_head"
    return ModelSpec(
        embedding=embedding,
        layers=tuple(layer(f"model.layers.{i}") for i in range(num_layers)),
        norm=norm("model.norm", hidden),
        head=_linear(hidden, {head: vocab_size}, split="out"),
        # Tables that we compute ourselves, and a tied head stored twice.
        ignored=("rotary_emb.inv_freq", "lm_head.weight") if is_tied else ("rotary_emb.inv_freq",),
    )


def _linear(
    in_size: int, parts: Mapping[str, int], *, split: Literal["out", "in"], bias: bool = False
) -> LinearSpec:
    """parts: name -> number of outputs."""
    stacked = tuple(LinearPart(name=name, out_size=out_size) for name, out_size in parts.items())
    return LinearSpec(in_size=in_size, parts=stacked, bias=bias, split=split)


def _refuse_window(config: ConfigReader, window: int | None, uses_window: bool, max_positions: int) -> None:
    """Refuse a sliding window, unless no context outgrows it."""
    if "sliding_window" in config:
        window = config.count("sliding_window") if config.value("sliding_window") is not None else None
    is_used = config.flag("use_sliding_window", uses_window)
    if is_used and window is not None and window < max_positions:
        allowed = f"null, or at least max_position_embeddings ({max_positions})"
        config.refuse("sliding_window", window, f"{allowed}; the kernels have no window")


def _rope(config: ConfigReader, max_positions: int) -> RopeSpec:
    """Both spellings: ``rope_theta`` beside ``rope_scaling``, or everything inside ``rope_parameters``."""
    key = "rope_scaling" if config.value("rope_parameters") in (None, {}) else "rope_parameters"
    scaling = config.inside(key)
    scaling.refuse_objects("one RoPE for all layers")
    theta = scaling.number(
        "rope_theta", config.number("rope_theta", 10000.0, most=_MAX_THETA), most=_MAX_THETA
    )
    kind_key = "rope_type" if "rope_type" in scaling else "type"
    kind = scaling.get(kind_key, str, "default")
    scaling.refuse_unread()
    if kind == "default":
        return RopeSpec(theta=theta)
    if kind == "linear":
        return RopeSpec(theta=theta, kind=kind, factor=scaling.number("factor", most=_MAX_FACTOR))
    if kind == "llama3":
        low = scaling.number("low_freq_factor", most=_MAX_FACTOR)
        high = scaling.number("high_freq_factor", most=_MAX_FACTOR)
        if high <= low:
            scaling.refuse("high_freq_factor", high, f"a number above low_freq_factor ({low})")
        return RopeSpec(
            theta=theta,
            kind=kind,
            factor=scaling.number("factor", most=_MAX_FACTOR),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=scaling.count("original_max_position_embeddings", max_positions),
        )
    return scaling.refuse(kind_key, kind, "default, linear, llama3")
