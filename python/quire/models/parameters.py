"""The parameters of a model, in one table made from its spec: what the memory ledger counts, what a
checkpoint must have, where the loader puts it, and what tensor parallelism divides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quire.models.formats.kv_scales import kv_scale_parameters
from quire.models.formats.plain import PLAIN, PLAIN_STORAGE
from quire.models.formats.projections import expert_parameters, linear_parameters
from quire.models.formats.quantization import Quantization
from quire.models.norm import Norm
from quire.models.parameter import Parameter, Parameters, stored_as_is
from quire.models.sources import Place, Stored
from quire.models.spec import (
    AttentionSpec,
    ExpertsSpec,
    LayerSpec,
    LinearSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
)
from quire.models.weight_formats import Storage, WeightFormat
from quire.ops import QkNorm


@dataclass(frozen=True, kw_only=True)
class ParameterTable:
    """All parameters of a model. dtype: of activations, and of all that is not quantised. device: its kernels
    decide how weights lie there."""

    spec: ModelSpec
    quantization: Quantization
    dtype: torch.dtype
    device: torch.device

    def __iter__(self) -> Iterator[Parameters]:
        """In the order of the checkpoint. A tied head's weight is the embedding's, and comes twice."""
        return iter(self._groups)

    @cached_property
    def _groups(self) -> tuple[Parameters, ...]:
        """Made once: with experts they are many."""
        return tuple(self._make_groups())

    def _make_groups(self) -> Iterator[Parameters]:
        spec = self.spec
        yield self.embedding()
        yield self.positions()
        yield self.norm(spec.norm)
        yield self.linear(spec.head)
        for layer in spec.layers:
            yield from self._layer(layer)

    def _layer(self, layer: LayerSpec) -> Iterator[Parameters]:
        attention = layer.attention
        for norm in (*layer.norms, *(attention.qk_norm or ())):
            yield self.norm(norm)
        yield self.sinks(attention)
        if isinstance(layer.mlp, MoeSpec):
            yield self.selection_bias(layer.mlp)
        for projection in layer.projections:
            yield self.experts(projection) if isinstance(projection, ExpertsSpec) else self.linear(projection)

    def embedding(self) -> Parameters:
        table = self.spec.embedding
        shape = (table.vocab_size, table.hidden_size)
        return stored_as_is({"weight": (f"{table.name}.weight", shape)}, self.dtype, split_axis=0)

    def positions(self) -> Parameters:
        """Learned positions; nothing where a model has none."""
        table = self.spec.embedding
        shape = (table.num_positions, table.hidden_size)
        return stored_as_is(
            {"weight": (f"{table.positions}.weight", shape)} if table.positions else {}, self.dtype
        )

    def norm(self, norm: NormSpec) -> Parameters:
        roles = ("weight", "bias") if norm.has_bias else ("weight",)
        vectors = {role: (f"{norm.name}.{role}", (norm.size,)) for role in roles}
        return stored_as_is(vectors, self.dtype, order=norm.order)

    def linear(self, linear: LinearSpec) -> Parameters:
        return linear_parameters(linear, self.format_of(linear), self.storage_of, self.dtype)

    def experts(self, experts: ExpertsSpec) -> Parameters:
        return expert_parameters(experts, self.format_of(experts), self.storage_of, self.dtype)

    def sinks(self, attention: AttentionSpec) -> Parameters:
        vectors = {"sinks": (attention.sinks, (attention.num_q_heads,))} if attention.sinks else {}
        return stored_as_is(vectors, torch.float32)

    def selection_bias(self, moe: MoeSpec) -> Parameters:
        """Full precision: it decides between experts."""
        vectors = {"bias": (moe.selection_bias, (moe.up.num_experts,))} if moe.selection_bias else {}
        return stored_as_is(vectors, torch.float32)

    def format_of(self, projection: LinearSpec | ExpertsSpec) -> WeightFormat:
        """How its weight lies on the device: in the checkpoint's format if there are kernels for it and all
        parts have it."""
        formats = {self.storage_of(part.name).format for part in projection.parts}
        if self.device.type == "cuda" and len(formats) == 1:
            (found,) = formats
            if found.has_kernels(projection):
                return found
        return PLAIN

    @property
    def takes_quantized(self) -> bool:
        """Whether some projection may take quantised rows of activations."""
        linears = [linear for layer in self.spec.layers for linear in layer.projections]
        return any(self.format_of(linear).takes_quantized for linear in (self.spec.head, *linears))

    def storage_of(self, name: str) -> Storage:
        """How the checkpoint stores the projection of this name."""
        if name == self.spec.embedding.name:  # a tied head
            return PLAIN_STORAGE
        return self.quantization.storage_of(name, self.spec.kinds.get(name, "inner"))

    def kv_scales(self) -> Iterator[Parameters]:
        """Numbers for the host, apart from what is on the device, for each layer; none where weights are not
        quantised."""
        if self.quantization.method is not None:
            yield from (kv_scale_parameters(layer.attention) for layer in self.spec.layers)

    @property
    def num_bytes(self) -> int:
        unique = {parameter for group in self for parameter in group.tensors.values()}
        return sum(parameter.num_bytes for parameter in unique)

    @property
    def stored(self) -> dict[str, Stored]:
        """By name: every tensor that a checkpoint of this model has."""
        groups = (*self, *self.kv_scales())
        return {each.name: each for group in groups for source in group.sources for each in source.stored}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Patterns of names that a checkpoint may have and nothing reads."""
        return (*self.spec.ignored, *self.quantization.ignored)


