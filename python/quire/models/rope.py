"""Rotary position embedding: the frequencies of each scaling kind, and the table that the kernels read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quire.models.spec import QueryScaling, RopeSpec


def rotary_order(head_dim: int, rotary_dim: int, *, is_interleaved: bool) -> tuple[int, ...] | None:
    """The order of a head's dimensions with which what is rotated together is `head_dim / 2` apart, as the
    kernels have it; None where the checkpoint's own is that.

    A checkpoint rotates dimensions i and i + rotary_dim / 2, or 2 i and 2 i + 1 (is_interleaved), and leaves
    those from rotary_dim on as they are. Scores do not change when queries and keys have the same order.
    """
    half = rotary_dim // 2
    first = [2 * i for i in range(half)] if is_interleaved else list(range(half))
    second = [i + (1 if is_interleaved else half) for i in first]
    middle = rotary_dim + (head_dim - rotary_dim) // 2
    order = (*first, *range(rotary_dim, middle), *second, *range(middle, head_dim))
    return None if order == tuple(range(head_dim)) else order


def inverse_frequencies(rope: RopeSpec, rotary_dim: int, max_positions: int) -> Tensor:
    """Radians per position of each pair of dimensions: float32 ``[rotary_dim / 2]``.

    max_positions: of the longest context that the engine takes. longrope has other frequencies for contexts
    beyond the original length; one table serves all requests, so the longest context decides.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    if rope.kind == "longrope":
        is_long = max_positions > rope.original_max_position_embeddings
        factors = torch.tensor(rope.long_factor if is_long else rope.short_factor)
        return 1.0 / (factors * rope.theta**exponents)
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
    if rope.kind == "yarn":
        share = _yarn_share(rope, rotary_dim)
        return (1 - share) * frequencies / rope.factor + share * frequencies
    return frequencies


def _yarn_share(rope: RopeSpec, rotary_dim: int) -> Tensor:
    """Share of the original frequency: 1 up to the dimension that turns beta_fast times in the original
    context, 0 from the one that turns beta_slow times, a straight line in between."""

    def dimension(num_turns: float) -> float:
        wavelength = rope.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return rotary_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncates:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    ramp = (torch.arange(rotary_dim // 2).float() - low) / ((high - low) or 0.001)
    return 1 - ramp.clamp(0.0, 1.0)


def cos_sin(rope: RopeSpec, head_dim: int, max_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position: float32 ``[max_positions, head_dim / 2]`` each. What is not
    rotated comes after what is: 1 and 0."""
    rotary_dim = head_dim if rope.rotary_dim is None else rope.rotary_dim
    cos, sin = torch.ones(max_positions, head_dim // 2), torch.zeros(max_positions, head_dim // 2)
    if rotary_dim:
        frequencies = inverse_frequencies(rope, rotary_dim, max_positions)
        angles = torch.outer(torch.arange(max_positions).float(), frequencies)
        cos[:, : rotary_dim // 2] = angles.cos() * rope.attention_factor
        sin[:, : rotary_dim // 2] = angles.sin() * rope.attention_factor
    return cos, sin


def position_scales(scaling: QueryScaling, max_positions: int) -> Tensor:
    """What the query of each position is multiplied by: float32 ``[max_positions]``."""
    lengths = torch.arange(max_positions).float() // scaling.original_max_position_embeddings
    return 1 + scaling.beta * torch.log1p(lengths)
