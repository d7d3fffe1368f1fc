"""The ensemble's first step: a request's text and fields in, token ids and the checked request out.

What a client can get wrong is found here and answered with an error that names the field; generation gets
`input_ids` and `request` (quire.request_tensor). The processes that run it: quire.triton.tokenizer_worker.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from quire.chat import ChatTemplates
from quire.chat_options import ChatOptions
from quire.errors import InvalidArgument, describe
from quire.field import INT32_MAX, fields_of
from quire.request_tensor import encode_checked
from quire.sampling_params import NAMES, SAMPLING_FIELDS, RequestOptions, SamplingParams
from quire.schema import merge, parse_json_object, require_few
from quire.tokenizer import EncodingError, Tokenizer
from quire.triton import trtllm
from quire.triton.prompt_bounds import PromptBounds
from quire.triton.tensors import Dialect, StageRequest, Tensor, VllmBackend, read_list, read_single

log = logging.getLogger("quire.tokenizer")

# Request parameters that Triton or its clients set for themselves.
_TRITON_PARAMETERS = frozenset(
    {"id", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"}
)

_PROMPT_TENSORS = ("text_input", "input_ids", "input_lengths", "sampling_parameters")


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """One request, checked."""

    prompts: tuple[str | tuple[int, ...], ...]  # one for each row: text, or token ids; none with a chat
    given: Mapping[str, Any]  # sampling fields the request gave, canonical names
    options: RequestOptions
    chat: ChatOptions | None = None
    includes_prompt_ids: bool = False  # output_ids begins with the prompt's
    warnings: tuple[str, ...] = ()  # for the client: one for each name that was ignored

    @property
    def texts(self) -> list[str]:
        return [prompt for prompt in self.prompts if isinstance(prompt, str)]

    @property
    def id_lists(self) -> list[tuple[int, ...]]:
        return [prompt for prompt in self.prompts if not isinstance(prompt, str)]

    @property
    def adds_special(self) -> bool:
        adds: bool = self.given.get("add_special_tokens", self.chat is None)
        return adds

    @property
    def prompt_name(self) -> str:
        """What the client calls the prompt."""
        if self.chat:
            return "messages"
        return "text_input" if self.texts else "input_ids"


def parse_request(
    tensors: Mapping[str, np.ndarray[Any, Any]],
    parameters: Mapping[str, object],
    dialect: Dialect | None = None,
    *,
    excludes_prompt: bool = False,
) -> ParsedRequest:
    """From the request's input tensors and its request parameters. Raises InvalidArgument naming the field
    as the client did. `dialect`: how to read the tensors; default: those of Triton's vLLM backend.
    `excludes_prompt`: what exclude_input_in_output is for text where the request does not say."""
    dialect = dialect or VllmBackend()
    parameters = {name: parameters[name] for name in parameters if name not in dialect.ignored_parameters}
    require_few(parameters, "parameters")
    nested = []
    if "sampling_parameters" in tensors:
        nested.append(str(read_single(tensors["sampling_parameters"], "sampling_parameters")))
    if "sampling_parameters" in parameters:
        value = parameters.pop("sampling_parameters")
        if not isinstance(value, str):
            raise InvalidArgument("sampling_parameters", describe(value), "a JSON object in a string")
        nested.append(value)

    unknown: list[InvalidArgument] = []
    entries = dialect.read({name: tensor for name, tensor in tensors.items() if name not in _PROMPT_TENSORS})
    for text in nested:
        values = parse_json_object(text, "sampling_parameters")
        entries += NAMES.read(values, "sampling_parameters", unknown=unknown)
    entries += NAMES.read(parameters, "request parameter", parameters=True, unknown=unknown)
    given = merge(dialect.complete(entries))
    if unknown and given.values.get("strict", True):
        raise _with_hint(unknown[0], dialect)

    chat = given.make(ChatOptions)
    for name in ("text_input", "input_ids"):
        if chat.messages and name in tensors:
            raise InvalidArgument(f"{name}, messages", "both", "one of them")
    prompts = () if chat.messages else _prompts(tensors, dialect)
    given.make(SamplingParams)  # fields that must fit together
    options = given.make(RequestOptions)
    includes_prompt_ids = False
    if chat.messages:
        if options.exclude_input_in_output is None:
            options = dataclasses.replace(options, exclude_input_in_output=True)
    elif isinstance(prompts[0], str):
        if options.exclude_input_in_output is None and excludes_prompt:
            options = dataclasses.replace(options, exclude_input_in_output=True)
    elif dialect.is_separate:
        includes_prompt_ids = options.includes_prompt
        options = dataclasses.replace(options, exclude_input_in_output=True, return_token_ids=True)
    else:
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
        chat=chat if chat.messages else None,
        includes_prompt_ids=includes_prompt_ids,
        warnings=tuple(f"{name}: ignored, {why}" for name, why in ignored.items()),
    )


def read_parameters(
    given: Iterable[tuple[str, object]], forwarded: re.Pattern[str] | None = None
) -> dict[str, object]:
    """A request's parameters without those that mean nothing here: Triton's own, and names of HTTP headers or
    gRPC metadata, which `forwarded` matches.

    A name comes twice that is a key of `generate`'s body and also inside its `parameters`, or twice in one of
    them. That is an error whatever the values are."""
    values: dict[str, object] = {}
    for name, value in given:
        if name in _TRITON_PARAMETERS or name.startswith("triton_"):
            continue
        if forwarded and forwarded.fullmatch(name):
            continue
        if name in values:
            raise InvalidArgument(name, "two request parameters of that name", "one")
        values[name] = value
    return values


def _with_hint(error: InvalidArgument, dialect: Dialect) -> InvalidArgument:
    """An unknown name's error, which says where a client of TensorRT-LLM may call."""
    if dialect.is_separate or error.field not in trtllm.NAMES_OF_ITS_OWN:
        return error
    allowed = f"in a request to ensemble_trtllm, which has TensorRT-LLM's names; here {error.allowed}"
    return InvalidArgument(error.field, "a field of TensorRT-LLM's", allowed)


