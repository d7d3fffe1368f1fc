"""Which number format the weights, activations and KV cache have."""

from __future__ import annotations

from pathlib import Path

import torch

from quire.config import EngineConfig
from quire.errors import InvalidArgument
from quire.models.config import ModelConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is Arm's


def resolve_cuda_dtype(config: EngineConfig, model: ModelConfig) -> torch.dtype:
    """The setting. "auto": the checkpoint's, and bfloat16 for one in float32, which tensor cores do not
    multiply."""
    if config.dtype == "float32":
        raise InvalidArgument("dtype", "float32", "auto, bfloat16 or float16 on a GPU")
    name = model.checkpoint_dtype if config.dtype == "auto" else config.dtype
    return torch.float16 if name == "float16" else torch.bfloat16


def resolve_dtype(config: EngineConfig, model: ModelConfig) -> torch.dtype:
    """The setting, on a CPU. "auto": bfloat16 for such a checkpoint on a CPU that multiplies bfloat16, else
    float32.

    Decoding streams all weights once a step, so half the bytes are half the time: on two Zen 4 cores the
    packed projections of the embedded model take 1.0 ms instead of 2.2 ms for one row, and 1.9 ms instead of
    3.2 ms for 16. Without such instructions bfloat16 is emulated, and slower than float32. A float16
    checkpoint fits only into float32.
    """
    if config.dtype == "float16":
        raise InvalidArgument("dtype", "float16", "auto, float32 or bfloat16 on a CPU")
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if model.checkpoint_dtype == "bfloat16" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this machine's cores multiply bfloat16 themselves."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not _BFLOAT16_INSTRUCTIONS.isdisjoint(flags.partition(":")[2].split())
