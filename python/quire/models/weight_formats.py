"""How the weights of projections are stored and multiplied. A quantized format will be one more class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from quire.models.cpu.linear import CpuGateUp, CpuLinear
from quire.models.linear import GateUp, Linear
from quire.models.parameters import Parameter, Source
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec


class WeightFormat(Protocol):
    """What is created, filled from the checkpoint and counted for a projection, and what computes with it
    on the device that it is on, once it is filled."""

    def parameters(self, linear: LinearSpec, dtype: torch.dtype) -> Mapping[str, Parameter]:
        """By the name that the tensor has among `tensors` of the other calls. dtype: of activations."""

    def expert_parameters(self, experts: ExpertsSpec, dtype: torch.dtype) -> Mapping[str, Parameter]:
        """The same of a projection of all experts."""

    def linear(self, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> Linear: ...

    def gate_up(self, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> GateUp: ...


class Plain:
    """Not quantized: the matrix, and the bias where there is one, in the type of activations."""

    def parameters(self, linear: LinearSpec, dtype: torch.dtype) -> Mapping[str, Parameter]:
        is_split_out = linear.split == "out"
        weight = Parameter(
            sources=tuple(_weights(linear.parts, linear.in_size)),
            shape=(linear.out_size, linear.in_size),
            dtype=dtype,
            split_axis={"out": 0, "in": 1, None: None}[linear.split],
        )
        if not linear.bias:
            return {"weight": weight}
        bias = Parameter(
            sources=tuple(_biases(linear.parts)),
            shape=(linear.out_size,),
            dtype=dtype,
            split_axis=0 if is_split_out else None,
        )
        return {"weight": weight, "bias": bias}

    def expert_parameters(self, experts: ExpertsSpec, dtype: torch.dtype) -> Mapping[str, Parameter]:
        weight = Parameter(
            sources=tuple(_expert_weights(experts)),
            shape=(experts.num_experts, experts.out_size, experts.in_size),
            dtype=dtype,
        )
        if experts.bias is None:
            return {"weight": weight}
        shape = (experts.num_experts, experts.out_size)
        order = experts.parts[0].order
        source = Source(name=experts.bias, shape=shape, axis=-1, begin=0, size=shape[1], order=order)
        return {"weight": weight, "bias": Parameter(sources=(source,), shape=shape, dtype=dtype)}

    def linear(self, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> Linear:
        if not tensors["weight"].is_cuda:
            return CpuLinear(**tensors)
        # Not at the top: the CUDA kernels may not be built.
        from quire.models.cuda.linear import CudaLinear

        return CudaLinear(**tensors, is_invariant=is_invariant)

    def gate_up(self, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> GateUp:
        if not tensors["weight"].is_cuda:
            return CpuGateUp(**tensors)
        from quire.models.cuda.linear import CudaGateUp

        return CudaGateUp(**tensors, is_invariant=is_invariant)


def _weights(parts: tuple[LinearPart, ...], in_size: int) -> Iterator[Source]:
    """The parts' weights, one after the other."""
    begin = 0
    for part in parts:
        shape = (in_size, part.out_size) if part.is_transposed else (part.out_size, in_size)
        yield Source(
            name=f"{part.name}.weight",
            shape=shape,
            axis=-2,
            begin=begin,
            size=part.out_size,
            order=part.order,
            is_transposed=part.is_transposed,
        )
        begin += part.out_size


def _biases(parts: tuple[LinearPart, ...]) -> Iterator[Source]:
    begin = 0
    for part in parts:
        size = part.out_size
        yield Source(
            name=f"{part.name}.bias", shape=(size,), axis=-1, begin=begin, size=size, order=part.order
        )
        begin += size


def _expert_weights(experts: ExpertsSpec) -> Iterator[Source]:
    """Those of each expert, or of all at once."""
    for source in _weights(experts.parts, experts.in_size):
        name = source.name.removesuffix(".weight") + experts.suffix
        if "{}" in name:
            for expert in range(experts.num_experts):
                yield replace(source, name=name.format(expert), expert=expert)
        else:
            yield replace(source, name=name, shape=(experts.num_experts, *source.shape))


PLAIN = Plain()
