"""What a model folder holds of its tokenizer: tokenizer.json, and what transformers reads beside it.

tokenizer_config.json, special_tokens_map.json and added_tokens.json add tokens to it and say which one ends a
sequence. vocab.json with merges.txt takes the place of tokenizer.json. Chat templates are read with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from quire.chat import read_templates
from quire.errors import ModelNotFound, UnsupportedModel, describe
from quire.model_files import TOKENIZER_LIMIT, parse_json_object, read_bytes, read_json_object, read_text

TOKENIZER, CONFIG, MAP, ADDED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# All that decides which ids a text has.
TOKENIZER_FILES = (TOKENIZER, CONFIG, MAP, ADDED, "vocab.json", "merges.txt")

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# Tokenizers that vocab.json and merges.txt describe, by tokenizer_class, else by model_type: the tokens that
# transformers gives them, and how they split a text (None: as GPT-2).
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_GPT2 = (dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"), None)
_QWEN2 = (dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"), _QWEN2_SPLIT)
_BYTE_LEVEL: Mapping[str, tuple[Mapping[str, str], str | None]] = {
    "GPT2Tokenizer": _GPT2,
    "Qwen2Tokenizer": _QWEN2,
    "gpt2": _GPT2,
    "qwen2": _QWEN2,
    "qwen3": _QWEN2,
}


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The files as they were read once. `beside`: what the files beside tokenizer.json hold, by name."""

    content: bytes  # of tokenizer.json, or of one made from vocab.json and merges.txt
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
            defaults, content = _from_vocabulary(folder, beside.get(CONFIG, {}))
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
            if _content(value) not in known:
                known.add(_content(value))
                found[-len(found) - 1] = _token(value, special=True)
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


def _from_vocabulary(folder: Path, config: Mapping[str, Any]) -> tuple[Mapping[str, str], bytes]:
    """The default tokens and the tokenizer.json of a folder with vocab.json and merges.txt."""
    try:
        vocabulary = parse_json_object(
            read_bytes(folder / "vocab.json", TOKENIZER_LIMIT), folder / "vocab.json"
        )
        lines = read_text(folder / "merges.txt", TOKENIZER_LIMIT).split("\n")
    except FileNotFoundError:
        raise ModelNotFound(
            f"{TOKENIZER}: not found in {folder}; allowed: a folder with a {TOKENIZER}{_way_out(folder)}"
        ) from None
    name = str(
        config.get("tokenizer_class") or (_read_if_there(folder / "config.json") or {}).get("model_type")
    )
    kind = _BYTE_LEVEL.get(name.removesuffix("Fast"))
    if kind is None:
        raise UnsupportedModel(
            f"{folder}: got vocab.json and merges.txt of tokenizer_class {describe(name)}; allowed: "
            f"{', '.join(_BYTE_LEVEL)}, or a {TOKENIZER}{_command(folder)}"
        )
    merges = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    try:
        tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [(left, right) for left, right in merges]))
    except Exception as error:  # the library has no class of its own for what the files can get wrong
        raise UnsupportedModel(f"{folder}: vocab.json and merges.txt do not fit together: {error}") from None
    defaults, split = kind
    space = config.get("add_prefix_space") is True
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    else:
        tokenizer.normalizer = normalizers.NFC()
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), byte_level]
        )
    tokenizer.decoder = decoders.ByteLevel()
    return defaults, tokenizer.to_str().encode()


def _way_out(folder: Path) -> str:
    """How to get a tokenizer.json from what the folder has."""
    others = ("tokenizer.model", "tekken.json", "*.tiktoken", "*.model", "vocab.json", "merges.txt")
    found = next((path.name for other in others for path in sorted(folder.glob(other))), None)
    return f". There is {found}{_command(folder)}" if found else ""


def _command(folder: Path) -> str:
    program = f"from transformers import AutoTokenizer as A; A.from_pretrained({str(folder)!r})"
    return f', which `python -c "{program}.save_pretrained({str(folder)!r})"` makes'
