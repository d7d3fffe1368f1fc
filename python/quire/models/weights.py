"""The weights of a Llama model: one matrix per group of projections that read the same input, on any device.

The device decides what a projection is (`make_linear`); where each tensor of a checkpoint belongs is the same
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from quire.models.config import ModelConfig


class Projection(Protocol):
    """What holds a projection's parameters until the checkpoint has filled them."""

    weight: Tensor  # [out_size, in_size], as in checkpoints
    bias: Tensor | None  # [out_size]


LinearT = TypeVar("LinearT", bound=Projection)
GateUpT = TypeVar("GateUpT", bound=Projection)


@dataclass(frozen=True, kw_only=True)
class LayerWeights(Generic[LinearT, GateUpT]):
    """One layer."""

    input_norm: Tensor  # [hidden_size]
    qkv: LinearT  # hidden_size -> q_size + 2 * kv_size
    o: LinearT  # q_size -> hidden_size
    mlp_norm: Tensor  # [hidden_size]
    gate_up: GateUpT  # hidden_size -> 2 * intermediate_size
    down: LinearT  # intermediate_size -> hidden_size


class _Shape:
    """A projection that has sizes and no memory."""

    def __init__(self, in_size: int, out_size: int, bias: bool) -> None:
        self.weight = torch.empty(out_size, in_size, device="meta")
        self.bias = torch.empty(out_size, device="meta") if bias else None


def checkpoint_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a checkpoint of this model has; takes no memory for them."""
    model = LlamaWeights(config, torch.float32, torch.device("meta"), _Shape, _Shape)
    return {name: tuple(tensor.shape) for name, tensor in model.destinations().items()}


class LlamaWeights(Generic[LinearT, GateUpT]):
    """Weights of one model.

    make_linear, make_gate_up: (in_size, out_size, has_bias) -> an empty projection.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        make_linear: Callable[[int, int, bool], LinearT],
        make_gate_up: Callable[[int, int, bool], GateUpT],
    ) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        self.config = config
        self.dtype = dtype
        hidden, qkv = config.hidden_size, config.q_size + 2 * config.kv_size
        intermediate = config.intermediate_size
        attention_bias, mlp_bias = config.attention_bias, config.mlp_bias
        self.layers = [
            LayerWeights(
                input_norm=empty(hidden),
                qkv=make_linear(hidden, qkv, attention_bias),
                o=make_linear(config.q_size, hidden, attention_bias),
                mlp_norm=empty(hidden),
                gate_up=make_gate_up(hidden, 2 * intermediate, mlp_bias),
                down=make_linear(intermediate, hidden, mlp_bias),
            )
            for _ in range(config.num_layers)
        ]
        self.norm = empty(hidden)
        self.head = make_linear(hidden, config.vocab_size, False)
        # [vocab_size, hidden_size]; a tied head is the same tensor, until its GEMM wants another layout
        tied = config.tie_word_embeddings
        self.embedding = self.head.weight if tied else empty(config.vocab_size, hidden)

    @staticmethod
    def num_bytes(config: ModelConfig, itemsize: int, *, shares_tied_head: bool = False) -> int:
        """What the weights will take. A tied head is one tensor or, where its GEMM wants another layout,
        two."""
        hidden, qkv = config.hidden_size, config.q_size + 2 * config.kv_size
        gate_up = 2 * config.intermediate_size
        layer = 2 * hidden + hidden * (qkv + config.q_size + gate_up + config.intermediate_size)
        layer += (qkv + hidden) * config.attention_bias + (gate_up + hidden) * config.mlp_bias
        num_tables = 1 if config.tie_word_embeddings and shares_tied_head else 2
        return (config.num_layers * layer + num_tables * config.vocab_size * hidden + hidden) * itemsize

    def destinations(self) -> dict[str, Tensor]:
        """Name in a Hugging Face checkpoint -> the part of our weights that it fills."""
        config = self.config
        places = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not config.tie_word_embeddings:
            places["lm_head.weight"] = self.head.weight
        qkv_sizes = [config.q_size, config.kv_size, config.kv_size]
        gate_up_sizes = [config.intermediate_size, config.intermediate_size]
        for i, layer in enumerate(self.layers):
            root = f"model.layers.{i}."
            places[f"{root}input_layernorm.weight"] = layer.input_norm
            places[f"{root}post_attention_layernorm.weight"] = layer.mlp_norm
            for linear, names, sizes in (
                (layer.qkv, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), qkv_sizes),
                (layer.o, ("self_attn.o_proj",), [config.hidden_size]),
                (layer.gate_up, ("mlp.gate_proj", "mlp.up_proj"), gate_up_sizes),
                (layer.down, ("mlp.down_proj",), [config.hidden_size]),
            ):
                for kind, tensor in (("weight", linear.weight), ("bias", linear.bias)):
                    if tensor is not None:
                        parts = torch.split(tensor, sizes)
                        places |= {f"{root}{name}.{kind}": p for name, p in zip(names, parts, strict=True)}
        return places
