"""Weights of mxfp4: e2m1 numbers, 32 of a row with a power of two as their scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.errors import UnsupportedModel
from quire.models.formats.int4 import are_multiplied_in_four_bits
from quire.models.formats.int4_layouts import MXFP4_GROUP, dequantize_mxfp4, mxfp4_weight
from quire.models.linear import GateUp, Linear
from quire.models.sources import Stored
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec
from quire.models.weight_formats import TensorType


@dataclass(frozen=True)
class Mxfp4:
    """An e2m1 number times its block's power of two, laid out as `int4_layouts.py` says."""

    takes_quantized = False

    def tensors(self, out_size: int, in_size: int, dtype: torch.dtype) -> Mapping[str, TensorType]:
        return {
            "weight": TensorType((out_size, in_size // 2), torch.uint8),
            "scale": TensorType((out_size, in_size // MXFP4_GROUP), torch.uint8),
        }

    def dequantize(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        weight, scale = tensors
        return dequantize_mxfp4(weight, scale, dtype)

    def fill_dummy(self, tensors: Sequence[Tensor], generator: torch.Generator) -> None:
        weight, scale = tensors
        weight.random_(0, 256, generator=generator)
        scale.fill_(120)  # 2**-7, times numbers up to 6

    def has_kernels(self, projection: LinearSpec | ExpertsSpec) -> bool:
        return are_multiplied_in_four_bits(projection)

    def linear(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> Linear:
        # Not at the top: the CUDA kernels may not be built.
        from quire.models.cuda.int4_linear import CudaInt4Linear

        return CudaInt4Linear(**tensors, group_size=MXFP4_GROUP, is_invariant=is_invariant)

    def gate_up(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> GateUp:
        from quire.models.cuda.int4_linear import CudaInt4GateUp

        return CudaInt4GateUp(**tensors, group_size=MXFP4_GROUP, is_invariant=is_invariant)


MXFP4 = Mxfp4()


@dataclass(frozen=True)
class BlocksStorage:
    """What gpt-oss has for all experts at once: 16 bytes and a scale for each block of 32 inputs."""

    title = "mxfp4"
    format = MXFP4

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        blocks = _num_blocks(part, in_size)
        return (
            Stored(name=f"{weight}_blocks", shape=(part.out_size, blocks, MXFP4_GROUP // 2), dtypes=_BYTES),
            _scales(f"{weight}_scales", part, blocks),
        )

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        blocks, scales = stored
        return mxfp4_weight(blocks), scales


@dataclass(frozen=True)
class PackedMxfp4Storage:
    """What compressed-tensors calls mxfp4-pack-quantized: rows of bytes and of scales."""

    title = "mxfp4"
    format = MXFP4

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        blocks = _num_blocks(part, in_size)
        return (
            Stored(name=f"{weight}_packed", shape=(part.out_size, in_size // 2), dtypes=_BYTES),
            _scales(f"{weight}_scale", part, blocks),
        )

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        return stored


_BYTES = ("U8",)


def _num_blocks(part: LinearPart, in_size: int) -> int:
    if in_size % MXFP4_GROUP:
        raise UnsupportedModel(f"{part.name}: got {in_size} inputs; allowed: a multiple of {MXFP4_GROUP}")
    return in_size // MXFP4_GROUP


def _scales(name: str, part: LinearPart, blocks: int) -> Stored:
    return Stored(name=name, shape=(part.out_size, blocks), dtypes=_BYTES, problem=_scale_problem)


def _scale_problem(scale: Tensor) -> str | None:
    return "got 255, which is not a number; allowed: [0, 254]" if (scale == 255).any() else None
