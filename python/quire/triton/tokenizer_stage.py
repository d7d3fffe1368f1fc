"""The ensemble's first step: a request's text and settings in, token ids and typed, validated settings out.

model_repository/tokenizer/1/model.py is glue around `TokenizerStage`. What a client can get wrong is found
here and answered with an error that names the field; the native backend gets ids and typed tensors only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quire.config import EngineConfig
from quire.errors import ConfigError, InvalidArgument, describe
from quire.sampling_params import NAMES, OPTION_FIELDS, SAMPLING_FIELDS, RequestOptions, SamplingParams
from quire.schema import merge, parse_json_object
from quire.tokenizer import Tokenizer

# Request parameters that Triton or its clients set for themselves.
_TRITON_PARAMETERS = frozenset(
    {"id", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"}
)

_NUMPY_TYPES = {
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP32": np.float32,
    "TYPE_BOOL": np.bool_,
}


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """One request, checked."""

    text: str
    given: Mapping[str, Any]  # sampling fields the request gave, canonical names
    options: RequestOptions
    warnings: tuple[str, ...] = ()  # for the client: one for each name that was ignored


def parse_request(
    tensors: Mapping[str, np.ndarray[Any, Any]],
    parameters: Mapping[str, object],
    forwarded: re.Pattern[str] | None = None,
) -> ParsedRequest:
    """From the request's input tensors and its request parameters. Raises InvalidArgument naming the field.
    `forwarded`: names of parameters that are HTTP headers or gRPC metadata, which mean nothing here."""
    parameters = {
        name: value
        for name, value in parameters.items()
        if name not in _TRITON_PARAMETERS
        and not name.startswith("triton_")
        and not (forwarded and forwarded.fullmatch(name))
    }
    nested = []
    if "sampling_parameters" in tensors:
        nested.append(_string(tensors["sampling_parameters"], "sampling_parameters"))
    if "sampling_parameters" in parameters:
        value = parameters.pop("sampling_parameters")
        if not isinstance(value, str):
            raise InvalidArgument("sampling_parameters", describe(value), "a JSON object in a string")
        nested.append(value)

    unknown: list[InvalidArgument] = []
    entries = NAMES.read(_options(tensors), "input tensor")
    for text in nested:
        values = parse_json_object(text, "sampling_parameters")
        entries += NAMES.read(values, "sampling_parameters", unknown=unknown)
    entries += NAMES.read(parameters, "request parameter", parameters=True, unknown=unknown)
    given = merge(entries)
    if unknown and given.values.get("strict", True):
        raise unknown[0]

    text = _string(tensors["text_input"], "text_input")
    if text == "":
        raise InvalidArgument("text_input", "an empty string", "a non-empty string")
    given.make(SamplingParams)  # fields that must fit together
    fields = {name: value for name, value in given.values.items() if name in SAMPLING_FIELDS}
    return ParsedRequest(
        text=text,
        given=fields,
        options=given.make(RequestOptions),
        warnings=tuple(dict.fromkeys(f"{error.field}: ignored, {error.given}" for error in unknown)),
    )


class TokenizerStage:
    """Tokenizes for one generation model. `max_model_len` None: the length is checked by generation only."""

    def __init__(
        self, tokenizer: Tokenizer, max_model_len: int | None, forwarded: re.Pattern[str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._forwarded = forwarded

    @classmethod
    def from_args(cls, args: Mapping[str, str]) -> TokenizerStage:
        """From what Triton hands to initialize(). The config's parameter `generation_model` (default
        "generation") names the model of the same repository whose settings say which tokenizer this is;
        `forwarded_headers` is a regular expression, that of tritonserver's --http-header-forward-pattern."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        values = {name: value["string_value"] for name, value in parameters.items()}
        for name in values:
            if name not in ("generation_model", "forwarded_headers"):
                raise InvalidArgument(name, "an unknown parameter", "generation_model, forwarded_headers")
        pattern = values.get("forwarded_headers")
        folder = Path(args["model_repository"]).parent / values.get("generation_model", "generation")
        config = EngineConfig.from_file(newest_settings(folder))
        model = config.model_folder()
        limit = config.max_model_len or model_limit(model)
        return cls(Tokenizer(model), limit, re.compile(pattern, re.IGNORECASE) if pattern else None)

    def execute(self, requests: Sequence[Any], pb_utils: Any) -> list[Any]:
        """One response for each request, in order."""
        parsed: list[ParsedRequest | Exception] = [self._parse(request) for request in requests]
        good = [item for item in parsed if isinstance(item, ParsedRequest)]
        encoded = iter(self._encode([item.text for item in good]))
        return [
            self._response(
                item,
                self._truncate(item, next(encoded)) if isinstance(item, ParsedRequest) else item,
                pb_utils,
            )
            for item in parsed
        ]

    def _parse(self, request: Any) -> ParsedRequest | Exception:
        try:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            return parse_request(tensors, json.loads(request.parameters()), self._forwarded)
        except Exception as error:  # one request's trouble must not reach its neighbours
            return error

    def _encode(self, texts: list[str]) -> list[list[int] | Exception]:
        try:
            return [*self._tokenizer.encode_batch(texts)] if texts else []
        except Exception as error:  # `tokenizers` raises bare Exception, for the whole batch
            if len(texts) == 1:
                allowed = f"text that the tokenizer knows ({error})"
                return [InvalidArgument("text_input", describe(texts[0]), allowed)]
            return [result for text in texts for result in self._encode([text])]

    def _truncate(self, item: ParsedRequest, ids: list[int] | Exception) -> list[int] | Exception:
        limit = item.given.get("truncate_prompt_tokens")
        if limit == -1:
            limit = self._max_model_len and self._max_model_len - 1
        if limit is None or isinstance(ids, Exception):
            return ids
        try:
            return self._tokenizer.truncate(item.text, ids, limit)
        except InvalidArgument as error:
            return error

    def _response(self, item: ParsedRequest | Exception, ids: list[int] | Exception, pb_utils: Any) -> Any:
        error = ids if isinstance(ids, Exception) else self._length_error(ids)
        if isinstance(item, ParsedRequest) and not isinstance(ids, Exception) and error is None:
            tensors = [pb_utils.Tensor(name, value) for name, value in outputs(item, ids).items()]
            return pb_utils.InferenceResponse(output_tensors=tensors)
        is_ours = isinstance(error, InvalidArgument)
        code = pb_utils.TritonError.INVALID_ARG if is_ours else pb_utils.TritonError.INTERNAL
        message = str(error) if is_ours else f"tokenizer: {type(error).__name__}: {error}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

    def _length_error(self, ids: list[int]) -> InvalidArgument | None:
        if not ids:
            return InvalidArgument("text_input", "text of 0 tokens", "text of at least one token")
        if self._max_model_len is not None and len(ids) >= self._max_model_len:
            allowed = f"at most {self._max_model_len - 1} tokens (max_model_len - 1)"
            return InvalidArgument("text_input", f"{len(ids)} tokens", allowed)
        return None


