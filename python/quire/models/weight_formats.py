"""How the weights of projections are stored and multiplied. A quantized format will be one more class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from quire.models.cpu.linear import Linear
from quire.models.parameters import Parameter
from quire.models.spec import LinearSpec

if TYPE_CHECKING:
    from quire.models.cuda.linear import CudaGateUp, CudaLinear


class WeightFormat(Protocol):
    """What is created, filled from the checkpoint and counted for a projection, and what computes with it on
    each device, once it is filled."""

    def parameters(self, linear: LinearSpec, dtype: torch.dtype) -> Mapping[str, Parameter]:
        """By the name that the tensor has among `tensors` of the other calls. dtype: of activations."""

    def cpu_linear(self, tensors: Mapping[str, Tensor]) -> Linear: ...

    def cuda_linear(self, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> CudaLinear: ...

    def cuda_gate_up(self, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> CudaGateUp: ...


class Plain:
    """Not quantized: the matrix, and the bias where there is one, in the type of activations."""

    def parameters(self, linear: LinearSpec, dtype: torch.dtype) -> Mapping[str, Parameter]:
        def sources(kind: str) -> tuple[tuple[str, int], ...]:
            return tuple((f"{part.name}.{kind}", part.out_size) for part in linear.parts)

        is_split_out = linear.split == "out"
        weight = Parameter(
            sources=sources("weight"),
            shape=(linear.out_size, linear.in_size),
            dtype=dtype,
            split_axis=0 if is_split_out else 1,
        )
        if not linear.bias:
            return {"weight": weight}
        bias = Parameter(
            sources=sources("bias"),
            shape=(linear.out_size,),
            dtype=dtype,
            split_axis=0 if is_split_out else None,
        )
        return {"weight": weight, "bias": bias}

    def cpu_linear(self, tensors: Mapping[str, Tensor]) -> Linear:
        return Linear(**tensors)

    def cuda_linear(self, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> CudaLinear:
        # Not at the top: the CUDA kernels may not be built.
        from quire.models.cuda.linear import CudaLinear

        return CudaLinear(**tensors, is_invariant=is_invariant)

    def cuda_gate_up(self, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> CudaGateUp:
        from quire.models.cuda.linear import CudaGateUp

        return CudaGateUp(**tensors, is_invariant=is_invariant)


PLAIN = Plain()
