"""One tensor of a model on its device, and those of one projection, norm or table together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.models.sources import Place, Source, Stored, Target
from quire.models.spec import Order


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A tensor. Two of one name are one: a tied head's weight is the embedding's."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    # What tensor parallelism divides; None: every rank has all of it.
    split_axis: int | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Tensors by their roles, and the sources that fill them."""

    tensors: Mapping[str, Parameter]
    sources: tuple[Source, ...]

    def places(self, tensors: Mapping[str, Tensor]) -> dict[str, Place]:
        """By the sources' names: the parts of `tensors`, by the parameters' names, that each fills."""

        def view(source: Source, target: Target) -> Tensor:
            whole = tensors[target.name] if source.expert is None else tensors[target.name][source.expert]
            return whole.narrow(target.axis, target.begin, target.size)

        return {
            source.name: Place(views=tuple(view(source, target) for target in source.targets), source=source)
            for source in self.sources
            if all(target.name in tensors for target in source.targets)
        }


def stored_as_is(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    dtype: torch.dtype,
    *,
    order: Order = None,
    split_axis: int | None = None,
) -> Parameters:
    """Tensors that the checkpoint has as they are, or in another order: role -> name and shape."""
    return Parameters(
        tensors={
            role: Parameter(name=name, shape=shape, dtype=dtype, split_axis=split_axis)
            for role, (name, shape) in tensors.items()
        },
        sources=tuple(
            Source(
                stored=(Stored(name=name, shape=shape),),
                targets=(Target(name=name, begin=0, size=shape[0], order=order),),
            )
            for name, shape in tensors.values()
        ),
    )
