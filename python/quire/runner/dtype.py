"""Which number format the weights, activations and KV cache have."""

from __future__ import annotations

import torch

from quire.config import EngineConfig
from quire.models.config import ModelConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_dtype(config: EngineConfig, model: ModelConfig) -> torch.dtype:
    """The setting; "auto" is float32 on a CPU.

    A CPU computes bfloat16 GEMMs through a library call that costs some 20 us before it starts.
    """
    return _DTYPES.get(config.dtype, torch.float32)
