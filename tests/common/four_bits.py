"""Rounds matrices to four bits and packs them as each format's files do, word by word from its definition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """q, zero: integers in [0, 15]. The matrix is (q - zero) * scale, a scale and zero for each group.

    groups: [in], the group of each input.
    """

    q: Tensor  # [out, in]
    scale: Tensor  # [out, num_groups]
    zero: Tensor  # [out, num_groups]
    groups: Tensor

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Computed in float32 from scales of this type, then rounded to it."""
        zero, scale = self.zero[:, self.groups].float(), self.scale.to(dtype).float()[:, self.groups]
        return ((self.q.float() - zero) * scale).to(dtype)


def round_to_int4(
    matrix: Tensor, group_size: int, is_symmetric: bool, *, groups: Tensor | None = None
) -> Rounded:
    """To the nearest of 16 values between a group's extremes, or around 0; scales are float16.

    groups: [in], a group for each input; None: neighbours.
    """
    num_inputs = matrix.size(1)
    size = num_inputs if group_size == -1 else group_size
    if groups is None:
        groups = torch.arange(num_inputs) // size
    order = torch.argsort(groups, stable=True)
    grouped = matrix.float()[:, order].view(matrix.size(0), -1, size)
    if is_symmetric:
        scale = grouped.abs().amax(-1) / 7.5
        zero = torch.full_like(scale, 8)
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scale = (high - low) / 15
        zero = (-low / scale.clamp(min=1e-8)).round().clamp(0, 15)
    scale = scale.clamp(min=1e-6).half()
    q = (grouped / scale.float()[..., None] + zero[..., None]).round().clamp(0, 15).flatten(1)
    return Rounded(q=q[:, torch.argsort(order)].long(), scale=scale, zero=zero.long(), groups=groups)


def pack_awq(rounded: Rounded) -> dict[str, Tensor]:
    """An element holds eight outputs of one input."""
    return {
        "qweight": _words(rounded.q.t(), AWQ_ORDER),
        "qzeros": _words(rounded.zero.t(), AWQ_ORDER),
        "scales": rounded.scale.t().contiguous(),
    }


def pack_gptq(rounded: Rounded, *, version: int = 1) -> dict[str, Tensor]:
    """An element of qweight holds eight inputs of one output, one of qzeros eight outputs of a group."""
    zero = rounded.zero if version == 2 else (rounded.zero - 1) % 16
    return {
        "qweight": _words(rounded.q, range(8)).t().contiguous(),
        "qzeros": _words(zero.t(), range(8)),
        "scales": rounded.scale.t().contiguous(),
        "g_idx": rounded.groups.int(),
    }


def pack_compressed(rounded: Rounded, *, is_symmetric: bool) -> dict[str, Tensor]:
    """compressed-tensors' pack-quantized: elements hold eight inputs of one output; of zero points eight
    outputs of a group."""
    packed = {
        "weight_packed": _words(rounded.q, range(8)),
        "weight_scale": rounded.scale,
        "weight_shape": torch.tensor(rounded.q.shape),
    }
    if not is_symmetric:
        packed["weight_zero_point"] = _words(rounded.zero.t(), range(8)).t().contiguous()
    return packed


@dataclass(frozen=True, kw_only=True)
class RoundedMxfp4:
    """codes: e2m1, with the sign in bit 3. exponents: plus 127, one for 32 inputs."""

    codes: Tensor  # [out, in]
    exponents: Tensor  # [out, in / 32]

    def matrix(self, dtype: torch.dtype) -> Tensor:
        values = torch.tensor([*E2M1, *(-value for value in E2M1)])
        factors = torch.pow(2.0, self.exponents.double() - 127).float()
        return (values[self.codes] * factors.repeat_interleave(32, dim=1)).to(dtype)


def round_to_mxfp4(matrix: Tensor) -> RoundedMxfp4:
    """To the nearest value, with the power of two by which the largest becomes at most 6."""
    grouped = matrix.float().view(matrix.size(0), -1, 32)
    exponents = (grouped.abs().amax(-1).clamp(min=1e-30) / 6).log2().ceil()
    scaled = grouped / torch.pow(2.0, exponents)[..., None]
    nearest = (scaled.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1)
    codes = (nearest + 8 * (scaled < 0)).flatten(1)
    return RoundedMxfp4(codes=codes, exponents=(exponents + 127).to(torch.uint8))


def pack_mxfp4(rounded: RoundedMxfp4) -> dict[str, Tensor]:
    """weight_packed: [out, in / 2]; a byte holds two inputs, the first in its lower half."""
    packed = rounded.codes[:, ::2] + 16 * rounded.codes[:, 1::2]
    return {"weight_packed": packed.to(torch.uint8), "weight_scale": rounded.exponents}


def _words(values: Tensor, order: tuple[int, ...] | range) -> Tensor:
    """int32 [rows, n / 8]: nibble i of element c is values[:, 8 * c + order[i]]."""
    words = sum(values[:, place::8].long() << (4 * i) for i, place in enumerate(order))
    assert isinstance(words, Tensor)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()