def _prompts(tensors: Mapping[str, Tensor], dialect: Dialect) -> tuple[str | tuple[int, ...], ...]:
    if "input_ids" in tensors:
        if "text_input" in tensors:
            raise InvalidArgument("text_input, input_ids", "both", "one of them")
        prompts = dialect.prompts_of_ids(tensors)
        for ids in prompts:
            if ids.size and (ids.min() < 0 or ids.max() > INT32_MAX):  # which are known, generation says
                bad = int(np.flatnonzero((ids < 0) | (ids > INT32_MAX))[0])
                raise InvalidArgument("input_ids", f"id {ids[bad]} at {bad}", f"ids 0 to {INT32_MAX}")
        return tuple(tuple(ids.tolist()) for ids in prompts)
    if "text_input" not in tensors:
        raise InvalidArgument("text_input", "nothing", "a non-empty string, or input_ids or messages instead")
    texts = read_list(tensors["text_input"], "text_input")
    if not texts:
        raise InvalidArgument("text_input", "0 values", "at least one value")
    if "" in texts:
        at = f" at {texts.index('')}" if len(texts) > 1 else ""
        raise InvalidArgument("text_input", f"an empty string{at}", "a non-empty string")
    return tuple(texts)


# How to read the tensors of a model's clients.
DIALECTS: dict[str, Callable[[int | None], Dialect]] = {
    "vllm": lambda _: VllmBackend(),
    "trtllm": lambda vocab_size: trtllm.TrtLlm(vocab_size),
}


