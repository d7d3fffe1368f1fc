"""A GGUF file's vocabulary as tokenizer.json and tokenizer_config.json.

The file has tokens, merges or scores, and the name of a pre-tokenizer, which stands for code in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from quire.errors import UnsupportedModel, describe
from quire.gguf.header import GgufHeader
from quire.tokenizer import BYTE_OF

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST}"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT_4O = rf"{_WORD}{_UPPER}*{_LOWER}+{_SUFFIX}|{_WORD}{_UPPER}+{_LOWER}*{_SUFFIX}|\p{{N}}{{1,3}}|{_REST}"

# How text is cut before merges, by tokenizer.ggml.pre. GPT-2's way is inside ByteLevel.
_SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT_4O),
}
_GPT_2 = ("default", "gpt-2")
_DIGITS = ("smollm", "starcoder", "refact")  # GPT-2's, with each digit by itself
# A word that is a token as a whole is not built of merges. A text begins with BOS where nothing else is said.
_WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
_NORMALIZED = ("qwen2",)  # to NFC

_UNUSED, _CONTROL, _USER_DEFINED = 5, 3, 4  # of tokenizer.ggml.token_type
_PADDING = re.compile(r"\[PAD\d+\]")
_MARK = "▁"
_GEMMA = ("gemma", "gemma2", "gemma3")


def tokenizer_of(header: GgufHeader) -> tokenizers.Tokenizer:
    """Raises UnsupportedModel that names what is not known."""
    metadata = _Metadata(header)
    kind = metadata.value("model", str)
    if kind == "gpt2":
        tokenizer = _byte_level(metadata)
    elif kind == "llama":
        tokenizer = _sentence_piece(metadata)
    else:
        raise metadata.error("model", kind, "gpt2, llama")
    added = metadata.added_tokens()
    tokenizer.add_special_tokens(
        [AddedToken(each, normalized=False, special=True) for each in added[_CONTROL]]
    )
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in added[_USER_DEFINED]])
    begin = metadata.token("bos_token_id") if metadata.adds("bos", metadata.adds_bos_by_default) else None
    end = metadata.token("eos_token_id") if metadata.adds("eos", False) else None
    if begin or end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(each for each in (begin and "B:0", "$A:0", end and "E:0") if each)
            .replace("B:", f"{begin}:")
            .replace("E:", f"{end}:"),
            special_tokens=[(each, tokenizer.token_to_id(each)) for each in {begin, end} if each],
        )
    return tokenizer


def tokenizer_config(header: GgufHeader) -> dict[str, Any]:
    """The values of tokenizer_config.json: names of special tokens, and chat templates."""
    metadata = _Metadata(header)
    config: dict[str, Any] = {
        f"{name}_token": metadata.token(f"{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    prefix = "tokenizer.chat_template"
    templates = {"default": header.metadata.get(prefix)} | {
        key.removeprefix(f"{prefix}."): value
        for key, value in header.metadata.items()
        if key.startswith(f"{prefix}.")
    }
    named = [{"name": name, "template": text} for name, text in templates.items() if isinstance(text, str)]
    if named:
        config["chat_template"] = named if len(named) > 1 else named[0]["template"]
    return {name: value for name, value in config.items() if value is not None}


class _Metadata:
    """The keys below tokenizer.ggml, and the tokens by id."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.architecture = header.metadata.get("general.architecture")
        self.tokens: list[str] = self.value("tokens", list)
        self.types: list[int] = self.value("token_type", list, [1] * len(self.tokens))
        self.pre = self.value("pre", str, "")

    def value(self, key: str, kind: type, *default: Any) -> Any:
        given = self._header.metadata.get(f"tokenizer.ggml.{key}", *default)
        if type(given) is not kind:
            raise self.error(key, given, {str: "a string", list: "a list", bool: "true or false"}[kind])
        return given

    def token(self, key: str) -> str | None:
        token_id = self._header.metadata.get(f"tokenizer.ggml.{key}")
        if type(token_id) is not int or not 0 <= token_id < len(self.tokens):
            return None
        return self.tokens[token_id]

    def adds(self, token: str, default: bool) -> bool:
        return bool(self.value(f"add_{token}_token", bool, default))

    @property
    def adds_bos_by_default(self) -> bool:
        return self.value("model", str) == "llama" or self.pre in _WHOLE_WORDS

    def added_tokens(self) -> dict[int, list[str]]:
        return {
            kind: [token for token, each in zip(self.tokens, self.types, strict=False) if each == kind]
            for kind in (_CONTROL, _USER_DEFINED)
        }

    def vocabulary(self) -> dict[str, int]:
        """Without what only pads the embedding's table."""
        return {
            token: token_id
            for token_id, (token, kind) in enumerate(zip(self.tokens, self.types, strict=False))
            if not (kind == _UNUSED and _PADDING.fullmatch(token))
        }

    def merges(self) -> list[tuple[str, str]]:
        merges = (each.partition(" ") for each in self.value("merges", list))
        return [(left, right) for left, _, right in merges]

    def bpe(
        self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], **settings: Any
    ) -> tokenizers.Tokenizer:
        try:
            return tokenizers.Tokenizer(models.BPE(dict(vocabulary), list(merges), **settings))
        except Exception as error:  # tokenizers raises nothing more precise
            problem = f"tokenizer.ggml.merges: tokenizers cannot use it: {error}"
            raise UnsupportedModel(f"{self._header.file}: {problem}; allowed: pairs of tokens") from None

    def error(self, key: str, given: object, allowed: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self._header.file}: tokenizer.ggml.{key}: got {describe(given)}; allowed: {allowed}"
        )


