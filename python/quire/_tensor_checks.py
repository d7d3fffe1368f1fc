"""Checks of the tensors that kernels get."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # quire::cpu::DType


def dtype_id(name: str, tensor: Tensor) -> int:
    found = _DTYPES.get(tensor.dtype)
    if found is None:
        raise TypeError(f"{name}: got {tensor.dtype}; allowed: torch.float32, torch.bfloat16")
    return found


def describe(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)} strides {list(tensor.stride())} on {tensor.device}"


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], axes: str) -> None:
    """Contiguous, on the CPU, of this type and shape; `axes` names the sizes in the error."""
    if (
        tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.is_contiguous()
        and tensor.device.type == "cpu"
    ):
        return
    raise ValueError(
        f"{name}: got {describe(tensor)}; allowed: contiguous {dtype}[{axes}] = {list(shape)} on cpu"
    )
