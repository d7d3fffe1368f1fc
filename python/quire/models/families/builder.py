"""What most families share: sizes by Hugging Face's keys, and a layer's parts by the names of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from quire.errors import describe
from quire.models.config_reader import ConfigReader
from quire.models.families.rope_config import ALIASES, KINDS, read_rope
from quire.models.rope import rotary_order
from quire.models.spec import (
    Activation,
    AttentionSpec,
    EmbeddingSpec,
    ExpertsSpec,
    LayerSpec,
    LinearPart,
    LinearSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    Order,
    QueryScaling,
    RopeSpec,
)

HEAD_DIMS = range(32, 257, 8)  # what the attention kernels take

# Far beyond every known model: a larger number is a mistake, and would cost memory before it is found.
_MAX_LAYERS = 1000
_MAX_HEADS = 1 << 10
_MAX_WIDTH = 1 << 20  # hidden_size, intermediate_size
_MAX_VOCABULARY = 1 << 24
_MAX_EXPERTS = 1 << 12
_MAX_EXPERTS_IN_ALL = 1 << 17  # of all layers
_MAX_SCALE = 1e6
MAX_POSITIONS = 1 << 30

# By transformers' names.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


class Builder:
    """A model's sizes, read from config.json, and its parts."""

    def __init__(
        self,
        config: ConfigReader,
        *,
        root: str = "model",
        eps: str = "rms_norm_eps",
        default_eps: float = 1e-6,
        norm_kind: Literal["rms", "layer"] = "rms",
        norm_bias: bool = False,
        norm_offset: float = 0.0,
        norm_rounds_once: bool = False,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        default_tied: bool = False,
        has_intermediate_size: bool = True,
    ) -> None:
        """root: what names of tensors begin with. eps: the norms' key in config.json.

        num_kv_heads, head_dim: what the family means where config.json has no such key; None: the number of
        query heads, hidden_size / heads.
        """
        self.config = config
        self.root = root
        self._eps = config.number(eps, default_eps, most=1.0)
        self._norm_kind = norm_kind
        self._norm_bias = norm_bias
        self._norm_offset = norm_offset
        self._norm_rounds_once = norm_rounds_once
        self.hidden = config.count("hidden_size", most=_MAX_WIDTH)
        self.intermediate = config.count("intermediate_size", most=_MAX_WIDTH) if has_intermediate_size else 0
        self.q_heads = config.count("num_attention_heads", most=_MAX_HEADS)
        # null is the number of query heads
        default = self.q_heads if "num_key_value_heads" in config else num_kv_heads or self.q_heads
        self.kv_heads = config.count("num_key_value_heads", default, most=_MAX_HEADS)
        if self.q_heads % self.kv_heads:
            allowed = f"a divisor of num_attention_heads ({self.q_heads})"
            config.refuse("num_key_value_heads", self.kv_heads, allowed)
        self.head_dim = config.count("head_dim", head_dim or max(1, self.hidden // self.q_heads))
        if self.head_dim not in HEAD_DIMS:
            allowed = f"a multiple of {HEAD_DIMS.step} in [{HEAD_DIMS.start}, {HEAD_DIMS.stop - 1}]"
            config.refuse("head_dim", self.head_dim, allowed)
        self.q_size, self.kv_size = self.q_heads * self.head_dim, self.kv_heads * self.head_dim
        self.max_positions = config.count("max_position_embeddings", most=MAX_POSITIONS)
        self.num_layers = config.count("num_hidden_layers", most=_MAX_LAYERS)
        self.vocab_size = config.count("vocab_size", most=_MAX_VOCABULARY)
        self.is_tied = config.flag("tie_word_embeddings", default_tied)

    def rope(
        self,
        layer_type: str | None = None,
        *,
        theta: float = 10000.0,
        partial: float | None = None,
        has_scaling: bool = True,
        own: Sequence[str] = (),
        kinds: Sequence[str] = KINDS,
        aliases: Mapping[str, str] = ALIASES,
    ) -> RopeSpec:
        """RoPE as config.json has it. layer_type: of those layers, where config.json has one for each type.
        has_scaling: whether `rope_scaling` is of these layers too. own: keys beside RoPE's that the family
        reads. kinds: those that it has; aliases: what it calls them beside.
        theta, partial: where it says nothing; partial None: the family has no such key."""
        return read_rope(
            self.config,
            self.head_dim,
            self.max_positions,
            layer_type,
            theta=theta,
            partial=partial,
            has_scaling=has_scaling,
            own=own,
            kinds=kinds,
            aliases=aliases,
        )

    def per_layer(self, key: str, allowed: Sequence[object], default: Sequence[object]) -> list[object]:
        """A list with a value for each layer; `default` where there is none."""
        values = self.config.value(key)
        if values is None:
            return list(default)
        if (
            not isinstance(values, list)
            or len(values) != self.num_layers
            or any(value not in allowed for value in values)
        ):
            shown = ", ".join(map(describe, allowed))
            self.config.refuse(key, values, f"a list of {self.num_layers}, each one of {shown}")
        return values

    def windows(self, is_sliding: Sequence[bool], default: int | None = None) -> list[int | None]:
        """sliding_window in those layers, unless no context outgrows it."""
        window = self.config.value("sliding_window")
        if "sliding_window" not in self.config:
            window = default
        if window is not None and any(is_sliding):
            window = self.config.count("sliding_window", *([default] if default else []), most=1 << 30)
            if window >= self.max_positions:
                window = None
        return [window if slides else None for slides in is_sliding]

    def sliding_layers(self, default: Sequence[bool]) -> list[bool]:
        """Which layers are of type sliding_attention, as `layer_types` says."""
        allowed = ("full_attention", "sliding_attention")
        types = self.per_layer("layer_types", allowed, [allowed[slides] for slides in default])
        return [kind == "sliding_attention" for kind in types]

    def multiplier(self, key: str, default: float = 1.0) -> float:
        return self.config.number(key, default, most=_MAX_SCALE)

    def activation(self, key: str = "hidden_act", default: str = "silu") -> Activation:
        given = self.config.get(key, str, default)
        if given not in _ACTIVATIONS:
            self.config.refuse(key, given, ", ".join(map(describe, _ACTIVATIONS)))
        return _ACTIVATIONS[given]

    def norm(self, name: str, size: int | None = None, order: Order = None) -> NormSpec:
        return NormSpec(
            name=name,
            size=size or self.hidden,
            eps=self._eps,
            kind=self._norm_kind,
            has_bias=self._norm_bias,
            weight_offset=self._norm_offset,
            rounds_once=self._norm_rounds_once,
            order=order,
        )

    def linear(
        self,
        in_size: int,
        *parts: tuple[str, int] | LinearPart,
        split: Literal["out", "in"] | None = None,
        bias: bool = False,
    ) -> LinearSpec:
        """parts: name, number of outputs."""
        made = (
            part if isinstance(part, LinearPart) else LinearPart(name=part[0], out_size=part[1])
            for part in parts
        )
        return LinearSpec(in_size=in_size, parts=tuple(made), bias=bias, split=split)

    def attention(
        self,
        root: str,
        rope: RopeSpec,
        *,
        qkv: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
        o: str = "o_proj",
        bias: bool = False,
        o_bias: bool | None = None,
        qk_norm: Literal["head", "row"] | None = None,
        qk_norm_names: tuple[str, str] = ("q_norm", "k_norm"),
        is_interleaved: bool = False,
        scale: float | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: str | None = None,
        query_scaling: QueryScaling | None = None,
    ) -> AttentionSpec:
        """qkv: three names, or one of all. qk_norm: of each head, or of all of a token's.
        is_interleaved: RoPE rotates dimensions 2 i and 2 i + 1 of a head."""
        rotary_dim = self.head_dim if rope.rotary_dim is None else rope.rotary_dim
        head = rotary_order(self.head_dim, rotary_dim, is_interleaved=is_interleaved)

        def order(num_heads: int) -> Order:
            """Of the rows of so many heads."""
            return head and _rows_of_heads(num_heads, self.head_dim, head)

        q_order, k_order = order(self.q_heads), order(self.kv_heads)
        if len(qkv) == 1:
            fused = None
            if q_order is not None and k_order is not None:
                rest = range(self.q_size + self.kv_size, self.q_size + 2 * self.kv_size)
                fused = (*q_order, *(self.q_size + row for row in k_order), *rest)
            parts = [(qkv[0], self.q_size + 2 * self.kv_size, fused)]
        else:
            parts = [
                (qkv[0], self.q_size, q_order),
                (qkv[1], self.kv_size, k_order),
                (qkv[2], self.kv_size, None),
            ]
        norms = None
        if qk_norm is not None:
            sizes = (self.head_dim, self.head_dim) if qk_norm == "head" else (self.q_size, self.kv_size)
            orders = (head, head) if qk_norm == "head" else (q_order, k_order)
            q_norm, k_norm = (
                self.norm(f"{root}.{name}", size, order)
                for name, size, order in zip(qk_norm_names, sizes, orders, strict=True)
            )
            norms = q_norm, k_norm
        return AttentionSpec(
            num_q_heads=self.q_heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            rope=rope,
            qkv=self.linear(
                self.hidden,
                *(LinearPart(name=f"{root}.{n}", out_size=size, order=order) for n, size, order in parts),
                split="out",
                bias=bias,
            ),
            qk_norm=norms,
            o=self.linear(
                self.q_size,
                (f"{root}.{o}", self.hidden),
                split="in",
                bias=bias if o_bias is None else o_bias,
            ),
            scale=scale,
            window=window,
            soft_cap=soft_cap,
            sinks=sinks,
            query_scaling=query_scaling,
        )

    def mlp(
        self,
        root: str,
        *,
        gate_up: Sequence[str] = ("gate_proj", "up_proj"),
        down: str = "down_proj",
        size: int | None = None,
        activation: Activation = "silu",
        bias: bool = False,
    ) -> MlpSpec:
        """With a gate. gate_up: two names, or one of both."""
        inner = size or self.intermediate
        widths = [inner, inner] if len(gate_up) == 2 else [2 * inner]
        parts = [(f"{root}.{name}", width) for name, width in zip(gate_up, widths, strict=True)]
        return MlpSpec(
            up=self.linear(self.hidden, *parts, split="out", bias=bias),
            down=self.linear(inner, (f"{root}.{down}", self.hidden), split="in", bias=bias),
            activation=activation,
        )

    def plain_mlp(self, root: str, up: str, down: str, activation: Activation, *, bias: bool) -> MlpSpec:
        """Without a gate."""
        return MlpSpec(
            up=self.linear(self.hidden, (f"{root}.{up}", self.intermediate), split="out", bias=bias),
            down=self.linear(self.intermediate, (f"{root}.{down}", self.hidden), split="in", bias=bias),
            activation=activation,
            is_gated=False,
        )

    def moe(
        self,
        root: str,
        *,
        num_experts: str = "num_experts",
        router: str = "gate",
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        size: int | None = None,
        scoring: Literal["softmax", "sigmoid"] = "softmax",
        renormalizes: bool = False,
        shared: MlpSpec | None = None,
        shared_gate: str | None = None,
    ) -> MoeSpec:
        """Experts whose projections are tensors of their own."""
        count, top_k = self.expert_counts(num_experts)
        inner = size or self.intermediate
        gate, up, down = (f"{root}.experts.{{}}.{name}" for name in names)

        def experts(in_size: int, *parts: tuple[str, int]) -> ExpertsSpec:
            made = tuple(LinearPart(name=name, out_size=out_size) for name, out_size in parts)
            return ExpertsSpec(num_experts=count, in_size=in_size, parts=made)

        return MoeSpec(
            router=self.linear(self.hidden, (f"{root}.{router}", count)),
            up=experts(self.hidden, (gate, inner), (up, inner)),
            down=experts(inner, (down, self.hidden)),
            top_k=top_k,
            scoring=scoring,
            renormalizes=renormalizes,
            shared=shared,
            shared_gate=self.linear(self.hidden, (f"{root}.{shared_gate}", 1)) if shared_gate else None,
            activation=self.activation(),
        )

    def expert_counts(self, key: str) -> tuple[int, int]:
        """How many there are, and how many a token goes through."""
        # Newer versions of transformers save it so, whatever the family calls it.
        if key not in self.config and "num_local_experts" in self.config:
            key = "num_local_experts"
        count = self.config.count(key, most=_MAX_EXPERTS)
        top_k = self.config.count("num_experts_per_tok", most=_MAX_EXPERTS)
        if top_k > count:
            self.config.refuse("num_experts_per_tok", top_k, f"at most {key} ({count})")
        if count * self.num_layers > _MAX_EXPERTS_IN_ALL:
            allowed = f"at most {_MAX_EXPERTS_IN_ALL // self.num_layers} with {self.num_layers} layers"
            self.config.refuse(key, count, allowed)
        return count, top_k

    def pre_norm(
        self, root: str, attention: AttentionSpec, mlp: MlpSpec | MoeSpec, *, residual_scale: float = 1.0
    ) -> LayerSpec:
        """x += attention(norm(x)); x += mlp(norm(x))."""
        return LayerSpec(
            input_norm=self.norm(f"{root}.input_layernorm"),
            attention=attention,
            mlp_norm=self.norm(f"{root}.post_attention_layernorm"),
            mlp=mlp,
            residual_scale=residual_scale,
        )

    def model(
        self,
        layer: Callable[[int, str], LayerSpec],
        *,
        embedding: str = "embed_tokens",
        norm: str = "norm",
        head: str = "lm_head",
        head_bias: bool = False,
        embedding_scale: float = 1.0,
        logit_scale: float = 1.0,
        logit_cap: float | None = None,
        ignored: tuple[str, ...] = (),
    ) -> ModelSpec:
        """layer: from its number and what names of its tensors begin with. ignored: see ModelSpec."""
        table = EmbeddingSpec(
            name=f"{self.root}.{embedding}",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden,
            scale=embedding_scale,
        )
        head_name = table.name if self.is_tied else head
        # Tables that we compute ourselves, and a tied head stored twice.
        ignored = ("*rotary_emb.inv_freq", *([f"{head}.weight"] if self.is_tied else ()), *ignored)
        return ModelSpec(
            embedding=table,
            layers=tuple(layer(i, f"{self.root}.layers.{i}") for i in range(self.num_layers)),
            norm=self.norm(f"{self.root}.{norm}"),
            head=self.linear(self.hidden, (head_name, self.vocab_size), split="out", bias=head_bias),
            max_positions=self.max_positions,
            ignored=ignored,
            logit_scale=logit_scale,
            logit_cap=logit_cap,
        )


@lru_cache(maxsize=8)
def _rows_of_heads(num_heads: int, head_dim: int, head: tuple[int, ...]) -> tuple[int, ...]:
    """One tuple for all layers, since it has an element for each row."""
    return tuple(h * head_dim + row for h in range(num_heads) for row in head)
