"""A request to a TokenizerStage, as a worker would hand it over."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
from quire.errors import InvalidArgument
from quire.triton.tensors import StageRequest
from quire.triton.tokenizer_stage import TokenizerStage


def ask(
    stage: TokenizerStage,
    inputs: dict[str, object],
    parameters: dict[str, object] | None = None,
    outputs: tuple[str, ...] = ("input_ids",),
) -> SimpleNamespace:
    """The answer's `outputs`, or the message of its `error`. inputs: name -> value or values."""
    request = StageRequest(
        tensors={name: _as_tensor(value) for name, value in inputs.items()},
        parameters=[*(parameters or {}).items()],
        outputs=frozenset(outputs),
        arrival_ns=time.monotonic_ns(),
    )
    try:
        return SimpleNamespace(outputs=stage.answer(request), error=None)
    except InvalidArgument as error:
        return SimpleNamespace(outputs={}, error=str(error))


def _as_tensor(value: object) -> np.ndarray:
    items = value if isinstance(value, list) else [value]
    if isinstance(value, np.ndarray):
        return value
    if all(isinstance(item, bool) for item in items):
        return np.asarray(items)
    return np.asarray([item.encode() if isinstance(item, str) else item for item in items], np.object_)
