"""Triton: `generate` and `generate_stream` over HTTP, and the gRPC stream, of a text-in, text-out model.

Which fields a request has follows from the inputs that the model declares: `sampling_parameters`
(Triton's vLLM backend, Quire), else a tensor for each field (TensorRT-LLM's ensemble, its LLM API model).
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import json
import queue
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from quire.check_stream.http_client import HttpClient, parse_object
from quire.check_stream.protocol import (
    Adapter,
    CheckStreamError,
    Chunk,
    Recording,
    Reply,
    Request,
    RequestError,
    Unsupported,
)

_RETURNS = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
_EXCLUDES = (
    "exclude_input_in_output",
    "exclude_input_from_output",
    "sampling_param_exclude_input_from_output",
)
_SPELLINGS = {
    "stop": ("stop_words", "sampling_param_stop", "stop"),
    "seed": ("seed", "random_seed", "sampling_param_seed"),
}


class _Triton(Adapter):
    """What both protocols share: from a request to named values, from outputs to a chunk."""

    def __init__(self, model: str, metadata: Mapping[str, Any], timeout: float) -> None:
        self.model = model
        self.timeout = timeout
        self._inputs = {item["name"]: item for item in metadata.get("inputs", [])}
        outputs = [item["name"] for item in metadata.get("outputs", [])]
        if not takes_text(metadata):
            names = ", ".join([*self._inputs, "->", *sorted(outputs)])
            allowed = "a model with text_input and text_output"
            raise CheckStreamError(f"--model: got {model} with {names}; allowed: {allowed}")
        self.reads_sampling_json = "sampling_parameters" in self._inputs
        self.has_finish_reason = "finish_reason" in outputs

    def _values(self, request: Request, *, stream: bool) -> dict[str, Any]:
        values: dict[str, Any] = {} if "messages" in request.extra else {"text_input": request.prompt}
        for name in ("stream", "streaming"):
            if name in self._inputs:
                values[name] = stream
        for name in (*_RETURNS, *_EXCLUDES):
            if name in self._inputs:
                values[name] = True
        sampling = request.sampling()
        if self.reads_sampling_json:
            # A whole replacement, to send text that is no JSON.
            raw = sampling.pop("sampling_parameters", None)
            return values | {"sampling_parameters": raw or json.dumps(sampling, ensure_ascii=False)}
        if request.temperature == 0 and "top_k" in self._inputs:  # TensorRT-LLM's spelling of greedy
            sampling |= {"top_k": 1, "temperature": sampling["temperature"] or 1.0}
        for name, value in sampling.items():
            spellings = _SPELLINGS.get(name, (name, f"sampling_param_{name}"))
            known = next((spelling for spelling in spellings if spelling in self._inputs), None)
            if known is None:
                raise Unsupported(f"the model has no input for {name}")
            values[known] = value
        return values

    def _reply(self, outputs: Mapping[str, Any], prompt: str) -> Reply:
        text = _text(outputs.get("text_output"))
        if not any(name in self._inputs for name in _EXCLUDES):
            text = text.removeprefix(prompt)
        return Reply(
            text=text,
            finish_reason=_finish_reason(outputs) if "finish_reason" in outputs else None,
            num_input_tokens=_count(outputs.get("num_input_tokens")),
            num_output_tokens=_count(outputs.get("num_output_tokens")),
        )

    def answer(self, request: Request) -> Reply:
        replies = [self._reply(outputs, request.prompt) for outputs in self._run(request, stream=False)]
        if len(replies) != 1:
            raise RequestError(f"got {len(replies)} responses to a request with stream false; expected 1")
        return replies[0]

    def events(self, request: Request, recording: Recording) -> Iterator[Chunk]:
        for outputs in self._run(request, stream=True):
            yield Chunk(**vars(self._reply(outputs, "")))

    @abc.abstractmethod
    def _run(self, request: Request, *, stream: bool) -> Iterator[dict[str, Any]]:
        """The outputs of each response."""

    def _json(self, request: Request, *, stream: bool) -> str:
        return json.dumps(self._values(request, stream=stream), ensure_ascii=False)


def _finish_reason(outputs: Mapping[str, Any]) -> str:
    """Triton's vLLM backend writes "None" before the end."""
    reason = _text(outputs["finish_reason"])
    return "" if reason == "None" else reason


