"""A request to a TokenizerStage, as a worker would hand it over."""

from __future__ import annotations

import time
from types import SimpleNamespace

import _core_parts as core_parts
import numpy as np
from quire import _core
from quire.errors import InvalidArgument
from quire.triton.tensors import StageRequest
from quire.triton.tokenizer_stage import TokenizerStage

NOTHING_GIVEN = core_parts.decode_request(_core.encode_request({}))


def ask(
    stage: TokenizerStage,
    inputs: dict[str, object],
    parameters: dict[str, object] | None = None,
) -> SimpleNamespace:
    """The answer's `ids` and those `fields` of its request that are not as when nothing is given, or the
    message of its `error`. inputs: name -> value or values."""
    request = StageRequest(
        tensors={name: _as_tensor(value) for name, value in inputs.items()},
        parameters=[*(parameters or {}).items()],
        outputs=frozenset(),
        arrival_ns=time.monotonic_ns(),
    )
    try:
        answer = stage.answer(request)
    except InvalidArgument as error:
        return SimpleNamespace(ids=[], fields={}, error=str(error))
    fields = core_parts.decode_request(answer["request"].tobytes())
    given = {name: value for name, value in fields.items() if value != NOTHING_GIVEN[name]}
    return SimpleNamespace(ids=answer["input_ids"].tolist(), fields=given, error=None)


def _as_tensor(value: object) -> np.ndarray:
    items = value if isinstance(value, list) else [value]
    if isinstance(value, np.ndarray):
        return value
    if all(isinstance(item, bool) for item in items):
        return np.asarray(items)
    return np.asarray([item.encode() if isinstance(item, str) else item for item in items], np.object_)
