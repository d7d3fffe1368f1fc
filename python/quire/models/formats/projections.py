"""The parameters of projections: the tensors of a weight's format and the bias, and what fills them, whatever
the format on the device and whatever the checkpoint's storages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from quire.models.formats.plain import PLAIN
from quire.models.parameter import Parameter, Parameters
from quire.models.sources import Source, Stored, Target
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec
from quire.models.weight_formats import Storage, TensorType, WeightFormat

StorageOf = Callable[[str], Storage]  # by a projection's name


def linear_parameters(
    linear: LinearSpec, weight_format: WeightFormat, storage_of: StorageOf, dtype: torch.dtype
) -> Parameters:
    """weight_format: that of all parts' storages, or PLAIN, for which the others are dequantised."""
    types = weight_format.tensors(linear.out_size, linear.in_size, dtype)
    tensors = _parameters(linear.parts, types, partial(_split_axis, linear))
    sources = [
        _source(f"{part.name}.weight", part, linear.in_size, weight_format, storage_of, dtype, targets)
        for part, targets in _targets(linear.parts, tensors, types)
    ]
    if linear.bias:
        bias = {"bias": TensorType((linear.out_size,), dtype)}
        biases = _parameters(linear.parts, bias, partial(_split_axis, linear))
        sources += [
            Source(stored=(Stored(name=f"{part.name}.bias", shape=(part.out_size,)),), targets=targets)
            for part, targets in _targets(linear.parts, biases, bias)
        ]
        tensors |= biases
    return Parameters(tensors=tensors, sources=tuple(sources))


def expert_parameters(
    experts: ExpertsSpec, weight_format: WeightFormat, storage_of: StorageOf, dtype: torch.dtype
) -> Parameters:
    """Does what linear_parameters() does with the projection of all experts."""
    count, types = experts.num_experts, weight_format.tensors(experts.out_size, experts.in_size, dtype)
    tensors = {
        role: replace(parameter, shape=(count, *parameter.shape))
        for role, parameter in _parameters(experts.parts, types).items()
    }
    sources: list[Source] = []
    for part, targets in _targets(experts.parts, tensors, types):
        weight = f"{part.name}{experts.suffix}"
        source = _source(weight, part, experts.in_size, weight_format, storage_of, dtype, targets)
        if "{}" in weight:
            sources += (_of_expert(source, expert) for expert in range(count))
        else:
            sources.append(_of_all_experts(source, count))
    if experts.bias is not None:
        shape = (count, experts.out_size)
        tensors["bias"] = Parameter(name=experts.bias, shape=shape, dtype=dtype)
        order = experts.parts[0].order
        target = Target(name=experts.bias, begin=0, size=experts.out_size, axis=1, order=order)
        sources.append(Source(stored=(Stored(name=experts.bias, shape=shape),), targets=(target,)))
    return Parameters(tensors=tensors, sources=tuple(sources))


def _parameters(
    parts: tuple[LinearPart, ...],
    types: Mapping[str, TensorType],
    split_axis: Callable[[TensorType], int | None] = lambda kind: None,
) -> dict[str, Parameter]:
    """By their roles."""
    return {
        role: Parameter(
            name=f"{parts[0].name}.{role}",
            shape=(len(parts), *kind.shape) if kind.is_of_part else kind.shape,
            dtype=kind.dtype,
            split_axis=split_axis(kind),
        )
        for role, kind in types.items()
    }


def _targets(
    parts: tuple[LinearPart, ...], parameters: Mapping[str, Parameter], types: Mapping[str, TensorType]
) -> Iterator[tuple[LinearPart, tuple[Target, ...]]]:
    """The parts, one after the other, and what each fills of every parameter."""
    begin = 0
    for number, part in enumerate(parts):
        yield (
            part,
            tuple(
                Target(name=parameters[role].name, begin=number, size=1)
                if kind.is_of_part
                else Target(name=parameters[role].name, begin=begin, size=part.out_size, order=part.order)
                for role, kind in types.items()
            ),
        )
        begin += part.out_size


def _split_axis(linear: LinearSpec, kind: TensorType) -> int | None:
    """A split of inputs leaves what has no axis of inputs whole."""
    if linear.split == "in":
        return 1 if len(kind.shape) > 1 else None
    return 0 if linear.split == "out" and not kind.is_of_part else None


def _source(
    weight: str,
    part: LinearPart,
    in_size: int,
    weight_format: WeightFormat,
    storage_of: StorageOf,
    dtype: torch.dtype,
    targets: tuple[Target, ...],
) -> Source:
    """What fills a part's rows."""
    storage = storage_of(part.name)
    convert: Callable[..., tuple[Tensor, ...]] | None = storage.convert
    if storage.format == PLAIN:
        convert = None
    elif weight_format == PLAIN:
        convert = partial(_dequantized, storage, dtype)
    return Source(
        stored=storage.stored(weight, part, in_size),
        targets=targets,
        convert=convert,
        fill_dummy=weight_format.fill_dummy,
    )


def _dequantized(storage: Storage, dtype: torch.dtype, *stored: Tensor) -> tuple[Tensor, ...]:
    return (storage.format.dequantize(storage.convert(*stored), dtype),)


def _of_expert(source: Source, expert: int) -> Source:
    stored = tuple(
        replace(
            each,
            name=each.name.format(expert),
            other_names=tuple(name.format(expert) for name in each.other_names),
        )
        for each in source.stored
    )
    return replace(source, stored=stored, expert=expert)


def _of_all_experts(source: Source, count: int) -> Source:
    stored = tuple(replace(each, shape=(count, *each.shape)) for each in source.stored)
    targets = tuple(replace(each, axis=1) for each in source.targets)
    return replace(source, stored=stored, targets=targets)
