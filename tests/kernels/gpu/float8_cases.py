"""Float8 weights, for the tests of the GEMMs that widen them."""

from __future__ import annotations

import torch
from gemm_cases import normal
from quire import ops
from quire.ops.gemm import SkinnyWeight

KINDS = ["channel", "block"]


class Case:
    """A float8 weight with scales that differ from row to row, and what it is worth."""

    def __init__(self, n: int, k: int, kind: str, *, seed: int = 0) -> None:
        self.codes = normal(n, k, dtype=torch.float32, seed=seed).mul_(3).to(torch.float8_e4m3fn)
        blocks = 1 if kind == "channel" else -(-k // 128)
        scales = torch.exp2(normal(n, blocks, dtype=torch.float32, seed=seed + 1).clamp(-4, 4))
        self.value = self.codes.float() * scales.repeat_interleave(k if blocks == 1 else 128, 1)[:, :k]
        self.scale = scales.flatten() if kind == "channel" else scales
        self.rows = ops.float8_columns(self.codes.clone())

    def weight(self, dtype: torch.dtype, *, silu_mul: bool = False) -> SkinnyWeight:
        return SkinnyWeight(self.rows, silu_mul=silu_mul, scale=self.scale, dtype=dtype)
