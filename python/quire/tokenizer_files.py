"""What a model folder holds of its tokenizer: tokenizer.json, and what transformers reads beside it.

tokenizer_config.json, special_tokens_map.json and added_tokens.json add tokens to it and say which one ends a
sequence. Where there is no tokenizer.json, one is made (quire.tokenizer_maker). Chat templates are read with
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from quire.chat import read_templates
from quire.errors import UnsupportedModel, describe
from quire.model_files import TOKENIZER_LIMIT, read_bytes, read_json_object
from quire.tokenizer_maker import SOURCES, make_tokenizer

TOKENIZER, CONFIG, MAP, ADDED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# All that decides which ids a text has.
TOKENIZER_FILES = (TOKENIZER, CONFIG, MAP, ADDED, *SOURCES)

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The files as they were read once. `beside`: what the files beside tokenizer.json hold, by name."""

    content: bytes  # of tokenizer.json, or of one that was made
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_made: bool = False
    templates: Mapping[str, str] = field(default_factory=dict)  # of chats, by name

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Raises ModelError that names the file and what is wrong with it."""
        beside = {}
        for name in (CONFIG, MAP, ADDED):
            if (found := _read_if_there(folder / name)) is not None:
                beside[name] = found
        templates = read_templates(folder, beside.get(CONFIG, {}))
        try:
            content = read_bytes(folder / TOKENIZER, TOKENIZER_LIMIT)
            return cls(content=content, beside=beside, templates=templates)
        except FileNotFoundError:
            defaults, content = make_tokenizer(folder, beside.get(CONFIG, {}))
        beside[CONFIG] = {**defaults, **beside.get(CONFIG, {})}
        return cls(content=content, beside=beside, is_made=True, templates=templates)

    def complete(self, tokenizer: tokenizers.Tokenizer) -> tuple[str, ...]:
        """Adds to the tokenizer of tokenizer.json what the other files know, as transformers does; returns
        warnings."""
        wanted = self._tokens(tokenizer)
        tokenizer.add_tokens([*wanted.values()])
        if self.is_made:
            self._add_ends(tokenizer)
        return tuple(
            f"{CONFIG}: the token {describe(token.content)} has id {token_id} there, but "
            f"{tokenizer.token_to_id(token.content)} in {TOKENIZER}, which is used"
            for token_id, token in wanted.items()
            if token_id >= 0 and tokenizer.token_to_id(token.content) != token_id
        )

    @property
    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token and others by their names, as a chat template sees them."""
        return {name: _content(value) for name, value in self._named().items()}

    def _named(self) -> dict[str, Any]:
        """The same as the files write them: a text or an object."""
        values = self._values()
        names = [*_NAMED, *(name for name in values if name.endswith("_token") and name not in _NAMED)]
        named = {name: values[name] for name in names if isinstance(values.get(name), (str, dict))}
        extra = values.get("extra_special_tokens")
        return {**named, **extra} if isinstance(extra, dict) else named

    def _values(self) -> dict[str, Any]:
        values = dict(self.beside.get(CONFIG, {}))
        extra = _extra(values)
        if "added_tokens_decoder" not in values:  # newer files have all in one
            values |= self.beside.get(MAP, {})
        return values | {"extra_special_tokens": extra or _extra(values)}

    def _tokens(self, tokenizer: tokenizers.Tokenizer) -> dict[int, AddedToken]:
        """What to add in this order, by the ids that the files name; negative: a file names no id."""
        values, named = self._values(), self._named()
        extra = values["extra_special_tokens"]
        extra = extra if isinstance(extra, list) else []
        found: dict[int, AddedToken] = {}
        if "added_tokens_decoder" in values:
            for token_id, token in _items(values["added_tokens_decoder"]):
                found[token_id] = _token(token)
        else:
            special = [values.get(name) for name in _NAMED] + [*_extra(self.beside.get(CONFIG, {}))]
            special_texts = {_content(value) for value in special}
            for text, token_id in self.beside.get(ADDED, {}).items():
                if type(token_id) is not int:
                    raise _refused(ADDED, text, token_id, "a token id")
                is_special = text in special_texts
                found[token_id] = AddedToken(text, normalized=not is_special, special=is_special)
            found |= tokenizer.get_added_tokens_decoder()
        found = dict(sorted(found.items()))
        own = tokenizer.get_added_tokens_decoder().values()
        known = {token.content for token in [*found.values(), *own]}
        # What was special once stays it for `tokenizers`.
        specials = {token.content for token in own if token.special} | {*map(_content, named.values())}
        for token in found.values():
            token.special = token.special or token.content in specials
        for value in [*named.values(), *extra]:
            if (text := _content(value)) not in known:
                known.add(text)
                is_plain = isinstance(value, dict) and value.get("special") is False and text not in specials
                found[-len(found) - 1] = _token(value, special=not is_plain)
        return found

    def _add_ends(self, tokenizer: tokenizers.Tokenizer) -> None:
        """The tokens around a text, of which a tokenizer.json would tell."""
        config, names = self.beside[CONFIG], self.special_tokens
        begin = names.get("bos_token", "") if config.get("add_bos_token") else ""
        end = names.get("eos_token", "") if config.get("add_eos_token") else ""
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, (begin, "$A", end))),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {begin, end} - {""}],
        )


def _read_if_there(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return None


def _extra(values: Mapping[str, Any]) -> Any:
    """Special tokens beyond the usual names: a list, or an object of the model's own names and tokens."""
    found = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    return found if isinstance(found, (list, dict)) else []


def _content(value: Any) -> str:
    """The text of a token, which the files write as a text or as an object."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _token(value: Any, **flags: bool) -> AddedToken:
    if isinstance(value, dict):
        flags = {name: value[name] for name in _FLAGS if type(value.get(name)) is bool} | flags
    return AddedToken(_content(value), **flags)


def _items(decoder: Any) -> Iterator[tuple[int, Any]]:
    """Ids and tokens of added_tokens_decoder."""
    if not isinstance(decoder, dict):
        raise _refused(CONFIG, "added_tokens_decoder", decoder, "an object of ids and tokens")
    for token_id, token in decoder.items():
        if not (token_id.isascii() and token_id.isdigit() and len(token_id) < 10):
            raise _refused(CONFIG, "added_tokens_decoder", token_id, "token ids as keys")
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise _refused(CONFIG, f"added_tokens_decoder.{token_id}", token, "an object with content")
        yield int(token_id), token


def _refused(file: str, key: str, given: object, allowed: str) -> UnsupportedModel:
    return UnsupportedModel(f"{file}: {key}: got {describe(given)}; allowed: {allowed}")
