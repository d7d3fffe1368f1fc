"""Quire: LLM serving on NVIDIA Triton with its own paged-attention engine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.config import EngineConfig as EngineConfig
    from quire.errors import ConfigError as ConfigError
    from quire.errors import EngineError as EngineError
    from quire.errors import InvalidArgument as InvalidArgument
    from quire.errors import ModelError as ModelError
    from quire.errors import QuireError as QuireError
    from quire.llm import LLM as LLM
    from quire.outputs import CompletionOutput as CompletionOutput
    from quire.outputs import RequestOutput as RequestOutput
    from quire.outputs import RequestTiming as RequestTiming
    from quire.outputs import StreamOutput as StreamOutput
    from quire.request_tensor import encode_request as encode_request
    from quire.sampling_params import SamplingParams as SamplingParams
    from quire.token_logprobs import Logprob as Logprob

# Loaded when first asked for: `import quire` must stay cheap, and nothing but an engine may import torch.
_NAMES = {
    "quire.config": ("EngineConfig",),
    "quire.errors": ("ConfigError", "EngineError", "InvalidArgument", "ModelError", "QuireError"),
    "quire.llm": ("LLM",),
    "quire.outputs": ("CompletionOutput", "RequestOutput", "RequestTiming", "StreamOutput"),
    "quire.request_tensor": ("encode_request",),
    "quire.sampling_params": ("SamplingParams",),
    "quire.token_logprobs": ("Logprob",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
