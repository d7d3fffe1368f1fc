"""What a format of weights is: how a checkpoint stores a projection (Storage), and how it lies on the device
and is multiplied there (WeightFormat). `formats/` has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from quire.models.linear import GateUp, Linear
from quire.models.sources import Stored
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec


class TensorType(NamedTuple):
    """is_of_part: each of the projections that are one matrix has such a tensor; there is one more axis for
    them before the others, where outputs have theirs elsewhere."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_of_part: bool = False


class WeightFormat(Protocol):
    """How a projection's weight lies on a device. The first axis of each of its tensors is that of outputs:
    projections of the same input lie one after the other. All experts' have one more axis before it."""

    def tensors(self, out_size: int, in_size: int, dtype: torch.dtype) -> Mapping[str, TensorType]:
        """The tensors by their roles: the arguments of linear(), which has a bias beside them. dtype: of
        activations."""

    def dequantize(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The weight itself, [..., out_size, in_size]; the tensors are in the order of tensors()."""

    def fill_dummy(self, tensors: Sequence[Tensor], generator: torch.Generator) -> None:
        """Writes random numbers of a trained model's order of magnitude."""

    def has_kernels(self, projection: LinearSpec | ExpertsSpec) -> bool:
        """Whether a GPU multiplies with the tensors as they are. Elsewhere the weight is dequantised while it
        is loaded."""

    @property
    def takes_quantized(self) -> bool:
        """Whether Linear.num_scales() of linear() may be above 0."""

    def linear(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> Linear: ...

    def gate_up(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> GateUp: ...


class Storage(Protocol):
    """How a checkpoint stores a projection's weight."""

    @property
    def title(self) -> str:
        """For the log."""

    @property
    def format(self) -> WeightFormat:
        """What convert() makes."""

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        """The tensors. weight: the name that the part's unquantised weight has. Of all experts at once they
        have one more axis before those given here."""

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        """The format's tensors, in its order, from the stored ones, on their device."""
