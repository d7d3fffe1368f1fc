"""The ensemble's first step: a request's text and settings in, token ids and typed, validated settings out.

model_repository/tokenizer/1/model.py is glue around `TokenizerStage`. What a client can get wrong is found
here and answered with an error that names the field; the native backend gets ids and typed tensors only.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quire.config import EngineConfig
from quire.errors import ConfigError, InvalidArgument, ModelNotFound, describe
from quire.model_files import read_json_object
from quire.sampling_params import NAMES, SAMPLING_FIELDS, RequestOptions, SamplingParams
from quire.schema import INT32_MAX, fields_of, merge, parse_json_object, require_few
from quire.tokenizer import Tokenizer
from quire.triton import trtllm
from quire.triton.generation_tensors import generation_tensors
from quire.triton.tensors import Dialect, VllmBackend, read_list, read_string

# Request parameters that Triton or its clients set for themselves.
_TRITON_PARAMETERS = frozenset(
    {"id", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"}
)

_PROMPT_TENSORS = ("text_input", "input_ids", "sampling_parameters")


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """One request, checked."""

    prompts: tuple[str | tuple[int, ...], ...]  # one for each row: text, or token ids
    given: Mapping[str, Any]  # sampling fields the request gave, canonical names
    options: RequestOptions
    bad_word_ids: tuple[tuple[int, ...], ...] = ()  # of the field bad_words
    warnings: tuple[str, ...] = ()  # for the client: one for each name that was ignored

    @property
    def texts(self) -> list[str]:
        return [prompt for prompt in self.prompts if isinstance(prompt, str)]

    @property
    def adds_special(self) -> bool:
        adds: bool = self.given.get("add_special_tokens", True)
        return adds


def parse_request(
    tensors: Mapping[str, np.ndarray[Any, Any]],
    parameters: Mapping[str, object],
    dialect: Dialect | None = None,
    *,
    allows_rows: bool = False,
) -> ParsedRequest:
    """From the request's input tensors and its request parameters. Raises InvalidArgument naming the field
    as the client did. `dialect`: how to read the tensors; default: those of Triton's vLLM backend.
    `allows_rows`: text_input may hold several prompts."""
    parameters = dict(parameters)
    require_few(parameters, "parameters")
    nested = []
    if "sampling_parameters" in tensors:
        nested.append(read_string(tensors["sampling_parameters"], "sampling_parameters"))
    if "sampling_parameters" in parameters:
        value = parameters.pop("sampling_parameters")
        if not isinstance(value, str):
            raise InvalidArgument("sampling_parameters", describe(value), "a JSON object in a string")
        nested.append(value)

    unknown: list[InvalidArgument] = []
    dialect = dialect or VllmBackend()
    entries = dialect.read({name: tensor for name, tensor in tensors.items() if name not in _PROMPT_TENSORS})
    for text in nested:
        values = parse_json_object(text, "sampling_parameters")
        entries += NAMES.read(values, "sampling_parameters", unknown=unknown)
    entries += NAMES.read(parameters, "request parameter", parameters=True, unknown=unknown)
    given = merge([*entries, *dialect.defaults({entry.field: entry.value for entry in entries})])
    if unknown and given.values.get("strict", True):
        raise unknown[0]

    prompts = _prompts(tensors, allows_rows)
    given.make(SamplingParams)  # fields that must fit together
    options = given.make(RequestOptions)
    if isinstance(prompts[0], tuple):
        if options.exclude_input_in_output is False:
            allowed = "true (the prompt came as ids, not as text)"
            error = InvalidArgument("exclude_input_in_output", "false with input_ids", allowed)
            raise given.as_spelled(error, fields_of(RequestOptions))
        options = dataclasses.replace(options, exclude_input_in_output=True)
    ignored: dict[str, str] = {}
    for error in unknown:
        ignored.setdefault(error.field, error.given)
    return ParsedRequest(
        prompts=prompts,
        given={name: value for name, value in given.values.items() if name in SAMPLING_FIELDS},
        options=options,
        warnings=tuple(f"{name}: ignored, {why}" for name, why in ignored.items()),
    )


def read_parameters(text: str, forwarded: re.Pattern[str] | None = None) -> dict[str, object]:
    """A request's parameters, from the JSON that Triton makes of them, without those that mean nothing here:
    Triton's own, and names of HTTP headers or gRPC metadata, which `forwarded` matches.

    The JSON has a name twice that is a key of `generate`'s body and also inside its `parameters`, or twice in
    one of them. The second value may be lost by then, so that is an error whatever the values are."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        values: dict[str, object] = {}
        for name, value in items:
            if name in _TRITON_PARAMETERS or name.startswith("triton_"):
                continue
            if forwarded and forwarded.fullmatch(name):
                continue
            if name in values:
                raise InvalidArgument(name, "two request parameters of that name", "one")
            values[name] = value
        return values

    parameters: dict[str, object] = json.loads(text, object_pairs_hook=pairs)
    return parameters


