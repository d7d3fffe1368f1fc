"""Malformed input tensors for the model `generation`, over one gRPC stream."""

from __future__ import annotations

import math
import queue
import random
import struct
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from quire.errors import InvalidArgument
from quire.sampling_params import NAMES, SAMPLING_FIELDS

PROMPT = [5, 6, 7]
MAX_TOKENS = 2
TYPES = {
    "BOOL": 1,
    "INT8": 1,
    "UINT8": 1,
    "INT32": 4,
    "UINT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}
SHAPES: list[list[int]] = [[1], [1], [1], [], [0], [2], [3], [1, 1], [300], [1, 1, 1, 1], [0, 5], [2**20]]
HUGE: list[list[int]] = [[2**31], [2**40], [2**62], [2**32, 2**32], [-1], [-5, 2]]
INTS = [0, 1, 2, 3, 5, -1, -2, 2**31 - 1, -(2**31), 100, 2**20]
FLOATS = [0.0, -0.0, 0.5, 1.0, 2.0, 2.5, -1.0, math.nan, math.inf, -math.inf, 1e-45, 3e38]
TEXTS = [b"", b"a", b"\xff\xfe", "敏捷".encode(), b"\0", b"x" * 70_000, b"zzz"]

# The tokenizer does the rest.
_SAMPLING_INPUTS = [name for name in SAMPLING_FIELDS if name != "truncate_prompt_tokens"]


class TensorFuzzer:
    """Sends one request after the other. `step` says what was sent and what is wrong with the answer."""

    def __init__(self, seed: str, address: str, vocab_size: int) -> None:
        self.rng = random.Random(seed)
        self.client = grpcclient.InferenceServerClient(address)
        self.events: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.vocab_size = vocab_size
        self.expected: list[int] = []

    def __enter__(self) -> TensorFuzzer:
        self.client.start_stream(callback=lambda result, error: self.events.put((result, error)))
        self.expected, error = self.ask([])
        assert not error
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()

    def step(self) -> tuple[str, str, str]:
        """(kind, what was sent, problem or "")."""
        name = self.rng.choice(["input_ids", "stream", "unknown", *_SAMPLING_INPUTS])
        if self.rng.random() < 0.25:
            ids, error = self.ask([])
            return "good", "a good request", error or ("" if ids == self.expected else f"{ids}")
        types = {"input_ids": "INT32", "stream": "BOOL", "unknown": "INT32"}
        declared = types.get(name) or NAMES.fields[name].tensor_type.removeprefix("TYPE_").replace(
            "STRING", "BYTES"
        )
        dtype = declared if self.rng.random() < 0.7 else self.rng.choice([*TYPES, "BYTES"])
        shape = self.rng.choice(SHAPES if self.rng.random() < 0.9 else HUGE)
        count = math.prod(shape) if shape not in HUGE else 3
        values, raw = self.content(dtype, count)
        is_damaged = shape in HUGE
        if self.rng.random() < 0.1:
            raw = self.rng.choice([raw[:-1], raw + b"\0", b"", b"\xff" * 8])
            is_damaged = True
        tensor = grpcclient.InferInput(name, shape, dtype)
        tensor._raw_content = raw
        what = f"{name} {dtype} {shape} {raw[:24]!r}"
        # Bytes that do not fit the shape may still happen to be a tensor (an empty one).
        allowed = not is_damaged and dtype == declared and self.is_allowed(name, shape, values)
        if name == "max_tokens" and allowed and values[0] > 100:
            return self.step()  # it would run for long
        ids, error = self.ask([tensor])
        if allowed:
            return "allowed", what, error
        if not error:
            return "bad", what, "" if is_damaged else f"no error, {ids}"
        return "bad", what, "" if name in error else f"the error does not name {name}: {error}"

    def content(self, dtype: str, count: int) -> tuple[list[Any], bytes]:
        if dtype == "BYTES":
            texts = [self.rng.choice(TEXTS[:5] if count > 9 else TEXTS) for _ in range(count)]
            return texts, b"".join(struct.pack("<I", len(text)) + text for text in texts)
        if dtype.startswith("FP"):
            kind = {"FP16": "f2", "FP32": "f4", "FP64": "f8"}[dtype]
            with np.errstate(over="ignore"):
                array = np.array(self.rng.choices(FLOATS, k=count)).astype(kind)
        elif dtype == "BOOL":
            array = np.array(self.rng.choices([0, 1], k=count), dtype=np.uint8)
        else:
            array = np.array(self.rng.choices(INTS, k=count), dtype=np.int64).astype(dtype.lower())
        return array.tolist(), array.tobytes()

    def is_allowed(self, name: str, shape: list[int], values: list[Any]) -> bool:
        """What the schema says of a tensor of the right type."""
        is_list = name in ("input_ids", "stop", "stop_token_ids")
        if name == "unknown" or len(shape) != 1 or (not is_list and shape != [1]):
            return False
        if name == "stream":
            return True
        if name in ("input_ids", "stop_token_ids"):
            limit = 2047 if name == "input_ids" else 240
            fits = len(values) <= limit and all(0 <= value < self.vocab_size for value in values)
            return fits and (name == "stop_token_ids" or bool(values))
        if name == "stop":
            return all(value and is_utf8(value) for value in values)
        try:
            checked = NAMES.fields[name].check(
                bool(values[0]) if NAMES.fields[name].type == "bool" else values[0]
            )
        except InvalidArgument:
            return False
        return not (name == "min_tokens" and checked > MAX_TOKENS)

    def ask(self, tensors: list[grpcclient.InferInput]) -> tuple[list[int], str]:
        """The ids of a greedy request with these tensors in place of its own; its error."""
        inputs = {}
        for name, array, dtype in (
            ("input_ids", np.array(PROMPT, dtype=np.int32), "INT32"),
            ("max_tokens", np.array([MAX_TOKENS], dtype=np.int32), "INT32"),
            ("temperature", np.array([0], dtype=np.float32), "FP32"),
        ):
            inputs[name] = grpcclient.InferInput(name, list(array.shape), dtype)
            inputs[name].set_data_from_numpy(array)
        inputs |= {tensor.name(): tensor for tensor in tensors}
        outputs = [grpcclient.InferRequestedOutput("output_ids")]
        self.client.async_stream_infer(
            "generation", list(inputs.values()), outputs=outputs, enable_empty_final_response=True
        )
        ids: list[int] = []
        while True:
            result, error = self.events.get(timeout=60)
            if error is not None:
                return ids, str(error)
            response = result.get_response()
            if response.outputs:
                ids += result.as_numpy("output_ids").tolist()
            if response.parameters["triton_final_response"].bool_param:
                return ids, ""


def is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
