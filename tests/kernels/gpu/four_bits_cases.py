"""Weights of four bits, for the tests of the GEMMs that widen them."""

from __future__ import annotations

import torch
from gemm_cases import normal
from quire import ops
from quire.ops.gemm import SkinnyWeight
from torch import Tensor

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
# Name: columns of a group (None: all), whether there are zeros.
KINDS: dict[str, tuple[int | None, bool]] = {
    "32": (32, False),
    "32 with zeros": (32, True),
    "64 with zeros": (64, True),
    "128": (128, False),
    "128 with zeros": (128, True),
    "row": (None, False),
    "row with zeros": (None, True),
    "mxfp4": (32, False),
}


class Case:
    """A weight of four bits with scales and zeros that differ from group to group, and what it is worth."""

    def __init__(self, n: int, k: int, kind: str, dtype: torch.dtype, *, seed: int = 0) -> None:
        size, has_zeros = KINDS[kind]
        self.group_size, self.is_mxfp4 = size or k, kind == "mxfp4"
        groups = k // self.group_size
        generator = torch.Generator("cuda").manual_seed(seed)

        def random(limit: int, *shape: int) -> Tensor:
            return torch.randint(0, limit, shape, generator=generator, device="cuda", dtype=torch.uint8)

        self.codes = random(16, n, k)
        self.zero = random(16, n, groups) if has_zeros else None
        if self.is_mxfp4:
            self.scale = random(12, n, groups) + 120  # 2**-7 to 2**4
            factors = torch.exp2(self.scale.float() - 127)
            numbers = torch.tensor(E2M1, device="cuda")[self.codes.long()]
        else:
            self.scale = torch.exp2(normal(n, groups, dtype=torch.float32, seed=seed).clamp(-4, 4)).to(dtype)
            factors = self.scale.float()
            zero = 8.0 if self.zero is None else self.repeated(self.zero).float()
            numbers = self.codes.float() - zero
        exact = numbers * self.repeated(factors)
        self.value = exact.to(dtype)  # rounded once
        # What the GEMM for few rows multiplies: of large groups it scales the sums.
        self.of_few_rows = exact if self.group_size >= 128 else self.value
        self.bytes = self.codes[:, ::2] | self.codes[:, 1::2] << 4
        self.dtype = dtype

    def repeated(self, of_groups: Tensor) -> Tensor:
        return of_groups.repeat_interleave(self.group_size, 1)

    def weight(self, *, silu_mul: bool = False) -> SkinnyWeight:
        scale = ops.mxfp4_scales(self.scale, self.dtype) if self.is_mxfp4 else self.scale
        return SkinnyWeight(
            ops.four_bit_columns(self.bytes.clone()),
            silu_mul=silu_mul,
            scale=ops.by_group(scale),
            zero=None if self.zero is None else ops.by_group(self.zero.to(torch.int16)),
            is_mxfp4=self.is_mxfp4,
        )
