"""Checks of the tensors that kernels get, and how kernels name types and streams."""

from __future__ import annotations

import importlib.util
import sys

import torch
from torch import Tensor

DTYPE_IDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # quire::DType


def has_cuda_kernels() -> bool:
    """Whether `quire._cuda` was built."""
    return "quire._cuda" in sys.modules or importlib.util.find_spec("quire._cuda") is not None


def stream_of(tensor: Tensor) -> int:
    """The stream that the tensor's kernels run on: torch's current one; 0 on the CPU."""
    return torch.cuda.current_stream().cuda_stream if tensor.is_cuda else 0


def dtype_id(name: str, tensor: Tensor) -> int:
    """quire::DType of a tensor, of a type that its device has kernels for."""
    found = DTYPE_IDS.get(tensor.dtype)
    if found is None or (tensor.dtype is torch.float16 and not tensor.is_cuda):
        dtypes = [dtype for dtype in DTYPE_IDS if dtype is not torch.float16 or tensor.is_cuda]
        raise TypeError(f"{name}: got {tensor.dtype}; allowed: {', '.join(map(str, dtypes))}")
    return found


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def describe(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)} strides {list(tensor.stride())} on {tensor.device}"


def check(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], axes: str, device: str = "cpu"
) -> None:
    """Contiguous, on a device of this kind, of this type and shape; `axes` names the sizes in the error."""
    if (
        tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.is_contiguous()
        and tensor.device.type == device
    ):
        return
    raise ValueError(
        f"{name}: got {describe(tensor)}; allowed: contiguous {dtype}[{axes}] = {list(shape)} on {device}"
    )
