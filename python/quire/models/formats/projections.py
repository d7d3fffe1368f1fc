"""The parameters of projections: the tensors of a weight's format and the bias, and what fills them, whatever
the format on the device and whatever the checkpoint's storages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from quire.models.formats.plain import PLAIN
from quire.models.parameter import Parameter, Parameters
from quire.models.sources import Source, Stored
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec
from quire.models.weight_formats import Storage, WeightFormat

StorageOf = Callable[[str], Storage]  # by a projection's name


def linear_parameters(
    linear: LinearSpec, weight_format: WeightFormat, storage_of: StorageOf, dtype: torch.dtype
) -> Parameters:
    """weight_format: that of all parts' storages, or PLAIN, for which the others are dequantised."""
    types = weight_format.tensors(linear.out_size, linear.in_size, dtype)
    names = {role: f"{linear.parts[0].name}.{role}" for role in types}
    tensors = {
        role: Parameter(name=names[role], shape=shape, dtype=kind, split_axis=_split_axis(linear, len(shape)))
        for role, (shape, kind) in types.items()
    }
    targets = tuple(names.values())
    sources = [
        _source(f"{part.name}.weight", part, begin, linear.in_size, weight_format, storage_of, targets, dtype)
        for part, begin in _with_begins(linear.parts)
    ]
    if linear.bias:
        name = f"{linear.parts[0].name}.bias"
        shape = (linear.out_size,)
        tensors["bias"] = Parameter(
            name=name, shape=shape, dtype=dtype, split_axis=_split_axis(linear, len(shape))
        )
        sources += [
            Source(
                stored=(Stored(name=f"{part.name}.bias", shape=(part.out_size,)),),
                targets=(name,),
                axis=0,
                begin=begin,
                size=part.out_size,
                order=part.order,
            )
            for part, begin in _with_begins(linear.parts)
        ]
    return Parameters(tensors=tensors, sources=tuple(sources))


def expert_parameters(
    experts: ExpertsSpec, weight_format: WeightFormat, storage_of: StorageOf, dtype: torch.dtype
) -> Parameters:
    """Does what linear_parameters() does with the projection of all experts."""
    count = experts.num_experts
    first = experts.parts[0]
    types = weight_format.tensors(experts.out_size, experts.in_size, dtype)
    tensors = {
        role: Parameter(name=f"{first.name}.{role}", shape=(count, *shape), dtype=kind)
        for role, (shape, kind) in types.items()
    }
    targets = tuple(parameter.name for parameter in tensors.values())
    sources: list[Source] = []
    for part, begin in _with_begins(experts.parts):
        weight = f"{part.name}{experts.suffix}"
        source = _source(weight, part, begin, experts.in_size, weight_format, storage_of, targets, dtype)
        if "{}" in weight:
            sources += (_of_expert(source, expert) for expert in range(count))
        else:
            stored = tuple(replace(each, shape=(count, *each.shape)) for each in source.stored)
            sources.append(replace(source, stored=stored, axis=1))
    if experts.bias is not None:
        shape = (count, experts.out_size)
        tensors["bias"] = Parameter(name=experts.bias, shape=shape, dtype=dtype)
        sources.append(
            Source(
                stored=(Stored(name=experts.bias, shape=shape),),
                targets=(experts.bias,),
                axis=1,
                begin=0,
                size=experts.out_size,
                order=first.order,
            )
        )
    return Parameters(tensors=tensors, sources=tuple(sources))


def _with_begins(parts: tuple[LinearPart, ...]) -> Iterator[tuple[LinearPart, int]]:
    """The parts, one after the other, and the first row of each."""
    begin = 0
    for part in parts:
        yield part, begin
        begin += part.out_size


def _split_axis(linear: LinearSpec, num_axes: int) -> int | None:
    """A split of inputs leaves what has no axis of inputs whole."""
    if linear.split == "in":
        return 1 if num_axes > 1 else None
    return 0 if linear.split == "out" else None


def _source(
    weight: str,
    part: LinearPart,
    begin: int,
    in_size: int,
    weight_format: WeightFormat,
    storage_of: StorageOf,
    targets: tuple[str, ...],
    dtype: torch.dtype,
) -> Source:
    """What fills the rows of a part."""
    storage = storage_of(part.name)
    convert: Callable[..., tuple[Tensor, ...]] | None = storage.convert
    if storage.format == PLAIN:
        convert = None
    elif weight_format == PLAIN:
        convert = partial(_dequantized, storage, dtype)
    return Source(
        stored=storage.stored(weight, part, in_size),
        targets=targets,
        axis=0,
        begin=begin,
        size=part.out_size,
        order=part.order,
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
