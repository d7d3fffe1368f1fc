"""Small clients for tests: `generate`, `generate_stream` and the gRPC stream, as a user would call them."""

from __future__ import annotations

import http.client
import json
import queue
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient


class HttpError(Exception):
    """An HTTP answer other than 200: `.status` and the server's `.message`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message


def generate(
    address: str, body: dict[str, Any] | bytes, model: str = "ensemble", timeout: float = 120
) -> Any:
    """POST /v2/models/MODEL/generate; returns the JSON answer or raises HttpError."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/v2/models/{model}/generate", data=data)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            raise HttpError(error.code, _message(error.read())) from None


def generate_stream(
    address: str, body: dict[str, Any], model: str = "ensemble", timeout: float = 120
) -> Iterator[dict[str, Any]]:
    """POST .../generate_stream; yields each event's JSON as it arrives. Closing the iterator disconnects."""
    host, port = address.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body))
        response = connection.getresponse()
        if response.status != 200:
            raise HttpError(response.status, _message(response.read()))
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line[len(b"data: ") :])
    finally:
        connection.close()


def stream_error(address: str, body: dict[str, Any], model: str = "ensemble") -> str:
    """The error that ends a generate_stream: as the HTTP answer, or as an event; "" when there is none."""
    try:
        return "".join(event.get("error", "") for event in generate_stream(address, body, model))
    except HttpError as error:
        return error.message


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def text_inputs(**fields: Any) -> list[grpcclient.InferInput]:
    """Inputs as tensors; `sampling_parameters` may be a dict, a list is one of ids."""
    inputs = []
    for name, value in fields.items():
        if isinstance(value, dict):
            value = json.dumps(value)
        if isinstance(value, bool):
            tensor, dtype = np.array([value]), "BOOL"
        elif isinstance(value, list):
            tensor, dtype = np.array(value, np.int32), "INT32"
        else:
            encoded = value if isinstance(value, bytes) else value.encode()
            tensor, dtype = np.array([encoded], dtype=object), "BYTES"
        entry = grpcclient.InferInput(name, list(tensor.shape), dtype)
        entry.set_data_from_numpy(tensor)
        inputs.append(entry)
    return inputs


@dataclass
class GrpcStream:
    """One request on a gRPC stream of its own: iterate for responses, `cancel()` to drop it."""

    address: str
    inputs: list[grpcclient.InferInput]
    model: str = "ensemble"
    parameters: dict[str, Any] | None = None
    outputs: list[grpcclient.InferRequestedOutput] | None = None
    _events: queue.Queue[Any] = field(default_factory=queue.Queue)

    def __enter__(self) -> GrpcStream:
        self._client = grpcclient.InferenceServerClient(self.address)
        self._client.start_stream(callback=lambda result, error: self._events.put((result, error)))
        self._client.async_stream_infer(
            self.model,
            self.inputs,
            outputs=self.outputs,
            enable_empty_final_response=True,
            parameters=self.parameters,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def __iter__(self) -> Iterator[Any]:
        """Yields InferResult until the final response; raises InferenceServerException."""
        while True:
            result, error = self._events.get(timeout=120)
            if error is not None:
                raise error
            response = result.get_response()
            if response.outputs:
                yield result
            if response.parameters["triton_final_response"].bool_param:
                return


def result_text(result: Any) -> str:
    """The `text_output` of one response."""
    return str(result.as_numpy("text_output")[0].decode())


def metrics(address: str) -> dict[str, float]:
    """Gauges and counters of /metrics by family name; series of one family are added."""
    with urllib.request.urlopen(address, timeout=30) as response:
        text = response.read().decode()
    values: dict[str, float] = {}
    for name, value in re.findall(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE):
        values[name] = values.get(name, 0.0) + float(value)
    return values


def wait_until(condition: Any, timeout: float = 120, what: str = "condition") -> float:
    """Polls until true; returns the seconds it took; fails the test after `timeout`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.02)
    return time.monotonic() - start
