"""What is read of a checkpoint, and how it fills the tensors of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.models.spec import Order


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor of a checkpoint.

    other_names: what it may be called, too. shape: in the file; may_have_unit_axes: or one that differs by
    axes of size one. is_transposed: its last two axes are swapped as it is read.
    default: what all of its numbers are where no file has it; None: one must have it.
    dtypes: by safetensors' names; None: any that becomes the engine's type by a mere conversion.
    problem: says what is wrong with its numbers, as "got ...; allowed: ..."; None: they are not checked.
    """

    name: str
    shape: tuple[int, ...]
    other_names: tuple[str, ...] = ()
    may_have_unit_axes: bool = False
    is_transposed: bool = False
    default: float | None = None
    dtypes: tuple[str, ...] | None = None
    problem: Callable[[Tensor], str | None] | None = None

    def has_shape(self, shape: tuple[int, ...]) -> bool:
        if self.may_have_unit_axes:
            return _without_unit_axes(shape) == _without_unit_axes(self.shape)
        return shape == self.shape

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor of the file in the form that conversions get."""
        tensor = tensor.reshape(self.shape)
        return tensor.transpose(-1, -2) if self.is_transposed else tensor


@dataclass(frozen=True, kw_only=True)
class Target:
    """Rows of a parameter: `size` of them from `begin` on, along `axis`. order: which rows of what is stored
    they are; None: all, as they are."""

    name: str
    begin: int
    size: int
    axis: int = 0
    order: Order = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Tensors of a checkpoint that fill rows of one or several parameters.

    expert: whose rows; None: those of all experts, or there are none.
    convert: makes a tensor for each target; None: what is stored is the target.
    fill_dummy: writes random numbers of plausible size to the targets; None: normally distributed ones.
    """

    stored: tuple[Stored, ...]
    targets: tuple[Target, ...]
    expert: int | None = None
    convert: Callable[..., tuple[Tensor, ...]] | None = None
    fill_dummy: Callable[[Sequence[Tensor], torch.Generator], None] | None = None

    @property
    def name(self) -> str:
        """The first tensor's, which belongs to no other source."""
        return self.stored[0].name


@dataclass(frozen=True, kw_only=True)
class Place:
    """A source, and the part of each of its targets that it fills."""

    views: tuple[Tensor, ...]
    source: Source

    def fill(self, stored: Sequence[Tensor]) -> None:
        """stored: the source's tensors as the checkpoint has them; conversions run on their device."""
        source = self.source
        tensors = tuple(each.read(tensor) for each, tensor in zip(source.stored, stored, strict=True))
        if source.convert is not None:
            tensors = source.convert(*tensors)
        for view, target, tensor in zip(self.views, source.targets, tensors, strict=True):
            view.copy_(tensor if target.order is None else _ordered(tensor, target.axis, target.order))


def _without_unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _ordered(tensor: Tensor, axis: int, order: tuple[int, ...]) -> Tensor:
    index = torch.tensor(order, device=tensor.device)
    if tensor.element_size() == 1:  # on a GPU not all versions of torch select rows of float8
        return tensor.view(torch.uint8).index_select(axis, index).view(tensor.dtype)
    return tensor.index_select(axis, index)
