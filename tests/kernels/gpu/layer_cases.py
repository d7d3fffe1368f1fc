"""Inputs and bounds for the tests of layers on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The references round where the kernels do; a sum in another order may turn a rounding here and there.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-4, torch.float16: 3e-5}
# One rounding: half a unit of the type at most.
ROUNDED_ONCE = {torch.float32: 1e-6, torch.bfloat16: 2e-3, torch.float16: 3e-4}


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def llama_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32, each step rounded as in Hugging Face's Llama."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return (weight.float() * normed.to(x.dtype).float()).to(x.dtype)


def gemma_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32 with 1 + weight, rounded once at the end, as Hugging Face's Gemma does."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return (normed * (1 + weight.float())).to(x.dtype)
