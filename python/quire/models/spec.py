"""What a model computes, as data: which tensors of the checkpoint meet in which operations.

`families/` writes a ModelSpec from config.json; `decoder.py` reads it. It knows no device, no rank and no
number format. Names are those of the checkpoint, without ".weight" and ".bias".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

# swiglu_oai: gpt-oss's, clamped (`ops.act_mul`).
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai"]
# What a projection is for: formats of weights treat the head and the routers of experts apart.
ProjectionKind = Literal["inner", "head", "router"]
# Which rows of a tensor of the checkpoint are meant, in this order; None: all of them, as they are.
Order = tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding: base wavelength and how it is stretched for long contexts (`rope.py`).

    rotary_dim: of each head so many dimensions are rotated; None: all, 0: none.
    attention_factor: what cosines and sines are multiplied by (yarn, longrope).
    """

    theta: float = 10000.0
    rotary_dim: int | None = None
    kind: Literal["default", "linear", "llama3", "yarn", "longrope"] = "default"
    factor: float = 1.0
    attention_factor: float = 1.0
    original_max_position_embeddings: int = 8192
    # llama3
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    # yarn
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncates: bool = True
    # longrope: a factor for each pair of dimensions, for contexts up to the original length and beyond it
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QueryScaling:
    """Queries are multiplied by 1 + beta * log(1 + position // original_max_position_embeddings)."""

    beta: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """One row of a table per token, times `scale`; plus the row of its position where a model learned those:
    row position + position_offset of `positions`."""

    name: str
    vocab_size: int
    hidden_size: int
    scale: float = 1.0
    positions: str | None = None
    num_positions: int = 0
    position_offset: int = 0


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """rms: x / sqrt(mean(x²) + eps) * weight. layer: the same of x - mean(x), plus a bias where there is one.

    weight_offset: what is added to the weight. rounds_once: a 16-bit rms norm is not rounded before the
    product with the weight. order: of weight and bias, for norms of queries and keys.
    """

    name: str
    size: int
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    has_bias: bool = False
    weight_offset: float = 0.0
    rounds_once: bool = False
    order: Order = None