def _prompts(
    tensors: Mapping[str, np.ndarray[Any, Any]], allows_rows: bool
) -> tuple[str | tuple[int, ...], ...]:
    if "input_ids" in tensors:
        if "text_input" in tensors:
            raise InvalidArgument("text_input, input_ids", "both", "one of them")
        ids = tensors["input_ids"].reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() > INT32_MAX):  # which of these are known, generation says
            bad = int(np.flatnonzero((ids < 0) | (ids > INT32_MAX))[0])
            raise InvalidArgument("input_ids", f"id {ids[bad]} at {bad}", f"ids 0 to {INT32_MAX}")
        return (tuple(ids.tolist()),)
    if "text_input" not in tensors:
        raise InvalidArgument("text_input", "nothing", "a non-empty string, or input_ids instead")
    texts = read_list(tensors["text_input"], "text_input")
    if not texts or (len(texts) > 1 and not allows_rows):
        allowed = "at least one value" if allows_rows else "one value (several: ensemble_unary)"
        raise InvalidArgument("text_input", f"{len(texts)} values", allowed)
    if "" in texts:
        at = f" at {texts.index('')}" if len(texts) > 1 else ""
        raise InvalidArgument("text_input", f"an empty string{at}", "a non-empty string")
    return tuple(texts)


# How to read the tensors of a model folder's clients.
DIALECTS: dict[str, Callable[[Path], Dialect]] = {
    "vllm": lambda _: VllmBackend(),
    "trtllm": lambda folder: trtllm.TrtLlm(_model_number(folder, "vocab_size")),
}
STAGE_PARAMETERS = ("generation_model", "forwarded_headers", "dialect")


