"""Prompts and sampling parameters that callers of `quire.LLM` give, checked before the engine sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from quire.chat import ChatTemplates
from quire.chat_options import ChatOptions
from quire.errors import InvalidArgument, describe
from quire.sampling_params import SamplingParams
from quire.tokenizer import EncodingError

if TYPE_CHECKING:
    from quire.tokenizer import Tokenizer

__all__ = [
    "Prompt",
    "chat_params",
    "encode_prompts",
    "read_conversations",
    "read_prompt",
    "read_prompts",
    "read_sampling_params",
]

Prompt: TypeAlias = "str | Sequence[int]"

_NO_SPECIAL = {"add_special_tokens": False}
_ONE = "a string or a list of token ids"
_ALL = f"{_ONE}, or a list of such prompts"


def read_prompts(prompts: object) -> list[str | list[int]]:
    """The prompts of one call, each with a copy of its ids. Arrays, as of numpy, count as lists."""
    if isinstance(prompts, str):
        return [prompts]
    items = _items(prompts)
    if items is None:
        raise InvalidArgument("prompts", _shown(prompts), _ALL)
    if items and _is_id_type(type(items[0])):
        return [read_prompt(items, "prompts[0]")]
    return [read_prompt(item, f"prompts[{index}]") for index, item in enumerate(items)]


def read_prompt(prompt: object, name: str) -> str | list[int]:
    """One prompt, which errors call `name`."""
    if isinstance(prompt, str):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            given = f"{describe(prompt)} (not valid Unicode: a lone surrogate)"
            raise InvalidArgument(name, given, _ONE) from None
        return prompt
    items = _items(prompt)
    # By type, not by item: a prompt has thousands of ids, of one type.
    types = set(map(type, items or ()))
    if items is None or not all(_is_id_type(kind) for kind in types):
        raise InvalidArgument(name, _shown(prompt), _ONE)
    return list(items) if types == {int} else list(map(int, items))


def read_conversations(messages: object, templates: ChatTemplates, options: Mapping[str, Any]) -> list[str]:
    """The prompts of one conversation or of several."""
    items = _items(messages)
    if items is None:
        raise InvalidArgument("messages", _shown(messages), "a list of messages, or a list of such lists")
    if not items or isinstance(items[0], Mapping):
        return [templates.render(ChatOptions(messages=items, **options))]
    prompts = []
    for index, item in enumerate(items):
        try:
            prompts.append(templates.render(ChatOptions(messages=item, **options)))
        except InvalidArgument as error:
            raise InvalidArgument(f"messages[{index}]: {error.field}", error.given, error.allowed) from None
    return prompts


def chat_params(params: Any) -> Any:
    """Sampling parameters of prompts from a chat template, which holds the special tokens itself. What is no
    sampling parameters is left for read_sampling_params() to refuse."""
    if isinstance(params, (list, tuple)):
        return [chat_params(item) for item in params]
    params = SamplingParams() if params is None else params
    return params.with_defaults(_NO_SPECIAL) if isinstance(params, SamplingParams) else params


def read_sampling_params(params: object, count: int, defaults: Mapping[str, Any]) -> list[SamplingParams]:
    """One for each of `count` prompts, with `defaults` for the fields that were not given."""
    allowed = "SamplingParams, or a list of them, one per prompt"
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params.with_defaults(defaults)] * count
    if not isinstance(params, (list, tuple)):
        hint = " (SamplingParams.from_dict reads a dict)" if isinstance(params, Mapping) else ""
        raise InvalidArgument("sampling_params", _shown(params), allowed + hint)
    for index, item in enumerate(params):
        if not isinstance(item, SamplingParams):
            raise InvalidArgument(f"sampling_params[{index}]", _shown(item), "SamplingParams")
    if len(params) != count:
        allowed = f"one for all, or {count}, one per prompt"
        raise InvalidArgument("sampling_params", f"{len(params)} of them", allowed)
    return [item.with_defaults(defaults) for item in params]


def encode_prompts(
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    params: Sequence[SamplingParams],
    names: Sequence[str],
    vocab_size: int,
) -> list[list[int]]:
    """The ids of each prompt, none of which is unknown to the model. Texts are tokenized together."""
    rows: list[list[int]] = [[] if isinstance(prompt, str) else prompt for prompt in prompts]
    for adds_special in (True, False):
        texts = {
            index: prompt
            for index, prompt in enumerate(prompts)
            if isinstance(prompt, str) and params[index].add_special_tokens is adds_special
        }
        if not texts:
            continue
        try:
            encoded = tokenizer.encode_batch(list(texts.values()), add_special_tokens=adds_special)
        except EncodingError as error:
            name = next(names[index] for index, text in texts.items() if text == error.text)
            allowed = f"text that the tokenizer knows ({error})"
            raise InvalidArgument(name, describe(error.text), allowed) from None
        for index, ids in zip(texts, encoded, strict=True):
            rows[index] = ids
    for prompt, ids, name in zip(prompts, rows, names, strict=True):
        if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
            continue
        bad = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        if isinstance(prompt, str):
            raise tokenizer.unknown_to_the_model(name, bad, vocab_size)
        raise InvalidArgument(f"{name}: prompt_ids", describe(bad), f"0 to {vocab_size - 1} (vocab_size)")
    return rows


def _is_id_type(kind: type) -> bool:
    return issubclass(kind, (int, np.integer)) and not issubclass(kind, bool)


def _items(given: object) -> Sequence[Any] | None:
    """The items of a list, or of an array; None where `given` is neither."""
    if isinstance(given, (str, bytes, bytearray, memoryview, Mapping, Set)):
        return None  # bytes would be taken for ids
    if callable(to_list := getattr(given, "tolist", None)):
        given = to_list()
    return given if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) else None


def _shown(given: object) -> str:
    is_iterator = hasattr(given, "__next__")
    return f"an iterator ({type(given).__name__})" if is_iterator else describe(given)