class Weights:
    """The parameters of a model on one device, empty at first. A checkpoint fills `places()`, then an
    executor takes the tensors, each as often as the table has it. A tensor is forgotten with its last use, so
    that an executor that lays weights out anew never has all of them twice."""

    def __init__(self, table: ParameterTable, device: torch.device) -> None:
        self.table = table
        self._uses = Counter(parameter for group in table for parameter in group.tensors.values())
        self._tensors = {
            parameter.name: torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            for parameter in self._uses
        }

        self._kv_scales = {
            parameter.name: torch.ones(parameter.shape, dtype=parameter.dtype)
            for group in table.kv_scales()
            for parameter in group.tensors.values()
        }

    def places(self) -> dict[str, Place]:
        """By the sources' names: the parts of tensors that they fill."""
        places: dict[str, Place] = {}
        for group in self.table:
            places |= group.places(self._tensors)
        for group in self.table.kv_scales():
            places |= group.places(self._kv_scales)
        return places

    def embedding(self) -> Tensor:
        return self._take(self.table.embedding())["weight"]

    def positions(self) -> Tensor | None:
        """Row i is that of position i."""
        table = self._take(self.table.positions()).get("weight")
        return None if table is None else table[self.table.spec.embedding.position_offset :]

    def norm(self, norm: NormSpec) -> Norm:
        return Norm(norm, **self._take(self.table.norm(norm)))

    def qk_norm(self, attention: AttentionSpec) -> QkNorm | None:
        """Of each head."""
        if attention.qk_norm is None or attention.qk_norm[0].size != attention.head_dim:
            return None
        q, k = map(self.norm, attention.qk_norm)
        return QkNorm(q.weight, k.weight, q.spec.eps, q.spec.weight_offset, q.spec.rounds_once)

    def linear(self, linear: LinearSpec) -> dict[str, Tensor]:
        return self._take(self.table.linear(linear))

    def experts(self, experts: ExpertsSpec) -> dict[str, Tensor]:
        return self._take(self.table.experts(experts))

    def sinks(self, attention: AttentionSpec) -> Tensor | None:
        return self._take(self.table.sinks(attention)).get("sinks")

    def kv_scales(self) -> list[tuple[float, float]]:
        """What the keys and the values of each layer in a float8 KV cache are to be multiplied by."""
        scales = [
            (float(self._kv_scales[group.tensors["k"].name]), float(self._kv_scales[group.tensors["v"].name]))
            for group in self.table.kv_scales()
        ]
        return scales or [(1.0, 1.0)] * self.table.spec.num_layers

    def selection_bias(self, moe: MoeSpec) -> Tensor | None:
        return self._take(self.table.selection_bias(moe)).get("bias")

    def _take(self, group: Parameters) -> dict[str, Tensor]:
        return {role: self._take_one(parameter) for role, parameter in group.tensors.items()}

    def _take_one(self, parameter: Parameter) -> Tensor:
        self._uses[parameter] -= 1
        tensors = self._tensors
        return tensors[parameter.name] if self._uses[parameter] else tensors.pop(parameter.name)