class TokenizerStage:
    """Tokenizes for one generation model. `max_model_len` or `vocab_size` None: lengths or ids are checked by
    generation only."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_model_len: int | None,
        forwarded: re.Pattern[str] | None = None,
        dialect: Dialect | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._forwarded = forwarded
        self._dialect = dialect

    @classmethod
    def from_args(cls, args: Mapping[str, str]) -> TokenizerStage:
        """From what Triton hands to initialize(). The config's parameter `generation_model` (default
        "generation") names the model of the same repository whose settings say which tokenizer this is;
        `forwarded_headers` is a regular expression, that of tritonserver's --http-header-forward-pattern;
        `dialect` says whose inputs the config has: "vllm" (default; Triton's vLLM backend) or "trtllm"."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        values = {name: value["string_value"] for name, value in parameters.items()}
        for name in values:
            if name not in STAGE_PARAMETERS:
                raise InvalidArgument(name, "an unknown parameter", ", ".join(STAGE_PARAMETERS))
        dialect = values.get("dialect", "vllm")
        if dialect not in DIALECTS:
            raise InvalidArgument("dialect", describe(dialect), ", ".join(DIALECTS))
        pattern = values.get("forwarded_headers")
        folder = Path(args["model_repository"]).parent / values.get("generation_model", "generation")
        config = EngineConfig.from_file(newest_settings(folder))
        model = config.model_folder()
        limit = config.max_model_len or model_limit(model)
        forwarded = re.compile(pattern, re.IGNORECASE) if pattern else None
        vocab_size = _model_number(model, "vocab_size")
        return cls(Tokenizer(model), limit, forwarded, DIALECTS[dialect](model), vocab_size)

    def execute(self, requests: Sequence[Any], pb_utils: Any) -> list[Any]:
        """One response for each request, in order."""
        arrival_ns = time.monotonic_ns()
        parsed: list[ParsedRequest | Exception] = [self._parse(request) for request in requests]
        good = [item for item in parsed if isinstance(item, ParsedRequest)]
        encoded = {}
        for adds_special in (True, False):
            texts = [text for item in good if item.adds_special is adds_special for text in item.texts]
            encoded[adds_special] = iter(self._encode(texts, adds_special))

        def rows_of(item: ParsedRequest) -> list[Sequence[int] | Exception]:
            ids_of_texts = encoded[item.adds_special]
            rows = [
                (prompt, next(ids_of_texts) if isinstance(prompt, str) else prompt) for prompt in item.prompts
            ]
            return [self._truncate(prompt, ids, item) for prompt, ids in rows]

        rows = [rows_of(item) if isinstance(item, ParsedRequest) else [] for item in parsed]
        times = {"arrival_ns": arrival_ns, "tokenize_ns": time.monotonic_ns() - arrival_ns}
        return [self._response(*of_one, times, pb_utils) for of_one in zip(parsed, rows, strict=True)]

    def _parse(self, request: Any) -> ParsedRequest | Exception:
        try:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            parsed = parse_request(
                tensors,
                read_parameters(request.parameters(), self._forwarded),
                self._dialect,
                allows_rows="row_lengths" in request.requested_output_names(),
            )
            if words := parsed.given.get("bad_words"):
                parsed = dataclasses.replace(parsed, bad_word_ids=self._tokenizer.bad_word_ids(words))
            return parsed
        except Exception as error:  # one request's trouble must not reach its neighbours
            return error

    def _encode(self, texts: list[str], adds_special: bool) -> list[list[int] | Exception]:
        try:
            return [*self._tokenizer.encode_batch(texts, add_special_tokens=adds_special)] if texts else []
        except Exception as error:  # `tokenizers` raises bare Exception, for the whole batch
            if len(texts) == 1:
                allowed = f"text that the tokenizer knows ({error})"
                return [InvalidArgument("text_input", describe(texts[0]), allowed)]
            return [result for text in texts for result in self._encode([text], adds_special)]

    def _truncate(
        self, prompt: str | Sequence[int], ids: Sequence[int] | Exception, item: ParsedRequest
    ) -> Sequence[int] | Exception:
        limit = item.given.get("truncate_prompt_tokens")
        if limit == -1:
            limit = self._max_model_len and self._max_model_len - 1
        if limit is None or isinstance(ids, Exception):
            return ids
        try:
            return self._tokenizer.truncate(prompt, list(ids), limit, add_special_tokens=item.adds_special)
        except InvalidArgument as error:
            return error

    def _response(
        self,
        item: ParsedRequest | Exception,
        rows: Sequence[Sequence[int] | Exception],
        times: Mapping[str, int],
        pb_utils: Any,
    ) -> Any:
        error = item if isinstance(item, Exception) else self._row_error(item, rows)
        if isinstance(item, ParsedRequest) and error is None:
            ids = [row for row in rows if not isinstance(row, Exception)]
            named = generation_tensors(
                ids,
                item.given,
                item.options,
                texts=item.texts,
                bad_word_ids=item.bad_word_ids,
                warnings=item.warnings,
                times=times,
            )
            tensors = [pb_utils.Tensor(name, value) for name, value in named.items()]
            return pb_utils.InferenceResponse(output_tensors=tensors)
        is_ours = isinstance(error, InvalidArgument)
        code = pb_utils.TritonError.INVALID_ARG if is_ours else pb_utils.TritonError.INTERNAL
        message = str(error) if is_ours else f"tokenizer: {type(error).__name__}: {error}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

    def _row_error(self, item: ParsedRequest, rows: Sequence[Sequence[int] | Exception]) -> Exception | None:
        """The first error of a row."""
        name = "text_input" if isinstance(item.prompts[0], str) else "input_ids"
        for index, row in enumerate(rows):
            error = row if isinstance(row, Exception) else self._error_of(name, row)
            if isinstance(error, InvalidArgument) and len(rows) > 1:
                return InvalidArgument(error.field, f"{error.given} at {index}", error.allowed)
            if error is not None:
                return error
        return None

    def _error_of(self, name: str, ids: Sequence[int]) -> InvalidArgument | None:
        length = len(ids)
        what = "text of " if name == "text_input" else ""
        if length == 0:
            allowed = f"{what}at least one token"
            return InvalidArgument(name, f"{what}0 tokens", allowed)
        if self._max_model_len is not None and length >= self._max_model_len:
            allowed = f"at most {self._max_model_len - 1} tokens (max_model_len - 1)"
            return InvalidArgument(name, f"{length} tokens", allowed)
        # Ids that a client gives are generation's to check, under their own name.
        if name == "text_input" and self._vocab_size is not None and max(ids) >= self._vocab_size:
            unknown = next(token_id for token_id in ids if token_id >= self._vocab_size)
            return self._tokenizer.unknown_to_the_model(name, unknown, self._vocab_size)
        return None


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
    return _model_number(folder, "max_position_embeddings")


def _model_number(folder: Path, key: str) -> int | None:
    try:
        value = read_json_object(folder / "config.json").get(key)
    except FileNotFoundError:
        raise ModelNotFound(f"{folder / 'config.json'}: no such file; a model folder has one") from None
    return value if isinstance(value, int) else None
