"""Where the model runs: the setting `device`, and what this machine and this build have."""

from __future__ import annotations

import logging

import torch

from quire._tensor_checks import has_cuda_kernels
from quire.config import EngineConfig
from quire.errors import InvalidArgument

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


def resolve_device(config: EngineConfig) -> torch.device:
    """The device that `config` asks for, or InvalidArgument that says what is missing."""
    if config.device == "cpu":
        missing = None
    elif not torch.cuda.is_available():
        missing = "a GPU that torch can use (torch.cuda.is_available() is false)"
    elif not has_cuda_kernels():
        missing = "Quire's CUDA kernels; build it with nvcc on PATH, or with -DQUIRE_CUDA=ON"
    elif torch.cuda.get_device_capability() != (9, 0):
        missing = "a Hopper GPU (compute capability 9.0), for which the CUDA kernels are compiled"
    else:
        return torch.device("cuda", torch.cuda.current_device())
    if config.device == "cuda":
        raise InvalidArgument("device", "cuda", f"cpu, or auto; missing here: {missing}")
    if missing is not None and torch.cuda.is_available():
        log.warning("running on the CPU although there is a GPU; missing: %s", missing)
    for name in ("kv_cache_dtype", "batch_invariant"):
        given, default = getattr(config, name), EngineConfig.model_fields[name].default
        if given != default:
            raise InvalidArgument(name, str(given), f"{default} on a CPU")
    return CPU