@dataclass(frozen=True, kw_only=True)
class LinearPart:
    """A projection as the checkpoint has it. is_transposed: [in_size, out_size], as GPT-2's."""

    name: str
    out_size: int
    order: Order = None
    is_transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class LinearSpec:
    """y = x @ weight.T + bias. Projections that read the same input are one matrix: its parts, in this order.

    split: what tensor parallelism divides among ranks: every part's outputs, or the inputs, whose results are
    then to be added up; None: every rank has all of it.
    """

    in_size: int
    parts: tuple[LinearPart, ...]
    bias: bool
    split: Literal["out", "in"] | None

    @property
    def out_size(self) -> int:
        return sum(part.out_size for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """qkv, the norms of queries and keys where the model has them, RoPE, causal attention, o.

    qk_norm: of each head, or of all of a token's (then their size is that of all).
    scale: what scores are multiplied by; None: head_dim**-0.5.
    window: how many tokens one sees, itself included; None: all.
    soft_cap: scores become soft_cap * tanh(score / soft_cap).
    sinks: name of a score for each query head that takes part in the softmax without a value.
    """

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec
    qkv: LinearSpec  # queries, keys, values
    qk_norm: tuple[NormSpec, NormSpec] | None
    o: LinearSpec
    scale: float | None = None
    window: int | None = None
    soft_cap: float | None = None
    sinks: str | None = None
    query_scaling: QueryScaling | None = None

    @property
    def q_size(self) -> int:
        return self.num_q_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """down(activation(gate) * up), or down(activation(up)) without a gate."""

    up: LinearSpec  # gate and up, or up alone
    down: LinearSpec
    activation: Activation = "silu"
    is_gated: bool = True

    @property
    def intermediate_size(self) -> int:
        return self.down.in_size


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec:
    """One projection of all experts, [num_experts, out_size, in_size].

    parts: what reads the same input. A name with {} is of one expert, any other is of all: those are
    [num_experts, out_size, in_size] in the checkpoint too, or [num_experts, in_size, out_size] if transposed.
    suffix: of the tensors' names. bias: name of the biases, [num_experts, out_size], in the part's order.
    """

    num_experts: int
    in_size: int
    parts: tuple[LinearPart, ...]
    suffix: str = ".weight"
    bias: str | None = None

    @property
    def out_size(self) -> int:
        return sum(part.out_size for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """Each token goes through the `top_k` experts that its router scores highest; their results are added up
    with its weights.

    scoring: what makes scores of the router's logits. renormalizes: the scores of those chosen are divided by
    their sum. scale: then multiplied by it.
    selection_bias: name of what is added to the scores for the choice alone.
    num_groups, top_k_groups: experts are chosen from the best groups alone, scored by their two best experts.
    shared: an MLP that every token goes through; shared_gate: times the sigmoid of this.
    """

    router: LinearSpec
    up: ExpertsSpec  # gate and up
    down: ExpertsSpec
    top_k: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    renormalizes: bool = False
    scale: float = 1.0
    selection_bias: str | None = None
    num_groups: int = 1
    top_k_groups: int = 1
    shared: MlpSpec | None = None
    shared_gate: LinearSpec | None = None
    activation: Activation = "silu"


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """x += attention(input_norm(x)); x += mlp(mlp_norm(x)).

    input_norm, mlp_norm: None where a block reads x as it is.
    attention_out_norm, mlp_out_norm: of what a block adds.
    is_parallel: both blocks read the layer's input: x += attention(input_norm(x)) + mlp(mlp_norm(x)).
    residual_scale: what a block adds is multiplied by it.
    """

    input_norm: NormSpec | None
    attention: AttentionSpec
    mlp_norm: NormSpec | None
    mlp: MlpSpec | MoeSpec
    attention_out_norm: NormSpec | None = None
    mlp_out_norm: NormSpec | None = None
    is_parallel: bool = False
    residual_scale: float = 1.0

    @property
    def norms(self) -> tuple[NormSpec, ...]:
        """Without those of queries and keys; a norm of both blocks is there once."""
        norms = (self.input_norm, self.mlp_norm, self.attention_out_norm, self.mlp_out_norm)
        return tuple(dict.fromkeys(norm for norm in norms if norm is not None))

    @property
    def projections(self) -> tuple[LinearSpec | ExpertsSpec, ...]:
        attention, mlp = self.attention, self.mlp
        if isinstance(mlp, MlpSpec):
            return attention.qkv, attention.o, mlp.up, mlp.down
        shared = (mlp.shared.up, mlp.shared.down) if mlp.shared else ()
        gate = (mlp.shared_gate,) if mlp.shared_gate else ()
        return attention.qkv, attention.o, mlp.router, *shared, *gate, mlp.up, mlp.down


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Embedding, layers, norm, head. All attentions have the same sizes, since the KV cache has one shape for
    all layers, and the same scale, cap and scaling of queries.

    logit_scale, logit_cap: logits are multiplied by it, then become cap * tanh(logit / cap).
    """

    embedding: EmbeddingSpec
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    head: LinearSpec  # a tied one has the embedding's name
    max_positions: int  # of the longest context
    # Patterns (* is anything) of the names of tensors that a checkpoint may carry and nothing reads.
    ignored: tuple[str, ...] = ()
    logit_scale: float = 1.0
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        kinds = {
            (a.q_size, a.kv_size, a.head_dim, a.scale, a.soft_cap, a.query_scaling)
            for a in (layer.attention for layer in self.layers)
        }
        if len(kinds) != 1:
            raise ValueError(f"layers: got {len(kinds)} kinds of attention; allowed: 1")
        moes = [layer.mlp for layer in self.layers if isinstance(layer.mlp, MoeSpec)]
        if len({(moe.up.num_experts, moe.down.in_size, moe.top_k) for moe in moes}) > 1:
            raise ValueError("layers: got several kinds of experts; allowed: 1")

    @property
    def hidden_size(self) -> int:
        return self.embedding.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.embedding.vocab_size

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def attention(self) -> AttentionSpec:
        """A layer's attention, for what all layers share."""
        return self.layers[0].attention

    @property
    def mlps(self) -> tuple[MlpSpec, ...]:
        """All that are computed for every token."""
        blocks = [layer.mlp if isinstance(layer.mlp, MlpSpec) else layer.mlp.shared for layer in self.layers]
        return tuple(block for block in blocks if block is not None)

    @property
    def moe(self) -> MoeSpec | None:
        """A layer's experts, for the sizes that all layers with experts share."""
        return next((layer.mlp for layer in self.layers if isinstance(layer.mlp, MoeSpec)), None)

    @cached_property
    def kinds(self) -> Mapping[str, ProjectionKind]:
        """By a projection's name: the kind, of those that are not inner ones."""
        kinds: dict[str, ProjectionKind] = {part.name: "head" for part in self.head.parts}
        for layer in self.layers:
            if isinstance(layer.mlp, MoeSpec):
                gates = (layer.mlp.router, layer.mlp.shared_gate)
                kinds |= {part.name: "router" for gate in gates if gate for part in gate.parts}
        return kinds

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct ones."""
        return tuple(dict.fromkeys(layer.attention.window for layer in self.layers))

    @property
    def kv_window(self) -> int:
        """How many tokens a token sees in any layer; 0: all."""
        windows = [layer.attention.window for layer in self.layers]
        return 0 if None in windows else max(window for window in windows if window is not None)

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The distinct ones."""
        return tuple(dict.fromkeys(layer.attention.rope for layer in self.layers))

    @property
    def next_norms(self) -> tuple[NormSpec | None, ...]:
        """What follows each layer: the next layer's first norm, or the model's last."""
        return (*(layer.input_norm for layer in self.layers[1:]), self.norm)

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding's table."""
        return self.head.parts[0].name == self.embedding.name
