"""Malformed input tensors for the model `generation`, over one gRPC stream."""

from __future__ import annotations

import json
import math
import queue
import random
import struct
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from field_cases import FIELD_CASES
from quire.errors import InvalidArgument
from quire.sampling_params import ENGINE_FIELDS, NAMES

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
PARAMETERS = [*INTS, 2**40, -(2**63), 0.5, -1.5, 1e300, True, False, "", "0.5", "1", "1e3", "nan", " 1", "x"]
PARAMETERS += ["[1, 2]", "[1.5]", '["a", "b"]', "[", "[" * 5000, "{}", '{"3": 1, "3": 2}', "null", "ß" * 2000]
TEXTS = [b"", b"a", b"\xff\xfe", "敏捷".encode(), b"\0", b"x" * 70_000, b"zzz"]

INPUTS = {"input_ids": "INT32", "request": "UINT8", "unknown": "INT32"}
LIMITS = {"min_tokens": MAX_TOKENS, "n": 1}  # of a request that is greedy
# Request parameters: what generation knows of the fields, and names that it does not.
PARAMETER_NAMES = [name for name in ENGINE_FIELDS if name not in ("max_tokens", "temperature", "priority")]
PARAMETER_NAMES += [alias for name in PARAMETER_NAMES for alias in NAMES.fields[name].aliases]
PARAMETER_NAMES += ["temprature", "truncate", "strict", "echo", "x" * 300]
PATIENCE_MS = 60_000  # a deadline that is never passed


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
        if self.rng.random() < 0.35:
            ids, error = self.ask([])
            return "good", "a good request", error or ("" if ids == self.expected else f"{ids}")
        if self.rng.random() < 0.5:
            return self.step_parameter()
        name, declared = self.rng.choice([*INPUTS.items()])
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
        ids, error = self.ask([tensor])
        if allowed:
            return "allowed", what, error
        if not error:
            return "bad", what, "" if is_damaged else f"no error, {ids}"
        return "bad", what, "" if name in error else f"the error does not name {name}: {error}"

    def step_parameter(self) -> tuple[str, str, str]:
        """As step(), of a request parameter."""
        name = self.rng.choice(PARAMETER_NAMES)
        value = self.rng.choice([*PARAMETERS, *(case.good for case in FIELD_CASES.values())])
        value = json.dumps(value) if isinstance(value, (list, dict)) else value
        allowed = self.is_allowed_parameter(name, value)
        if allowed is None:
            return self.step_parameter()
        ids, error = self.ask([], {name: value})
        if allowed:
            return "allowed", f"{name}={value!r}", error
        problem = "" if f"{name[:80]}: got " in error else f"the error does not name {name}: {error}, {ids}"
        return "bad", f"{name}={value!r}", problem

    def is_allowed_parameter(self, name: str, value: object) -> bool | None:
        """What the schema says of it; None: it is not worth asking."""
        try:
            field = NAMES.find(name)
            checked = field.from_parameter(value)
        except InvalidArgument:
            return False
        if field.name not in ENGINE_FIELDS or field.name == "bad_words":
            return False
        if checked is None or (field.name == "deadline_ms" and checked < PATIENCE_MS):
            return None
        ids = [token for token, _ in checked] if field.name == "logit_bias" else checked
        if field.type in ("ints", "biases"):
            return all(token < self.vocab_size for token in ids)
        limit = LIMITS.get(field.name)
        return limit is None or checked <= limit

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
        """Whether a tensor of the right type is right. None is a request: its version is a hash."""
        fits = len(shape) == 1 and 0 < len(values) <= 2047
        return name == "input_ids" and fits and all(0 <= value < self.vocab_size for value in values)

    def ask(
        self, tensors: list[grpcclient.InferInput], parameters: dict[str, Any] | None = None
    ) -> tuple[list[int], str]:
        """The ids of a greedy request with these tensors and parameters in place of its own; its error."""
        prompt = grpcclient.InferInput("input_ids", [len(PROMPT)], "INT32")
        inputs = {"input_ids": prompt.set_data_from_numpy(np.array(PROMPT, np.int32))}
        inputs |= {tensor.name(): tensor for tensor in tensors}
        outputs = [grpcclient.InferRequestedOutput("output_ids")]
        self.client.async_stream_infer(
            "generation",
            list(inputs.values()),
            outputs=outputs,
            enable_empty_final_response=True,
            parameters={"max_tokens": MAX_TOKENS, "temperature": 0} | (parameters or {}),
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
