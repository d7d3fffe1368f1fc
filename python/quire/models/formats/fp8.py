"""Weights of eight bits, float8 e4m3, with scales in float32: w = weight * scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quire.models.config_reader import ConfigReader
from quire.models.formats.plain import plain_weight
from quire.models.linear import GateUp, Linear
from quire.models.sources import Stored
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec
from quire.models.weight_formats import TensorType

BLOCK = 128
FP8_MAX = 448.0
_PIECE = 1 << 24  # elements that are in float32 at once


@dataclass(frozen=True)
class Fp8:
    """weight float8_e4m3fn [out, in]; scale float32 [out], or [out, ceil(in / 128)] where is_blocked: of each
    128 inputs."""

    is_blocked: bool = False

    takes_quantized: ClassVar[bool] = True

    def tensors(self, out_size: int, in_size: int, dtype: torch.dtype) -> Mapping[str, TensorType]:
        scales = (out_size, -(-in_size // BLOCK)) if self.is_blocked else (out_size,)
        return {
            "weight": TensorType((out_size, in_size), torch.float8_e4m3fn),
            "scale": TensorType(scales, torch.float32),
        }

    def dequantize(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The product in float32, rounded once."""
        weight, scale = tensors
        out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        for codes, scales, to in _pieces(weight, scale, out):
            to.copy_(codes.float() * self._of_columns(scales, weight.size(-1)))
        return out

    def _of_columns(self, scales: Tensor, in_size: int) -> Tensor:
        if not self.is_blocked:
            return scales[..., None]
        return scales.repeat_interleave(BLOCK, -1)[..., :in_size]

    def fill_dummy(self, tensors: Sequence[Tensor], generator: torch.Generator) -> None:
        weight, scale = tensors
        scale.fill_(0.02 / 64)
        for codes in _pieces(weight):
            codes[0].copy_(
                torch.randn(codes[0].shape, generator=generator, device=weight.device)
                .mul_(64)
                .clamp_(-FP8_MAX, FP8_MAX)
            )

    def has_kernels(self, projection: LinearSpec | ExpertsSpec) -> bool:
        """Rows of whole 16-byte pieces."""
        is_whole = projection.in_size % 16 == 0 and projection.in_size >= 128
        return isinstance(projection, LinearSpec) and is_whole

    def linear(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> Linear:
        # Not at the top: the CUDA kernels may not be built.
        from quire.models.cuda.fp8_linear import CudaFp8Linear

        return CudaFp8Linear(**tensors, is_invariant=is_invariant)

    def gate_up(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> GateUp:
        from quire.models.cuda.fp8_linear import CudaFp8GateUp

        return CudaFp8GateUp(**tensors, is_invariant=is_invariant)


FP8 = Fp8()
FP8_BLOCKED = Fp8(is_blocked=True)


@dataclass(frozen=True)
class Fp8Storage:
    """Codes and scales as checkpoints have them. scales: of the whole tensor, of each output, or of blocks of
    128 x 128; suffixes: what the scales' names may end with after the weight's."""

    scales: Literal["tensor", "channel", "block"]
    suffixes: tuple[str, ...] = ("_scale",)

    @property
    def title(self) -> str:
        return f"fp8, a scale for each {self.scales}"

    @property
    def format(self) -> Fp8:
        return FP8_BLOCKED if self.scales == "block" else FP8

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        codes = replace(plain_weight(weight, part, in_size), dtypes=("F8_E4M3",), problem=_problem_of_codes)
        blocks = -(-part.out_size // BLOCK), -(-in_size // BLOCK)
        shapes = {"tensor": (), "channel": (part.out_size,), "block": blocks}
        scale, *others = (f"{weight}{suffix}" for suffix in self.suffixes)
        scales = Stored(
            name=scale,
            other_names=tuple(others),
            shape=shapes[self.scales],
            may_have_unit_axes=True,
            problem=problem_of_scales,
        )
        return codes, scales

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        """Scales of tensors and of rows of blocks become those of each output, which projections of the same
        input keep when they are one matrix, and in any order of rows."""
        weight, scale = stored
        num_rows = weight.size(-2)
        if self.scales == "tensor":
            scale = scale[..., None].expand(weight.shape[:-1])
        elif self.scales == "block":
            scale = scale.repeat_interleave(BLOCK, -2)[..., :num_rows, :]
        return weight, scale.float()


@dataclass(frozen=True)
class Fp8OnLoad:
    """An unquantised weight, which is quantised while it is loaded: a scale for each output."""

    title = "fp8, quantised while loading, a scale for each channel"
    format = FP8

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        # One that is infinite would leave nothing of the others of its row.
        return (replace(plain_weight(weight, part, in_size), problem=_problem_of_weights),)

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        (weight,) = stored
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
        scale = torch.empty(weight.shape[:-1], dtype=torch.float32, device=weight.device)
        for rows, to, scales in _pieces(weight, codes, scale):
            scale_of_row = rows.abs().amax(-1).float() / FP8_MAX
            scales.copy_(torch.where(scale_of_row > 0, scale_of_row, 1.0))
            to.copy_(rows.float() / scales[..., None])
        return codes, scale


def check_block_size(reader: ConfigReader, key: str) -> None:
    """Refuse sizes of blocks that are not those of FP8_BLOCKED."""
    if (given := reader.get(key, list)) != [BLOCK, BLOCK]:
        reader.refuse(key, given, f"[{BLOCK}, {BLOCK}]")


def _pieces(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of all tensors, at most _PIECE elements of the first at a time. All experts' are cut by expert."""
    num_rows = max(1, _PIECE // max(1, first[0].numel()))
    yield from zip(*(torch.split(tensor, num_rows) for tensor in (first, *others)), strict=True)


def _problem_of_codes(codes: Tensor) -> str | None:
    """e4m3 has two codes that are no numbers, 0x7F and 0xFF."""
    if codes.numel() == 0 or (codes.view(torch.int8).amax() < 0x7F and codes.view(torch.uint8).amax() < 0xFF):
        return None
    return f"got NaN at {_first(codes.float().isnan())}; allowed: numbers"


def _problem_of_weights(weights: Tensor) -> str | None:
    if weights.numel() == 0 or all(bound.isfinite() for bound in weights.aminmax()):  # NaN is both bounds
        return None
    return _problem_where(~weights.isfinite(), weights, "finite numbers")


def problem_of_scales(scales: Tensor) -> str | None:
    return _problem_where(~((scales > 0) & (scales < torch.inf)), scales, "finite numbers above 0")


def _problem_where(is_wrong: Tensor, numbers: Tensor, allowed: str) -> str | None:
    if not is_wrong.any():
        return None
    value = float(numbers[is_wrong].flatten()[0])
    return f"got {value:g} at {_first(is_wrong)}; allowed: {allowed}"


def _first(where: Tensor) -> list[int]:
    index: list[int] = where.nonzero()[0].tolist()
    return index