@dataclass(frozen=True)
class TokenizerStage:
    """Tokenizes for one generation model. `max_model_len` or `vocab_size` None: lengths or ids are checked by
    generation only. `bytes_per_token`: of a text, see quire.text_bounds. `model`: as its settings name it."""

    tokenizer: Tokenizer
    max_model_len: int | None
    forwarded: re.Pattern[str] | None = None
    dialect: Dialect | None = None
    vocab_size: int | None = None
    bytes_per_token: int | None = None
    model: str = ""
    chat: ChatTemplates = field(default_factory=ChatTemplates)
    excludes_prompt: bool = False  # see parse_request()

    @cached_property
    def _bounds(self) -> PromptBounds:
        return PromptBounds(self.max_model_len, self.bytes_per_token)

    def answer(self, request: StageRequest) -> dict[str, Tensor]:
        """The input tensors of generation. Raises InvalidArgument that names what the client got wrong."""
        self._bounds.check_strings(request)
        parameters = read_parameters(request.parameters, self.forwarded)
        parsed = parse_request(
            request.tensors, parameters, self.dialect, excludes_prompt=self.excludes_prompt
        )
        if parsed.chat:
            parsed = dataclasses.replace(parsed, prompts=(self.chat.render(parsed.chat),))
        try:
            rows = self._rows(parsed)
        except EncodingError as error:
            log.warning("%s could not be tokenized", parsed.prompt_name, exc_info=error)
            allowed = f"text that the tokenizer knows ({error})"
            raise InvalidArgument(parsed.prompt_name, describe(error.text), allowed) from error
        self._check(parsed, rows)
        encoded = encode_checked(
            parsed.given,
            parsed.options,
            bad_word_ids=self.tokenizer.bad_word_ids(parsed.given.get("bad_words", ())),
            arrival_ns=request.arrival_ns,
            tokenize_ns=time.monotonic_ns() - request.arrival_ns,
            acknowledge=True,
            vocabulary=self.tokenizer.vocabulary(self.model),
            prompt_lengths=[len(row) for row in rows] if len(rows) > 1 else [],
            prompt_text=parsed.texts if parsed.options.includes_prompt else [],
            warnings=parsed.warnings,
            is_separate=self.dialect is not None and self.dialect.is_separate,
            includes_prompt_ids=parsed.includes_prompt_ids,
        )
        return {
            "input_ids": np.concatenate([np.asarray(row, np.int32) for row in rows]),
            "request": np.frombuffer(encoded, np.uint8),
        }

    def _rows(self, parsed: ParsedRequest) -> list[Sequence[int]]:
        """The ids of each prompt."""
        limit = parsed.given.get("truncate_prompt_tokens")
        encode = partial(self.tokenizer.encode_batch, add_special_tokens=parsed.adds_special)
        if limit is None:
            self._bounds.check_prompts(parsed.texts, parsed.prompt_name)
            for text in parsed.texts:
                if self._bounds.needs_probe(text):
                    [ids] = encode([text[: self._bounds.probe_length]])
                    self._bounds.check_probe(text, len(ids), parsed.prompt_name)
        rows: list[Sequence[int]] = [*encode(parsed.texts)] if parsed.texts else [*parsed.id_lists]
        if limit is None:
            return rows
        if limit == -1:
            limit = (self.max_model_len or INT32_MAX) - 1
        return [
            self.tokenizer.truncate(prompt, list(ids), limit, add_special_tokens=parsed.adds_special)
            for prompt, ids in zip(parsed.prompts, rows, strict=True)
        ]

    def _check(self, parsed: ParsedRequest, rows: Sequence[Sequence[int]]) -> None:
        """Raises InvalidArgument that names the prompt, with its place where there are several."""
        name, what = parsed.prompt_name, "text of " if parsed.texts else ""
        for index, ids in enumerate(rows):
            at = f" at {index}" if len(rows) > 1 else ""
            if not ids:
                raise InvalidArgument(name, f"{what}0 tokens{at}", f"{what}at least one token")
            if self.max_model_len is not None and len(ids) >= self.max_model_len:
                allowed = f"at most {self.max_model_len - 1} tokens (max_model_len - 1)"
                raise InvalidArgument(name, f"{len(ids)} tokens{at}", allowed)
            # Ids that a client gives are generation's to check, under their own name.
            if parsed.texts and self.vocab_size is not None and max(ids) >= self.vocab_size:
                unknown = next(token_id for token_id in ids if token_id >= self.vocab_size)
                raise self.tokenizer.unknown_to_the_model(name, unknown, self.vocab_size, at)