class TritonHttp(_Triton):
    """POST /v2/models/MODEL/generate and generate_stream."""

    api = "triton-http"

    def __init__(self, http: HttpClient, model: str) -> None:
        self._http = http
        self._path = f"/v2/models/{model}"
        super().__init__(model, http.ask(self._path), http.timeout)

    def _run(self, request: Request, *, stream: bool) -> Iterator[dict[str, Any]]:
        values = self._values(request, stream=stream)
        if stream:
            yield from map(parse_object, self._http.events(f"{self._path}/generate_stream", values))
            return
        outputs = self._http.ask(f"{self._path}/generate", values)
        if not isinstance(outputs, dict) or "text_output" not in outputs:
            raise RequestError(f"an answer without text_output: {json.dumps(outputs)[:200]}")
        yield outputs

    def show(self, request: Request, *, stream: bool) -> str:
        endpoint = "generate_stream" if stream else "generate"
        return f"POST {self._path}/{endpoint} {self._json(request, stream=stream)}"


class TritonGrpc(_Triton):
    """ModelStreamInfer; a one-shot answer is a stream of one response, since the models are decoupled."""

    api = "triton-grpc"

    def __init__(self, address: str, model: str, timeout: float) -> None:
        self._address = address
        with grpc_client(address) as client:
            super().__init__(model, client.get_model_metadata(model, as_json=True), timeout)

    def show(self, request: Request, *, stream: bool) -> str:
        return f"ModelStreamInfer {self.model} {self._json(request, stream=stream)}"

    def _run(self, request: Request, *, stream: bool) -> Iterator[dict[str, Any]]:
        inputs = [self._tensor(name, value) for name, value in self._values(request, stream=stream).items()]
        arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with grpc_client(self._address) as client:
            client.start_stream(callback=lambda result, error: arrived.put((result, error)))
            try:
                client.async_stream_infer(self.model, inputs, enable_empty_final_response=True)
                while True:
                    try:
                        result, error = arrived.get(timeout=self.timeout)
                    except queue.Empty:
                        raise RequestError(f"no response within {self.timeout:g} s", lost=True) from None
                    if error is not None:
                        raise error
                    response = result.get_response()
                    if response.outputs:
                        yield {item.name: result.as_numpy(item.name) for item in response.outputs}
                    if response.parameters["triton_final_response"].bool_param:
                        return
            finally:
                client.stop_stream(cancel_requests=True)

    def _tensor(self, name: str, value: Any) -> Any:
        declared = self._inputs[name]
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        kind = declared["datatype"]
        dtype = _tritonclient("utils").triton_to_np_dtype(kind)
        if kind == "BYTES":
            items = [str(item).encode() for item in items]
        try:
            array = np.array(items, dtype)
        except (ValueError, OverflowError):
            raise Unsupported(f"{name}: {value!r} does not fit into a tensor of {kind}") from None
        shape = [1] * (len(declared["shape"]) - 1) + [len(items)]
        tensor = _tritonclient("grpc").InferInput(name, shape, kind)
        tensor.set_data_from_numpy(array.reshape(shape))
        return tensor


def takes_text(metadata: Mapping[str, Any]) -> bool:
    """Whether a model with this metadata is asked with text and answers with text."""
    names = {key: {item["name"] for item in metadata.get(key, [])} for key in ("inputs", "outputs")}
    return "text_input" in names["inputs"] and "text_output" in names["outputs"]


@contextlib.contextmanager
def grpc_client(address: str) -> Iterator[Any]:
    """Closed at the end. Raises RequestError."""
    grpc = _tritonclient("grpc")
    client = grpc.InferenceServerClient(address)
    try:
        yield client
    except grpc.InferenceServerException as error:
        raise RequestError(str(error.message())) from error
    finally:
        client.close()


def _tritonclient(module: str) -> Any:
    """A module of tritonclient, which is no dependency of the package itself."""
    try:
        return importlib.import_module(f"tritonclient.{module}")
    except ImportError as error:
        raise CheckStreamError(
            f"--api triton-grpc: needs tritonclient ({error}); pip install 'tritonclient[grpc]', "
            "or the extra quire[server]"
        ) from None


def _text(value: Any) -> str:
    value = _first(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _count(value: Any) -> int | None:
    value = _first(value)
    return None if value is None else int(value)


def _first(value: Any) -> Any:
    """The first element of a list or an array; a single value itself."""
    items = np.asarray(value, object).reshape(-1)
    return items[0] if items.size else None
