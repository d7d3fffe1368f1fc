"""The parameters of a model, in one table made from its spec: what the memory ledger counts, what a
checkpoint must have, where the loader puts it, and what tensor parallelism divides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from quire.models.spec import AttentionSpec, LinearSpec, ModelSpec, NormSpec
from quire.ops import QkNorm

if TYPE_CHECKING:
    from quire.models.weight_formats import WeightFormat


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One tensor on the device. The checkpoint has it as one tensor or as several, which lie one after the
    other along the first axis."""

    sources: tuple[tuple[str, int], ...]  # name in the checkpoint, size of its first axis
    shape: tuple[int, ...]
    dtype: torch.dtype
    # The axis of each source that tensor parallelism divides; None: every rank has all of it.
    split_axis: int | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (size, *self.shape[1:]) for name, size in self.sources}

    def places(self, tensor: Tensor) -> dict[str, Tensor]:
        """Name in the checkpoint -> the part of `tensor` that it fills."""
        parts = torch.split(tensor, [size for _, size in self.sources])
        return {name: part for (name, _), part in zip(self.sources, parts, strict=True)}


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
        yield self.norm(spec.norm)
        yield from self.linear(spec.head).values()
        for layer in spec.layers:
            yield self.norm(layer.input_norm)
            yield self.norm(layer.mlp_norm)
            for linear in (layer.attention.qkv, layer.attention.o, layer.mlp.gate_up, layer.mlp.down):
                yield from self.linear(linear).values()
            yield from map(self.norm, layer.attention.qk_norm or ())

    def embedding(self) -> Parameter:
        table = self.spec.embedding
        return Parameter(
            sources=((f"{table.name}.weight", table.vocab_size),),
            shape=(table.vocab_size, table.hidden_size),
            dtype=self.dtype,
            split_axis=0,
        )

    def norm(self, norm: NormSpec) -> Parameter:
        return Parameter(sources=((f"{norm.name}.weight", norm.size),), shape=(norm.size,), dtype=self.dtype)

    def linear(self, linear: LinearSpec) -> Mapping[str, Parameter]:
        return self.weight_format.parameters(linear, self.dtype)

    @property
    def num_bytes(self) -> int:
        return sum(parameter.num_bytes for parameter in set(self))

    @property
    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor that a checkpoint of this model has."""
        return {name: shape for parameter in self for name, shape in parameter.checkpoint_shapes.items()}


class Norm(NamedTuple):
    """What the kernels take, in their order."""

    weight: Tensor  # [size]
    eps: float


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

    def places(self) -> dict[str, Tensor]:
        """Name in the checkpoint -> the part of a tensor that it fills."""
        return {
            name: place
            for parameter, tensor in self._tensors.items()
            for name, place in parameter.places(tensor).items()
        }

    def embedding(self) -> Tensor:
        return self._take(self.table.embedding())

    def norm(self, norm: NormSpec) -> Norm:
        return Norm(self._take(self.table.norm(norm)), norm.eps)

    def qk_norm(self, attention: AttentionSpec) -> QkNorm | None:
        if attention.qk_norm is None:
            return None
        q, k = map(self.norm, attention.qk_norm)
        return QkNorm(q.weight, k.weight, q.eps)

    def linear(self, linear: LinearSpec) -> dict[str, Tensor]:
        return {role: self._take(parameter) for role, parameter in self.table.linear(linear).items()}

    def _take(self, parameter: Parameter) -> Tensor:
        self._uses[parameter] -= 1
        return self._tensors[parameter] if self._uses[parameter] else self._tensors.pop(parameter)
