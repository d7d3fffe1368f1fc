"""Weights that are not quantised: the matrix, in the type of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.models.cpu.linear import CpuGateUp, CpuLinear
from quire.models.linear import GateUp, Linear
from quire.models.sources import Stored
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec
from quire.models.weight_formats import TensorType


@dataclass(frozen=True)
class Plain:
    """See WeightFormat."""

    takes_quantized = False

    def tensors(self, out_size: int, in_size: int, dtype: torch.dtype) -> Mapping[str, TensorType]:
        return {"weight": TensorType((out_size, in_size), dtype)}

    def dequantize(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return tensors[0].to(dtype)

    def fill_dummy(self, tensors: Sequence[Tensor], generator: torch.Generator) -> None:
        tensors[0].normal_(0.0, 0.02, generator=generator)

    def has_kernels(self, projection: LinearSpec | ExpertsSpec) -> bool:
        return True

    def linear(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> Linear:
        if not tensors["weight"].is_cuda:
            return CpuLinear(**tensors)
        # Not at the top: the CUDA kernels may not be built.
        from quire.models.cuda.linear import CudaLinear

        return CudaLinear(**tensors, is_invariant=is_invariant)

    def gate_up(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> GateUp:
        if not tensors["weight"].is_cuda:
            return CpuGateUp(**tensors)
        from quire.models.cuda.linear import CudaGateUp

        return CudaGateUp(**tensors, is_invariant=is_invariant)


PLAIN = Plain()


@dataclass(frozen=True)
class PlainStorage:
    """The matrix as it is, or transposed."""

    title = "plain"
    format = PLAIN

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        return (plain_weight(weight, part, in_size),)

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        return stored


PLAIN_STORAGE = PlainStorage()


def plain_weight(weight: str, part: LinearPart, in_size: int) -> Stored:
    """An unquantised weight as checkpoints have it."""
    shape = (in_size, part.out_size) if part.is_transposed else (part.out_size, in_size)
    return Stored(name=weight, shape=shape, is_transposed=part.is_transposed)
