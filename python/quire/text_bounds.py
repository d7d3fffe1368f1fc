"""How long a text can be and still fit, so that a prompt of megabytes is refused without tokenizing it."""

from __future__ import annotations

import json
import math
from typing import Any

import tokenizers

from quire.tokenizer_bounds import steps_of

# No Unicode normal form and no change of case makes a text shorter than a fourth of it: in NFKC, the bold A
# U+1D400 of four bytes is an A.
_UNICODE = 4.0
_UNICODE_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")
_GROWING_NORMALIZERS = ("Prepend", "ByteLevel")
_KEEPING_PRE_TOKENIZERS = (
    "ByteLevel",
    "Metaspace",
    "Digits",
    "Punctuation",
    "Split",
    "UnicodeScripts",
    "FixedLength",
)
_NUM_BYTES = 256


def bytes_per_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    """How many bytes of a text one token stands for at most. None: any number, as where spaces vanish, or
    where a word that is not known is one token however long it is."""
    state = json.loads(tokenizer.to_str())
    pre_tokenizers = list(steps_of(state["pre_tokenizer"]))
    normalizers = list(steps_of(state["normalizer"]))
    shrinking = [_shrinking(step) for step in normalizers]
    if None in shrinking or not all(map(_keeps_all, pre_tokenizers)):
        return None
    added = state["added_tokens"]
    if any(token["lstrip"] or token["rstrip"] for token in added):  # takes the spaces around it
        return None
    is_byte_level = any(step["type"] == "ByteLevel" for step in [*pre_tokenizers, *normalizers])
    longest = _longest_token(state["model"], is_byte_level)
    if longest is None:
        return None
    longest = max([longest, *(len(token["content"].encode()) for token in added)])
    return math.ceil(longest * math.prod(factor for factor in shrinking if factor is not None))


def _shrinking(normalizer: dict[str, Any]) -> float | None:
    """How many times as long as its result a text may be. None: any number of times."""
    kind = normalizer["type"]
    if kind in _GROWING_NORMALIZERS:
        return 1.0
    if kind in _UNICODE_NORMALIZERS:
        return _UNICODE
    if kind == "Replace" and "String" in normalizer["pattern"]:
        before, after = len(normalizer["pattern"]["String"].encode()), len(normalizer["content"].encode())
        return max(1.0, before / after) if after else None
    return None


def _keeps_all(pre_tokenizer: dict[str, Any]) -> bool:
    return pre_tokenizer["type"] in _KEEPING_PRE_TOKENIZERS and pre_tokenizer.get("behavior") != "Removed"


def _longest_token(model: dict[str, Any], is_byte_level: bool) -> int | None:
    """In bytes, of a vocabulary that has a token for every byte, so that no text is left out or put together
    under "unknown". None: of another one."""
    if model["type"] not in ("BPE", "Unigram"):
        return None
    vocab = model["vocab"]
    tokens = set(vocab) if isinstance(vocab, dict) else {token for token, _ in vocab}
    if is_byte_level:
        # Every byte is written as one character.
        alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        return max(map(len, tokens)) if alphabet <= tokens else None
    has_bytes = model.get("byte_fallback") and all(f"<0x{byte:02X}>" in tokens for byte in range(_NUM_BYTES))
    return max(len(token.encode()) for token in tokens) if has_bytes else None
