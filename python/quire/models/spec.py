"""What a model computes, as data: which tensors of the checkpoint meet in which operations.

`families/` writes a ModelSpec from config.json; the executors in `cpu/` and `cuda/` read it. It knows no
device, no rank and no number format. Names are those of the checkpoint, without ".weight" and ".bias".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding: base wavelength and how it is stretched for long contexts.

    ``kind`` "default" uses theta only, "linear" divides all frequencies by ``factor``, "llama3" divides the
    low ones by ``factor``, keeps the high ones and blends between the two limits.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """One row of a table per token."""

    name: str
    vocab_size: int
    hidden_size: int


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """x / sqrt(mean(x²) + eps) * weight."""

    name: str
    size: int
    eps: float


@dataclass(frozen=True, kw_only=True)
class LinearPart:
    """A projection as the checkpoint has it."""

    name: str
    out_size: int


@dataclass(frozen=True, kw_only=True)
class LinearSpec:
    """y = x @ weight.T + bias. Projections that read the same input are one matrix: its parts, in this order.

    split: what tensor parallelism divides among ranks: every part's outputs, or the inputs, whose results are
    then to be added up.
    """

    in_size: int
    parts: tuple[LinearPart, ...]
    bias: bool
    split: Literal["out", "in"]

    @property
    def out_size(self) -> int:
        return sum(part.out_size for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """qkv, the norms of each query and key head where the model has them, RoPE, causal attention with scores
    scaled by head_dim**-0.5, o."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec
    qkv: LinearSpec  # queries, keys, values
    qk_norm: tuple[NormSpec, NormSpec] | None  # of head_dim, with one eps
    o: LinearSpec

    @property
    def q_size(self) -> int:
        return self.num_q_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """down(SiLU(gate) * up)."""

    gate_up: LinearSpec  # gate, up
    down: LinearSpec

    @property
    def intermediate_size(self) -> int:
        return self.down.in_size


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """x += attention(input_norm(x)); x += mlp(mlp_norm(x))."""

    input_norm: NormSpec
    attention: AttentionSpec
    mlp_norm: NormSpec
    mlp: MlpSpec


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Embedding, layers, norm, head. The sizes of all layers are equal: the KV cache and the buffers of a
    step have one shape for all of them."""

    embedding: EmbeddingSpec
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    head: LinearSpec  # a tied one has the embedding's name
    ignored: tuple[str, ...]  # ends of the names of tensors that a checkpoint may carry and nothing reads

    def __post_init__(self) -> None:
        sizes = {
            (
                layer.attention.q_size,
                layer.attention.kv_size,
                layer.attention.head_dim,
                layer.mlp.down.in_size,
            )
            for layer in self.layers
        }
        if len(sizes) != 1:
            raise ValueError(f"layers: got {len(sizes)} kinds of sizes; allowed: 1")

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
        """A layer's attention, for the sizes that all layers share."""
        return self.layers[0].attention

    @property
    def mlp(self) -> MlpSpec:
        """A layer's MLP, for the sizes that all layers share."""
        return self.layers[0].mlp

    @property
    def next_norms(self) -> tuple[NormSpec, ...]:
        """What follows each layer: the next layer's first norm, or the model's last."""
        return (*(layer.input_norm for layer in self.layers[1:]), self.norm)

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding's table."""
        return self.head.parts[0].name == self.embedding.name
