"""What the fake engine says of the fields of a request, and requests to `generation` that give some."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from backend_server import Server
from tritonclient.utils import np_to_triton_dtype
from wire_format import DEFAULT_PARAMS

BAD_WORD_IDS = [[3, 4], [5]]
DEFAULTS = DEFAULT_PARAMS | {"max_tokens": 1, "priority": 0, "tokenize_ns": 0, "deadline_ns": 0}


def ask(
    server: Server, tensors: dict[str, np.ndarray[Any, Any]], parameters: dict[str, Any] | None = None
) -> str:
    """The error of one request; "" when it was answered."""
    inputs = []
    for name, array in tensors.items():
        tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer("generation", inputs, parameters=parameters or {})
        error = answers.get(timeout=60)
    return str(error) if error else ""


def as_logged(name: str, value: Any) -> dict[str, Any]:
    """What the engine says of a field."""
    if name == "bad_words":
        return {"bad_word_ids": BAD_WORD_IDS}
    if name == "logit_bias":
        return {name: [[int(token_id), bias] for token_id, bias in value.items()]}
    return {name: value}