def _byte_level(metadata: _Metadata) -> tokenizers.Tokenizer:
    pre = metadata.pre
    if pre not in (*_SPLITS, *_GPT_2, *_DIGITS):
        raise metadata.error("pre", pre or None, ", ".join((*_SPLITS, *_GPT_2, *_DIGITS)))
    letters = {byte: letter for letter, byte in BYTE_OF.items()}
    added = {token for tokens in metadata.added_tokens().values() for token in tokens}

    def spelled(token: str) -> str:
        """In the byte alphabet, where the file has it in plain text."""
        if token in added or all(letter in BYTE_OF for letter in token):
            return token
        return "".join(letters[byte] for byte in token.encode())

    vocabulary = {spelled(token): token_id for token, token_id in metadata.vocabulary().items()}
    tokenizer = metadata.bpe(vocabulary, metadata.merges(), ignore_merges=pre in _WHOLE_WORDS)
    first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
    if pre in _SPLITS:
        first = pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _SPLITS)
    tokenizer.pre_tokenizer = last if pre in _GPT_2 else pre_tokenizers.Sequence([first, last])
    if pre in _NORMALIZED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: _Metadata) -> tokenizers.Tokenizer:
    vocabulary = metadata.vocabulary()
    is_gemma = metadata.architecture in _GEMMA
    if is_gemma:
        # Runs of spaces are marks in the text. Scores are not the merges' order, but ids are.
        vocabulary = {
            token.replace(" ", _MARK) if not token.strip(" ") else token: token_id
            for token, token_id in vocabulary.items()
        }
        ranks: Sequence[float] = range(0, -len(metadata.tokens), -1)
    else:
        ranks = metadata.value("scores", list)
        if len(ranks) != len(metadata.tokens):
            raise metadata.error(
                "scores", f"{len(ranks)} scores", f"{len(metadata.tokens)}, one for each token"
            )
    unknown = metadata.token("unknown_token_id")
    merges = _merges_of(vocabulary, ranks)
    tokenizer = metadata.bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    steps = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    has_prefix = metadata.value("add_space_prefix", bool, not is_gemma) and not is_gemma
    if is_gemma:
        tokenizer.normalizer = normalizers.Replace(" ", _MARK)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif metadata.architecture == "phi3":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(_MARK), normalizers.Replace(" ", _MARK)]
        )
    else:
        scheme = "first" if has_prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_MARK, prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return tokenizer


def _merges_of(vocabulary: Mapping[str, int], ranks: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to build a token of two, the highest rank first."""
    found = []
    for token, token_id in vocabulary.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(ranks[token_id], *pair) for pair in known]
    found.sort(key=lambda each: (each[0], len(each[1]), len(each[2])), reverse=True)
    return [(left, right) for _, left, right in found]
