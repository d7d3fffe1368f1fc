"""The parameters of a model, in one table made from its spec: what the memory ledger counts, what a
checkpoint must have, where the loader puts it, and what tensor parallelism divides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quire.models.norm import Norm
from quire.models.spec import (
    AttentionSpec,
    ExpertsSpec,
    LayerSpec,
    LinearSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    Order,
)
from quire.ops import QkNorm

if TYPE_CHECKING:
    from quire.models.weight_formats import WeightFormat


@dataclass(frozen=True, kw_only=True)
class Source:
    """A tensor of the checkpoint: its shape there, and where in a parameter it goes.

    begin, size: its outputs, along `axis`. expert: of which it is; None: of all, or there are none.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    begin: int
    size: int
    order: Order = None
    is_transposed: bool = False
    expert: int | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor of the checkpoint goes."""

    view: Tensor
    source: Source

    def fill(self, tensor: Tensor) -> None:
        """tensor: as the checkpoint has it, of whatever type."""
        if self.source.is_transposed:
            tensor = tensor.transpose(-1, -2)
        if self.source.order is not None:
            tensor = tensor.index_select(self.source.axis, torch.tensor(self.source.order))
        self.view.copy_(tensor)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One tensor on the device, which the checkpoint has as one or as several."""

    sources: tuple[Source, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    # The axis of each source that tensor parallelism divides; None: every rank has all of it.
    split_axis: int | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        return {source.name: source.shape for source in self.sources}

    def places(self, tensor: Tensor) -> dict[str, Place]:
        """Name in the checkpoint -> the part of `tensor` that it fills."""

        def view(source: Source) -> Tensor:
            whole = tensor if source.expert is None else tensor[source.expert]
            return whole.narrow(source.axis, source.begin, source.size)

        return {source.name: Place(view=view(source), source=source) for source in self.sources}


def vector(name: str, size: int, dtype: torch.dtype, order: Order = None) -> Parameter:
    """A tensor of one axis that the checkpoint has as it is, or in another order."""
    source = Source(name=name, shape=(size,), axis=-1, begin=0, size=size, order=order)
    return Parameter(sources=(source,), shape=(size,), dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class ParameterTable:
    """All parameters of a model whose weights have a format and whose other parameters a type."""

    spec: ModelSpec
    weight_format: WeightFormat
    dtype: torch.dtype

    def __iter__(self) -> Iterator[Parameter]:
        """In the order of the checkpoint. A tied head's parameter is the embedding's, and comes twice."""
        spec = self.spec
        yield self.embedding()
        yield from self.positions()
        yield from self.norm(spec.norm).values()
        yield from self.linear(spec.head).values()
        for layer in spec.layers:
            yield from self._layer(layer)

    def _layer(self, layer: LayerSpec) -> Iterator[Parameter]:
        attention = layer.attention
        for norm in (*layer.norms, *(attention.qk_norm or ())):
            yield from self.norm(norm).values()
        yield from self.sinks(attention)
        linears = [attention.qkv, attention.o]
        if isinstance(layer.mlp, MoeSpec):
            moe = layer.mlp
            shared = (moe.shared.up, moe.shared.down) if moe.shared else ()
            linears += [linear for linear in (moe.router, *shared, moe.shared_gate) if linear is not None]
            yield from self.selection_bias(moe)
            for experts in (moe.up, moe.down):
                yield from self.experts(experts).values()
        else:
            linears += [layer.mlp.up, layer.mlp.down]
        for linear in linears:
            yield from self.linear(linear).values()

    def embedding(self) -> Parameter:
        table = self.spec.embedding
        shape = (table.vocab_size, table.hidden_size)
        return Parameter(
            sources=(Source(name=f"{table.name}.weight", shape=shape, axis=-2, begin=0, size=shape[0]),),
            shape=shape,
            dtype=self.dtype,
            split_axis=0,
        )

    def positions(self) -> tuple[Parameter, ...]:
        """Learned positions, where a model has them."""
        table = self.spec.embedding
        if table.positions is None:
            return ()
        shape = (table.num_positions, table.hidden_size)
        source = Source(name=f"{table.positions}.weight", shape=shape, axis=-2, begin=0, size=shape[0])
        return (Parameter(sources=(source,), shape=shape, dtype=self.dtype),)

    def norm(self, norm: NormSpec) -> Mapping[str, Parameter]:
        parameters = {"weight": vector(f"{norm.name}.weight", norm.size, self.dtype, norm.order)}
        if norm.has_bias:
            parameters["bias"] = vector(f"{norm.name}.bias", norm.size, self.dtype, norm.order)
        return parameters

    def linear(self, linear: LinearSpec) -> Mapping[str, Parameter]:
        return self.weight_format.parameters(linear, self.dtype)

    def experts(self, experts: ExpertsSpec) -> Mapping[str, Parameter]:
        return self.weight_format.expert_parameters(experts, self.dtype)

    def sinks(self, attention: AttentionSpec) -> tuple[Parameter, ...]:
        if attention.sinks is None:
            return ()
        return (vector(attention.sinks, attention.num_q_heads, torch.float32),)

    def selection_bias(self, moe: MoeSpec) -> tuple[Parameter, ...]:
        """Full precision: it decides between experts."""
        if moe.selection_bias is None:
            return ()
        return (vector(moe.selection_bias, moe.up.num_experts, torch.float32),)

    @property
    def num_bytes(self) -> int:
        return sum(parameter.num_bytes for parameter in set(self))

    @property
    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor that a checkpoint of this model has."""
        return {name: shape for parameter in self for name, shape in parameter.checkpoint_shapes.items()}


class Weights:
    """The parameters of a model on one device, empty at first. A checkpoint fills `places()`, then an
    executor takes the tensors, each as often as the table has it. A tensor is forgotten with its last use, so
    that an executor that lays weights out anew never has all of them twice."""

    def __init__(self, table: ParameterTable, device: torch.device) -> None:
        self.table = table
        self._uses = Counter(table)
        self._tensors = {
            parameter: torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            for parameter in self._uses
        }

    def places(self) -> dict[str, Place]:
        """Name in the checkpoint -> the part of a tensor that it fills."""
        return {
            name: place
            for parameter, tensor in self._tensors.items()
            for name, place in parameter.places(tensor).items()
        }

    def embedding(self) -> Tensor:
        return self._take(self.table.embedding())

    def positions(self) -> Tensor | None:
        """Row i is that of position i."""
        for parameter in self.table.positions():
            return self._take(parameter)[self.table.spec.embedding.position_offset :]
        return None

    def norm(self, norm: NormSpec) -> Norm:
        return Norm(norm, **self._take_all(self.table.norm(norm)))

    def qk_norm(self, attention: AttentionSpec) -> QkNorm | None:
        """Of each head."""
        if attention.qk_norm is None or attention.qk_norm[0].size != attention.head_dim:
            return None
        q, k = map(self.norm, attention.qk_norm)
        return QkNorm(q.weight, k.weight, q.spec.eps, q.spec.weight_offset, q.spec.rounds_once)

    def linear(self, linear: LinearSpec) -> dict[str, Tensor]:
        return self._take_all(self.table.linear(linear))

    def experts(self, experts: ExpertsSpec) -> dict[str, Tensor]:
        return self._take_all(self.table.experts(experts))

    def sinks(self, attention: AttentionSpec) -> Tensor | None:
        return next(map(self._take, self.table.sinks(attention)), None)

    def selection_bias(self, moe: MoeSpec) -> Tensor | None:
        return next(map(self._take, self.table.selection_bias(moe)), None)

    def _take_all(self, parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
        return {role: self._take(parameter) for role, parameter in parameters.items()}

    def _take(self, parameter: Parameter) -> Tensor:
        self._uses[parameter] -= 1
        return self._tensors[parameter] if self._uses[parameter] else self._tensors.pop(parameter)
