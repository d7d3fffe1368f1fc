"""Scales of keys and values in a float8 KV cache, which quantised checkpoints may carry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.models.formats.fp8 import problem_of_scales
from quire.models.parameter import Parameter, Parameters
from quire.models.sources import Source, Stored, Target
from quire.models.spec import AttentionSpec


def kv_scale_parameters(attention: AttentionSpec) -> Parameters:
    """One number for each of the roles "k" and "v"; 1 where the checkpoint has none."""
    root = attention.o.parts[0].name.rpartition(".")[0]
    parts = [part.name for part in attention.qkv.parts]
    tensors, sources = {}, []
    for role, projection in (("k", parts[-2] if len(parts) > 1 else parts[0]), ("v", parts[-1])):
        name = f"{root}.{role}_scale"
        others = (
            f"{root}.attn.{role}_scale",
            f"{projection}.{role}_scale",  # ModelOpt
            f"{projection}.output_scale",  # older compressed-tensors and ModelOpt
            f"{root}.kv_scale",  # AutoFP8
        )
        stored = Stored(
            name=name,
            other_names=others,
            shape=(1,),
            may_have_unit_axes=True,
            default=1.0,
            problem=problem_of_scales,
        )
        tensors[role] = Parameter(name=name, shape=(1,), dtype=torch.float32)
        target = Target(name=name, begin=0, size=1)
        sources.append(Source(stored=(stored,), targets=(target,), fill_dummy=_fill_with_ones))
    return Parameters(tensors=tensors, sources=tuple(sources))


def _fill_with_ones(tensors: Sequence[Tensor], generator: torch.Generator) -> None:
    for tensor in tensors:
        tensor.fill_(1.0)