def outputs(request: ParsedRequest, ids: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of `generation`: ids, the settings that the request gave, and how to answer."""
    options = request.options
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "input_ids": np.asarray(ids, np.int32),  # [num_prompt_tokens]
        "stream": np.asarray([options.stream]),
        "acknowledge": np.asarray([True]),
    }
    if options.includes_prompt:
        tensors["prompt_text"] = np.asarray([request.text.encode()], np.object_)
    if request.warnings:
        tensors["warnings"] = np.asarray([warning.encode() for warning in request.warnings], np.object_)
    for name in ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"):
        if getattr(options, name):
            tensors[name] = np.asarray([True])
    for name, value in request.given.items():
        field = NAMES.fields[name]
        if field.is_prompts:
            continue
        items = value if isinstance(value, tuple) else (value,)
        if field.type == "strings":
            tensors[name] = np.asarray([item.encode() for item in items], np.object_)
        else:
            tensors[name] = np.asarray(items, _NUMPY_TYPES[field.tensor_type])
        if not items:
            del tensors[name]  # an empty list asks for nothing, and Triton has no way to send one
    return tensors


def newest_settings(folder: Path) -> Path:
    """model.json of the highest version of a generation model: the one that Triton loads by default."""
    versions = [path for path in folder.glob("*/model.json") if path.parent.name.isdigit()]
    if not versions:
        raise ConfigError(
            folder / "1" / "model.json", "no such file; allowed: a JSON file with engine settings"
        )
    return max(versions, key=lambda path: int(path.parent.name))


def model_limit(folder: Path) -> int | None:
    """max_position_embeddings of a model's config.json."""
    limit = json.loads((folder / "config.json").read_text("utf-8")).get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


def _options(tensors: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, bool]:
    return {name: bool(_single(tensors[name], name)) for name in OPTION_FIELDS if name in tensors}


def _string(tensor: np.ndarray[Any, Any], name: str) -> str:
    value = _single(tensor, name)
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        given = f"invalid UTF-8 at byte {error.start} (0x{value[error.start]:02x})"
        raise InvalidArgument(name, given, "a UTF-8 string") from None


def _single(tensor: np.ndarray[Any, Any], name: str) -> Any:
    if tensor.size != 1:
        raise InvalidArgument(name, f"{tensor.size} values", "one value (batches are not supported yet)")
    return tensor.reshape(-1)[0]
