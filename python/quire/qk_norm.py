"""The norms of query and key heads, as the kernels of both devices take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class QkNorm(NamedTuple):
    """Each head x becomes x / sqrt(mean(x²) + eps) * weight before it is rotated."""

    q_weight: Tensor  # [head_dim], type of the activations
    k_weight: Tensor  # [head_dim]
    eps: float
