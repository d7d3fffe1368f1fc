"""Rotary position embedding: the frequencies of each scaling kind, and the table that the kernels read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quire.models.spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions: float32 ``[head_dim / 2]``."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        # Share of the original frequency: 1 where the original context holds more than high_freq_factor
        # wavelengths, 0 where it holds fewer than low_freq_factor, a straight line in between.
        wavelengths = 2 * math.pi / frequencies
        turns = rope.original_max_position_embeddings / wavelengths
        share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        share = share.clamp(0.0, 1.0)
        return (1 - share) * frequencies / rope.factor + share * frequencies
    return frequencies


def cos_sin(rope: RopeSpec, head_dim: int, max_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position: float32 ``[max_positions, head_dim / 2]`` each."""
    angles = torch.outer(torch.arange(max_positions).float(), inverse_frequencies(rope, head_dim))
    return angles.cos(), angles.sin()
